//! Files that are written whole or not at all.

use crate::error::{RunError, TrainError};
use deq_models::checkpoint::printable;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Length and checksum of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Its length.
    pub bytes: u64,
    /// The XXH3 of its content, in hexadecimal digits.
    pub xxh3: String,
}

impl FileSum {
    /// Those of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::new(bytes.len() as u64, xxh3_64(bytes))
    }

    pub(crate) fn new(bytes: u64, xxh3: u64) -> Self {
        let xxh3 = format!("{xxh3:016x}");
        Self { bytes, xxh3 }
    }
}

/// Writes `bytes` to a temporary file beside `path` and renames it into place.
///
/// # Errors
///
/// If it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        // Temporary files are private by default; a run is as readable as any other file of its
        // owner.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| TrainError::io("write", path, source))
}

/// Creates a folder and its parents.
///
/// # Errors
///
/// If it cannot be created.
pub fn create_folder(path: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(path).map_err(|source| TrainError::io("create", path, source))
}

/// Reads a whole file.
///
/// # Errors
///
/// If it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    std::fs::read(path).map_err(|source| TrainError::io("read", path, source))
}

/// Reads a JSON file.
///
/// # Errors
///
/// If it cannot be read, or is not what it should be.
pub fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    what: &'static str,
) -> Result<T, TrainError> {
    serde_json::from_slice(&read(path)?).map_err(|error| malformed(path, what, &error))
}

/// Writes a value as indented JSON, whole or not at all.
///
/// # Errors
///
/// If it cannot be written.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), TrainError> {
    write_whole(path, &json_bytes(path, value)?)
}

/// A value as indented JSON.
pub(crate) fn json_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, TrainError> {
    serde_json::to_vec_pretty(value).map_err(|error| malformed(path, "JSON value", &error))
}

fn malformed(path: &Path, what: &'static str, error: &serde_json::Error) -> TrainError {
    RunError::Malformed {
        path: path.to_owned(),
        what,
        // It may quote what the file holds.
        reason: printable(&error.to_string()),
    }
    .into()
}
