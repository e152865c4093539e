//! Named tensors from a file of another program.

use super::file::{self, ElementType, Stored, TensorFile};
use super::group::{WeightsChoice, canonical};
use super::printable;
use crate::error::ModelError;
use burn::tensor::TensorData;
use std::collections::BTreeMap;
use std::path::Path;

/// The tensors of a checkpoint by name, read from the file when they are asked for.
///
/// Names are those of the file: the keys of its dictionaries, attributes of its modules and places
/// in its lists, joined by points. A file may hold more than the weights of one model: the state of
/// an optimiser, an average of the weights, the parameters of a loss. [`load`](super::load) and the
/// `from_state_dict` of the configurations find the group that fits, whatever stands before the
/// names that they look for.
#[derive(Debug)]
pub struct StateDict {
    tensors: BTreeMap<String, Tensor>,
    /// The names of the file by what they are without wrappers.
    canonical: BTreeMap<String, String>,
    file: Option<TensorFile>,
    choice: WeightsChoice,
}

#[derive(Debug)]
enum Tensor {
    Stored(Stored),
    Data(TensorData),
}

/// What a state dict says about a tensor without reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name, as the file has it: [`printable`] before it is shown.
    pub name: String,
    /// Its shape; empty if it is of a kind that has none to tell.
    pub shape: Vec<usize>,
    /// The type of its elements.
    pub element: ElementType,
}

impl TensorInfo {
    /// How many numbers it says it has.
    pub fn numbers(&self) -> usize {
        self.shape.iter().copied().fold(1, usize::saturating_mul)
    }
}

impl StateDict {
    /// Opens a file of PyTorch (`.pth`, `.pt`, `.pkl`: a state dict, a dictionary with one, or a
    /// whole module) or a safetensors file; the content decides, not the name.
    ///
    /// No code in a file is run. What a file says is checked before memory is asked for: a tensor
    /// has at most 8 axes and lies within what the file holds, a pickle has at most 64 MiB and two
    /// million instructions, and all tensors together have at most 16 times the bytes of the file
    /// and 64 MiB, which only shared and repeated numbers and compression could exceed.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnreadableCheckpoint`] with the file and the reason: what it is instead, or
    /// what is damaged.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let opened = file::open(path).map_err(|reason| ModelError::UnreadableCheckpoint {
            path: path.to_owned(),
            reason,
        })?;
        if opened.tensors.is_empty() {
            return Err(ModelError::UnreadableCheckpoint {
                path: path.to_owned(),
                reason: "it holds no tensors".to_owned(),
            });
        }
        let tensors = opened.tensors.into_iter();
        let tensors = tensors.map(|(name, tensor)| (name, Tensor::Stored(tensor)));
        Ok(Self::new(
            tensors.collect(),
            opened.aliases,
            Some(opened.file),
        ))
    }

    /// Tensors at hand.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, TensorData)>) -> Self {
        let tensors = tensors.into_iter();
        let tensors = tensors.map(|(name, data)| (name, Tensor::Data(data)));
        Self::new(tensors.collect(), BTreeMap::new(), None)
    }

    fn new(
        tensors: BTreeMap<String, Tensor>,
        aliases: BTreeMap<String, String>,
        file: Option<TensorFile>,
    ) -> Self {
        let own = tensors.keys().map(|name| (name.clone(), name.clone()));
        let mut short = BTreeMap::new();
        // A tensor that has its name without a wrapper comes before one that has it with one, and
        // both before those that only stand for another.
        let (plain, wrapped): (Vec<_>, Vec<_>) =
            own.partition(|(name, _)| canonical(name) == *name);
        for (name, target) in plain.into_iter().chain(wrapped).chain(aliases) {
            short.entry(canonical(&name)).or_insert(target);
        }
        Self {
            tensors,
            canonical: short,
            file,
            choice: WeightsChoice::default(),
        }
    }

    /// The same tensors, with another choice between several sets of weights of one model.
    #[must_use]
    pub fn with_choice(self, choice: WeightsChoice) -> Self {
        Self { choice, ..self }
    }

    /// Every tensor in order of the names.
    pub fn infos(&self) -> impl Iterator<Item = TensorInfo> {
        self.tensors.iter().map(|(name, tensor)| TensorInfo {
            name: name.clone(),
            shape: tensor.shape(),
            element: tensor.element(),
        })
    }

    /// The type of the elements of a tensor.
    pub fn element(&self, name: &str) -> Option<ElementType> {
        Some(self.tensors.get(name)?.element())
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape())
    }

    /// The data of a tensor, if there is one of this name.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnreadableTensor`] if the file does not hold what its index promises, or the
    /// type of the elements is unknown.
    pub fn read(&self, name: &str) -> Result<Option<TensorData>, ModelError> {
        let read = match (self.tensors.get(name), &self.file) {
            (Some(Tensor::Data(data)), _) => Ok(data.clone()),
            (Some(Tensor::Stored(stored)), Some(file)) => file.read(stored),
            _ => return Ok(None),
        };
        read.map(Some)
            .map_err(|reason| ModelError::UnreadableTensor {
                name: printable(name),
                reason,
            })
    }

    /// Names without wrappers, and the names of the file that they stand for.
    pub(super) fn canonical(&self) -> &BTreeMap<String, String> {
        &self.canonical
    }

    pub(super) fn choice(&self) -> &WeightsChoice {
        &self.choice
    }

    /// Numbers in all tensors that can be read.
    pub(super) fn numbers(&self) -> usize {
        let readable = self.infos().filter(|info| info.element.is_known());
        readable
            .map(|info| info.numbers())
            .fold(0, usize::saturating_add)
    }
}

impl Tensor {
    fn shape(&self) -> Vec<usize> {
        match self {
            Tensor::Stored(stored) => stored.shape.clone(),
            Tensor::Data(data) => data.shape().to_vec(),
        }
    }

    fn element(&self) -> ElementType {
        match self {
            Tensor::Stored(stored) => stored.element.clone(),
            Tensor::Data(data) => ElementType::Known(data.dtype()),
        }
    }
}
