//! Checkpoints that exist whole or not at all.
//!
//! A checkpoint is one folder with the model, the optimizer, the learning-rate schedule, the memory carried between steps and
//! a manifest with their checksums. burn-train hands over the first three one by one, from threads of its own; they are
//! collected, written to a temporary folder, and the folder is renamed into place when the last one has come.

use crate::error::TrainError;
use crate::files;
use burn::tensor::Bytes;
use burn::train::checkpoint::{Checkpoint, Checkpointer, CheckpointerError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// The records that burn-train saves.
const TRAINER_PARTS: [&str; 3] = ["model.bpk", "optimizer.bpk", "schedule.bpk"];
/// The state carried between steps.
const MEMORY: &str = "memory.safetensors";
const MANIFEST: &str = "manifest.json";

/// Where a run stood when the checkpoint was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Rounds completed. A round ends with an evaluation and a checkpoint.
    pub round: usize,
    /// Training steps made.
    pub step: usize,
    /// Training time in seconds, over all sessions.
    pub seconds: f64,
    /// The weight of the Jacobian penalty that its controller has come to, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty_weight: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    position: Position,
    files: BTreeMap<String, FileSum>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct FileSum {
    bytes: u64,
    xxh3: String,
}

impl FileSum {
    fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            xxh3: format!("{:016x}", xxh3_64(bytes)),
        }
    }
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    keep: usize,
    pending: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    position: Position,
    parts: BTreeMap<&'static str, Vec<u8>>,
}

impl CheckpointStore {
    /// The checkpoints in `folder`, of which the newest `keep` stay.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if the folder cannot be created.
    pub fn open(folder: &Path, keep: usize) -> Result<Self, TrainError> {
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
    pub fn clear_partial(&self) -> Result<(), TrainError> {
        for name in self.names()? {
            if name.starts_with('.') {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Begins a checkpoint: the position and the carried memory. It is complete once burn-train has saved its records.
    pub fn begin(&self, position: Position, memory: Vec<u8>) {
        let mut pending = self.lock();
        pending.position = position;
        pending.parts = BTreeMap::from([(MEMORY, memory)]);
    }

    /// The newest complete checkpoint with its position, after its checksums have been compared.
    ///
    /// # Errors
    ///
    /// [`TrainError::CorruptCheckpoint`] if a file is missing or altered.
    pub fn newest(&self) -> Result<Option<(PathBuf, Position)>, TrainError> {
        let newest = self.rounds()?.into_iter().max();
        let Some(round) = newest else {
            return Ok(None);
        };
        let folder = self.folder_of(round);
        let position = verify(&folder)?;
        Ok(Some((folder, position)))
    }

    /// The saver and loader of one of burn-train's records: 0 the model, 1 the optimizer, 2 the schedule.
    pub(crate) fn part(&self, index: usize) -> CheckpointPart {
        CheckpointPart {
            store: self.clone(),
            name: TRAINER_PARTS[index],
        }
    }

    fn put(&self, name: &'static str, bytes: Vec<u8>) -> Result<(), TrainError> {
        let mut pending = self.lock();
        pending.parts.insert(name, bytes);
        if pending.parts.len() < TRAINER_PARTS.len() + 1 {
            return Ok(());
        }
        let complete = std::mem::take(&mut *pending);
        drop(pending);
        self.write(&complete)?;
        let mut rounds = self.rounds()?;
        rounds.sort_unstable();
        for round in rounds.iter().rev().skip(self.keep) {
            self.remove(&folder_name(*round))?;
        }
        Ok(())
    }

    /// Writes a checkpoint with a model alone, which can be evaluated but not trained further.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if something cannot be written.
    pub(crate) fn write_model(&self, position: Position, model: Vec<u8>) -> Result<(), TrainError> {
        self.write(&Pending {
            position,
            parts: BTreeMap::from([(TRAINER_PARTS[0], model)]),
        })
    }

    fn write(&self, complete: &Pending) -> Result<(), TrainError> {
        let round = complete.position.round;
        let partial = self.folder.join(format!(".{}", folder_name(round)));
        files::create_folder(&partial)?;
        for (name, bytes) in &complete.parts {
            files::write_whole(&partial.join(name), bytes)?;
        }
        let manifest = Manifest {
            position: complete.position,
            files: complete
                .parts
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), FileSum::of(bytes)))
                .collect(),
        };
        files::write_json(&partial.join(MANIFEST), &manifest)?;
        let place = self.folder_of(round);
        if place.exists() {
            self.remove(&folder_name(round))?;
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

    fn rounds(&self) -> Result<Vec<usize>, TrainError> {
        let names = self.names()?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_prefix("round-")?.parse().ok())
            .collect())
    }

    fn folder_of(&self, round: usize) -> PathBuf {
        self.folder.join(folder_name(round))
    }

    fn remove(&self, name: &str) -> Result<(), TrainError> {
        let path = self.folder.join(name);
        std::fs::remove_dir_all(&path).map_err(|source| TrainError::io("remove", &path, source))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folder_name(round: usize) -> String {
    format!("round-{round:04}")
}

fn verify(folder: &Path) -> Result<Position, TrainError> {
    let corrupt = |reason: String| TrainError::CorruptCheckpoint {
        path: folder.to_owned(),
        reason,
    };
    let manifest: Manifest = files::read_json(&folder.join(MANIFEST), "manifest")
        .map_err(|error| corrupt(error.to_string()))?;
    if !manifest.files.contains_key(TRAINER_PARTS[0]) {
        return Err(corrupt(format!(
            "{} is not in the manifest",
            TRAINER_PARTS[0]
        )));
    }
    for (name, expected) in &manifest.files {
        let bytes = files::read(&folder.join(name)).map_err(|error| corrupt(error.to_string()))?;
        if FileSum::of(&bytes) != *expected {
            return Err(corrupt(format!("{name} does not match its checksum")));
        }
    }
    Ok(manifest.position)
}

/// Whether training can go on from a verified checkpoint.
pub(crate) fn is_trainable(folder: &Path) -> bool {
    folder.join(TRAINER_PARTS[1]).is_file()
}

/// The model of a verified checkpoint.
pub(crate) fn model_bytes(folder: &Path) -> Result<Bytes, TrainError> {
    files::read(&folder.join(TRAINER_PARTS[0])).map(Bytes::from_bytes_vec)
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
    fn save(&self, _round: usize, record: R) -> Result<(), CheckpointerError> {
        let bytes = record
            .checkpoint_into_bytes()
            .map_err(CheckpointerError::Record)?;
        self.store
            .put(self.name, bytes.to_vec())
            .map_err(|error| CheckpointerError::Unknown(error.to_string()))
    }

    /// The store drops old checkpoints itself, whole.
    fn delete(&self, _round: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, round: usize) -> Result<R, CheckpointerError> {
        let path = self.store.folder_of(round).join(self.name);
        let bytes = std::fs::read(path).map_err(CheckpointerError::IOError)?;
        R::checkpoint_from_bytes(Bytes::from_bytes_vec(bytes)).map_err(CheckpointerError::Record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(store: &CheckpointStore, round: usize) {
        let position = Position {
            round,
            step: 10 * round,
            seconds: 1.0,
            penalty_weight: Some(0.1 + 0.2),
        };
        store.begin(position, vec![9; 16]);
        for name in TRAINER_PARTS {
            store.put(name, vec![round as u8; 32]).unwrap();
        }
    }

    #[test]
    fn the_newest_checkpoints_are_kept_and_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        assert!(store.newest().unwrap().is_none());
        (1..=3).for_each(|round| save(&store, round));
        let (path, position) = store.newest().unwrap().unwrap();
        assert!(path.ends_with("round-0003"));
        assert_eq!((position.round, position.step), (3, 30));
        let mut rounds = store.rounds().unwrap();
        rounds.sort_unstable();
        assert_eq!(rounds, [2, 3]);
    }

    #[test]
    fn an_incomplete_checkpoint_does_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        save(&store, 1);
        store.begin(Position::default(), vec![1]);
        store.put(TRAINER_PARTS[0], vec![1]).unwrap();
        // A process killed while writing leaves a hidden folder, which the next one clears.
        std::fs::create_dir(folder.path().join(".round-0002")).unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        assert_eq!(store.newest().unwrap().unwrap().1.round, 1);
        store.clear_partial().unwrap();
        assert_eq!(store.names().unwrap(), ["round-0001"]);
    }

    #[test]
    fn an_altered_checkpoint_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), 2).unwrap();
        save(&store, 1);
        let model = folder.path().join("round-0001").join("model.bpk");
        std::fs::write(&model, [1, 2, 3]).unwrap();
        let message = store.newest().unwrap_err().to_string();
        assert!(
            message.contains("model.bpk does not match its checksum")
                && message.contains("delete this folder"),
            "{message}"
        );
        std::fs::remove_file(model).unwrap();
        assert!(store.newest().is_err());
    }
}
