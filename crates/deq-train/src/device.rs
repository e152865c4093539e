//! Devices by name.

use crate::error::{DeviceError, TrainError};
use burn::tensor::{Device, Tensor};
use deq_data::catch_panic;
use std::any::Any;

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

/// What [`best_device`] tries, in this order: the makers' own way to a card before one that serves
/// all, and the CPU last, by the faster backend first.
const BEST_FIRST: [&str; 7] = ["cuda", "rocm", "metal", "vulkan", "wgpu", "flex", "cpu"];

/// The device called `name`: `flex` (the CPU), or `wgpu`, `vulkan`, `metal`, `cuda`, `rocm`, these
/// two with an optional index as in `cuda:1`, `cpu` (the CPU by CubeCL), or `auto`, which is
/// [`best_device`].
///
/// A small computation is made on it, unless it is the CPU.
///
/// # Errors
///
/// [`DeviceError::Unknown`] for a name that does not exist, [`DeviceError::NotCompiled`] for one
/// whose cargo feature is off, [`DeviceError::NotWorking`] where hardware or driver is missing.
pub fn device(name: &str) -> Result<Device, TrainError> {
    if name == "auto" {
        return device(best_device());
    }
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let unknown = || {
        TrainError::from(DeviceError::Unknown {
            name: name.to_owned(),
            known: list(false),
        })
    };
    let found = DEVICES.iter().find(|(device, _)| *device == kind);
    let &(feature, compiled) = found.ok_or_else(unknown)?;
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
    let device = make(feature, index).ok_or_else(unknown)?;
    if feature != "flex" {
        try_out(&device, feature, index).map_err(|reason| DeviceError::NotWorking {
            name: name.to_owned(),
            reason,
            compiled: list(true),
        })?;
    }
    Ok(device)
}

/// The name of the first device that is compiled in, the CPU if it is, for weights that are only
/// read and written.
pub fn any_device() -> &'static str {
    let compiled = DEVICES.iter().find(|(_, compiled)| *compiled);
    compiled.map_or(DEVICES[0].0, |(name, _)| name)
}

/// The name of the best device that is compiled in and works on this machine: the first of `cuda`,
/// `rocm`, `metal`, `vulkan`, `wgpu`, `flex`, `cpu`.
///
/// A Vulkan driver that computes on the CPU is passed over, since `flex` does that faster; it can
/// be named. Where nothing works, the answer is [`any_device`], whose error then says so.
pub fn best_device() -> &'static str {
    let works = |name: &&str| {
        let is_compiled = DEVICES.contains(&(*name, true));
        is_compiled && (*name == "flex" || is_a_card(name) && device(name).is_ok())
    };
    BEST_FIRST.into_iter().find(works).unwrap_or(any_device())
}

/// Whether what a panic carries says, in the words of Burn's runtimes, that a device has no memory
/// left. Operations on a device have no other way to say so.
pub fn is_out_of_memory(panic: &(dyn Any + Send)) -> bool {
    let words = [
        "out of device memory",
        "out-of-memory",
        "can't allocate buffer of size",
    ];
    text_of(panic).is_some_and(|text| words.iter().any(|words| text.contains(words)))
}

/// Why a device failed at what it was sent, if that is what a panic tells, in the words of Burn.
/// Operations on a device have no other way to say so.
pub fn device_failure(panic: &(dyn Any + Send)) -> Option<String> {
    let text = text_of(panic)?;
    text.starts_with("Error while reading data")
        .then(|| innermost(text))
}

fn text_of(panic: &(dyn Any + Send)) -> Option<&str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
}

/// The names there are, or those compiled in, separated by commas.
fn list(only_compiled: bool) -> String {
    let names = DEVICES
        .iter()
        .filter(|(_, compiled)| *compiled || !only_compiled);
    names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn make(kind: &str, index: usize) -> Option<Device> {
    // Unused when no indexed backend is compiled in.
    let _ = index;
    match kind {
        #[cfg(feature = "flex")]
        "flex" => Some(Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(webgpu::preferred()),
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

/// What there is of a kind on this machine, without opening any of it.
pub(crate) fn find(kind: &str) -> Vec<Device> {
    match kind {
        #[cfg(feature = "wgpu")]
        "wgpu" => webgpu::enumerate(),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::enumerate(burn::tensor::DeviceType::Vulkan).into_vec(),
        #[cfg(feature = "metal")]
        "metal" => Device::enumerate(burn::tensor::DeviceType::Metal).into_vec(),
        #[cfg(feature = "cuda")]
        "cuda" => Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec(),
        #[cfg(feature = "rocm")]
        "rocm" => Device::enumerate(burn::tensor::DeviceType::Rocm).into_vec(),
        #[cfg(feature = "cpu")]
        "cpu" => vec![Device::cpu()],
        _ => Vec::new(),
    }
}

/// WebGPU without OpenGL, which Burn falls back to on a machine without another card: its context
/// belongs to one thread at a time, and where another waits for it for longer than some seconds,
/// as on a slow device, that one panics and the program hangs.
#[cfg(feature = "wgpu")]
mod webgpu {
    use burn::backend::{CubeDevice, DeviceOps, WgpuBackend, WgpuDevice, WgpuDeviceKind};
    use burn::tensor::Device;
    use std::sync::OnceLock;

    /// The graphics interfaces to try, the best first. Burn's own choice on macOS is Metal.
    const INTERFACES: &[WgpuBackend] = if cfg!(target_os = "macos") {
        &[WgpuBackend::Auto]
    } else {
        &[WgpuBackend::Vulkan, WgpuBackend::Dx12]
    };

    /// The device that wgpu prefers among those of the best interface.
    pub(super) fn preferred() -> Device {
        let interface = best().map_or(INTERFACES[0], |(interface, _)| *interface);
        Device::new(CubeDevice::Wgpu(WgpuDevice::default().on(interface)))
    }

    /// The devices of the best interface.
    pub(super) fn enumerate() -> Vec<Device> {
        best().map_or(Vec::new(), |(_, devices)| devices.clone())
    }

    /// The first interface that has a card, or else that has any device; looked for once, since
    /// every question opens a driver.
    fn best() -> Option<&'static (WgpuBackend, Vec<Device>)> {
        static BEST: OnceLock<Option<(WgpuBackend, Vec<Device>)>> = OnceLock::new();
        BEST.get_or_init(look_for_best).as_ref()
    }

    fn look_for_best() -> Option<(WgpuBackend, Vec<Device>)> {
        let found = INTERFACES.iter().map(|api| (*api, devices_of(*api)));
        let found: Vec<_> = found.filter(|(_, devices)| !devices.is_empty()).collect();
        let is_card = |device: &Device| !super::computes_on_cpu(device);
        let card = found
            .iter()
            .position(|(_, devices)| devices.iter().any(is_card));
        found.into_iter().nth(card.unwrap_or(0))
    }

    fn devices_of(interface: WgpuBackend) -> Vec<Device> {
        use WgpuDeviceKind::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};
        // Burn lists the devices of one kind at a time.
        let kinds = [
            DiscreteGpu(0),
            IntegratedGpu(0),
            VirtualGpu(0),
            Cpu,
            Other(0),
        ];
        let ids = kinds.into_iter().flat_map(|kind| {
            let like = CubeDevice::Wgpu(WgpuDevice::new(kind).on(interface));
            CubeDevice::enumerate(like.id())
        });
        let from_id = <CubeDevice as burn::backend::Device>::from_id;
        ids.map(|id| Device::new(from_id(id))).collect()
    }
}

/// Requires that Burn's default device works, where Burn reads an optimizer wherever the model is.
pub(crate) fn require_default_device() -> Result<(), DeviceError> {
    let tried = catch_panic(Device::default).and_then(|default| {
        let mut kinds = ["cuda", "rocm"].into_iter();
        let kind = kinds.find(|kind| make(kind, 0).as_ref() == Some(&default));
        kind.map_or_else(|| compute(&default), |kind| try_out(&default, kind, 0))
    });
    tried.map_err(|reason| DeviceError::DefaultNotWorking {
        reason,
        compiled: list(true),
    })
}

/// Computes `e^0 + 1` on the device, or says why that cannot be done: the exponential, since CUDA
/// has it in a library of the toolkit, which may be missing where there is a driver.
fn try_out(device: &Device, kind: &str, index: usize) -> Result<(), String> {
    // Asked first: a runtime without its driver panics on threads of its own.
    match catch_panic(|| find(kind).len())? {
        0 => return Err("no such hardware was found, or no driver for it".to_owned()),
        found if index >= found => return Err(format!("there are {found} of its kind")),
        _ => {}
    }
    compute(device)
}

fn compute(device: &Device) -> Result<(), String> {
    // Of data, since a compiler knows the exponential of a constant.
    let two = || Tensor::<1>::from_data([0.0], device).exp().add_scalar(1.0);
    let two = catch_panic(|| two().try_into_data())?;
    let two = two.map_err(|error| innermost(&error.to_string()))?;
    match two.iter::<f32>().next() {
        Some(two) if (two - 2.0).abs() < 1e-6 => Ok(()),
        other => Err(format!("it computes e^0 + 1 = {other:?}")),
    }
}

/// The last cause of an error that lists what caused it, line by line.
fn innermost(error: &str) -> String {
    let cause = error.rsplit("Caused by:").next().unwrap_or(error);
    let cause = cause.split("Backtrace:").next().unwrap_or(cause);
    let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
    cause.trim_end_matches('.').to_owned()
}

/// Whether there is hardware of the kind, and not only a driver that computes on the CPU.
fn is_a_card(kind: &str) -> bool {
    let found = catch_panic(|| find(kind)).unwrap_or_default();
    found.iter().any(|device| !computes_on_cpu(device))
}

#[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
fn computes_on_cpu(device: &Device) -> bool {
    use burn::backend::{CubeDevice, DispatchDevice, WgpuDeviceKind};
    matches!(
        device.as_dispatch(),
        DispatchDevice::Cube(CubeDevice::Wgpu(wgpu)) if wgpu.kind == WgpuDeviceKind::Cpu
    )
}

#[cfg(not(any(feature = "metal", feature = "vulkan", feature = "wgpu")))]
fn computes_on_cpu(_: &Device) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_by_its_last_cause() {
        let listed = "It failed\nCaused by:\n  A launch failed\nCaused by:\n  a.bc was not\n  \
                      found.\nBacktrace:\nNo backtrace available";
        assert_eq!(innermost(listed), "a.bc was not found");
        assert_eq!(innermost("it failed"), "it failed");
        let panic = format!("Error while reading data: {listed}");
        assert_eq!(
            device_failure(&panic).as_deref(),
            Some("a.bc was not found")
        );
        assert_eq!(device_failure(&"index out of bounds"), None);
    }

    #[test]
    fn auto_is_a_device_that_works() {
        let best = best_device();
        assert!(DEVICES.contains(&(best, true)));
        let found = device("auto").expect("the tests have a device");
        assert_eq!(Some(found), make(best, 0));
    }

    #[cfg(all(feature = "wgpu", not(target_os = "macos")))]
    #[test]
    fn webgpu_is_never_opengl() {
        use burn::backend::{CubeDevice, DispatchDevice, WgpuBackend};
        let mut devices = find("wgpu");
        devices.extend(make("wgpu", 0));
        assert!(!devices.is_empty());
        for device in devices {
            let DispatchDevice::Cube(CubeDevice::Wgpu(wgpu)) = device.as_dispatch() else {
                panic!("{device:?} is not of wgpu");
            };
            let interface = wgpu.backend;
            assert!(matches!(interface, WgpuBackend::Vulkan | WgpuBackend::Dx12));
        }
    }

    #[test]
    fn a_device_that_does_not_work_is_named_with_its_reason() {
        let error = DeviceError::NotWorking {
            name: "cuda:1".to_owned(),
            reason: "there are 1 of its kind".to_owned(),
            compiled: list(true),
        };
        let start = "the device cuda:1 does not work here: there are 1 of its kind; install";
        assert!(error.to_string().starts_with(start));
    }

    #[test]
    fn memory_that_is_lacking_is_told_from_other_panics() {
        // As CubeCL 0.11 words it, wrapped by what reads a tensor.
        let said = "Error while reading data: WithContext { reason: \"out of device memory \
                    allocating 4096 bytes\" }";
        assert!(is_out_of_memory(&said.to_owned()));
        assert!(is_out_of_memory(&"can't allocate buffer of size: 4096"));
        assert!(!is_out_of_memory(&"index out of bounds"));
        assert!(!is_out_of_memory(&7_u8));
    }

    #[test]
    fn auto_tries_every_device() {
        let mut names = DEVICES.map(|(name, _)| name);
        let mut tried = BEST_FIRST;
        names.sort_unstable();
        tried.sort_unstable();
        assert_eq!(names, tried);
    }
}
