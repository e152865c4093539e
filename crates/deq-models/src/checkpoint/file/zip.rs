//! What `torch.save` writes since PyTorch 1.6: a zip archive with a pickle and one member for each
//! storage.

use super::pickle::{self, Pickle};
use super::torch::{Leaves, tensors};
use super::{Index, Place, Storage};
use crate::checkpoint::printable;
use ::zip::read::{ArchiveOffset, Config};
use ::zip::{ZipArchive, ZipReadOptions};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};

pub(super) type Archive = ZipArchive<BufReader<File>>;

/// The longest member beside the pickle and the storages that is read: versions and the like.
const MAX_NOTE: u64 = 4096;

pub(super) fn index(file: BufReader<File>, length: u64) -> Result<(Index, Archive), String> {
    // Nothing stands before the archives that PyTorch writes. To look for such a thing goes wrong
    // where the first entry of the directory is as long as what PyTorch puts behind the last one.
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    let mut archive = ZipArchive::with_config(config, file).map_err(|error| {
        format!(
            "its zip archive is damaged or cut off: {}",
            printable(&error.to_string())
        )
    })?;
    let names: Vec<String> = archive
        .file_names()
        .map(|name| name.map(|name| name.into_owned()).unwrap_or_default())
        .collect();
    let root = names
        .iter()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|root| root.is_empty() || root.ends_with('/'))
        .min_by_key(|root| root.len())
        .ok_or_else(|| no_checkpoint(&names))?
        .to_owned();
    let number = |name: &str| archive.index_for_name(&format!("{root}{name}"));
    let (pickled, order) = (number("data.pkl"), number("byteorder"));
    let pickled = pickled.ok_or_else(|| no_checkpoint(&names))?;

    let prefix = format!("{root}data/");
    let members: Vec<(String, usize)> = names
        .iter()
        .filter_map(|name| Some((name.strip_prefix(&prefix)?, archive.index_for_name(name)?)))
        .map(|(key, member)| (key.to_owned(), member))
        .collect();
    if let Some(order) = order {
        let (order, _) = read_whole(&mut archive, order, MAX_NOTE, length)?;
        if order.trim_ascii() != b"little" {
            return Err(super::legacy::BIG_ENDIAN.to_owned());
        }
    }
    let mut index = Index::default();
    let mut keys = HashMap::new();
    for (key, member) in members {
        let size = archive
            .by_index_raw(member)
            .map_err(|error| damaged(&key, &error.to_string()))?
            .size();
        keys.insert(key, index.storages.len());
        index.storages.push(Storage {
            place: Place::Member(member),
            length: size,
        });
    }
    let (bytes, _) = read_whole(&mut archive, pickled, pickle::MAX_BYTES, length)?;
    let pickle = Pickle::read(&bytes)?;
    index.tensors = tensors(&pickle, &Leaves::Storages(&keys), &index.storages)?;
    Ok((index, archive))
}

/// The numbers of a storage, checked against their checksum.
pub(super) fn read(
    archive: &mut Archive,
    member: usize,
    size: u64,
    length: u64,
) -> Result<Vec<u8>, String> {
    let (bytes, name) = read_whole(archive, member, size, length)?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(damaged(&name, "it has another length than is said")),
    }
}

/// A member of the archive of at most `most` bytes, and its name.
fn read_whole(
    archive: &mut Archive,
    member: usize,
    most: u64,
    length: u64,
) -> Result<(Vec<u8>, String), String> {
    let sum = archive.by_index_raw(member).map(|raw| raw.crc32());
    let sum = sum.map_err(|error| damaged("a member", &error.to_string()))?;
    // PyTorch can be told to leave the checksum out, and writes zero then.
    let options = ZipReadOptions::new().ignore_crc32(sum == 0);
    let mut entry = archive
        .by_index_with_options(member, options)
        .map_err(|error| damaged("a member", &error.to_string()))?;
    let name = entry
        .name()
        .map(|name| name.into_owned())
        .unwrap_or_default();
    // The size is a claim: memory is asked for as bytes arrive.
    let mut bytes = Vec::with_capacity(entry.size().min(most).min(length) as usize);
    Read::take(&mut entry, most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| damaged(&name, &error.to_string()))?;
    match bytes.len() as u64 <= most {
        true => Ok((bytes, name)),
        false => Err(damaged(&name, &format!("it is longer than {most} bytes"))),
    }
}

fn damaged(name: &str, reason: &str) -> String {
    format!(
        "{} cannot be unpacked: {}",
        printable(name),
        printable(reason)
    )
}

fn no_checkpoint(names: &[String]) -> String {
    let npz = names.iter().any(|name| name.ends_with(".npy"));
    match npz {
        true => "it is an archive of NumPy's arrays".to_owned(),
        false => "it is a zip archive, but not one of PyTorch's: it has no data.pkl".to_owned(),
    }
}
