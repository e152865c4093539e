//! Recorded numbers: safetensors files with a JSON sidecar, in folders that the environment names.

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

/// A recorded case cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// A file of the case is missing or unreadable.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The sidecar is not JSON.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The tensors are not a safetensors file of f64.
    #[error("{path} is not a safetensors file of f64 or integer tensors: {reason}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// One recorded case: its tensors, and its sidecar as JSON.
#[derive(Debug)]
pub struct Golden {
    /// The file name without its extension.
    pub name: String,
    /// The sidecar: kind, configuration, how solves ended.
    pub info: serde_json::Value,
    tensors: Vec<(String, Vec<usize>, Vec<f64>)>,
}

impl Golden {
    /// Reads `FOLDER/NAME.safetensors` and `FOLDER/NAME.json`.
    ///
    /// # Errors
    ///
    /// [`GoldenError`] with the file that is missing or malformed.
    pub fn open(folder: &Path, name: &str) -> Result<Self, GoldenError> {
        let path = folder.join(format!("{name}.json"));
        let info = serde_json::from_slice(&read(&path)?)
            .map_err(|source| GoldenError::Json { path, source })?;
        let path = folder.join(format!("{name}.safetensors"));
        let bytes = read(&path)?;
        let malformed = |reason: String| GoldenError::Tensors {
            path: path.clone(),
            reason,
        };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| malformed(e.to_string()))?;
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let values = decode(view.dtype(), view.data())
                    .ok_or_else(|| malformed(format!("{name} is {:?}", view.dtype())))?;
                Ok((name, view.shape().to_vec(), values))
            })
            .collect::<Result<_, GoldenError>>()?;
        Ok(Self {
            name: name.to_owned(),
            info,
            tensors,
        })
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, ..)| name.as_str())
    }

    /// The shape and the values of a tensor, if it was recorded.
    pub fn get(&self, name: &str) -> Option<(&[usize], &[f64])> {
        self.tensors
            .iter()
            .find(|(n, ..)| n == name)
            .map(|(_, shape, values)| (shape.as_slice(), values.as_slice()))
    }

    /// The values of a tensor.
    ///
    /// # Panics
    ///
    /// If it was not recorded.
    pub fn values(&self, name: &str) -> &[f64] {
        match self.get(name) {
            Some((_, values)) => values,
            None => panic!("{} has no tensor {name}", self.name),
        }
    }

    /// A tensor on `device`, in the device's float type.
    ///
    /// # Panics
    ///
    /// If it was not recorded or has another rank.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let Some((shape, values)) = self.get(name) else {
            panic!("{} has no tensor {name}", self.name);
        };
        Tensor::from_data(TensorData::new(values.to_vec(), shape.to_vec()), device)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, GoldenError> {
    std::fs::read(path).map_err(|source| GoldenError::Io {
        path: path.to_owned(),
        source,
    })
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    let words = bytes
        .chunks_exact(8)
        .filter_map(|b| <[u8; 8]>::try_from(b).ok());
    match dtype {
        Dtype::F64 => Some(words.map(f64::from_le_bytes).collect()),
        Dtype::I64 => Some(words.map(|w| i64::from_le_bytes(w) as f64).collect()),
        _ => None,
    }
}

/// All cases of a folder, in order of their names.
///
/// # Errors
///
/// [`GoldenError`] with the folder or the file that cannot be read.
pub fn cases(folder: &Path) -> Result<Vec<Golden>, GoldenError> {
    let unreadable = |source| GoldenError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.file_name();
        if let Some(name) = file.to_str().and_then(|f| f.strip_suffix(".safetensors")) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    names
        .iter()
        .map(|name| Golden::open(folder, name))
        .collect()
}

/// The case `name` of the folder that `DEQ_FIXTURES` names.
///
/// `None`, with a line on standard error, if the variable is not set, so that a test can report
/// itself skipped.
///
/// # Panics
///
/// If the variable is set but the case cannot be read, or if it is not set and
/// `DEQ_REQUIRE_FIXTURES` is 1.
pub fn fixture(name: &str) -> Option<Golden> {
    let folder = named_folder("DEQ_FIXTURES")?;
    Some(Golden::open(&folder, name).unwrap_or_else(|error| panic!("{error}")))
}

/// All cases of the folder that `DEQ_FIXTURES` names whose sidecar has this `kind`; under the rules
/// of [`fixture`].
///
/// # Panics
///
/// As [`fixture`]; also if the folder has no such case.
pub fn fixtures_of_kind(kind: &str) -> Vec<Golden> {
    let Some(folder) = named_folder("DEQ_FIXTURES") else {
        return Vec::new();
    };
    let cases: Vec<Golden> = cases(&folder)
        .unwrap_or_else(|error| panic!("{error}"))
        .into_iter()
        .filter(|case| case.info["kind"] == kind)
        .collect();
    assert!(
        !cases.is_empty(),
        "{} has no case of kind {kind}",
        folder.display()
    );
    cases
}

fn named_folder(variable: &str) -> Option<PathBuf> {
    match std::env::var_os(variable) {
        Some(folder) => Some(PathBuf::from(folder)),
        None if std::env::var("DEQ_REQUIRE_FIXTURES").as_deref() == Ok("1") => {
            panic!("{variable} is not set, but DEQ_REQUIRE_FIXTURES=1 asks for it")
        }
        None => {
            eprintln!("skipped: {variable} is not set");
            None
        }
    }
}
