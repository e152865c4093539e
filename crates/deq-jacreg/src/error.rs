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
    /// The state's floating-point type is too coarse for a difference quotient.
    #[error(
        "the penalty differentiates by differences and needs a state in f32 or f64, not {dtype:?}: cast the cell's \
         parameters, context and state first"
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
