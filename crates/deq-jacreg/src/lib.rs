//! Stochastic Jacobian regularisation of deep equilibrium models (Bai, Koltun, Kolter, ICML 2021),
//! and estimates of the spectral radius of their Jacobians, on [Burn](burn).
//!
//! A deep equilibrium model costs as many evaluations of its layer `f` as its solver needs, and
//! training tends to make that number grow. A penalty on the Frobenius norm of the Jacobian `df/dz`
//! at the equilibrium, which bounds its spectral radius, makes forward and backward solves shorter.
//!
//! # Example
//!
//! ```
//! use burn::module::{Initializer, Module, Param};
//! use burn::tensor::{Device, Distribution, Tensor};
//! use deq_core::{DeqConfig, EquilibriumCell};
//! use deq_jacreg::{
//!     JacobianPenaltyConfig, Observation, Phase, SpectralRadiusConfig, spectral_radius,
//! };
//!
//! #[derive(Module, Debug)]
//! struct Cell {
//!     weight: Param<Tensor<2>>,
//! }
//!
//! impl EquilibriumCell for Cell {
//!     type State = Tensor<2>;
//!     type Context = Tensor<2>; // the injected input
//!
//!     fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
//!         (z.matmul(self.weight.val()) + x.clone()).tanh()
//!     }
//!
//!     // Makes the gradient of the penalty exact; without it, differences are taken.
//!     fn tangent(
//!         &self,
//!         z: Tensor<2>,
//!         d: Tensor<2>,
//!         x: &Tensor<2>,
//!     ) -> Option<(Tensor<2>, Tensor<2>)> {
//!         let fz = self.forward(z, x);
//!         let slope = fz.clone().square().neg() + 1.0;
//!         Some((fz, d.matmul(self.weight.val()) * slope))
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::flex().autodiff();
//! device.seed(1);
//! let normal = Initializer::Normal { mean: 0.0, std: 0.1 };
//! let cell = Cell { weight: normal.init([8, 8], &device) };
//! let x = Tensor::<2>::random([4, 8], Distribution::Normal(0.0, 1.0), &device);
//!
//! let deq = DeqConfig::new().build()?;
//! let config = JacobianPenaltyConfig::new().with_frequency(1.0);
//! let penalty = config.build()?;
//! let mut policy = config.policy()?;
//!
//! // One training step.
//! let (seed, step) = (42, 0);
//! let out = deq.forward(&cell, &x, x.zeros_like());
//! let mut loss = out.output.clone().square().mean();
//! if let Some(weight) = policy.decide(seed, step, Phase::Equilibrium) {
//!     let estimate = penalty.at_equilibrium(&cell, &x, &out)?;
//!     loss = loss + estimate.value * weight;
//! }
//! let grads = loss.backward();
//! assert!(cell.weight.val().grad(&grads).is_some());
//! if let Some(solve) = &out.solve {
//!     policy.observe(Observation::from(solve)); // for weights that follow the solves
//! }
//!
//! // What the penalty keeps small.
//! let radius = spectral_radius(&cell, &x, &out.z, &SpectralRadiusConfig::new())?;
//! assert!(radius.max() < 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! # Contents
//!
//! - [`JacobianPenaltyConfig`]: all settings, in code or in a file;
//! - [`JacobianPenalty::at_equilibrium`]: the penalty at the end of a layer, by one of three
//!   [estimates](Estimator), and [`at`](JacobianPenalty::at) any state; they use the
//!   [tangent](deq_core::EquilibriumCell::tangent) of a cell that has one (one with kinks needs
//!   it);
//! - [`PenaltyPolicy`]: which training steps are penalised, with a weight that stays, follows a
//!   schedule or is moved by what the solves do;
//! - [`spectral_radius`]: power iteration with a convergence test per sample; [`arnoldi`]: several
//!   dominant eigenvalues;
//! - [`frobenius_norm_sq`], [`dense_jacobian`], [`spectrum`]: exact values, for small models and
//!   tests.
//!
//! The book's page on this crate is
//! [The Jacobian penalty](https://github.com/deq-rs/deq/blob/main/docs/src/penalty.md).
//!
//! # Features
//!
//! None selects anything in this crate: `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm`, `cpu`
//! and `remote` pass on to Burn. The device of the tensors decides where the work is done.

#![deny(missing_docs)]

#[macro_use]
mod setters;

mod arnoldi;
mod config;
mod difference;
mod error;
mod exact;
mod penalty;
mod policy;
mod schedule;
mod spectral;

pub use arnoldi::{ArnoldiConfig, RitzValues, arnoldi, spectrum};
pub use config::{DenoisingConfig, Estimator, JacobianPenaltyConfig, Probe};
pub use error::InvalidPenalty;
pub use exact::{dense_jacobian, frobenius_norm_sq};
pub use nalgebra::Complex;
pub use penalty::{JacobianPenalty, Penalty};
pub use policy::{Observation, PenaltyPolicy, PenaltyState, Phase};
pub use schedule::{IncrementConfig, LinearConfig, WeightControllerConfig, WeightSchedule};
pub use spectral::{SpectralRadius, SpectralRadiusConfig, spectral_radius};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
