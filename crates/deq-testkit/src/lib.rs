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
