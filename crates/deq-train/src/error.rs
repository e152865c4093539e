//! What can go wrong in a run, by concern, each in one sentence that says what to do.

use crate::devices::DevicesError;
use crate::tasks::images::ImagesError;
use crate::tasks::text::TextError;
use std::path::{Path, PathBuf};

/// An error of any kind, for tasks that are not part of this crate.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error of a training or evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum TrainError {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The folder of a run does not hold what it should.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Training came to an end before its last step.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// There is no such device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Several devices, or one elsewhere, are not as they should be.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// A checkpoint of another program does not fit.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// Text, or a language model, is not as it should be.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Images, or a model of them, are not as they should be.
    #[error(transparent)]
    Images(#[from] ImagesError),
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
    /// An error of a task of one's own.
    #[error(transparent)]
    Task(BoxError),
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A chart could not be drawn.
    #[error("cannot draw the chart {title:?}: {reason}")]
    Chart { title: String, reason: String },
}

/// What can be wrong with a recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum RecipeError {
    /// A field lies outside its range.
    #[error("{field} is {value}, but must be {requirement}")]
    OutOfRange {
        field: &'static str,
        value: f64,
        requirement: &'static str,
    },
    /// There is no recipe of this name.
    #[error("there is no preset {name:?}{}: choose one of {known}", meant(nearest))]
    UnknownPreset {
        name: String,
        nearest: Option<String>,
        known: String,
    },
    /// A field that no recipe has.
    #[error(
        "{path} has a field {field:?}, which a recipe does not have{}",
        meant(nearest)
    )]
    UnknownField {
        path: PathBuf,
        field: String,
        nearest: Option<String>,
    },
    /// A value of a wrong type, or a field that is missing.
    #[error("{path} is not right: {reason}")]
    WrongValue { path: PathBuf, reason: String },
    /// The name of a file or folder cannot be kept.
    #[error(
        "the recipe cannot be written as JSON: {reason}; \
         rename files and folders whose names are not UTF-8"
    )]
    NotJson { reason: String },
    /// The schedule of the learning rate cannot be made.
    #[error("the learning rate has no schedule: {reason}")]
    Schedule { reason: String },
    /// The task has no network of this kind.
    #[error("{task} has no network \"{network}\": {choices}")]
    NoSuchNetwork {
        task: &'static str,
        network: crate::recipe::Network,
        choices: &'static str,
    },
    /// An explicit network is to be evaluated in a type of its own.
    #[error(
        "deq.precision is {precision}, but an explicit network is evaluated in f32: \
         set deq.precision to null"
    )]
    PrecisionOfExplicit {
        /// The type.
        precision: &'static str,
    },
    /// Two trainings are to be compared by their equilibria, of which there are none.
    #[error(
        "all {steps} steps are unrolled, {pretrain} were asked for, so that there is no \
         equilibrium to compare: set more steps, or fewer pretrain_steps"
    )]
    NothingSolved { steps: usize, pretrain: usize },
    /// An equilibrium is to be compared, and the recipe is of another network.
    #[error(
        "the recipe is of the network \"{network}\", and a comparison begins with an equilibrium: \
         set network to equilibrium"
    )]
    NotAnEquilibrium { network: crate::recipe::Network },
}

fn meant(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map_or(String::new(), |name| format!("; did you mean {name:?}?"))
}

/// What can be wrong with the folder of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum RunError {
    /// The folder holds no run.
    #[error("{path} is not a run: it has no config.json; give a folder that training has written")]
    NotARun { path: PathBuf },
    /// The folder already holds a run.
    #[error("{path} already holds a run or its checkpoints: resume it, or choose another folder")]
    Exists { path: PathBuf },
    /// There is nothing to resume.
    #[error("there is no run to resume in {path}: start one there")]
    NothingToResume { path: PathBuf },
    /// The run was written by another version.
    #[error(
        "{path} has the format {}, but this program reads format {expected}: \
         use the version that wrote it, or start a new run",
        found.map_or("of no version".to_owned(), |found| found.to_string())
    )]
    OtherFormat {
        path: PathBuf,
        found: Option<u64>,
        expected: u32,
    },
    /// The run is of another task.
    #[error("{path} is of the task {found}, not {expected}")]
    OtherTask {
        path: PathBuf,
        found: String,
        expected: &'static str,
    },
    /// A JSON file of the run is malformed.
    #[error("{path} is not a valid {what}: {reason}; restore it from a copy or start a new run")]
    Malformed {
        path: PathBuf,
        what: &'static str,
        reason: String,
    },
    /// A resumed run is to have other data, another model or other draws.
    #[error(
        "{path} was started with {field} = {there}, and {here} is given now: a run keeps its data, \
         model, batch and seed; leave the field as it was, or start a new run"
    )]
    CannotChange {
        path: PathBuf,
        field: String,
        there: String,
        here: String,
    },
    /// A run that is to go on as it was is to be another one.
    #[error(
        "{path} holds a run with {field} = {there}, and {here} is asked for: choose another \
         folder, or leave the field as it was"
    )]
    OtherRecipe {
        path: PathBuf,
        field: String,
        there: String,
        here: String,
    },
    /// The data are not those the run was started with.
    #[error(
        "the data in {data} are not those that {path} was trained on ({what}): \
         give the same data, or start a new run"
    )]
    OtherData {
        path: PathBuf,
        data: String,
        what: String,
    },
    /// Another process trains in the folder.
    #[error("{path} is being trained by another process: wait for it, or choose another folder")]
    Busy { path: PathBuf },
    /// A file of the run is not what training has written.
    #[error(
        "{path} is not what training has written: {how}; \
         restore it from a copy, or start a new run"
    )]
    Altered { path: PathBuf, how: &'static str },
    /// A checkpoint is damaged.
    #[error(
        "the checkpoint {path} is damaged ({reason}): \
         delete this folder to go on from the one before it"
    )]
    CorruptCheckpoint { path: PathBuf, reason: String },
    /// The weights of a checkpoint are no numbers.
    #[error(
        "the model in {path} has diverged: {name} is the first of {parameters} parameters with \
         numbers that are NaN or infinite; delete this folder to go on from the checkpoint \
         before it, or start a new run"
    )]
    NotFinite {
        path: PathBuf,
        name: String,
        parameters: usize,
    },
    /// The run has no checkpoint yet.
    #[error("{path} has no checkpoint: let it train until the first one is written")]
    NoCheckpoint { path: PathBuf },
    /// A budget of a solve was given to a network that solves nothing.
    #[error("{path} is of a network without an equilibrium: there are no solver steps to limit")]
    NoEquilibrium { path: PathBuf },
    /// The data have no such split.
    #[error("the data have no {split} split")]
    NoSplit { split: &'static str },
    /// A loader yields nothing.
    #[error("the {split} split has nothing to read")]
    NothingToRead { split: &'static str },
}

/// Why a training came to an end before its last step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum Stopped {
    /// It was told to stop.
    #[error("training was interrupted at step {step}: resume {run} to go on")]
    Interrupted {
        /// The steps made; the last checkpoint is of this step.
        step: usize,
        run: PathBuf,
    },
    /// The steps that were to tell how long one takes ended in numbers that are none.
    #[error(
        "{what} while the number of steps was being chosen: the model is none at the start; check \
         its initial weights and the data"
    )]
    TrialDiverged {
        /// Such as `the loss became NaN`.
        what: String,
    },
    /// It was told to stop before the first step, while steps were tried.
    #[error("interrupted while the number of steps was being chosen: nothing has been trained yet")]
    Trial,
    /// The loss or a parameter stopped being a number.
    #[error(
        "{what} at step {step}: resume {run} with a smaller learning rate or a larger penalty; its \
         last checkpoint is of step {checkpoint}"
    )]
    Diverged {
        /// Such as `the loss became NaN`.
        what: String,
        step: usize,
        run: PathBuf,
        /// The step of the last checkpoint, 0 if there is none.
        checkpoint: usize,
    },
    /// The device has too little memory.
    #[error(
        "the device has too little memory for a batch of {batch}: lower batch; \
         a shorter history of the solver or a smaller model needs less, too"
    )]
    OutOfMemory { batch: usize },
    /// The device has too little memory for a held-out batch.
    #[error(
        "the device has too little memory for the evaluation after step {step}: resume {run} with \
         a shorter history of the solver, or on a device with more; a smaller batch, or smaller \
         held-out images, are for a new run"
    )]
    OutOfMemoryEvaluating { step: usize, run: PathBuf },
    /// A batch could not be made.
    #[error("a batch of step {step} could not be made")]
    Batch { step: usize, source: BoxError },
    /// The training framework failed.
    #[error("training stopped: {reason}")]
    Framework { reason: String },
}

/// What can be wrong with a device's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum DeviceError {
    /// There is no device of this name.
    #[error("there is no device {name:?}: choose one of {known}; flex is the CPU")]
    Unknown { name: String, known: String },
    /// The device exists but this program was built without it.
    #[error(
        "the device {name} is not compiled in (there is: {compiled}): \
         build with the cargo feature {feature}"
    )]
    NotCompiled {
        name: String,
        feature: &'static str,
        compiled: String,
    },
    /// The device is compiled in, but cannot compute on this machine.
    #[error(
        "the device {name} does not work here: {reason}; \
         install its driver, or choose another of {compiled}"
    )]
    NotWorking {
        name: String,
        reason: String,
        compiled: String,
    },
    /// Burn's default device cannot compute on this machine, although another may train there.
    #[error(
        "Burn reads the optimizer of a checkpoint on its default device, which does not work here: \
         {reason}; set the environment variable BURN_DEVICE to one that does ({compiled})"
    )]
    DefaultNotWorking { reason: String, compiled: String },
    /// The device cannot compute in the type that the recipe asks for.
    #[error(
        "{device} does not compute in {precision}: \
         set deq.precision to null or another type, or choose another device"
    )]
    NoSuchType {
        /// The device, as Burn describes it.
        device: String,
        /// The type.
        precision: &'static str,
    },
}

/// What can be wrong between a run and a checkpoint of another program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum ExchangeError {
    /// A checkpoint lacks something, or contradicts the model.
    #[error("the checkpoint {path} does not fit: {report}")]
    Incomplete { path: PathBuf, report: String },
    /// The other program has no such network.
    #[error("the original program has no explicit network whose layers have weights of their own")]
    ExplicitNetwork,
    /// No other program has models of this task.
    #[error("there is no other program whose checkpoints the task {task} could exchange")]
    NoOriginal { task: &'static str },
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

    /// An error of a task of one's own.
    pub fn task(error: impl Into<BoxError>) -> Self {
        TrainError::Task(error.into())
    }
}

/// An error with its causes in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

/// [`RecipeError::OutOfRange`] unless `valid`, for the checks of a recipe.
///
/// # Errors
///
/// [`RecipeError::OutOfRange`].
pub fn require(
    valid: bool,
    field: &'static str,
    value: f64,
    requirement: &'static str,
) -> Result<(), RecipeError> {
    match valid {
        true => Ok(()),
        false => Err(RecipeError::OutOfRange {
            field,
            value,
            requirement,
        }),
    }
}
