//! Checkpoints that exist whole or not at all.
//!
//! A checkpoint is one folder with the model, the optimizer, the memory carried between steps and
//! a manifest with their checksums. burn-train hands over the first two one by one, from threads of
//! its own; they are collected, written to a temporary folder, and the folder is renamed into place
//! when the last one has come. The schedule of the learning rate follows from recipe and step.

use crate::error::{RunError, TrainError, with_causes};
use crate::files::{self, FileSum};
use burn::optim::lr_scheduler::LrSchedulerRecord;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::tensor::Bytes;
use burn::train::checkpoint::{Checkpoint, Checkpointer, CheckpointerError};
use deq_jacreg::PenaltyState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
/// The state carried between steps.
const MEMORY: &str = "memory.safetensors";
const MANIFEST: &str = "manifest.json";

/// Where a run stood when the checkpoint was taken.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Training steps made.
    pub(crate) step: usize,
    /// Whether the evaluation was made that comes after them if they end a round.
    pub(crate) evaluated: bool,
    /// Training time in seconds, over all sessions.
    pub(crate) seconds: f64,
    /// What the policy of the Jacobian penalty has come to, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) penalty: Option<PenaltyState>,
}

impl Default for Position {
    /// Before the first step.
    fn default() -> Self {
        Self {
            step: 0,
            evaluated: true,
            seconds: 0.0,
            penalty: None,
        }
    }
}

/// The other files of a run when the checkpoint was taken, so that a resumed run knows them again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunSums {
    /// The log up to there.
    pub(crate) log: FileSum,
    /// The recipe; two while it is being changed.
    pub(crate) recipe: Vec<FileSum>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    position: Position,
    files: BTreeMap<String, FileSum>,
    run: RunSums,
    /// Of the manifest with an empty one.
    checksum: FileSum,
}

impl Manifest {
    /// The manifest with its own checksum.
    fn sealed(mut self, path: &Path) -> Result<Self, TrainError> {
        self.checksum = FileSum::default();
        self.checksum = FileSum::of(&files::json_bytes(path, &self)?);
        Ok(self)
    }
}

/// A checkpoint whose checksums have been compared.
pub(crate) struct Verified {
    pub(crate) folder: PathBuf,
    pub(crate) position: Position,
    pub(crate) run: RunSums,
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointStore {
    folder: PathBuf,
    keep: usize,
    pending: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    position: Position,
    run: RunSums,
    parts: BTreeMap<&'static str, Vec<u8>>,
    error: Option<TrainError>,
}

impl CheckpointStore {
    /// The checkpoints in `folder`, of which the newest `keep` stay.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if the folder cannot be created.
    pub(crate) fn open(folder: &Path, keep: usize) -> Result<Self, TrainError> {
        files::create_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            keep: keep.max(1),
            pending: Arc::default(),
        })
    }

    /// Removes what a killed process left half-written. Not for a run that is still training.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if something cannot be removed.
    pub(crate) fn clear_partial(&self) -> Result<(), TrainError> {
        for name in self.names()? {
            if name.starts_with('.') {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Begins a checkpoint: the position, the carried memory, the other files of the run. It is
    /// complete once burn-train has saved its records.
    pub(crate) fn begin(&self, position: Position, memory: Vec<u8>, run: RunSums) {
        let mut pending = self.lock();
        (pending.position, pending.run) = (position, run);
        pending.parts = BTreeMap::from([(MEMORY, memory)]);
    }

    /// The newest complete checkpoint with its position, after its checksums have been compared.
    ///
    /// # Errors
    ///
    /// [`RunError::CorruptCheckpoint`] if a file is missing or altered.
    pub(crate) fn newest(&self) -> Result<Option<Verified>, TrainError> {
        let newest = self.steps()?.into_iter().max();
        newest.map(|step| verify(&self.folder_of(step))).transpose()
    }

    /// Lets the newest checkpoint belong to another recipe too.
    pub(crate) fn add_recipe(&self, newest: &Verified, recipe: FileSum) -> Result<(), TrainError> {
        let path = newest.folder.join(MANIFEST);
        let mut manifest: Manifest = files::read_json(&path, "manifest")?;
        manifest.run.recipe.push(recipe);
        files::write_json(&path, &manifest.sealed(&path)?)
    }

    /// Saves and loads the model.
    pub(crate) fn model_part(&self) -> CheckpointPart {
        CheckpointPart {
            store: self.clone(),
            name: MODEL,
        }
    }

    /// Saves and loads the optimizer.
    pub(crate) fn optimizer_part(&self) -> CheckpointPart {
        CheckpointPart {
            store: self.clone(),
            name: OPTIMIZER,
        }
    }

    /// Begins with the given schedule, and saves nothing.
    pub(crate) fn schedule_part(&self, schedule: ModuleLrScheduler) -> SchedulePart {
        SchedulePart(schedule)
    }

    /// Why a checkpoint could not be written, if so.
    pub(crate) fn take_error(&self) -> Option<TrainError> {
        self.lock().error.take()
    }

    fn put(&self, name: &'static str, bytes: Vec<u8>) -> Result<(), TrainError> {
        let mut pending = self.lock();
        pending.parts.insert(name, bytes);
        if ![MODEL, OPTIMIZER]
            .iter()
            .all(|part| pending.parts.contains_key(part))
        {
            return Ok(());
        }
        let complete = std::mem::take(&mut *pending);
        drop(pending);
        self.write(&complete)?;
        let mut steps = self.steps()?;
        steps.sort_unstable();
        for step in steps.iter().rev().skip(self.keep) {
            self.remove(&folder_name(*step))?;
        }
        Ok(())
    }

    /// Writes a checkpoint with a model alone, which can be evaluated but not trained further.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if something cannot be written.
    pub(crate) fn write_model(&self, model: Vec<u8>, run: RunSums) -> Result<(), TrainError> {
        self.write(&Pending {
            position: Position::default(),
            run,
            parts: BTreeMap::from([(MODEL, model)]),
            error: None,
        })
    }

    fn write(&self, complete: &Pending) -> Result<(), TrainError> {
        let step = complete.position.step;
        let partial = self.folder.join(format!(".{}", folder_name(step)));
        files::create_folder(&partial)?;
        for (name, bytes) in &complete.parts {
            files::write_whole(&partial.join(name), bytes)?;
        }
        let parts = complete.parts.iter();
        let manifest = Manifest {
            position: complete.position,
            files: parts
                .map(|(name, bytes)| ((*name).to_owned(), FileSum::of(bytes)))
                .collect(),
            run: complete.run.clone(),
            checksum: FileSum::default(),
        };
        let path = partial.join(MANIFEST);
        files::write_json(&path, &manifest.sealed(&path)?)?;
        let place = self.folder_of(step);
        if place.exists() {
            self.remove(&folder_name(step))?;
        }
        std::fs::rename(&partial, &place).map_err(|source| TrainError::io("write", &place, source))
    }

    fn names(&self) -> Result<Vec<String>, TrainError> {
        let error = |source| TrainError::io("read", &self.folder, source);
        let entries = std::fs::read_dir(&self.folder).map_err(error)?;
        entries
            .map(|entry| {
                Ok(entry
                    .map_err(error)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned())
            })
            .collect()
    }

    fn steps(&self) -> Result<Vec<usize>, TrainError> {
        let names = self.names()?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
            .collect())
    }

    fn folder_of(&self, step: usize) -> PathBuf {
        self.folder.join(folder_name(step))
    }

    fn remove(&self, name: &str) -> Result<(), TrainError> {
        let path = self.folder.join(name);
        std::fs::remove_dir_all(&path).map_err(|source| TrainError::io("remove", &path, source))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folder_name(step: usize) -> String {
    format!("step-{step:07}")
}

fn verify(folder: &Path) -> Result<Verified, TrainError> {
    let corrupt = |reason: String| RunError::CorruptCheckpoint {
        path: folder.to_owned(),
        reason,
    };
    let manifest: Manifest = files::read_json(&folder.join(MANIFEST), "manifest")
        .map_err(|error| corrupt(with_causes(&error)))?;
    if manifest.clone().sealed(folder)?.checksum != manifest.checksum {
        return Err(corrupt(format!("{MANIFEST} does not match its checksum")).into());
    }
    if !manifest.files.contains_key(MODEL) {
        return Err(corrupt(format!("{MODEL} is not in the manifest")).into());
    }
    for (name, expected) in &manifest.files {
        let bytes =
            files::read(&folder.join(name)).map_err(|error| corrupt(with_causes(&error)))?;
        if FileSum::of(&bytes) != *expected {
            return Err(corrupt(format!("{name} does not match its checksum")).into());
        }
    }
    Ok(Verified {
        folder: folder.to_owned(),
        position: manifest.position,
        run: manifest.run,
    })
}

/// Whether training can go on from a verified checkpoint.
pub(crate) fn is_trainable(folder: &Path) -> bool {
    folder.join(OPTIMIZER).is_file()
}

/// The model of a verified checkpoint.
pub(crate) fn model_bytes(folder: &Path) -> Result<Bytes, TrainError> {
    files::read(&folder.join(MODEL)).map(Bytes::from_bytes_vec)
}

/// The optimizer of a verified checkpoint.
pub(crate) fn optimizer_bytes(folder: &Path) -> Result<Bytes, TrainError> {
    files::read(&folder.join(OPTIMIZER)).map(Bytes::from_bytes_vec)
}

/// The carried memory of a verified checkpoint.
pub(crate) fn memory_bytes(folder: &Path) -> Result<Vec<u8>, TrainError> {
    files::read(&folder.join(MEMORY))
}

/// Saves and loads one of burn-train's records as part of a whole checkpoint.
pub(crate) struct CheckpointPart {
    store: CheckpointStore,
    name: &'static str,
}

impl<R: Checkpoint> Checkpointer<R> for CheckpointPart {
    fn save(&self, _step: usize, record: R) -> Result<(), CheckpointerError> {
        let bytes = record
            .checkpoint_into_bytes()
            .map_err(CheckpointerError::Record)?;
        self.store.put(self.name, bytes.to_vec()).map_err(|error| {
            let text = error.to_string();
            self.store.lock().error.get_or_insert(error);
            CheckpointerError::Unknown(text)
        })
    }

    /// The store drops old checkpoints itself, whole.
    fn delete(&self, _step: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, _round: usize) -> Result<R, CheckpointerError> {
        // It was verified, and the run locked, before training was launched.
        let unknown = |error: TrainError| CheckpointerError::Unknown(with_causes(&error));
        let newest = self.store.steps().map_err(unknown)?.into_iter().max();
        let newest = newest.ok_or(CheckpointerError::Unknown("no checkpoint".to_owned()))?;
        let path = self.store.folder_of(newest).join(self.name);
        let bytes = std::fs::read(path).map_err(CheckpointerError::IOError)?;
        R::checkpoint_from_bytes(Bytes::from_bytes_vec(bytes)).map_err(CheckpointerError::Record)
    }
}

/// The schedule of the learning rate, which follows from recipe and step.
pub(crate) struct SchedulePart(ModuleLrScheduler);

impl Checkpointer<LrSchedulerRecord> for SchedulePart {
    fn save(&self, _step: usize, _record: LrSchedulerRecord) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn delete(&self, _step: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, _round: usize) -> Result<LrSchedulerRecord, CheckpointerError> {
        Ok(self.0.to_record())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(store: &CheckpointStore, step: usize) {
        let position = Position {
            step,
            seconds: 1.0,
            ..Position::default()
        };
        store.begin(position, vec![9; 16], RunSums::default());
        for name in [MODEL, OPTIMIZER] {
            store.put(name, vec![step as u8; 32]).unwrap();
        }
    }

    #[test]
    fn the_newest_checkpoints_are_kept_and_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        assert!(store.newest().unwrap().is_none());
        [10, 20, 30].into_iter().for_each(|step| save(&store, step));
        let newest = store.newest().unwrap().unwrap();
        assert!(newest.folder.ends_with("step-0000030"));
        assert_eq!(newest.position.step, 30);
        let mut steps = store.steps().unwrap();
        steps.sort_unstable();
        assert_eq!(steps, [20, 30]);
    }

    #[test]
    fn an_incomplete_checkpoint_does_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        save(&store, 1);
        store.begin(Position::default(), vec![1], RunSums::default());
        store.put(MODEL, vec![1]).unwrap();
        // A process killed while writing leaves a hidden folder, which the next one clears.
        std::fs::create_dir(folder.path().join(".step-0000002")).unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        assert_eq!(store.newest().unwrap().unwrap().position.step, 1);
        store.clear_partial().unwrap();
        assert_eq!(store.names().unwrap(), ["step-0000001"]);
    }

    #[test]
    fn an_altered_checkpoint_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        save(&store, 1);
        let model = folder.path().join("step-0000001").join("model.bpk");
        std::fs::write(&model, [1, 2, 3]).unwrap();
        let message = store.newest().err().unwrap().to_string();
        assert!(
            message.contains("model.bpk does not match its checksum")
                && message.contains("delete this folder"),
            "{message}"
        );
        std::fs::remove_file(model).unwrap();
        assert!(store.newest().is_err());
    }

    #[test]
    fn an_edited_manifest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        save(&store, 1);
        let newest = store.newest().unwrap().unwrap();
        store.add_recipe(&newest, FileSum::of(b"recipe")).unwrap();
        assert_eq!(store.newest().unwrap().unwrap().run.recipe.len(), 1);
        let path = newest.folder.join(MANIFEST);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"step\": 1", "\"step\": 2")).unwrap();
        let message = store.newest().err().unwrap().to_string();
        assert!(
            message.contains("manifest.json does not match"),
            "{message}"
        );
    }
}
