//! Checkpoints that exist whole or not at all.
//!
//! A checkpoint is one folder with the model, the optimizer, the memory carried between steps, the
//! recipe, and a manifest with their checksums. It is written to a temporary folder, which is
//! renamed into place; one of the same step is moved aside before and removed afterwards. The
//! schedule of the learning rate follows from recipe and step.

use crate::error::{RunError, TrainError, with_causes};
use crate::files::{self, FileSum};
use crate::recipe::Recipe;
use crate::task::Task;
use burn::store::RecordError;
use burn::tensor::Bytes;
use deq_jacreg::PenaltyState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};

pub(crate) const MODEL: &str = "model.bpk";
pub(crate) const OPTIMIZER: &str = "optimizer.bpk";
/// The state carried between steps.
pub(crate) const MEMORY: &str = "memory.safetensors";
/// The recipe of the steps up to there.
pub(crate) const RECIPE: &str = "recipe.json";
const MANIFEST: &str = "manifest.json";
/// The beginning of the name of a checkpoint whose place another one of the same step takes.
const ASIDE: &str = ".old-";

/// Checkpoints kept: the newest, and the one before it in case the newest is damaged.
const KEEP: usize = 2;

/// Where a run stood when the checkpoint was taken.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Training steps made.
    pub(crate) step: usize,
    /// Whether the evaluation was made that comes after them if they end a round.
    pub(crate) evaluated: bool,
    /// Training time in seconds with the evaluations after the rounds, over all sessions.
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
    /// The recipe, and those that resumed runs have replaced it by since.
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

    fn write(self, folder: &Path) -> Result<(), TrainError> {
        let path = folder.join(MANIFEST);
        files::write_json(&path, &self.sealed(&path)?)
    }
}

/// A checkpoint whose checksums have been compared.
pub(crate) struct Verified {
    pub(crate) folder: PathBuf,
    pub(crate) position: Position,
    pub(crate) run: RunSums,
}

impl Verified {
    /// The content of one of its files.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, TrainError> {
        files::read(&self.folder.join(name))
    }

    /// The recipe that the model was trained by; none if the model was imported.
    pub(crate) fn recipe<T: Task>(&self) -> Result<Option<Recipe<T>>, TrainError> {
        let path = self.folder.join(RECIPE);
        match path.is_file() {
            true => Recipe::from_file(&path).map(Some),
            false => Ok(None),
        }
    }

    /// Whether training can go on from it.
    pub(crate) fn is_trainable(&self) -> bool {
        is_trainable(&self.folder)
    }

    /// That it is damaged, although its checksums are right.
    pub(crate) fn corrupt(&self, reason: String) -> TrainError {
        corrupt(&self.folder, reason)
    }
}

/// An imported model has no optimizer.
fn is_trainable(folder: &Path) -> bool {
    folder.join(OPTIMIZER).is_file()
}

/// The checkpoints of one run, of which the newest two stay.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointStore {
    folder: PathBuf,
}

impl CheckpointStore {
    /// The checkpoints in `folder`.
    pub(crate) fn open(folder: &Path) -> Result<Self, TrainError> {
        files::create_folder(folder)?;
        let folder = folder.to_owned();
        Ok(Self { folder })
    }

    /// Removes what a killed process left half-written, and puts back a checkpoint that it had
    /// moved aside. Not for a run that is still training.
    pub(crate) fn clear_partial(&self) -> Result<(), TrainError> {
        for name in self.names()? {
            match name.strip_prefix(ASIDE) {
                Some(place) if !self.folder.join(place).exists() => self.rename(&name, place)?,
                _ if name.starts_with('.') => self.remove(&name)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The newest complete checkpoint with its position, after its checksums have been compared.
    pub(crate) fn newest(&self) -> Result<Option<Verified>, TrainError> {
        let newest = self.last_step()?;
        let verified = newest.map(|step| verify(&self.folder.join(folder_name(step))));
        verified.transpose()
    }

    /// Lets every checkpoint belong to another recipe too, so that a run also goes on from the one
    /// before the newest. One whose manifest is damaged stays as it is.
    pub(crate) fn add_recipe(&self, recipe: &FileSum) -> Result<(), TrainError> {
        for step in self.steps()? {
            let folder = self.folder.join(folder_name(step));
            let Ok(mut manifest) = read_manifest(&folder) else {
                continue;
            };
            if !manifest.run.recipe.contains(recipe) {
                manifest.run.recipe.push(recipe.clone());
                manifest.write(&folder)?;
            }
        }
        Ok(())
    }

    /// Moves the checkpoint of a step to another position of that step, and another log.
    pub(crate) fn amend(&self, position: Position, run: RunSums) -> Result<(), TrainError> {
        let folder = self.folder.join(folder_name(position.step));
        let files = read_manifest(&folder)?.files;
        let manifest = Manifest {
            position,
            files,
            run,
            checksum: FileSum::default(),
        };
        manifest.write(&folder)
    }

    /// Gives up the checkpoint of a step.
    pub(crate) fn discard(&self, step: usize) -> Result<(), TrainError> {
        let name = folder_name(step);
        let hidden = format!(".{name}");
        // A process killed here must not leave half of it.
        self.rename(&name, &hidden)?;
        self.remove(&hidden)
    }

    /// What Burn makes of a model or an optimizer.
    pub(crate) fn bytes(&self, record: Result<Bytes, RecordError>) -> Result<Vec<u8>, TrainError> {
        let error = |error: RecordError| std::io::Error::other(error.to_string());
        let bytes = record.map_err(|reason| TrainError::io("write", &self.folder, error(reason)));
        bytes.map(|bytes| bytes.to_vec())
    }

    /// Writes a checkpoint and drops old ones. One without an optimizer can be evaluated but not
    /// trained further.
    pub(crate) fn write<const N: usize>(
        &self,
        position: Position,
        run: RunSums,
        parts: [(&str, Vec<u8>); N],
    ) -> Result<(), TrainError> {
        let name = folder_name(position.step);
        let hidden = format!(".{name}");
        let partial = self.folder.join(&hidden);
        files::create_folder(&partial)?;
        for (name, bytes) in &parts {
            files::write_whole(&partial.join(name), bytes)?;
        }
        let sums = parts.map(|(name, bytes)| (name.to_owned(), FileSum::of(&bytes)));
        let manifest = Manifest {
            position,
            files: BTreeMap::from(sums),
            run,
            checksum: FileSum::default(),
        };
        manifest.write(&partial)?;
        let aside = format!("{ASIDE}{name}");
        let again = self.folder.join(&name).exists();
        if again {
            self.rename(&name, &aside)?;
        }
        self.rename(&hidden, &name)?;
        if again {
            self.remove(&aside)?;
        }
        let mut steps = self.steps()?;
        steps.sort_unstable();
        for step in steps.iter().rev().skip(KEEP) {
            self.discard(*step)?;
        }
        Ok(())
    }

    /// The step of the newest complete checkpoint.
    pub(crate) fn last_step(&self) -> Result<Option<usize>, TrainError> {
        Ok(self.steps()?.into_iter().max())
    }

    /// Whether training can go on from a checkpoint; none of an imported model is such a one.
    pub(crate) fn holds_trainable(&self) -> Result<bool, TrainError> {
        let folder = |step| self.folder.join(folder_name(step));
        Ok(self
            .steps()?
            .into_iter()
            .any(|step| is_trainable(&folder(step))))
    }

    fn names(&self) -> Result<Vec<String>, TrainError> {
        let error = |source| TrainError::io("read", &self.folder, source);
        let name = |entry: std::io::Result<DirEntry>| -> Result<String, TrainError> {
            let name = entry.map_err(error)?.file_name();
            Ok(name.to_string_lossy().into_owned())
        };
        let entries = std::fs::read_dir(&self.folder).map_err(error)?;
        entries.map(name).collect()
    }

    fn steps(&self) -> Result<Vec<usize>, TrainError> {
        let step = |name: &String| name.strip_prefix("step-")?.parse().ok();
        Ok(self.names()?.iter().filter_map(step).collect())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), TrainError> {
        let [from, to] = [from, to].map(|name| self.folder.join(name));
        std::fs::rename(from, &to).map_err(|source| TrainError::io("write", &to, source))
    }

    fn remove(&self, name: &str) -> Result<(), TrainError> {
        let path = self.folder.join(name);
        std::fs::remove_dir_all(&path).map_err(|source| TrainError::io("remove", &path, source))
    }
}

fn folder_name(step: usize) -> String {
    format!("step-{step:07}")
}

fn corrupt(folder: &Path, reason: String) -> TrainError {
    let path = folder.to_owned();
    RunError::CorruptCheckpoint { path, reason }.into()
}

/// The manifest of a checkpoint, after its checksum has been compared.
fn read_manifest(folder: &Path) -> Result<Manifest, TrainError> {
    let manifest: Manifest = files::read_json(&folder.join(MANIFEST), "manifest")
        .map_err(|error| corrupt(folder, with_causes(&error)))?;
    match manifest.clone().sealed(folder)?.checksum == manifest.checksum {
        true => Ok(manifest),
        false => {
            let reason = format!("{MANIFEST} does not match its checksum");
            Err(corrupt(folder, reason))
        }
    }
}

fn verify(folder: &Path) -> Result<Verified, TrainError> {
    let corrupt = |reason: String| corrupt(folder, reason);
    let manifest = read_manifest(folder)?;
    if !manifest.files.contains_key(MODEL) {
        return Err(corrupt(format!("{MODEL} is not in the manifest")));
    }
    for (name, expected) in &manifest.files {
        let bytes =
            files::read(&folder.join(name)).map_err(|error| corrupt(with_causes(&error)))?;
        if FileSum::of(&bytes) != *expected {
            return Err(corrupt(format!("{name} does not match its checksum")));
        }
    }
    Ok(Verified {
        folder: folder.to_owned(),
        position: manifest.position,
        run: manifest.run,
    })
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
        let parts = [MODEL, OPTIMIZER, MEMORY].map(|name| (name, vec![step as u8; 32]));
        store.write(position, RunSums::default(), parts).unwrap();
    }

    #[test]
    fn the_newest_checkpoints_are_kept_and_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
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
        let store = CheckpointStore::open(folder.path()).unwrap();
        save(&store, 1);
        // A process killed while writing leaves a hidden folder, which the next one clears.
        std::fs::create_dir(folder.path().join(".step-0000002")).unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        assert_eq!(store.newest().unwrap().unwrap().position.step, 1);
        store.clear_partial().unwrap();
        assert_eq!(store.names().unwrap(), ["step-0000001"]);
    }

    #[test]
    fn a_checkpoint_that_is_written_again_is_lost_at_no_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
        let place = "step-0000001";
        let [aside, hidden] = [".old-step-0000001", ".step-0000001"];
        let only_one_is_left = || {
            store.clear_partial().unwrap();
            assert_eq!(store.names().unwrap(), [place]);
            assert_eq!(store.newest().unwrap().unwrap().position.step, 1);
        };
        (0..2).for_each(|_| save(&store, 1));
        assert_eq!(store.names().unwrap(), [place]);
        // A process killed when the old one is aside,
        store.rename(place, aside).unwrap();
        save(&store, 1);
        store.rename(place, hidden).unwrap();
        only_one_is_left();
        // when the new one is in its place,
        store.rename(place, aside).unwrap();
        save(&store, 1);
        only_one_is_left();
        // and when half of the old one is removed.
        store.rename(place, aside).unwrap();
        save(&store, 1);
        std::fs::remove_file(folder.path().join(aside).join(MANIFEST)).unwrap();
        only_one_is_left();
    }

    #[test]
    fn an_altered_checkpoint_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path()).unwrap();
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
        let store = CheckpointStore::open(folder.path()).unwrap();
        save(&store, 1);
        let newest = store.newest().unwrap().unwrap();
        store.add_recipe(&FileSum::of(b"recipe")).unwrap();
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
