//! From a state dict into a model, and back.

use super::group::Group;
use super::names::{Layout, OriginalNames, Source};
use super::printable;
use super::report::{LoadReport, ShapeMismatch};
use super::state_dict::StateDict;
use crate::error::ModelError;
use burn::module::Module;
use burn::tensor::TensorData;
use burn_store::burn_pack::{AtomicFile, Tensor as StoredTensor};
use burn_store::{ModuleSnapshot, bridge};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::Path;

/// Loads what fits from the group of tensors in the file that has most of the model's names.
/// Elements are converted to the type of the model's.
///
/// A parameter that the original stores under several names is read from those that the file has.
///
/// # Errors
///
/// - [`ModelError::UnreadableTensor`] if the file does not hold what its index promises, or a
///   tensor that the model needs is of a type that Burn lacks.
/// - [`ModelError::NotFinite`] if a tensor that the model needs has numbers that are NaN or
///   infinite, or become so in the type of the model's.
/// - [`ModelError::NoSuchWeights`] if the file has no weights of the kind that was asked for.
///
/// What does not fit is in the report.
pub fn load<M: Module + OriginalNames>(
    mut model: M,
    file: &StateDict,
) -> Result<(M, LoadReport), ModelError> {
    let ours = parameters(&model);
    let originals = model.original_tensors();
    let group = Group::find(file, originals.iter().map(|tensor| &*tensor.name))?;
    let mut loading = Loading::default();
    let mut known = BTreeSet::new();
    // The first name of each parameter of which the file has no name.
    let mut missing: Vec<(String, String)> = Vec::new();
    for tensor in originals {
        let found = group.name(&tensor.name);
        known.extend(found);
        let Source::Parameter { path, layout } = tensor.source else {
            continue;
        };
        let target = ours
            .get(&path)
            .unwrap_or_else(|| panic!("{path} is not a parameter of the model"));
        match found {
            Some(there) => {
                loading.place(file, [&tensor.name, there], (path, &layout, target))?;
            }
            None if missing.iter().all(|(other, _)| *other != path) => {
                missing.push((path, tensor.name));
            }
            None => {}
        }
    }
    let Loading {
        read,
        seen,
        mut report,
        infinite,
    } = loading;
    if let Some((name, numbers, tensors)) = infinite {
        return Err(ModelError::NotFinite {
            name: printable(&name),
            numbers,
            tensors,
        });
    }
    missing.retain(|(path, _)| !seen.contains(path));
    report.missing = missing.into_iter().map(|(_, name)| name).collect();
    let unused = file.infos().map(|info| info.name);
    report.unused = unused.filter(|name| !known.contains(&**name)).collect();
    report.group = group.prefix;
    report.other_groups = group.others;
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

/// What [`load`] has gathered so far.
#[derive(Default)]
struct Loading {
    /// The name and the data of each parameter, by its path.
    read: HashMap<String, (String, TensorData)>,
    /// Paths of which the file has a name, whether its tensor fits or not.
    seen: HashSet<String>,
    report: LoadReport,
    /// The first tensor with numbers that are not finite, and how many such numbers and tensors
    /// there are.
    infinite: Option<(String, usize, usize)>,
}

impl Loading {
    /// Reads the tensor that the original and the file call by these names.
    fn place(
        &mut self,
        file: &StateDict,
        [name, there]: [&str; 2],
        (path, layout, target): (String, &Layout, &StoredTensor),
    ) -> Result<(), ModelError> {
        self.seen.insert(path.clone());
        let expected = layout.original_shape(&target.shape);
        let found = file.shape(there).unwrap_or_default();
        let readable = file
            .element(there)
            .is_some_and(|element| element.is_known());
        // One of an unknown type may have no shape to compare: reading it says what it is.
        if found != expected && readable {
            self.report.mismatched.push(ShapeMismatch {
                name: name.to_owned(),
                expected,
                found,
            });
            return Ok(());
        }
        let Some(data) = file.read(there)? else {
            return Ok(());
        };
        let data = layout
            .to_ours(data, &target.shape)
            .convert_dtype(target.dtype);
        let numbers = not_finite(&data);
        if numbers > 0 {
            let (_, sum, tensors) = self.infinite.get_or_insert((there.to_owned(), 0, 0));
            *sum += numbers;
            *tensors += 1;
        }
        match self.read.get(&path) {
            Some((first, same)) if data.as_bytes() != same.as_bytes() => {
                let pair = (name.to_owned(), first.clone());
                self.report.untied.push(pair);
            }
            Some(_) => self.report.loaded.push(name.to_owned()),
            None => {
                self.report.loaded.push(name.to_owned());
                self.read.insert(path, (name.to_owned(), data));
            }
        }
        Ok(())
    }
}

/// How many of the numbers are NaN or infinite.
fn not_finite(data: &TensorData) -> usize {
    match data.as_slice::<f32>() {
        Ok(values) => values.iter().filter(|value| !value.is_finite()).count(),
        Err(_) if data.dtype().is_float() => data
            .iter::<f64>()
            .filter(|value| !value.is_finite())
            .count(),
        Err(_) => 0,
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
    // Renaming a file into place would replace a device or a pipe.
    if path.exists() && !path.is_file() {
        return Err(unwritable("it is there, and not a file".to_owned()));
    }
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
