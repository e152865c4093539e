//! Files that are written whole or not at all. What fails says what could not be done with which
//! file ([`TrainError::Io`]), or what is wrong with its content ([`RunError::Malformed`]).

use crate::error::{RunError, TrainError};
use deq_models::checkpoint::printable;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
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
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut builder = tempfile::Builder::new();
        // Temporary files are private by default; a run is as readable as any other file of its
        // owner.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut file = builder.tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(std::io::Error::from)
    };
    let written = write().map_err(|source| TrainError::io("write", path, source));
    written.map(drop)
}

/// Creates a folder and its parents.
pub fn create_folder(path: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(path).map_err(|source| TrainError::io("create", path, source))
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    std::fs::read(path).map_err(|source| TrainError::io("read", path, source))
}

/// Reads a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path, what: &'static str) -> Result<T, TrainError> {
    serde_json::from_slice(&read(path)?).map_err(|error| malformed(path, what, error))
}

/// Writes a value as indented JSON, whole or not at all.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), TrainError> {
    write_whole(path, &json_bytes(path, value)?)
}

/// A value as indented JSON.
pub(crate) fn json_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, TrainError> {
    serde_json::to_vec_pretty(value).map_err(|error| malformed(path, "JSON value", error))
}

/// Why a file of a run cannot be used; the reason may quote what it holds.
pub(crate) fn malformed(path: &Path, what: &'static str, reason: impl ToString) -> TrainError {
    let reason = printable(&reason.to_string());
    let path = path.to_owned();
    RunError::Malformed { path, what, reason }.into()
}
