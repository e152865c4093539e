//! Named tensors from a file of another program.

use crate::error::ModelError;
use burn::tensor::{DType, TensorData};
use burn_store::burn_pack::Tensor as StoredTensor;
use burn_store::{ModuleStore, PytorchStore, SafetensorsStore, bridge};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Prefixes that programs put before every name: a data-parallel wrapper, or a dictionary that
/// holds more than the model.
const WRAPPERS: [&str; 4] = ["module.", "state_dict.", "model_state_dict.", "model."];

/// The tensors of a checkpoint by name, read from the file when they are asked for.
#[derive(Debug)]
pub struct StateDict {
    tensors: BTreeMap<String, StoredTensor>,
}

/// What a state dict says about a tensor without reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its elements.
    pub dtype: DType,
}

impl StateDict {
    /// Opens a file of PyTorch (`.pth`, `.pt`, `.pkl`: a state dict, a dictionary with one, or a
    /// whole module) or a safetensors file; the content decides, not the name.
    ///
    /// A prefix that all names share because the model was wrapped, such as `module.`, is dropped.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnreadableCheckpoint`] with the file and the reason.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let unreadable = |reason: String| ModelError::UnreadableCheckpoint {
            path: path.to_owned(),
            reason,
        };
        let mut start = [0; 9];
        std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut start))
            .map_err(|error| unreadable(error.to_string()))?;
        let tensors = if start[8] == b'{' {
            SafetensorsStore::from_file(path)
                .map_indices_contiguous(false)
                .get_all_tensors()
                .cloned()
                .map_err(|error| unreadable(error.to_string()))?
        } else {
            PytorchStore::from_file(path)
                .map_indices_contiguous(false)
                .get_all_tensors()
                .cloned()
                .map_err(|error| unreadable(error.to_string()))?
        };
        if tensors.is_empty() {
            return Err(unreadable("it holds no tensors".to_owned()));
        }
        Ok(Self {
            tensors: unwrapped(tensors),
        })
    }

    /// Tensors at hand.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, TensorData)>) -> Self {
        let named = tensors
            .into_iter()
            .map(|(name, data)| (name.clone(), bridge::from_data(data, name, None)));
        Self {
            tensors: named.collect(),
        }
    }

    /// Every tensor in order of the names.
    pub fn infos(&self) -> impl Iterator<Item = TensorInfo> {
        self.tensors.iter().map(|(name, tensor)| TensorInfo {
            name: name.clone(),
            shape: tensor.shape.to_vec(),
            dtype: tensor.dtype,
        })
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.to_vec())
    }

    /// The data of a tensor, if there is one of this name.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnreadableTensor`] if the file does not hold what its index promises.
    pub fn read(&self, name: &str) -> Result<Option<TensorData>, ModelError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Ok(None);
        };
        bridge::to_data(tensor)
            .map(Some)
            .map_err(|error| ModelError::UnreadableTensor {
                name: name.to_owned(),
                reason: error.to_string(),
            })
    }
}

/// The tensors without a wrapper's prefix that all of them have.
fn unwrapped(mut tensors: BTreeMap<String, StoredTensor>) -> BTreeMap<String, StoredTensor> {
    while let Some(prefix) = WRAPPERS
        .iter()
        .find(|prefix| tensors.keys().all(|name| name.starts_with(*prefix)))
    {
        tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor))
            .collect();
    }
    tensors
}
