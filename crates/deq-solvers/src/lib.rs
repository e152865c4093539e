#![cfg_attr(docsrs, feature(doc_cfg))]

//! Batched fixed-point solvers on Burn device tensors.
//!
//! A [`FixedPointMap`] is any function from `[batch, dim]` to `[batch, dim]` whose rows are
//! independent problems `z = f(z)`. A solver proposes iterates; one loop, [`Solve::solve`],
//! evaluates the map, tests every sample against a [`StopRule`], holds the samples that have ended,
//! and returns a [`Solution`] with the best iterate, the residual, the steps and the
//! [`SolveStatus`] of each.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use deq_solvers::{AndersonConfig, Solve, StopConfig};
//!
//! // cos(z) = z, for a batch of three samples of two unknowns each.
//! let z0 = Tensor::<2>::zeros([3, 2], &Device::flex());
//! let stop = StopConfig::new().with_rel_tol(1e-5).build()?;
//! let solver = AndersonConfig::new().build()?;
//! let solution = solver.solve(&mut |z: Tensor<2>| z.cos(), z0, &stop).into_result()?;
//!
//! let z: Vec<f32> = solution.z.into_data().iter::<f32>().collect();
//! assert!(z.iter().all(|z| (z - 0.739_085).abs() < 1e-4));
//! assert!(solution.stats.nfe < 8); // plain iteration needs 29 evaluations
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a fixed point is, and how it is found
//!
//! A fixed point of `f` is a state that `f` does not change. The simplest way to one is to apply
//! `f` again and again ([`Picard`]): if `f` brings any two states closer by a factor `L < 1`, the
//! distance to the fixed point shrinks by `L` each time, and a digit costs `1 / log10(1 / L)`
//! evaluations: 22 at 0.9, 230 at 0.99. At 1 and beyond it does not arrive at all.
//!
//! What is measured on the way is the *residual* `g(z) = f(z) - z`, which comes with every
//! evaluation. Where `f` contracts, the distance to the fixed point is at most `|g(z)| / (1 - L)`.
//! All the other methods look for a zero of `g` and use the residuals of several points to get
//! there sooner:
//!
//! - [`Anderson`] combines the last few points so that their combined residual is as small as
//!   possible.
//! - [`Broyden`] builds an approximation of the inverse Jacobian of `g` from the differences
//!   between points, and takes Newton's steps with it; if they are too long, a line search
//!   ([`ArmijoConfig`]) shortens them.
//! - [`Reversible`] is damped plain iteration on two coupled states, whose every step can be
//!   undone.
//! - [`Splitting`] exploits the structure of a monotone layer, and then cannot fail.
//! - Where the map is affine, `u = A u + g`, as in the backward pass of an equilibrium layer,
//!   Krylov methods need the fewest products: [`Gmres`], [`BiCgStab`], and the truncated
//!   [`Neumann`] series.
//!
//! [Which one do I choose](choosing) has tables of evaluations, time and memory.
//!
//! # What is guaranteed
//!
//! - One sample's answer never depends on its batch mates. (A whole-batch mode, [`Scope::Batch`],
//!   exists for comparisons with codes that work that way.)
//! - Samples that have ended are held, and not evaluated at all if the map can do without them
//!   ([`ByRows`]).
//! - A problem in other units takes the same steps: products of small or large states neither
//!   vanish nor overflow before the states themselves do.
//! - A finite start gives a finite answer: the start is the first candidate for the best iterate,
//!   and a NaN ends the sample that met it with [`SolveStatus::NonFinite`].
//! - Failure to converge is a status in the result, a wrong configuration an [`InvalidConfig`]
//!   error, a map that changes the shape a panic.
//! - The loop reads from the device only every [`StopConfig::check_every`] steps, and the answers
//!   do not depend on how often.
//! - Maps of f64, f32, f16 and bf16; for the 16-bit types the solver's own arithmetic is f32.
//!
//! # To see and to steer
//!
//! [`Solve::solve_observed`] shows every step, [`TraceLevel`] keeps residuals or whole iterates,
//! [`StopConfig::keep`] returns the states at chosen steps, and [`Solve::start`] hands the loop to
//! you: evaluate, [observe](Stepper::observe), until it is done.
//! [`FixedPointSolver::solve_with_state`] returns what the solver has learned, such as Broyden's
//! [`InverseJacobian`]. Configurations are data: [`SolverConfig`], [`LinearSolverConfig`],
//! [`StopConfig`].
//!
//! # Write your own
//!
//! A method of your own needs only public items of this crate, and then takes the place of any
//! other, also behind `Arc<dyn Solve>` or `Arc<dyn LinearSolve>`:
//!
//! - [`FixedPointSolver`]: propose the next point from the present one, its `f(z)` and your state.
//!   The loop does the rest.
//! - [`LinearSolve`]: with [`LinearSystem`], if the method knows its residual by a recurrence; with
//!   [`Affine`], any fixed-point solver is one.
//! - [`Monitor`] for methods that need a loop of their own, and [`History`] for those that remember
//!   vectors.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use deq_solvers::{FixedPointSolver, Iterate, Solve, StopConfig};
//! use std::sync::Arc;
//!
//! /// Barzilai and Borwein's method: `z - w g`, `w` the inverse slope of `g` along the last step.
//! #[derive(Debug)]
//! struct BarzilaiBorwein;
//!
//! impl FixedPointSolver for BarzilaiBorwein {
//!     type State = Option<Iterate>;
//!
//!     fn name(&self) -> &'static str {
//!         "barzilai-borwein"
//!     }
//!
//!     fn init(&self, _first: &Iterate) -> Self::State {
//!         None
//!     }
//!
//!     fn step(&self, at: &Iterate, last: &mut Self::State) -> Tensor<2> {
//!         let Some(last) = last.replace(at.clone()) else {
//!             return at.fz().clone();
//!         };
//!         let dz = at.z().clone() - last.z().clone();
//!         let dg = at.residual().clone() - last.residual().clone();
//!         let weight = dz.clone().square().sum_dim(1) / (dz * dg).sum_dim(1);
//!         at.z().clone() - at.residual().clone() * weight
//!     }
//! }
//!
//! let solver: Arc<dyn Solve> = Arc::new(BarzilaiBorwein);
//! let z0 = Tensor::<2>::zeros([3, 2], &Device::flex());
//! let stop = StopConfig::new().with_rel_tol(1e-5).build()?;
//! let solution = solver.solve(&mut |z: Tensor<2>| z.cos(), z0, &stop).into_result()?;
//! assert!(solution.stats.nfe < 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The book's page on this crate is
//! [Solvers: which one](https://github.com/deq-rs/deq/blob/main/docs/src/solvers.md).
//!
//! # Feature flags
//!
//! No backend is selected by default. `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm` and `cpu`
//! bring Burn's backend and the kernels for it, `remote` Burn's.

#[doc = include_str!("../docs/choosing.md")]
pub mod choosing {}

mod anderson;
mod broyden;
mod config;
mod dense;
mod error;
mod history;
mod line_search;
mod linear;
mod map;
mod monitor;
mod monotone;
mod picard;
mod reversible;
mod rows;
mod sample;
mod solution;
mod solver;
mod status;
mod stop;

pub use anderson::{Anderson, AndersonConfig, AndersonState, AndersonType, Ridge};
pub use broyden::{
    Broyden, BroydenConfig, BroydenState, BroydenUpdate, FullHistory, InverseJacobian,
};
pub use config::SolverConfig;
pub use error::InvalidConfig;
pub use history::History;
pub use line_search::ArmijoConfig;
pub use linear::{
    Affine, BiCgStab, BiCgStabConfig, Gmres, GmresConfig, LinearMap, LinearSolve,
    LinearSolverConfig, LinearSystem, Neumann, NeumannConfig,
};
pub use map::{ByRows, FixedPointMap, Iterate, RowMap};
pub use monitor::Monitor;
pub use monotone::{MonotoneLayer, Splitting, SplittingConfig, SplittingMethod};
pub use picard::{Picard, PicardConfig};
pub use reversible::{Reversible, ReversibleConfig, ReversiblePair, ReversibleState};
pub use solution::{KeptState, NotConverged, Solution, SolveStats, StepReport, Trace};
pub use solver::{FixedPointSolver, Solve, Stepper};
pub use status::{SolveStatus, StatusCounts};
pub use stop::{Scope, StopConfig, StopRule, TraceLevel};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
