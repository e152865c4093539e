#![cfg_attr(docsrs, feature(doc_cfg))]

//! Batched fixed-point solvers on Burn device tensors.
//!
//! A [`FixedPointMap`] is any function from `[batch, dim]` to `[batch, dim]` whose rows are independent problems
//! `z = f(z)`. A solver ([`Anderson`], [`Broyden`], [`Picard`]) proposes iterates; one loop, [`Solve::solve`],
//! evaluates the map, tests every sample against a [`StopRule`], holds the samples that have ended, and returns a
//! [`Solution`] with the best iterate, the residual, the steps and the [`SolveStatus`] of each.
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
//! # What is guaranteed
//!
//! - One sample's answer never depends on its batch mates.
//! - A finite start gives a finite answer: the start is the first candidate for the best iterate, and a NaN ends the sample
//!   that met it with [`SolveStatus::NonFinite`].
//! - Failure to converge is a status in the result, a wrong configuration an [`InvalidConfig`] error, a map that changes
//!   the shape a panic.
//! - The loop reads from the device only every [`StopConfig::check_every`] steps.
//!
//! # Which solver
//!
//! Start with [`Anderson`]. Take [`Broyden`] if residuals grow instead of falling, [`Picard`] to see what the map does by itself.
//!
//! # Feature flags
//!
//! No backend is selected by default. `flex`, `wgpu`, `vulkan`, `metal`, `cuda` and `rocm` pass through to Burn.

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
pub use line_search::ArmijoConfig;
pub use linear::{
    BiCgStab, BiCgStabConfig, Gmres, GmresConfig, LinearMap, LinearSolve, LinearSolverConfig,
    Neumann, NeumannConfig,
};
pub use map::{ByRows, FixedPointMap, Iterate, RowMap};
pub use monotone::{MonotoneLayer, Splitting, SplittingConfig, SplittingMethod};
pub use picard::{Picard, PicardConfig};
pub use reversible::{Reversible, ReversibleConfig, ReversiblePair, ReversibleState};
pub use solution::{KeptState, NotConverged, Solution, SolveStats, StepReport, Trace};
pub use solver::{FixedPointSolver, Solve, Stepper};
pub use status::{SolveStatus, StatusCounts};
pub use stop::{Scope, StopConfig, StopRule, TraceLevel};
