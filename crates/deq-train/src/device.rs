//! Devices by name.

use crate::error::{DeviceError, TrainError};
use burn::tensor::Device;

/// Every device name with the cargo feature that brings it.
const DEVICES: [(&str, bool); 7] = [
    ("flex", cfg!(feature = "flex")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("metal", cfg!(feature = "metal")),
    ("cuda", cfg!(feature = "cuda")),
    ("rocm", cfg!(feature = "rocm")),
    ("cpu", cfg!(feature = "cpu")),
];

/// The device called `name`: `flex` (the CPU), or `wgpu`, `vulkan`, `metal`, `cuda`, `rocm`, these
/// two with an optional index as in `cuda:1`, or `cpu` (the CPU by CubeCL).
///
/// # Errors
///
/// [`DeviceError::Unknown`] for a name that does not exist, [`DeviceError::NotCompiled`] for one
/// whose cargo feature is off.
pub fn device(name: &str) -> Result<Device, TrainError> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let list = |only_compiled: bool| {
        let names = DEVICES
            .iter()
            .filter(|(_, compiled)| *compiled || !only_compiled);
        names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    let unknown = || {
        TrainError::from(DeviceError::Unknown {
            name: name.to_owned(),
            known: list(false),
        })
    };
    let &(feature, compiled) = DEVICES
        .iter()
        .find(|(device, _)| *device == kind)
        .ok_or_else(unknown)?;
    let index: usize = index.parse().map_err(|_| unknown())?;
    if index > 0 && !matches!(feature, "cuda" | "rocm") {
        return Err(unknown());
    }
    if !compiled {
        return Err(DeviceError::NotCompiled {
            name: name.to_owned(),
            feature,
            compiled: list(true),
        }
        .into());
    }
    make(feature, index).ok_or_else(unknown)
}

/// The name of the first device that is compiled in, the CPU if it is, for weights that are only
/// read and written.
pub fn any_device() -> &'static str {
    let compiled = DEVICES.iter().find(|(_, compiled)| *compiled);
    compiled.map_or(DEVICES[0].0, |(name, _)| name)
}

fn make(kind: &str, index: usize) -> Option<Device> {
    // Unused when no indexed backend is compiled in.
    let _ = index;
    match kind {
        #[cfg(feature = "flex")]
        "flex" => Some(Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "metal")]
        "metal" => Some(Device::metal(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(index)),
        #[cfg(feature = "rocm")]
        "rocm" => Some(Device::rocm(index)),
        #[cfg(feature = "cpu")]
        "cpu" => Some(Device::cpu()),
        _ => None,
    }
}
