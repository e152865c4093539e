//! The files of a run.

use crate::checkpoint::{CheckpointStore, MODEL, OPTIMIZER, Position, RunSums, Verified};
use crate::device::{device_failure, is_out_of_memory, require_default_device};
use crate::error::{RunError, TrainError};
use crate::files::{self, FileSum};
use crate::recipe::{FIXED, Recipe, differences, to_json};
use crate::records::{ChangeRecord, altered};
use crate::step::LearnerOf;
use crate::task::Task;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::{Bytes, Tensor};
use deq_data::{catch_payload, panic_text};
use deq_models::checkpoint::printable;
use std::fs::{File, OpenOptions, TryLockError};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

/// The files of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The run in `path`, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole recipe, as JSON.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The log of steps and evaluations.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The page with the curves.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Refuses a folder that already holds a run, or checkpoints that a new one would mistake for
    /// its own.
    pub(crate) fn require_vacant(&self) -> Result<(), TrainError> {
        let path = self.path.clone();
        match self.exists() || self.holds_checkpoints()? {
            true => Err(RunError::Exists { path }.into()),
            false => Ok(()),
        }
    }

    /// Whether there is a complete checkpoint.
    pub(crate) fn holds_checkpoints(&self) -> Result<bool, TrainError> {
        let checkpoints = self.checkpoints();
        Ok(checkpoints.is_dir() && CheckpointStore::open(&checkpoints)?.last_step()?.is_some())
    }

    /// Whether there is a checkpoint from which training can go on: not before the first one, nor
    /// where the model was imported.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if the folder cannot be read.
    pub fn is_under_way(&self) -> Result<bool, TrainError> {
        let checkpoints = self.checkpoints();
        Ok(checkpoints.is_dir() && CheckpointStore::open(&checkpoints)?.holds_trainable()?)
    }

    /// Whether a run was started here.
    pub fn exists(&self) -> bool {
        self.config().is_file()
    }

    /// The task of the run, such as `text` or `images`.
    ///
    /// # Errors
    ///
    /// [`RunError::NotARun`] if there is none, [`RunError::Malformed`] if its configuration is
    /// damaged.
    pub fn kind(&self) -> Result<String, TrainError> {
        match self.json()?.get("kind").and_then(|kind| kind.as_str()) {
            Some(kind) => Ok(kind.to_owned()),
            None => Err(files::malformed(
                &self.config(),
                "configuration",
                "it has no kind",
            )),
        }
    }

    /// The configuration as it was written.
    ///
    /// # Errors
    ///
    /// [`RunError::NotARun`] if there is none, [`RunError::Malformed`] if it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value, TrainError> {
        let path = self.path.clone();
        match self.exists() {
            true => files::read_json(&self.config(), "configuration"),
            false => Err(RunError::NotARun { path }.into()),
        }
    }

    /// Writes a run of a model that came from elsewhere: a checkpoint without an optimizer, and
    /// then the recipe, since a folder with a recipe is a run.
    pub(crate) fn write_imported<M: Module, T: Task>(
        &self,
        model: M,
        recipe: &Recipe<T>,
    ) -> Result<(), TrainError> {
        let store = CheckpointStore::open(&self.checkpoints())?;
        let model = store.bytes(model.into_record().into_bytes())?;
        let run = RunSums {
            log: FileSum::default(),
            recipe: vec![self.recipe_sum(recipe)?],
        };
        store.write(Position::default(), run, [(MODEL, model)])?;
        files::write_json(&self.config(), recipe)
    }

    /// Length and checksum of the recipe as it is written.
    fn recipe_sum<T: Task>(&self, recipe: &Recipe<T>) -> Result<FileSum, TrainError> {
        Ok(FileSum::of(&files::json_bytes(&self.config(), recipe)?))
    }

    /// That the recipe in the folder is one of those a checkpoint belongs to.
    pub(crate) fn check_recipe(&self, known: &[FileSum]) -> Result<(), TrainError> {
        let path = self.config();
        if !path.is_file() {
            return Err(altered(&path, "it is missing"));
        }
        let how = "it was edited; a resumed run takes its changes as options";
        match known.contains(&FileSum::of(&files::read(&path)?)) {
            true => Ok(()),
            false => Err(altered(&path, how)),
        }
    }

    /// Keeps other trainings out of the folder until the file is dropped, or the process ends.
    pub(crate) fn lock(&self) -> Result<File, TrainError> {
        let path = self.path.join("lock");
        let error = |source| TrainError::io("lock", &path, source);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let path = self.path.clone();
                Err(RunError::Busy { path }.into())
            }
            Err(TryLockError::Error(source)) => Err(error(source)),
        }
    }

    /// What a recipe changes in a run that is resumed at `step`, from `newest` if there is a
    /// checkpoint. Data, model and draws must stay the same, or with `same` everything.
    pub(crate) fn changes<T: Task>(
        &self,
        recipe: &Recipe<T>,
        step: usize,
        (newest, same): (Option<&Verified>, bool),
    ) -> Result<Vec<ChangeRecord>, TrainError> {
        // That of the steps which stay: the one in the folder may have been changed for steps that
        // no checkpoint has.
        let kept = newest.map(|newest| newest.recipe::<T>()).transpose()?;
        let before = match kept.flatten() {
            Some(before) => before,
            None => Recipe::of_run(&self.path)?,
        };
        let before = to_json(&before)?;
        let after = to_json(recipe)?;
        let mut changes = Vec::new();
        for (field, from, to) in differences(&before, &after) {
            let within = |name: &str| {
                let rest = field.strip_prefix(name);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let mut places = T::PLACES.iter();
            let place = places.any(|place| within(&format!("task.{place}")));
            if within("task.fingerprint") {
                return Err(RunError::OtherData {
                    path: self.path.clone(),
                    data: recipe.task.place(),
                    what: field,
                }
                .into());
            }
            if FIXED.into_iter().any(within) && !place {
                return Err(RunError::CannotChange {
                    path: self.path.clone(),
                    field,
                    there: from.to_string(),
                    here: to.to_string(),
                }
                .into());
            }
            if same && !place && field != "preset" {
                return Err(RunError::OtherRecipe {
                    path: self.path.clone(),
                    field,
                    there: from.to_string(),
                    here: to.to_string(),
                }
                .into());
            }
            if field != "preset" {
                changes.push(ChangeRecord {
                    step,
                    field,
                    from,
                    to,
                });
            }
        }
        Ok(changes)
    }

    /// Writes the recipe, to which all checkpoints belong from then on, and returns its length and
    /// checksum.
    pub(crate) fn write_recipe<T: Task>(
        &self,
        recipe: &Recipe<T>,
        store: &CheckpointStore,
    ) -> Result<FileSum, TrainError> {
        let sum = self.recipe_sum(recipe)?;
        // Before the recipe, so that a kill between the two leaves a run that can be resumed.
        store.add_recipe(&sum)?;
        files::write_json(&self.config(), recipe)?;
        Ok(sum)
    }

    /// The newest checkpoint with its position.
    pub(crate) fn newest(&self) -> Result<Verified, TrainError> {
        let newest = match self.checkpoints().is_dir() {
            true => CheckpointStore::open(&self.checkpoints())?.newest()?,
            false => None,
        };
        let path = self.path.clone();
        newest.ok_or(RunError::NoCheckpoint { path }.into())
    }
}

/// Loads the model of a verified checkpoint.
pub(crate) fn load_model<M: Module>(model: M, checkpoint: &Verified) -> Result<M, TrainError> {
    let bytes = Bytes::from_bytes_vec(checkpoint.read(MODEL)?);
    let model = guarded(checkpoint, "the model", || {
        model.try_load_record(ModuleRecord::from_bytes(bytes)?)
    })?;
    require_finite(&model, checkpoint)?;
    Ok(model)
}

fn require_finite<M: Module>(model: &M, checkpoint: &Verified) -> Result<(), TrainError> {
    let names = not_finite(model);
    match names.first() {
        None => Ok(()),
        Some(name) => Err(RunError::NotFinite {
            path: checkpoint.folder.clone(),
            name: name.clone(),
            parameters: names.len(),
        }
        .into()),
    }
}

/// The names of the parameters with numbers that are NaN or infinite.
pub(crate) fn not_finite<M: Module>(model: &M) -> Vec<String> {
    let mut visitor = NotFinite::default();
    model.visit(&mut visitor);
    visitor.names
}

/// Loads the optimizer of a verified checkpoint, and tries it by a step of a length of 0, since
/// Burn finds out only then what does not fit.
pub(crate) fn load_optimizer<T: Task>(
    recipe: &Recipe<T>,
    learner: &LearnerOf<T>,
    checkpoint: &Verified,
) -> Result<ModuleOptimizer, TrainError> {
    let bytes = Bytes::from_bytes_vec(checkpoint.read(OPTIMIZER)?);
    require_default_device()?;
    let (optimizer, stepped) = guarded(checkpoint, "the optimizer", || {
        let optimizer = recipe.optimizer().from_bytes(bytes)?;
        let mut zeros = Zeros(GradientsParams::new());
        learner.visit(&mut zeros);
        let stepped = optimizer.clone().step(0.0, learner.clone(), zeros.0);
        // A state of another shape may have stretched a parameter.
        let stepped = learner.clone().try_load_record(stepped.into_record())?;
        Ok((optimizer, stepped))
    })?;
    require_finite(&stepped, checkpoint)?;
    Ok(optimizer)
}

/// Gradients of 0.
struct Zeros(GradientsParams);

impl ModuleVisitor for Zeros {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let zeros = param.val().inner().zeros_like();
        self.0.register(param.id, zeros);
    }
}

/// Hands a part of a checkpoint to Burn, which panics on some that it should refuse. What a device
/// fails at stays a panic, since the checkpoint is not to blame.
fn guarded<T>(
    checkpoint: &Verified,
    part: &str,
    load: impl FnOnce() -> Result<T, RecordError>,
) -> Result<T, TrainError> {
    let reason = match catch_payload(load) {
        Ok(Ok(loaded)) => return Ok(loaded),
        Ok(Err(error)) => error.to_string(),
        Err(panic) if is_out_of_memory(&*panic) || device_failure(&*panic).is_some() => {
            resume_unwind(panic)
        }
        Err(panic) => panic_text(&*panic),
    };
    let reason = printable(&reason);
    Err(checkpoint.corrupt(format!("{part} does not fit: {reason}")))
}

/// Collects the names.
#[derive(Default)]
struct NotFinite {
    path: Vec<String>,
    names: Vec<String>,
}

impl ModuleVisitor for NotFinite {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().into_data();
        if data.iter::<f64>().any(|number| !number.is_finite()) {
            self.names.push(self.path.join("."));
        }
    }
}
