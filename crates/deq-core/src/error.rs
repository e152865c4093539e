//! Misuse of the layer. Non-convergence is a status, wrong shapes are panics.

use deq_solvers::InvalidConfig;

/// What can be wrong with a [`DeqConfig`](crate::DeqConfig) or a solver handed to a
/// [`Deq`](crate::Deq).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeqError {
    /// The forward solver or its stop rule is invalid.
    #[error("the forward solve is misconfigured: {0}")]
    Forward(InvalidConfig),
    /// The backward solver or its stop rule is invalid.
    #[error("the backward solve is misconfigured: {0}")]
    Backward(InvalidConfig),
    /// A field outside its range.
    #[error("{field} is {value}, but must be {requirement}")]
    OutOfRange {
        /// Its path in the configuration.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What it must be.
        requirement: &'static str,
    },
    /// A gradient that reuses the forward solve needs the solver that provides it.
    #[error(
        "the {gradient} gradient reuses the solve of the {needs} solver, but solver is {solver}"
    )]
    WrongSolver {
        /// The gradient strategy.
        gradient: &'static str,
        /// The solver it needs.
        needs: &'static str,
        /// The one configured.
        solver: &'static str,
    },
    /// A solver was handed to a gradient that has no such solve.
    #[error("the {gradient} gradient has no {solve} solve for the solver {solver}")]
    NoSolve {
        /// The gradient strategy.
        gradient: &'static str,
        /// Which solve: `forward` or `backward`.
        solve: &'static str,
        /// The solver.
        solver: &'static str,
    },
    /// `stop.keep` names steps of a solve, and this gradient has no solve with single steps.
    #[error(
        "stop.keep names solver steps for losses on the way, which the {gradient} gradient does not have"
    )]
    NothingToKeep {
        /// The gradient strategy.
        gradient: &'static str,
    },
}

/// Requires a count of at least 1 that is no slip: larger ones could ask for all memory.
pub(crate) fn require_count(field: &'static str, value: usize) -> Result<(), DeqError> {
    require(value >= 1, field, value as f64, "at least 1")?;
    require(value <= 1_000_000, field, value as f64, "at most 1,000,000")
}

pub(crate) fn require(
    valid: bool,
    field: &'static str,
    value: f64,
    requirement: &'static str,
) -> Result<(), DeqError> {
    match valid {
        true => Ok(()),
        false => Err(DeqError::OutOfRange {
            field,
            value,
            requirement,
        }),
    }
}
