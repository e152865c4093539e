//! Stochastic Jacobian regularisation of deep equilibrium models (Bai, Koltun, Kolter, ICML 2021), and estimates of the
//! spectral radius of their Jacobians, on [Burn](burn).
//!
//! A deep equilibrium model costs as many evaluations of its layer `f` as its solver needs, and training tends to make that
//! number grow. A penalty on the Frobenius norm of the Jacobian `df/dz` at the equilibrium keeps the layer contractive, so
//! that forward and backward solves stay short.
//!
//! # Example
//!
//! ```
//! use burn::module::{Initializer, Module, Param};
//! use burn::tensor::{Device, Distribution, Tensor};
//! use deq_core::{EquilibriumCell, FrozenCell};
//! use deq_jacreg::{JacobianPenaltyConfig, SpectralRadiusConfig, spectral_radius};
//!
//! #[derive(Module, Debug)]
//! struct Cell {
//!     weight: Param<Tensor<2>>,
//! }
//!
//! impl EquilibriumCell for Cell {
//!     type Context = Tensor<2>; // the injected input
//!
//!     fn forward(&self, z: Tensor<2>, input: &Tensor<2>) -> Tensor<2> {
//!         (z.matmul(self.weight.val()) + input.clone()).tanh()
//!     }
//! }
//!
//! # fn main() -> Result<(), deq_jacreg::InvalidPenalty> {
//! let device = Device::flex().autodiff();
//! device.seed(1);
//! let normal = Initializer::Normal { mean: 0.0, std: 0.1 };
//! let cell = Cell { weight: normal.init([8, 8], &device) };
//! let input = Tensor::<2>::random([4, 8], Distribution::Normal(0.0, 1.0), &device);
//!
//! // The equilibrium; a solver of `deq-solvers` would find it in fewer steps.
//! let frozen = FrozenCell::new(&cell, &input);
//! let mut z = input.zeros_like().inner();
//! for _ in 0..50 {
//!     z = frozen.call(z);
//! }
//!
//! // One training step.
//! let penalty = JacobianPenaltyConfig::new().with_frequency(1.0).build()?;
//! let (seed, step) = (42, 0);
//! let mut loss = cell.forward(z.clone(), &input).square().mean();
//! if penalty.applies_at(seed, step) {
//!     let estimate = penalty.estimate(&cell, &input, z.clone())?;
//!     loss = loss + estimate.value * penalty.weight_at(step);
//! }
//! let grads = loss.backward();
//! assert!(cell.weight.val().grad(&grads).is_some());
//!
//! // What the penalty keeps small.
//! let radius = spectral_radius(&frozen, z, &SpectralRadiusConfig::new())?;
//! assert!(radius.max() < 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! # Contents
//!
//! - [`JacobianPenaltyConfig`], [`JacobianPenalty`]: the penalty, with [two estimators](Estimator), its schedules of
//!   weight and frequency, and its relatives: [`denoising_energy`](JacobianPenalty::denoising_energy), and probes turned by power iteration;
//! - [`TangentCell`]: a cell's own Jacobian product, for which the penalty's gradient is exact; cells with kinks need it;
//! - [`WeightController`]: a weight that follows what the solves do;
//! - [`spectral_radius`]: power iteration with a convergence test per sample; [`arnoldi`]: several dominant eigenvalues;
//! - [`frobenius_norm_sq`], [`dense_jacobian`], [`spectrum`]: exact values, for small models and tests.
//!
//! # Features
//!
//! None selects anything in this crate: `flex`, `wgpu`, `vulkan`, `metal`, `cuda` and `rocm` pass on to Burn. The device of the
//! tensors decides where the work is done.

#![deny(missing_docs)]

mod arnoldi;
mod config;
mod controller;
mod difference;
mod error;
mod exact;
mod penalty;
mod spectral;

pub use arnoldi::{ArnoldiConfig, RitzValues, arnoldi, spectrum};
pub use config::{
    Estimator, IncrementConfig, JacobianPenalty, JacobianPenaltyConfig, LinearConfig, Probe,
    WeightSchedule,
};
pub use controller::{WeightController, WeightControllerConfig};
pub use deq_core::TangentCell;
pub use error::InvalidPenalty;
pub use exact::{dense_jacobian, frobenius_norm_sq};
pub use nalgebra::Complex;
pub use penalty::Penalty;
pub use spectral::{SpectralRadius, SpectralRadiusConfig, spectral_radius};
