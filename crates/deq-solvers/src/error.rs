//! Misuse of a configuration. Failure to converge is a [`SolveStatus`](crate::SolveStatus), not an
//! error.

/// A configuration value that no solver can work with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// A field lies outside its range.
    #[error("{field} is {value}, but must be {requirement}")]
    OutOfRange {
        /// The field, as `config.field`.
        field: &'static str,
        /// The value given.
        value: f64,
        /// What would be right.
        requirement: &'static str,
    },
    /// Both tolerances are zero, so that only an exact solution would stop a solve.
    #[error("stop.abs_tol and stop.rel_tol are both 0: set at least one of them above 0")]
    NoTolerance,
}

/// Requires a count of at least 1 that is no slip: larger ones could ask for all memory.
pub(crate) fn require_count(field: &'static str, value: usize) -> Result<(), InvalidConfig> {
    require(value >= 1, field, value as f64, "at least 1")?;
    require(value <= 1_000_000, field, value as f64, "at most 1,000,000")
}

pub(crate) fn require(
    valid: bool,
    field: &'static str,
    value: f64,
    requirement: &'static str,
) -> Result<(), InvalidConfig> {
    if valid {
        Ok(())
    } else {
        Err(InvalidConfig::OutOfRange {
            field,
            value,
            requirement,
        })
    }
}
