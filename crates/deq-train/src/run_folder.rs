//! The files of a run.

use crate::checkpoint::{CheckpointStore, Position, model_bytes};
use crate::error::TrainError;
use crate::files;
use burn::module::Module;
use burn::store::{ModuleRecord, RecordError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Checkpoints kept: the newest, and the one before it in case the newest is damaged.
pub(crate) const KEEP: usize = 2;

/// A recipe that runs are made of.
pub trait Recipe: Serialize + DeserializeOwned {
    /// The value of its field `kind`.
    const KIND: &'static str;
    /// What it is the configuration of.
    const WHAT: &'static str;
}

/// The files of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// The recipe in a JSON value that was read from `path`.
///
/// # Errors
///
/// [`TrainError::Malformed`] if it is one of another kind, or a field is missing or of a wrong type.
pub(crate) fn recipe_from<R: Recipe>(
    value: serde_json::Value,
    path: &Path,
) -> Result<R, TrainError> {
    let malformed = |reason: String| TrainError::Malformed {
        path: path.to_owned(),
        what: R::WHAT,
        reason,
    };
    let kind = value.get("kind").and_then(|kind| kind.as_str());
    if kind != Some(R::KIND) {
        let found = kind.unwrap_or("missing");
        return Err(malformed(format!("its kind is {found}, not {}", R::KIND)));
    }
    serde_json::from_value(value).map_err(|error| malformed(error.to_string()))
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

    pub(crate) fn config(&self) -> PathBuf {
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

    /// Whether a run was started here.
    pub fn exists(&self) -> bool {
        self.config().is_file()
    }

    /// What was trained here: `lm` or `vision`.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotARun`] if there is none, [`TrainError::Malformed`] if its configuration is damaged.
    pub fn kind(&self) -> Result<String, TrainError> {
        let kind = self
            .json()?
            .get("kind")
            .and_then(|kind| Some(kind.as_str()?.to_owned()));
        kind.ok_or_else(|| TrainError::Malformed {
            path: self.config(),
            what: "configuration",
            reason: "it has no kind".to_owned(),
        })
    }

    /// The configuration as it was written.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotARun`] if there is none, [`TrainError::Malformed`] if it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value, TrainError> {
        if !self.exists() {
            return Err(TrainError::NotARun {
                path: self.path.clone(),
            });
        }
        files::read_json(&self.config(), "configuration")
    }

    /// The recipe of the run.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotARun`] if there is none, [`TrainError::Malformed`] if it is one of another kind.
    pub(crate) fn read<R: Recipe>(&self) -> Result<R, TrainError> {
        recipe_from(self.json()?, &self.config())
    }

    /// Writes a run of a model that came from elsewhere: a checkpoint without an optimizer, and then the recipe, since a folder with a recipe is a run.
    pub(crate) fn write_imported<M: Module, R: Recipe>(
        &self,
        model: M,
        recipe: &R,
    ) -> Result<(), TrainError> {
        let bytes = model
            .into_record()
            .into_bytes()
            .map_err(|error| TrainError::Stopped {
                reason: error.to_string(),
            })?;
        let store = CheckpointStore::open(&self.checkpoints(), 1)?;
        store.write_model(Position::default(), bytes.to_vec())?;
        files::write_json(&self.config(), recipe)
    }

    /// Writes the recipe, or compares it with the one of the run to resume.
    pub(crate) fn claim<R: Recipe>(&self, recipe: &R, resume: bool) -> Result<(), TrainError> {
        match (self.exists(), resume) {
            (true, false) => Err(TrainError::RunExists {
                path: self.path.clone(),
            }),
            (false, true) => Err(TrainError::NothingToResume {
                path: self.path.clone(),
            }),
            (false, false) => {
                files::create_folder(&self.path)?;
                files::write_json(&self.config(), recipe)
            }
            (true, true) => match first_difference(&self.read::<R>()?, recipe) {
                None => Ok(()),
                Some((field, there, here)) => Err(TrainError::OtherConfig {
                    path: self.path.clone(),
                    field,
                    there,
                    here,
                }),
            },
        }
    }

    /// The newest checkpoint with its position.
    pub(crate) fn newest(&self) -> Result<(PathBuf, Position), TrainError> {
        let none = || TrainError::NoCheckpoint {
            path: self.path.clone(),
        };
        if !self.checkpoints().is_dir() {
            return Err(none());
        }
        CheckpointStore::open(&self.checkpoints(), KEEP)?
            .newest()?
            .ok_or_else(none)
    }
}

/// The path and the two values of the first field in which the recipes differ.
fn first_difference<R: Recipe>(there: &R, here: &R) -> Option<(String, String, String)> {
    fn differ(
        path: &str,
        there: &serde_json::Value,
        here: &serde_json::Value,
    ) -> Option<(String, String, String)> {
        use serde_json::Value::Object;
        match (there, here) {
            (Object(a), Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
                let null = serde_json::Value::Null;
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                differ(
                    &path,
                    a.get(key).unwrap_or(&null),
                    b.get(key).unwrap_or(&null),
                )
            }),
            _ if there == here => None,
            _ => Some((path.to_owned(), there.to_string(), here.to_string())),
        }
    }
    let json = |recipe| serde_json::to_value(recipe).unwrap_or_default();
    differ("", &json(there), &json(here))
}

/// Loads the model of a verified checkpoint.
pub(crate) fn load_model<M: Module>(model: M, checkpoint: &Path) -> Result<M, TrainError> {
    let corrupt = |error: RecordError| TrainError::CorruptCheckpoint {
        path: checkpoint.to_owned(),
        reason: error.to_string(),
    };
    let record = ModuleRecord::from_bytes(model_bytes(checkpoint)?).map_err(corrupt)?;
    model.try_load_record(record).map_err(corrupt)
}
