//! Claims of the papers, each run again by one command.

mod comparison;
mod lm;
pub mod networks;
pub mod synthetic;
mod vision;

pub use comparison::{
    Comparable, Comparison, ComparisonResult, CoursePoint, Measure, Variant, compare,
};

use crate::report;
use serde::Serialize;

/// One statement of the paper and whether the run bears it out.
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
    let rows = claims.iter().map(|claim| {
        format!(
            "<tr><th>{}</th><td>{}</td><td>{}</td></tr>\n",
            report::escape(&claim.statement),
            if claim.holds {
                "holds"
            } else {
                "does not hold"
            },
            report::escape(&claim.evidence)
        )
    });
    format!("<table>{}</table>\n", rows.collect::<String>())
}
