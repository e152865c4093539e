//! Claims of the papers on deep equilibrium models, each run again by one call: training through
//! [`deq_train`], measurements, verdicts, and a page with tables and curves.
//!
//! - [`compare`]: the Jacobian penalty with several weights, on any task.
//! - [`networks::compare_networks`]: the DEQ-Transformer beside explicit networks, for equal time.
//! - [`synthetic::run`]: the paper's regression in one dimension.
//!
//! The book's page on this crate is
//! [Benchmarks and reproduction](https://github.com/deq-rs/deq/blob/main/docs/src/benchmarks.md).
//!
//! # Feature flags
//!
//! `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm`, `cpu` and `remote` pass through
//! to Burn.

mod comparison;
pub mod networks;
pub mod synthetic;

pub use comparison::{Comparison, ComparisonResult, CoursePoint, Variant, compare};

use deq_train::report::table;
use serde::Serialize;

/// One statement of a paper and whether the run bears it out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// What should hold.
    pub statement: String,
    /// Whether it did, in every seed.
    pub holds: bool,
    /// The numbers behind it.
    pub evidence: String,
}

/// The claims as a table of a page.
fn claims_table(claims: &[Claim]) -> String {
    let header = ["claim", "here", "evidence"].map(str::to_owned);
    let verdict = |holds| if holds { "holds" } else { "does not hold" };
    let row = |claim: &Claim| {
        let verdict = verdict(claim.holds).to_owned();
        vec![claim.statement.clone(), verdict, claim.evidence.clone()]
    };
    table(&header, &claims.iter().map(row).collect::<Vec<_>>())
}

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
