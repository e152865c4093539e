//! Misuse of the penalty or of an estimate.

use burn::tensor::DType;

/// A setting or an input that no estimate can be made with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPenalty {
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
    /// The state's floating-point type is too coarse for a difference quotient, and the cell has no
    /// tangent.
    #[error(
        "the penalty takes differences where a cell has no tangent of its own, and needs a state \
         in f32 or f64 for them, not {dtype:?}: give the cell a tangent, or cast its parameters, \
         its context and the state"
    )]
    UnsupportedDType {
        /// The type of the state given.
        dtype: DType,
    },
    /// An empty list of probe vectors.
    #[error("the penalty needs at least one probe vector")]
    NoProbes,
}

pub(crate) fn require(
    valid: bool,
    field: &'static str,
    value: f64,
    requirement: &'static str,
) -> Result<(), InvalidPenalty> {
    if valid {
        Ok(())
    } else {
        Err(InvalidPenalty::OutOfRange {
            field,
            value,
            requirement,
        })
    }
}

pub(crate) fn positive(field: &'static str, value: f64) -> Result<(), InvalidPenalty> {
    let valid = value.is_finite() && value > 0.0;
    require(valid, field, value, "a finite number above 0")
}

pub(crate) fn at_least_zero(field: &'static str, value: f64) -> Result<(), InvalidPenalty> {
    let valid = value.is_finite() && value >= 0.0;
    require(valid, field, value, "a finite number of at least 0")
}

pub(crate) fn at_least_one(field: &'static str, value: usize) -> Result<(), InvalidPenalty> {
    require(value >= 1, field, value as f64, "at least 1")
}
