//! Claims of Bai, Koltun and Kolter (ICML 2021), each run again by one command.

pub mod lm;
pub mod synthetic;

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
