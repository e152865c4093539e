//! Safetensors: a header of JSON, then the numbers.

use super::{BOOL, Index, MAX_NAME, Place, Storage, Stored, View, check_rank};
use crate::checkpoint::printable;
use burn::tensor::DType;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// The longest header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Deserialize)]
struct Header {
    /// Free text. Where a program stores shared tensors once, it says here which name stands for
    /// which.
    #[serde(rename = "__metadata__", default)]
    metadata: BTreeMap<String, serde_json::Value>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

pub(super) fn index(file: &mut File, length: u64) -> Result<Index, String> {
    let mut count = [0; 8];
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_exact(&mut count))
        .map_err(|error| error.to_string())?;
    let size = u64::from_le_bytes(count);
    let start = 8 + size.min(MAX_HEADER);
    if size > MAX_HEADER || start > length {
        return Err(format!(
            "its safetensors header is said to be {size} bytes long, but the file has {length}"
        ));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header)
        .map_err(|error| error.to_string())?;
    let header: Header = serde_json::from_slice(&header).map_err(|error| {
        let reason = error.to_string();
        format!("its safetensors header is damaged: {}", printable(&reason))
    })?;

    let mut index = Index::default();
    let mut entries: Vec<_> = header.tensors.into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    // Tensors follow one another without gaps, so nothing is there twice.
    let mut end = 0;
    for (name, entry) in entries {
        let [from, to] = entry.data_offsets;
        if from != end || to < from || to > length - start || name.len() > MAX_NAME {
            return Err(format!(
                "the tensor {} is said to lie at bytes {from} to {to} of {}, \
                 behind one that ends at {end}",
                printable(&name),
                length - start
            ));
        }
        end = to;
        let stored = tensor(&mut index, entry, start)
            .map_err(|reason| format!("{}: {reason}", printable(&name)))?;
        index.tensors.insert(name, stored);
    }
    if end != length - start {
        return Err(format!(
            "its tensors take {end} bytes, but it has {} behind the header",
            length - start
        ));
    }
    index.aliases = header
        .metadata
        .into_iter()
        .filter_map(|(name, target)| Some((name, target.as_str()?.to_owned())))
        .filter(|(_, target)| index.tensors.contains_key(target))
        .collect();
    Ok(index)
}

fn tensor(index: &mut Index, entry: Entry, start: u64) -> Result<Stored, String> {
    check_rank(&entry.shape)?;
    let Some(dtype) = dtype(&entry.dtype) else {
        return Ok(Stored::unknown(entry.dtype, entry.shape));
    };
    let [from, to] = entry.data_offsets;
    let storage = index.storages.len();
    index.storages.push(Storage {
        place: Place::Position(start + from),
        length: to - from,
    });
    let view = View::contiguous(storage, &entry.shape);
    let stored = Stored::new(entry.shape, dtype, view, &index.storages)?;
    match stored.bytes() == Some(to - from) {
        true => Ok(stored),
        false => Err(format!(
            "a tensor of {} and shape {:?} does not take {} bytes",
            stored.element,
            stored.shape,
            to - from
        )),
    }
}

fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "I16" => DType::I16,
        "I8" => DType::I8,
        "U64" => DType::U64,
        "U32" => DType::U32,
        "U16" => DType::U16,
        "U8" => DType::U8,
        "BOOL" => BOOL,
        _ => return None,
    })
}
