//! Claims of the papers on deep equilibrium models, each run again by one call: training through
//! [`deq_train`], measurements, verdicts, and a page with tables and curves.
//!
//! - [`compare`]: the Jacobian penalty with several weights, on any task.
//! - [`networks::compare_networks`]: an equilibrium model beside explicit networks, for equal time
//!   or equal steps.
//! - [`synthetic::run`]: the paper's regression in one dimension.
//!
//! The book's page on this crate is
//! [Benchmarks and reproduction](https://github.com/deq-rs/deq/blob/main/docs/src/benchmarks.md).
//!
//! # Feature flags
//!
//! `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm` and `cpu` bring Burn's backend and the kernels
//! for it, `remote` Burn's.

mod claim;
mod comparison;
pub mod networks;
pub mod synthetic;

pub use claim::{Claim, Verdict};
pub use comparison::{
    Comparison, ComparisonResult, CoursePoint, Figures, Variant, VariantRun, compare,
};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
