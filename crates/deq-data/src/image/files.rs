//! Folders in a fixed order.

use crate::error::DataError;
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The endings of files that are read as images, in lower case: those of torchvision, GIF, and two
/// more names for JPEG.
const IMAGE_ENDINGS: [&str; 14] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm", "pbm",
    "pnm",
];
/// Names listed in a message.
const NAMED: usize = 5;

/// What a folder of images holds, hidden files aside.
#[derive(Default)]
pub(super) struct Listing {
    /// The images, sorted by path.
    pub(super) images: Vec<PathBuf>,
    /// Everything else, sorted by path.
    pub(super) left_out: Vec<PathBuf>,
}

impl Listing {
    /// The files of a folder; folders in it do not count.
    pub(super) fn flat(folder: &Path) -> Result<Self, DataError> {
        let mut listing = Self::default();
        for path in entries(folder)? {
            if !path.is_dir() {
                listing.add(path);
            }
        }
        Ok(listing)
    }

    /// The files of a folder and of all folders in it. A link to a folder is not followed, since it
    /// might lead round in a circle, but left out.
    pub(super) fn deep(folder: &Path) -> Result<Self, DataError> {
        let mut listing = Self::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for path in entries(&folder)? {
                match path.is_dir() && !path.is_symlink() {
                    true => folders.push(path),
                    false => listing.add(path),
                }
            }
        }
        listing.images.sort();
        listing.left_out.sort();
        Ok(listing)
    }

    fn add(&mut self, path: PathBuf) {
        match has_ending(&path, &IMAGE_ENDINGS) && path.is_file() {
            true => self.images.push(path),
            false => self.left_out.push(path),
        }
    }
}

/// The files of a folder whose ending is one of `endings` (lower case), sorted by name.
pub(super) fn with_ending(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = entries(folder)?;
    files.retain(|path| has_ending(path, endings) && path.is_file());
    Ok(files)
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    ending.is_some_and(|ending| endings.contains(&&*ending.to_ascii_lowercase()))
}

/// The folders in a folder, sorted by name.
pub(super) fn folders(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut folders = entries(folder)?;
    folders.retain(|path| path.is_dir());
    Ok(folders)
}

/// The first folder in `root` that has one of these names, or an error that lists them and what is
/// there instead.
pub(super) fn split(
    root: &Path,
    split: &'static str,
    names: impl Iterator<Item = &'static str> + Clone,
) -> Result<PathBuf, DataError> {
    require_folder(root)?;
    let found = names.clone().map(|name| root.join(name));
    match found.into_iter().find(|path| path.is_dir()) {
        Some(path) => Ok(path),
        None => Err(DataError::MissingImageSplit {
            folder: root.to_owned(),
            split,
            accepted: names.collect::<Vec<_>>().join(", "),
            found: contents(root),
        }),
    }
}

pub(super) fn require_folder(path: &Path) -> Result<(), DataError> {
    if path.is_dir() {
        return Ok(());
    }
    Err(DataError::NoFolder {
        path: path.to_owned(),
    })
}

/// The last part of a path as text. Bytes that are not UTF-8 and control characters are escaped, so
/// that different names stay different and none can steer a terminal.
pub(super) fn label(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character.is_control() {
                true => text.extend(character.escape_default()),
                false => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string can be written");
        }
    }
    text
}

/// What a folder holds, in words for a message.
pub(super) fn contents(folder: &Path) -> String {
    let names = entries(folder).unwrap_or_default();
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let mut words: Vec<String> = names.iter().take(NAMED).map(|path| label(path)).collect();
    if names.len() > NAMED {
        words.push(format!("and {} more", names.len() - NAMED));
    }
    words.join(", ")
}

/// Everything in a folder that is not hidden, sorted by name. macOS leaves a hidden `._x.jpg`
/// beside every `x.jpg` it copies.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = |source| DataError::read(folder, source);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_escape_what_a_terminal_would_obey() {
        assert_eq!(label(Path::new("a/b c é")), "b c é");
        assert_eq!(label(Path::new("a/red\u{1b}[31m")), "red\\u{1b}[31m");
    }

    #[cfg(unix)]
    #[test]
    fn labels_that_are_not_utf_8_stay_different() {
        use std::os::unix::ffi::OsStrExt;
        let of = |bytes: &[u8]| label(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(of(b"caf\xe9"), "caf\\xe9");
        assert_ne!(of(b"caf\xe9"), of(b"caf\xe8"));
    }
}
