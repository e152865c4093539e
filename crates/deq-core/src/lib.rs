#![cfg_attr(docsrs, feature(doc_cfg))]

//! Deep equilibrium layers for Burn.
//!
//! A deep equilibrium model (DEQ) replaces a deep stack of layers by the fixed point `z* = f(z*,
//! x)` of one layer: found by a root finder forward, differentiated by the implicit function
//! theorem backward, so that training memory does not grow with depth (Bai, Kolter, Koltun, "Deep
//! Equilibrium Models", NeurIPS 2019).
//!
//! Write `f` as an [`EquilibriumCell`], pick a solver and a gradient in a [`DeqConfig`], and call
//! [`Deq::forward`]:
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Tensor};
//! use deq_core::{DeqConfig, EquilibriumCell};
//!
//! #[derive(Module, Debug)]
//! struct Cell {
//!     inner: Linear,
//! }
//!
//! impl EquilibriumCell for Cell {
//!     type State = Tensor<2>;
//!     type Context = Tensor<2>; // the injected input
//!     fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
//!         (self.inner.forward(z).mul_scalar(0.3) + x.clone()).tanh()
//!     }
//! }
//!
//! let device = Device::flex().autodiff();
//! let cell = Cell { inner: LinearConfig::new(8, 8).init(&device) };
//! let x = Tensor::ones([2, 8], &device);
//!
//! let deq = DeqConfig::new().build()?;
//! let out = deq.forward(&cell, &x, Tensor::zeros([2, 8], &device));
//! assert!(out.solve.expect("an equilibrium was solved for").all_converged());
//!
//! let grads = out.output.square().sum().backward();
//! assert!(cell.inner.weight.val().grad(&grads).is_some());
//! assert!(out.backward.solve().expect("backward ran").all_converged());
//! # Ok::<(), deq_core::DeqError>(())
//! ```
//!
//! # Contents
//!
//! - [`EquilibriumCell`], [`State`], [`CellContext`]: what a user writes. A state is a tensor of
//!   any shape, or several.
//! - [`Deq`], [`DeqConfig`], [`GradientConfig`]: the layer, also with
//!   [a solver of your own](Deq::with_solver); [`unroll`]: its explicit counterpart;
//!   [`Depth`]: either.
//! - [`FrozenCell`], [`StateLayout`]: a cell as a map of the rows `[batch, dim]` of the solvers,
//!   its evaluations and vector-Jacobian products without a tape; [`Evaluation`]: `f` at a point,
//!   for penalties whose gradient is recorded in the backward pass only, from a [`MapAt`] such as
//!   [`CellAt`].
//! - [`Precision`]: maps in bf16 or f16, solved in f32; [`Lowered`]: such a map by itself.
//! - [`dropout`], [`normalization`]: masks and weights that are computed once per solve.
//! - [`check`]: your own Jacobian products against automatic differentiation; [`random`]: draws
//!   that a resumed run repeats.
//! - [`tutorial`]: from a module to a trained model; [`gradients`]: which strategy to choose.
//!
//! The book's page on this crate is
//! [First layer](https://github.com/deq-rs/deq/blob/main/docs/src/first-layer.md).
//!
//! # Feature flags
//!
//! No backend is selected by default. `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm` and `cpu`
//! bring Burn's backend and the kernels for it, `remote` Burn's. At least one is needed to run: the
//! backward hook is implemented per backend.

mod cell;
pub mod check;
mod config;
mod context;
mod depth;
mod deq;
pub mod dropout;
mod equilibrium;
mod error;
mod evaluation;
mod gradient;
mod hook;
pub mod normalization;
mod precision;
pub mod random;
mod report;
mod state;
mod tape;

#[doc = include_str!("../docs/gradients.md")]
pub mod gradients {}

#[doc = include_str!("../docs/tutorial.md")]
pub mod tutorial {}

pub use cell::{EquilibriumCell, FrozenCell, Pullback};
pub use config::DeqConfig;
pub use context::{CellContext, TensorMap};
pub use depth::Depth;
pub use deq::Deq;
pub use deq_solvers as solvers;
pub use equilibrium::{Correction, Equilibrium, unroll};
pub use error::DeqError;
pub use evaluation::{CellAt, Evaluation, MapAt};
pub use gradient::{
    GradientConfig, ImplicitConfig, NeumannGradientConfig, PhantomConfig, ReversibleGradientConfig,
    ShineConfig, UnrolledConfig,
};
pub use precision::{Lowered, Precision};
pub use report::{BackwardPass, BackwardReport};
pub use state::{State, StateLayout};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
