//! From a state dict into a model, and back.

use super::names::{Layout, OriginalNames, Source};
use super::state_dict::StateDict;
use crate::error::ModelError;
use burn::module::Module;
use burn::tensor::TensorData;
use burn_store::burn_pack::{AtomicFile, Tensor as StoredTensor};
use burn_store::{ModuleSnapshot, bridge};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::Write;
use std::path::Path;

/// What became of every tensor of a state dict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// Names whose tensors are in the model now.
    pub loaded: Vec<String>,
    /// Names that the model needs and the file does not have.
    pub missing: Vec<String>,
    /// Names in the file that the model has no use for.
    pub unused: Vec<String>,
    /// Tensors of another shape than the model's.
    pub mismatched: Vec<ShapeMismatch>,
    /// Names whose tensor must equal that of the second name, since the model has one parameter for
    /// both, but does not.
    pub untied: Vec<(String, String)>,
}

/// A tensor of the wrong shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapeMismatch {
    /// Its name.
    pub name: String,
    /// The shape that the model needs.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

impl LoadReport {
    /// Whether every parameter was loaded and nothing contradicts the model; tensors without a use
    /// do no harm.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty() && self.untied.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors match", self.loaded.len())?;
        for name in &self.missing {
            write!(f, "\n  missing: {name}")?;
        }
        for wrong in &self.mismatched {
            write!(
                f,
                "\n  wrong shape: {} is {:?}, but the model needs {:?}",
                wrong.name, wrong.found, wrong.expected
            )?;
        }
        for (name, other) in &self.untied {
            write!(
                f,
                "\n  not tied: {name} differs from {other}, but the model has one parameter for both"
            )?;
        }
        for name in &self.unused {
            write!(f, "\n  unused: {name}")?;
        }
        Ok(())
    }
}

/// Loads what fits. Elements are converted to the type of the model's.
///
/// # Errors
///
/// [`ModelError::UnreadableTensor`] if the file does not hold what its index promises. What does
/// not fit is in the report.
pub fn load<M: Module + OriginalNames>(
    mut model: M,
    file: &StateDict,
) -> Result<(M, LoadReport), ModelError> {
    let ours: HashMap<String, StoredTensor> = parameters(&model);
    let mut report = LoadReport::default();
    let mut read: HashMap<String, (String, TensorData)> = HashMap::new();
    let mut known = BTreeSet::new();
    for tensor in model.original_tensors() {
        let name = tensor.name;
        known.insert(name.clone());
        let Source::Parameter {
            path,
            layout,
            alias,
        } = tensor.source
        else {
            continue;
        };
        let target = ours
            .get(&path)
            .unwrap_or_else(|| panic!("{path} is not a parameter of the model"));
        let Some(found) = file.shape(&name) else {
            if !alias {
                report.missing.push(name);
            }
            continue;
        };
        let expected = layout.original_shape(&target.shape);
        if found != expected {
            report.mismatched.push(ShapeMismatch {
                name,
                expected,
                found,
            });
            continue;
        }
        let Some(data) = file.read(&name)? else {
            continue;
        };
        let data = layout
            .to_ours(data, &target.shape)
            .convert_dtype(target.dtype);
        match read.get(&path) {
            Some((first, same)) if data.as_bytes() != same.as_bytes() => {
                report.untied.push((name, first.clone()));
            }
            Some(_) => report.loaded.push(name),
            None => {
                report.loaded.push(name.clone());
                read.insert(path, (name, data));
            }
        }
    }
    let unused = file.infos().map(|info| info.name);
    report.unused = unused.filter(|name| !known.contains(name)).collect();
    let tensors = read
        .into_iter()
        .map(|(path, (_, data))| bridge::from_data(data, path, None))
        .collect();
    let result = model.apply(tensors, None, None, false);
    match result.errors.first() {
        Some(error) => Err(ModelError::UnreadableTensor {
            name: error.to_string(),
            reason: "it could not be placed in the model".to_owned(),
        }),
        None => Ok((model, report)),
    }
}

/// The state dict of a model under the original's names, in its layout.
///
/// # Errors
///
/// [`ModelError::UnreadableTensor`] if a parameter cannot be read from the device.
pub fn state_dict<M: Module + OriginalNames>(
    model: &M,
) -> Result<Vec<(String, TensorData)>, ModelError> {
    let ours = parameters(model);
    let tensors = model.original_tensors().into_iter().map(|tensor| {
        let name = tensor.name;
        let data = match tensor.source {
            Source::Constant(values) => {
                let count = values.len();
                let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
                TensorData::new(values, [count])
            }
            Source::Parameter { path, layout, .. } => {
                let data = read(&ours, &path)?;
                Layout::to_original(&layout, data)
            }
        };
        Ok((name, data))
    });
    tensors.collect()
}

/// Writes a model as a safetensors file with the original's names, whole or not at all, so that the
/// original program can load it.
///
/// # Errors
///
/// [`ModelError::Unwritable`] with the file and the reason.
pub fn save<M: Module + OriginalNames>(model: &M, path: &Path) -> Result<(), ModelError> {
    write(&state_dict(model)?, path)
}

/// Writes tensors as a safetensors file, whole or not at all, so that PyTorch's loaders can read
/// it.
///
/// # Errors
///
/// [`ModelError::Unwritable`] with the file and the reason.
pub fn write(tensors: &[(String, TensorData)], path: &Path) -> Result<(), ModelError> {
    let unwritable = |reason: String| ModelError::Unwritable {
        path: path.to_owned(),
        reason,
    };
    let views = tensors
        .iter()
        .map(|(name, data)| {
            let dtype = safetensors_dtype(data)
                .ok_or_else(|| unwritable(format!("{name} is {:?}", data.dtype())))?;
            let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())
                .map_err(|error| unwritable(error.to_string()))?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<BTreeMap<_, _>, ModelError>>()?;
    // What PyTorch's loaders look for.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = serialize(views, Some(metadata)).map_err(|error| unwritable(error.to_string()))?;
    let (whole, mut file) =
        AtomicFile::create(path).map_err(|error| unwritable(error.to_string()))?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(|error| unwritable(error.to_string()))?;
    whole
        .commit()
        .map_err(|error| unwritable(error.to_string()))
}

fn safetensors_dtype(data: &TensorData) -> Option<Dtype> {
    use burn::tensor::DType;
    Some(match data.dtype() {
        DType::F64 => Dtype::F64,
        DType::F32 | DType::Flex32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        _ => return None,
    })
}

fn parameters<M: Module>(model: &M) -> HashMap<String, StoredTensor> {
    let all = model.collect(None, None, false).into_iter();
    all.map(|tensor| (tensor.name.clone(), tensor)).collect()
}

fn read(ours: &HashMap<String, StoredTensor>, path: &str) -> Result<TensorData, ModelError> {
    let tensor = ours
        .get(path)
        .unwrap_or_else(|| panic!("{path} is not a parameter of the model"));
    bridge::to_data(tensor).map_err(|error| ModelError::UnreadableTensor {
        name: path.to_owned(),
        reason: error.to_string(),
    })
}
