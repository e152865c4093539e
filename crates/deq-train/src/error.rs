//! What can go wrong in a run, each in one sentence that says what to do.

use std::path::{Path, PathBuf};

/// An error of a training or evaluation run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] deq_data::DataError),
    /// The layer is misconfigured.
    #[error(transparent)]
    Deq(#[from] deq_core::DeqError),
    /// The model is misconfigured.
    #[error(transparent)]
    Model(#[from] deq_models::ModelError),
    /// The penalty is misconfigured.
    #[error(transparent)]
    Penalty(#[from] deq_jacreg::InvalidPenalty),
    /// A field of the recipe lies outside its range.
    #[error("{field} is {value}, but must be {requirement}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The value given.
        value: f64,
        /// What would be right.
        requirement: &'static str,
    },
    /// There is no penalty whose weight could be controlled.
    #[error(
        "controller needs a Jacobian penalty, whose frequency and estimator it uses: set penalty"
    )]
    ControllerWithoutPenalty,
    /// A tokenizer was given for text that is read by words or bytes.
    #[error("a tokenizer was given, but the level is {level}: set it to tokenizer")]
    TokenizerAtOtherLevel {
        /// The level.
        level: deq_data::Level,
    },
    /// The vocabulary in the folder of a run is not the one that the run was trained with.
    #[error(
        "the vocabulary kept in {path} is not that of the run: restore vocab.txt or tokenizer.json from a copy"
    )]
    KeptVocabulary {
        /// The run.
        path: PathBuf,
    },
    /// A preset is for another kind of data.
    #[error("the preset {preset} does not fit the data {data}: choose mini, which fits all")]
    PresetForOtherTask {
        /// The preset.
        preset: String,
        /// The data.
        data: String,
    },
    /// A ResNet is to classify pixels, or pictures are given to a model of pixels.
    #[error(
        "the model does not fit the data {data}: a ResNet or a classifier takes classified pictures, a segmenter takes label maps"
    )]
    ModelForOtherTask {
        /// The data.
        data: String,
    },
    /// Pictures of a size that the model cannot take.
    #[error(
        "{field} makes pictures with a side of {side} pixels, but the model needs multiples of {multiple}"
    )]
    SideMultiple {
        /// The transform.
        field: &'static str,
        /// The side.
        side: usize,
        /// What it must be a multiple of.
        multiple: usize,
    },
    /// Pixels that are to be classified are moved.
    #[error(
        "eval_transform moves pixels, but a segmentation is measured where they are: set it to whole or pad_to_multiple"
    )]
    MovedPixels,
    /// Two trainings are to be compared by their equilibria, of which there are none.
    #[error(
        "all {steps} steps are unrolled, {pretrain} were asked for, so that there is no equilibrium to compare: train longer or set --pretrain"
    )]
    NothingSolved {
        /// Steps of the training.
        steps: usize,
        /// Steps of the pre-training.
        pretrain: usize,
    },
    /// A budget of a solve was given to a network that solves nothing.
    #[error(
        "the run {path} is of a network without an equilibrium: leave out the most steps of a solve"
    )]
    NoEquilibrium {
        /// The run.
        path: PathBuf,
    },
    /// Overlays were asked for from a model that makes none.
    #[error(
        "the run {path} classifies whole pictures and makes no overlays: leave out the folder for them"
    )]
    NoOverlays {
        /// The run.
        path: PathBuf,
    },
    /// Two overlays would be written to one file.
    #[error(
        "the overlays of {first} and {second} would have the same name: predict them one by one, or into different folders"
    )]
    SameOverlay {
        /// A picture.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// The data have other classes than those that a run was trained on.
    #[error(
        "the classes of the data are not those of the run {path}: give the data it was trained on"
    )]
    OtherClasses {
        /// The run.
        path: PathBuf,
    },
    /// A loader yields nothing.
    #[error("the {split} split has nothing to read")]
    NoSegments {
        /// The split.
        split: &'static str,
    },
    /// There is no recipe of this name.
    #[error("there is no preset {name:?}: choose one of {known}")]
    UnknownPreset {
        /// The name given.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// There is no device of this name.
    #[error("there is no device {name:?}: choose one of {known}")]
    UnknownDevice {
        /// The name given.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// The device exists but this program was built without it.
    #[error(
        "the device {name} is not compiled in (there is: {compiled}): rebuild with `--features {feature}`"
    )]
    DeviceNotCompiled {
        /// The name given.
        name: String,
        /// The cargo feature that brings it.
        feature: &'static str,
        /// The devices compiled in, separated by commas.
        compiled: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, `create`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder holds no run.
    #[error("{path} is not a run: it has no config.json; give the folder that `deq train` printed")]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The folder already holds a run.
    #[error(
        "{path} already holds a run: add --resume to continue it, or choose another folder with --run"
    )]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// There is nothing to resume.
    #[error("there is no run to resume in {path}: start one without --resume")]
    NothingToResume {
        /// The folder searched.
        path: PathBuf,
    },
    /// A JSON file of the run is malformed.
    #[error("{path} is not a valid {what}: {reason}; restore it from a copy or start a new run")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Where and why parsing failed.
        reason: String,
    },
    /// The run was made with another configuration.
    #[error(
        "{path} was started with another configuration: {field} is {there} there and {here} here; \
         give the same options, or start a new run"
    )]
    OtherConfig {
        /// The run.
        path: PathBuf,
        /// The first field that differs.
        field: String,
        /// Its value in the run.
        there: String,
        /// Its value in this command.
        here: String,
    },
    /// The data are not those the run was started with.
    #[error(
        "the vocabulary of the data is not that of the run {path}: give the --data it was trained on"
    )]
    OtherVocabulary {
        /// The run.
        path: PathBuf,
    },
    /// A checkpoint is damaged.
    #[error(
        "the checkpoint {path} is damaged ({reason}): delete this folder to go on from the one before it"
    )]
    CorruptCheckpoint {
        /// The checkpoint folder.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The run has no checkpoint yet.
    #[error("{path} has no checkpoint: let it train until the first one is written")]
    NoCheckpoint {
        /// The run.
        path: PathBuf,
    },
    /// The loss stopped being a number.
    #[error(
        "the loss became {loss} at step {step}: lower the learning rate, raise --penalty, or resume from the last \
         checkpoint with a smaller one"
    )]
    NonFiniteLoss {
        /// The step.
        step: usize,
        /// The value.
        loss: f64,
    },
    /// A checkpoint of another program lacks something, or contradicts the model.
    #[error("the checkpoint {path} does not fit: {report}")]
    IncompleteCheckpoint {
        /// The file.
        path: PathBuf,
        /// What became of every tensor.
        report: String,
    },
    /// The data have another number of tokens than an imported model.
    #[error(
        "the model in {path} knows {expected} tokens, but the vocabulary of the data has {found}: give the data it was trained on"
    )]
    VocabularySize {
        /// The file.
        path: PathBuf,
        /// Tokens of the model.
        expected: usize,
        /// Tokens of the data.
        found: usize,
    },
    /// The data have another number of classes than an imported model.
    #[error(
        "the model in {path} knows {expected} classes, but the data have {found}: give data with the classes it was trained on"
    )]
    NumberOfClasses {
        /// The file.
        path: PathBuf,
        /// Classes of the model.
        expected: usize,
        /// Classes of the data.
        found: usize,
    },
    /// A stack of layers where a DEQ is needed.
    #[error(
        "{path} is the run of an explicit network with layers of its own, which the original program does not have"
    )]
    ExplicitNetwork {
        /// The run.
        path: PathBuf,
    },
    /// The weights of the loss are not one per class.
    #[error("{given} class weights for {classes} classes: give one for each, or none")]
    ClassWeights {
        /// Weights there are.
        given: usize,
        /// Classes of the data.
        classes: usize,
    },
    /// A run whose optimizer is not known cannot go on.
    #[error(
        "{path} was imported and has no state of an optimizer to go on with: it can be evaluated, generate, and be exported"
    )]
    NoOptimizer {
        /// The run.
        path: PathBuf,
    },
    /// A run from before vocabularies were kept in it.
    #[error(
        "{path} keeps no vocabulary to make text with: resume it with its data for a moment to have it written"
    )]
    NoVocabulary {
        /// The run.
        path: PathBuf,
    },
    /// Nothing to go on from.
    #[error("the vocabulary has no token for the end of a line to begin with: give a prompt")]
    NoPrompt,
    /// A chart could not be drawn.
    #[error("cannot draw the chart {title:?}: {reason}")]
    Chart {
        /// Its title.
        title: &'static str,
        /// Why.
        reason: String,
    },
    /// The training loop stopped on an error of its own.
    #[error("training stopped: {reason}")]
    Stopped {
        /// The error.
        reason: String,
    },
}

impl TrainError {
    /// An input or output error on `path` while trying to `action`.
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        TrainError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// [`TrainError::OutOfRange`] unless `valid`.
pub(crate) fn require(
    valid: bool,
    field: &'static str,
    value: f64,
    requirement: &'static str,
) -> Result<(), TrainError> {
    if valid {
        Ok(())
    } else {
        Err(TrainError::OutOfRange {
            field,
            value,
            requirement,
        })
    }
}
