//! One file out of a zip archive.

use super::RemoteFile;
use crate::error::DataError;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use zip::ZipArchive;

/// Unpacks a file and compares its checksum, if there is one.
pub(super) fn unpack(archive: &Path, file: &RemoteFile, to: &Path) -> Result<(), DataError> {
    let bad = |reason: String| DataError::BadArchive {
        path: archive.to_owned(),
        reason,
    };
    let opened = File::open(archive).map_err(|error| DataError::read(archive, error))?;
    let mut opened =
        ZipArchive::new(BufReader::new(opened)).map_err(|error| bad(error.to_string()))?;
    let member = opened.by_name(file.path);
    let mut member = member.map_err(|error| bad(format!("{}: {error}", file.path)))?;
    let mut out = File::create(to).map_err(|error| DataError::write(to, error))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        // Reading also compares the checksum that the archive itself has.
        let read = match member.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(bad(format!("{}: {error}", file.path))),
        };
        hash.update(&buffer[..read]);
        let written = out.write_all(&buffer[..read]);
        written.map_err(|error| DataError::write(to, error))?;
    }
    out.sync_all()
        .map_err(|error| DataError::write(to, error))?;
    let found: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    match file.sha256 {
        Some(expected) if expected != found => Err(DataError::WrongChecksum {
            file: file.path,
            expected,
            found,
        }),
        _ => Ok(()),
    }
}
