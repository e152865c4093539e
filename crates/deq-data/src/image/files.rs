//! Folders in a fixed order.

use crate::error::DataError;
use std::path::{Path, PathBuf};

/// The files of a folder whose ending is one of `endings` (lower case), sorted by name.
pub(super) fn with_ending(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = entries(folder)?;
    files.retain(|path| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let ending = ending.map(str::to_ascii_lowercase);
        ending.is_some_and(|ending| endings.contains(&&*ending)) && path.is_file()
    });
    Ok(files)
}

/// The folders in a folder, sorted by name.
pub(super) fn folders(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut folders = entries(folder)?;
    folders.retain(|path| path.is_dir());
    Ok(folders)
}

/// The last part of a path as text.
pub(super) fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Everything in a folder that is not hidden, sorted by name. macOS leaves a hidden `._x.jpg` beside every `x.jpg` it copies.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = |source| DataError::read(folder, source);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if !name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
