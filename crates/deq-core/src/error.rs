//! Misuse of the layer. Non-convergence is a status, wrong shapes are panics.

use deq_solvers::InvalidConfig;

/// What can be wrong with a [`DeqConfig`](crate::DeqConfig).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeqError {
    /// The forward solver or its stop rule is invalid.
    #[error("the forward solve is misconfigured: {0}")]
    Forward(#[source] InvalidConfig),
    /// The backward solver or its stop rule is invalid.
    #[error("the backward solve is misconfigured: {0}")]
    Backward(#[source] InvalidConfig),
    /// An unrolled gradient without steps.
    #[error("gradient.unrolled.steps is 0, but must be at least 1")]
    NoUnrolledSteps,
}
