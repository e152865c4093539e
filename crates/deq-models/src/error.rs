//! What can go wrong with configurations and checkpoints.

use std::path::PathBuf;

/// A configuration that describes no model, or a checkpoint that does not fit.
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
    /// The weights do not fit into memory.
    #[error(
        "the model has {parameters} parameters or more, too many for the memory of this machine: \
         make it narrower or shallower"
    )]
    TooLarge {
        /// Parameters, without those that are cheap to leave out of the count.
        parameters: usize,
    },
    /// The heads do not divide the width.
    #[error("model.d_model is {d_model}, which model.n_heads = {n_heads} does not divide")]
    HeadsDoNotDivide {
        /// The width.
        d_model: usize,
        /// The heads.
        n_heads: usize,
    },
    /// The groups of the group norms do not divide the channels of a branch.
    #[error(
        "model.channels of branch {branch} are {channels}, \
         but must be a multiple of model.groups = {groups} above 0"
    )]
    GroupsDoNotDivide {
        /// The branch, counted from the finest.
        branch: usize,
        /// Its channels.
        channels: usize,
        /// The groups.
        groups: usize,
    },
    /// The head is made for another number of branches.
    #[error(
        "model.head_channels has {given} entries, \
         but must have one for each of the {branches} branches"
    )]
    HeadChannels {
        /// Entries given.
        given: usize,
        /// The branches.
        branches: usize,
    },
    /// The cutoffs of the adaptive softmax are not increasing within the vocabulary.
    #[error(
        "model.cutoffs are {cutoffs:?}, but must increase strictly from above 0 \
         to below the vocabulary size {vocab_size}"
    )]
    Cutoffs {
        /// The cutoffs.
        cutoffs: Vec<usize>,
        /// The vocabulary size.
        vocab_size: usize,
    },
    /// A checkpoint cannot be read.
    #[error("cannot read the checkpoint {path}: {reason}")]
    UnreadableCheckpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tensor of a checkpoint cannot be read.
    #[error("cannot read the tensor {name}: {reason}")]
    UnreadableTensor {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A checkpoint holds numbers that no trained model has.
    #[error(
        "the checkpoint is of a model that has diverged: {name} is the first of {tensors} tensors \
         with {numbers} numbers that are NaN or infinite"
    )]
    NotFinite {
        /// The first such tensor.
        name: String,
        /// Such numbers in all of them.
        numbers: usize,
        /// Such tensors.
        tensors: usize,
    },
    /// A checkpoint does not hold the weights that were chosen.
    #[error(
        "the checkpoint holds no weights under {choice}, but {}",
        groups(found)
    )]
    NoSuchWeights {
        /// What was asked for.
        choice: String,
        /// What stands before the names of the weights that are there; empty if nothing does.
        found: Vec<String>,
    },
    /// A checkpoint cannot be written.
    #[error("cannot write {path}: {reason}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A checkpoint does not say what model it is of.
    #[error("the checkpoint is not that of {model}: {reason}")]
    OtherModel {
        /// What it should be of.
        model: &'static str,
        /// What is missing or contradictory.
        reason: String,
    },
}

/// Requires memory for so many numbers of 32 bits, since asking for too much ends the process.
///
/// # Errors
///
/// [`ModelError::TooLarge`].
pub fn require_memory(parameters: usize) -> Result<(), ModelError> {
    let bytes = parameters.saturating_mul(size_of::<f32>());
    let asked = Vec::<u8>::new().try_reserve_exact(bytes);
    asked.map_err(|_| ModelError::TooLarge { parameters })
}

fn groups(found: &[String]) -> String {
    match found {
        [] => "none of this model at all".to_owned(),
        found => {
            let names = found.iter().map(|name| match name.as_str() {
                "" => "without any name before theirs".to_owned(),
                name => format!("under {name}"),
            });
            names.collect::<Vec<_>>().join(" and ")
        }
    }
}
