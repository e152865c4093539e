//! What `torch.save` wrote before PyTorch 0.1.10: a tar archive of storages, tensors and a pickle
//! that names them.

use super::legacy::check_order;
use super::pickle::{self, Pickle};
use super::torch::{Leaves, class_element, tensors};
use super::{ElementType, Index, Place, Storage, Stored, View};
use crate::checkpoint::printable;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

/// Where the members lie, by their names.
type Members = HashMap<String, (u64, u64)>;

/// The key of a storage: its number and the type of its elements.
type Keys = HashMap<String, (usize, ElementType)>;

pub(super) fn index(file: &mut File, length: u64) -> Result<Index, String> {
    let members = members(file, length)?;
    let system = read_member(file, &members, "sys_info")?;
    check_order(&Pickle::read(&system)?)?;
    let mut index = Index::default();
    let keys = storages(file, &members, &mut index)?;
    let described = read_member(file, &members, "tensors")?;
    let leaves = described_tensors(&described, &keys, &index.storages)?;
    let objects = read_member(file, &members, "pickle")?;
    let objects = Pickle::read(&objects)?;
    index.tensors = tensors(&objects, &Leaves::Tensors(&leaves), &index.storages)?;
    Ok(index)
}

fn members(file: &mut File, length: u64) -> Result<Members, String> {
    let damaged = |error: std::io::Error| {
        format!(
            "its tar archive is damaged: {}",
            printable(&error.to_string())
        )
    };
    file.seek(SeekFrom::Start(0)).map_err(damaged)?;
    let mut archive = ::tar::Archive::new(BufReader::new(&*file));
    let mut members = Members::new();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let (start, size) = (entry.raw_file_position(), entry.size());
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err("its tar archive is cut off".to_owned());
        }
        members.insert(name.trim_start_matches("./").to_owned(), (start, size));
        if members.len() > 64 {
            return Err(
                "it is a tar archive, but not one of PyTorch's: unpack it first".to_owned(),
            );
        }
    }
    Ok(members)
}

fn member(members: &Members, name: &str) -> Result<(u64, u64), String> {
    members
        .get(name)
        .copied()
        .ok_or_else(|| format!("it is a tar archive, but not one of PyTorch's: it has no {name}"))
}

fn read_member(file: &mut File, members: &Members, name: &str) -> Result<Vec<u8>, String> {
    let (start, size) = member(members, name)?;
    read_at(file, start, size.min(pickle::MAX_BYTES))
}

fn read_at(file: &mut File, start: u64, size: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))
        .and_then(|_| Read::take(file, size).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// The most bytes that are read to describe one storage.
const DESCRIPTION: u64 = 4096;

/// Storages one after the other: each a pickle of `(key, location, type)`, the number of elements,
/// and the elements; then the views that early files have.
fn storages(file: &mut File, members: &Members, index: &mut Index) -> Result<Keys, String> {
    let (start, size) = member(members, "storages")?;
    let (mut at, end) = (start, start + size);
    let head = read_at(file, at, DESCRIPTION.min(end - at))?;
    let count = Pickle::read(&head)?;
    at += count.length as u64;
    let count = count
        .count(count.root())
        .ok_or("it does not say how many storages it has")?;
    let mut keys = Keys::new();
    for _ in 0..count {
        let head = read_at(file, at, DESCRIPTION.min(end - at))?;
        let pickle = Pickle::read(&head)?;
        let described = match pickle.sequence(pickle.root()) {
            Some([key, _, class]) => pickle.key(*key).zip(class_element(&pickle, *class)),
            _ => None,
        };
        let (key, element) = described.ok_or("a storage is not described as PyTorch does")?;
        let ElementType::Known(dtype) = element else {
            return Err(format!("elements of type {element} are not supported"));
        };
        let mut rest = head.get(pickle.length..).unwrap_or_default();
        let elements = take_number(&mut rest)? as u64;
        let begin = at + pickle.length as u64 + 8;
        let bytes = elements.checked_mul(dtype.size() as u64);
        let stop = bytes
            .and_then(|bytes| begin.checked_add(bytes))
            .filter(|&stop| stop <= end);
        at = stop.ok_or("a storage is longer than the file")?;
        keys.insert(key, (index.storages.len(), element));
        index.storages.push(Storage {
            place: Place::Position(begin),
            length: at - begin,
        });
    }
    views(
        &read_at(file, at, (end - at).min(pickle::MAX_BYTES))?,
        &mut keys,
        index,
    )?;
    Ok(keys)
}

/// Views of storages as storages: `[(key, key of the whole, offset, elements)]`.
fn views(bytes: &[u8], keys: &mut Keys, index: &mut Index) -> Result<(), String> {
    let pickle = Pickle::read(bytes)?;
    for &view in pickle.sequence(pickle.root()).unwrap_or_default() {
        let Some([key, whole, offset, elements]) = pickle.sequence(view) else {
            return Err("a view is not described as PyTorch does".to_owned());
        };
        let whole = pickle.key(*whole).and_then(|whole| keys.get(&whole));
        let (Some(key), Some((whole, element)), Some(offset), Some(elements)) = (
            pickle.key(*key),
            whole.cloned(),
            pickle.count(*offset),
            pickle.count(*elements),
        ) else {
            return Err("a view is not described as PyTorch does".to_owned());
        };
        let ElementType::Known(dtype) = element else {
            return Err(format!("elements of type {element} are not supported"));
        };
        let bytes = |count: usize| (count as u64).checked_mul(dtype.size() as u64);
        let whole = &index.storages[whole];
        let part = bytes(offset).zip(bytes(elements)).filter(|(offset, size)| {
            offset
                .checked_add(*size)
                .is_some_and(|end| end <= whole.length)
        });
        let ((offset, length), Place::Position(start)) = (
            part.ok_or("a view does not lie within its storage")?,
            whole.place,
        ) else {
            return Err("a view is not described as PyTorch does".to_owned());
        };
        keys.insert(key, (index.storages.len(), element));
        index.storages.push(Storage {
            place: Place::Position(start + offset),
            length,
        });
    }
    Ok(())
}

/// Tensors one after the other: each a pickle of `(key, key of the storage, type)`, then rank,
/// shape, strides and offset.
fn described_tensors(
    bytes: &[u8],
    keys: &Keys,
    storages: &[Storage],
) -> Result<HashMap<String, Stored>, String> {
    let mut rest = bytes;
    let next = |rest: &mut &[u8]| -> Result<(String, String), String> {
        let pickle = Pickle::read(rest)?;
        *rest = &rest[pickle.length..];
        let keys = match pickle.sequence(pickle.root()) {
            Some([key, storage, _]) => pickle.key(*key).zip(pickle.key(*storage)),
            _ => None,
        };
        keys.ok_or_else(|| "a tensor is not described as PyTorch does".to_owned())
    };
    let count = Pickle::read(rest)?;
    rest = &rest[count.length..];
    let count = count
        .count(count.root())
        .ok_or("it does not say how many tensors it has")?;
    let mut tensors = HashMap::new();
    for _ in 0..count {
        let (key, storage) = next(&mut rest)?;
        // The rank is four bytes, and four more of padding.
        let rank = take_number(&mut rest)? & 0xffff_ffff;
        if rank > super::MAX_RANK {
            return Err(format!(
                "a tensor has {rank} axes, more than {}",
                super::MAX_RANK
            ));
        }
        let mut numbers = || {
            (0..rank)
                .map(|_| take_number(&mut rest))
                .collect::<Result<Vec<_>, _>>()
        };
        let (shape, strides) = (numbers()?, numbers()?);
        let offset = take_number(&mut rest)?;
        let found = keys.get(&storage);
        let Some((storage, ElementType::Known(dtype))) = found else {
            return Err(format!("the storage {} is not there", printable(&storage)));
        };
        let view = View {
            storage: *storage,
            offset,
            strides,
        };
        tensors.insert(key, Stored::new(shape, *dtype, view, storages)?);
    }
    Ok(tensors)
}

/// A number of eight bytes that counts something.
fn take_number(rest: &mut &[u8]) -> Result<usize, String> {
    let (number, tail) = rest.split_first_chunk().ok_or("it is cut off")?;
    *rest = tail;
    usize::try_from(u64::from_le_bytes(*number))
        .map_err(|_| "a size is beyond all bounds".to_owned())
}
