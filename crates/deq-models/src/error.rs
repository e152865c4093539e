//! Misuse of a model's configuration.

/// A configuration that describes no model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A field lies outside its range.
    #[error("model.{field} is {value}, but must be {requirement}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The value given.
        value: f64,
        /// What would be right.
        requirement: &'static str,
    },
    /// The heads do not divide the width.
    #[error("model.d_model is {d_model}, which model.n_heads = {n_heads} does not divide")]
    HeadsDoNotDivide {
        /// The width.
        d_model: usize,
        /// The heads.
        n_heads: usize,
    },
    /// The cutoffs of the adaptive softmax are not increasing within the vocabulary.
    #[error(
        "model.cutoffs are {cutoffs:?}, but must increase strictly from above 0 to below the vocabulary size {vocab_size}"
    )]
    Cutoffs {
        /// The cutoffs.
        cutoffs: Vec<usize>,
        /// The vocabulary size.
        vocab_size: usize,
    },
}
