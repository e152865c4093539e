//! What `torch.save` wrote before PyTorch 1.6: pickles one after the other, then the storages.

use super::pickle::{self, Pickle, Value};
use super::torch::{Leaves, Mention, described, tensors};
use super::{Index, Place, Storage, kind, read_start};
use crate::checkpoint::printable;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

pub(super) const BIG_ENDIAN: &str =
    "it was written on a big-endian machine: load it there and save it as safetensors";

/// The number of the format.
const PROTOCOL: i64 = 1001;

pub(super) fn index(file: &mut File, length: u64) -> Result<Index, String> {
    let bytes = read_start(file, pickle::MAX_BYTES)?;
    let mut at = 0;
    let mut next = || -> Result<Pickle<'_>, String> {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.length;
        Ok(pickle)
    };
    let (_magic, protocol, system) = (next()?, next()?, next()?);
    if !matches!(protocol.get(protocol.root()), Value::Int(PROTOCOL)) {
        return Err("it is of a format of PyTorch that is not known".to_owned());
    }
    check_order(&system)?;
    let (objects, keys) = (next()?, next()?);

    // The sizes of the storages are said where the pickle mentions them.
    let mut mentions = HashMap::new();
    for value in objects.values() {
        let Value::Persistent(identifier) = value else {
            continue;
        };
        // Classes of modules are mentioned too, with their source.
        let fields = objects.sequence(*identifier).unwrap_or_default();
        if let [tag, ..] = fields
            && matches!(objects.get(*tag), Value::Str("module"))
        {
            continue;
        }
        let mention = Mention::read(&objects, *identifier)
            .ok_or("its storages are not described as PyTorch does")?;
        mentions.insert(mention.key.clone(), mention);
    }
    let mut index = Index::default();
    let mut places = HashMap::new();
    let mut end = at as u64;
    for &key in keys.sequence(keys.root()).unwrap_or_default() {
        let key = keys.key(key).unwrap_or_default();
        let mention = mentions.get(&key);
        let mention = mention.ok_or("it has a storage that no tensor mentions")?;
        let size = mention.element_size();
        let size = size.ok_or_else(|| {
            format!(
                "the size of the elements of the storage {} is unknown",
                printable(&key)
            )
        })?;
        // The number of elements stands before them.
        let length_of = (mention.elements as u64).checked_mul(size as u64);
        let (start, bytes) = (end.saturating_add(8), length_of.unwrap_or(u64::MAX));
        end = start.saturating_add(bytes);
        if end > length {
            return Err(format!(
                "its storage {} would end at byte {end}, but the file has {length}: \
                 it is cut off or damaged",
                printable(&key)
            ));
        }
        check_count(file, start - 8, mention, &key)?;
        places.insert(key, index.storages.len());
        index.storages.push(Storage {
            place: Place::Position(start),
            length: bytes,
        });
    }
    index.tensors = tensors(&objects, &Leaves::Storages(&places), &index.storages)?;
    Ok(index)
}

/// The number of elements that stands before a storage must be the one that the pickle says.
fn check_count(file: &mut File, position: u64, mention: &Mention, key: &str) -> Result<(), String> {
    let mut count = [0; 8];
    file.seek(SeekFrom::Start(position))
        .and_then(|_| file.read_exact(&mut count))
        .map_err(|error| error.to_string())?;
    match u64::from_le_bytes(count) == mention.elements as u64 {
        true => Ok(()),
        false => Err(format!(
            "its storage {} has {} elements, but {} are said: it is damaged",
            printable(key),
            u64::from_le_bytes(count),
            mention.elements
        )),
    }
}

/// Refuses files of machines that write the most significant byte first.
pub(super) fn check_order(system: &Pickle<'_>) -> Result<(), String> {
    let Value::Dict(items) = system.get(system.root()) else {
        return Err("it does not say what machine it was written on".to_owned());
    };
    let little = items.iter().find(|(key, value)| {
        matches!(system.get(*key), Value::Str("little_endian"))
            && matches!(system.get(*value), Value::Bool(true))
    });
    little.map(|_| ()).ok_or_else(|| BIG_ENDIAN.to_owned())
}

/// Says what a pickle is that `torch.save` did not write.
pub(super) fn refuse_plain(bytes: &[u8]) -> Result<(), String> {
    let pickle = Pickle::read(bytes).map_err(|reason| {
        let start = &bytes[..bytes.len().min(kind::WINDOW as usize)];
        format!("{}; read as a pickle, {reason}", kind::nothing_known(start))
    })?;
    Err(format!(
        "it is a pickle of {}, which torch.save did not write: \
         load it in Python and save it with torch.save",
        described(&pickle, pickle.root())
    ))
}
