//! The files that hold state dicts: what tensors they have, and where the numbers lie.
//!
//! Everything that a file says is checked when it is opened, before memory is asked for: ranks,
//! sizes against what the file holds, and the sum of all tensors against the length of the file.

mod kind;
mod legacy;
mod pickle;
mod safetensors;
mod tar;
mod torch;
mod zip;

use super::printable;
use burn::tensor::{BoolStore, DType, TensorData};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The most axes that a tensor may have.
const MAX_RANK: usize = 8;

/// The longest name of a tensor, in bytes.
const MAX_NAME: usize = 1024;

/// All tensors of a file together may be so many times as large as the file, since tensors may
/// share numbers, repeat one along an axis, or be compressed,
const MAX_EXPANSION: u64 = 16;

/// and so many bytes besides.
const FREE_EXPANSION: u64 = 64 << 20;

/// The type of the elements of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// One that Burn has.
    Known(DType),
    /// One that Burn lacks, by the name that the file gives it: such a tensor is listed, but cannot
    /// be read.
    Unknown(String),
}

impl ElementType {
    /// Whether Burn has it.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ElementType::Known(DType::Bool(_)) => f.pad("Bool"),
            ElementType::Known(dtype) => f.pad(&format!("{dtype:?}")),
            ElementType::Unknown(name) => f.pad(&printable(name)),
        }
    }
}

const BOOL: DType = DType::Bool(BoolStore::Native);

/// A tensor in a file.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    pub(super) element: ElementType,
    /// Where its numbers are, unless its type is unknown.
    view: Option<View>,
}

impl Stored {
    fn unknown(name: impl Into<String>, shape: Vec<usize>) -> Self {
        Self {
            shape,
            element: ElementType::Unknown(name.into()),
            view: None,
        }
    }

    /// A tensor whose elements are `offset` and sums of `strides` away from the start of a storage.
    fn new(
        shape: Vec<usize>,
        dtype: DType,
        view: View,
        storages: &[Storage],
    ) -> Result<Self, String> {
        check_rank(&shape)?;
        let end = view.end(&shape);
        let there = storages[view.storage].length / dtype.size() as u64;
        let stored = Self {
            shape,
            element: ElementType::Known(dtype),
            view: Some(view),
        };
        let shape = &stored.shape;
        if stored.bytes().is_none() {
            return Err(format!(
                "a tensor of shape {shape:?} is larger than any file"
            ));
        }
        match end {
            Some(end) if end as u64 <= there => Ok(stored),
            _ => Err(format!(
                "a tensor of shape {shape:?} does not lie within the {there} numbers of its storage"
            )),
        }
    }

    /// Bytes of its elements, if they can be read.
    fn bytes(&self) -> Option<u64> {
        let ElementType::Known(dtype) = self.element else {
            return Some(0);
        };
        let size = dtype.size() as u64;
        let mut axes = self.shape.iter();
        axes.try_fold(size, |product, &axis| product.checked_mul(axis as u64))
    }
}

fn check_rank(shape: &[usize]) -> Result<(), String> {
    match shape.len() {
        0..=MAX_RANK => Ok(()),
        rank => Err(format!("a tensor has {rank} axes, more than {MAX_RANK}")),
    }
}

/// How a tensor lies in a storage, counted in elements.
#[derive(Clone, Debug)]
struct View {
    storage: usize,
    offset: usize,
    strides: Vec<usize>,
}

impl View {
    fn contiguous(storage: usize, shape: &[usize]) -> Self {
        let strides = (0..shape.len()).map(|axis| {
            shape[axis + 1..]
                .iter()
                .fold(1_usize, |n, &d| n.saturating_mul(d))
        });
        Self {
            storage,
            offset: 0,
            strides: strides.collect(),
        }
    }

    /// One past the last element, if the numbers are not beyond all bounds.
    fn end(&self, shape: &[usize]) -> Option<usize> {
        if shape.len() != self.strides.len() {
            return None;
        }
        if shape.contains(&0) {
            return Some(0);
        }
        let mut axes = shape.iter().zip(&self.strides);
        let last = axes.try_fold(self.offset, |at, (&size, &stride)| {
            at.checked_add((size - 1).checked_mul(stride)?)
        })?;
        last.checked_add(1)
    }

    /// The elements in order of their indices.
    fn gather(&self, storage: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
        let count = shape.iter().product::<usize>();
        if count == 0 {
            // Wherever it may begin.
            return Vec::new();
        }
        let start = self.offset * size;
        if self.strides == View::contiguous(0, shape).strides {
            return storage[start..start + count * size].to_vec();
        }
        let mut gathered = Vec::with_capacity(count * size);
        let mut index = vec![0; shape.len()];
        for _ in 0..count {
            let steps = index.iter().zip(&self.strides);
            let at = (self.offset + steps.map(|(&i, &stride)| i * stride).sum::<usize>()) * size;
            gathered.extend_from_slice(&storage[at..at + size]);
            for (position, &axis) in index.iter_mut().zip(shape).rev() {
                *position += 1;
                if *position < axis {
                    break;
                }
                *position = 0;
            }
        }
        gathered
    }
}

/// A run of numbers in a file, which tensors are views of.
#[derive(Clone, Debug)]
struct Storage {
    place: Place,
    /// Bytes.
    length: u64,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// From a position in the file on.
    Position(u64),
    /// A member of a zip archive, by its number.
    Member(usize),
}

/// The tensors of a file and where they are.
#[derive(Debug, Default)]
struct Index {
    tensors: BTreeMap<String, Stored>,
    storages: Vec<Storage>,
    /// Further names of tensors.
    aliases: BTreeMap<String, String>,
}

impl Index {
    /// Refuses tensors that together are larger than a file of `length` bytes can mean.
    fn check_size(&self, length: u64) -> Result<(), String> {
        let most = length
            .saturating_mul(MAX_EXPANSION)
            .saturating_add(FREE_EXPANSION);
        let sums = [
            total(self.tensors.values().map(Stored::bytes)),
            total(self.storages.iter().map(|storage| Some(storage.length))),
        ];
        match sums.iter().all(|sum| sum.is_some_and(|sum| sum <= most)) {
            true => Ok(()),
            false => Err(format!(
                "its {length} bytes promise tensors of more than {most} bytes, \
                 as no checkpoint does"
            )),
        }
    }
}

fn total(mut sizes: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    sizes.try_fold(0_u64, |sum, size| sum.checked_add(size?))
}

enum Container {
    File(File),
    Zip(zip::Archive),
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Container::File(_) => "File",
            Container::Zip(_) => "Zip",
        })
    }
}

/// A storage that was read, by its number.
type LastRead = Option<(usize, Arc<Vec<u8>>)>;

/// An open file with tensors.
#[derive(Debug)]
pub(super) struct TensorFile {
    container: Mutex<Container>,
    storages: Vec<Storage>,
    length: u64,
    /// The storage that was read last, as many tensors may be views of it.
    last: Mutex<LastRead>,
}

/// What opening a file gives.
pub(super) struct Opened {
    pub(super) file: TensorFile,
    pub(super) tensors: BTreeMap<String, Stored>,
    pub(super) aliases: BTreeMap<String, String>,
}

/// Opens a file of whatever kind.
pub(super) fn open(path: &Path) -> Result<Opened, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if meta.is_dir() {
        return Err("it is a folder".to_owned());
    }
    let length = meta.len();
    let start = read_start(&mut file, kind::WINDOW)?;
    let (index, container) = match kind::of(&start, length)? {
        kind::Kind::Zip => {
            let (index, archive) = zip::index(BufReader::new(file), length)?;
            (index, Container::Zip(archive))
        }
        kind::Kind::Legacy => (legacy::index(&mut file, length)?, Container::File(file)),
        kind::Kind::Tar => (tar::index(&mut file, length)?, Container::File(file)),
        kind::Kind::Safetensors => (
            safetensors::index(&mut file, length)?,
            Container::File(file),
        ),
        kind::Kind::Pickle => {
            legacy::refuse_plain(&read_start(&mut file, pickle::MAX_BYTES)?)?;
            return Err("it holds no tensors".to_owned());
        }
    };
    index.check_size(length)?;
    Ok(Opened {
        file: TensorFile {
            container: Mutex::new(container),
            storages: index.storages,
            length,
            last: Mutex::new(None),
        },
        tensors: index.tensors,
        aliases: index.aliases,
    })
}

/// So many bytes from the start of a file, or all that there are.
fn read_start(file: &mut File, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| Read::take(file, most).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

impl TensorFile {
    pub(super) fn read(&self, tensor: &Stored) -> Result<TensorData, String> {
        let (ElementType::Known(dtype), Some(view)) = (&tensor.element, &tensor.view) else {
            return Err(format!(
                "elements of type {} are not supported",
                tensor.element
            ));
        };
        let storage = self.storage(view.storage)?;
        let mut bytes = view.gather(&storage, &tensor.shape, dtype.size());
        if cfg!(target_endian = "big") {
            for element in bytes.chunks_exact_mut(dtype.size()) {
                element.reverse();
            }
        }
        if *dtype == BOOL {
            // Other bytes are no values of the type.
            bytes
                .iter_mut()
                .for_each(|byte| *byte = u8::from(*byte != 0));
        }
        Ok(TensorData::from_bytes_vec(
            bytes,
            tensor.shape.clone(),
            *dtype,
        ))
    }

    fn storage(&self, number: usize) -> Result<Arc<Vec<u8>>, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((read, bytes)) if *read == number => return Ok(bytes.clone()),
            // Two at once would be one too many.
            _ => *last = None,
        }
        let storage = &self.storages[number];
        let mut container = self
            .container
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let bytes = match (&mut *container, storage.place) {
            (Container::Zip(archive), Place::Member(member)) => {
                zip::read(archive, member, storage.length, self.length)?
            }
            (Container::File(file), Place::Position(position)) => {
                let mut bytes = vec![0; storage.length as usize];
                file.seek(SeekFrom::Start(position))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|error| error.to_string())?;
                bytes
            }
            _ => unreachable!("storages are of the container that they were found in"),
        };
        let bytes = Arc::new(bytes);
        *last = Some((number, bytes.clone()));
        Ok(bytes)
    }
}
