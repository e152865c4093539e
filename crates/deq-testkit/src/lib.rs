//! Test problems with known answers, finite differences, assertions with written-down tolerances,
//! readers of recorded numbers, and damaged files.
//!
//! A development dependency of every crate of the workspace; never published.

mod assertions;
mod dense;
mod differences;
mod fuzz;
mod golden;
mod problems;

pub use assertions::{assert_close, relative_error, values};
pub use dense::solve_dense;
pub use differences::finite_difference;
pub use fuzz::fuzz;
pub use golden::{Golden, GoldenError, cases, fixture, fixtures_of_kind};
pub use problems::{Problem, problems};

use burn::tensor::{Device, FloatDType};
use std::sync::OnceLock;

/// The plain CPU device with f64 as its float type.
///
/// A device's types are fixed once the process makes its first tensor, so every test of a binary
/// that uses this must use it first, and only it.
///
/// # Panics
///
/// If a tensor was made before.
pub fn f64_device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE
        .get_or_init(|| {
            let mut device = Device::flex();
            device
                .configure(FloatDType::F64)
                .expect("f64 must be chosen before the first tensor of the process");
            device
        })
        .clone()
}

/// The device of that name, if the feature of its backend is on in the crate that asks.
#[macro_export]
macro_rules! named_device {
    ($name:expr) => {
        match $name {
            "flex" => Some(burn::tensor::Device::flex()),
            #[cfg(feature = "wgpu")]
            "wgpu" => Some(burn::tensor::Device::wgpu(
                burn::tensor::DeviceKind::DefaultDevice,
            )),
            #[cfg(feature = "vulkan")]
            "vulkan" => Some(burn::tensor::Device::vulkan(
                burn::tensor::DeviceKind::DefaultDevice,
            )),
            #[cfg(feature = "metal")]
            "metal" => Some(burn::tensor::Device::metal(
                burn::tensor::DeviceKind::DefaultDevice,
            )),
            #[cfg(feature = "cuda")]
            "cuda" => Some(burn::tensor::Device::cuda(0)),
            #[cfg(feature = "rocm")]
            "rocm" => Some(burn::tensor::Device::rocm(0)),
            #[cfg(feature = "cpu")]
            "cpu" => Some(burn::tensor::Device::cpu()),
            _ => None,
        }
    };
}

/// The device that `DEQ_TEST_DEVICE` names, else the CPU.
#[macro_export]
macro_rules! test_device {
    () => {{
        let name = std::env::var("DEQ_TEST_DEVICE").unwrap_or_else(|_| "flex".to_owned());
        let device = $crate::named_device!(name.as_str());
        device.unwrap_or_else(|| panic!("DEQ_TEST_DEVICE={name} is not among the enabled features"))
    }};
}
