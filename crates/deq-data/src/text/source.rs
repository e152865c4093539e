//! The bytes of the three splits, from a folder, a file or this crate.

use crate::error::DataError;
use std::path::{Path, PathBuf};

const SPLITS: [&str; 3] = ["train", "valid", "test"];

/// A split's bytes with the path to name in errors.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
}

/// The file names of a split: WikiText as in the authors' scripts, WikiText as published, Penn Treebank.
fn names(split: &str) -> [String; 3] {
    [
        format!("{split}.txt"),
        format!("wiki.{split}.tokens"),
        format!("ptb.{split}.txt"),
    ]
}

/// Reads train, valid and test, none of them empty.
pub(crate) fn open(path: &Path) -> Result<[Source; 3], DataError> {
    if !path.exists() {
        return Err(DataError::NotFound {
            path: path.to_owned(),
        });
    }
    if !path.is_dir() {
        return divide(path, &read(path)?);
    }
    let [train, valid, test] = SPLITS.map(|split| find(path, split));
    let sources = [train?, valid?, test?];
    match sources.iter().find(|source| source.bytes.is_empty()) {
        Some(empty) => Err(DataError::Empty {
            path: empty.path.clone(),
        }),
        None => Ok(sources),
    }
}

fn find(folder: &Path, split: &'static str) -> Result<Source, DataError> {
    let accepted = names(split);
    let path = accepted
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| DataError::MissingSplit {
            folder: folder.to_owned(),
            split,
            accepted: accepted.join(", "),
        })?;
    Ok(Source {
        bytes: read(&path)?,
        path,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::read(path, source))
}

/// Cuts a file into 90 %, 5 % and 5 %.
fn divide(path: &Path, bytes: &[u8]) -> Result<[Source; 3], DataError> {
    if bytes.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    let (first, second) = (cut(bytes, 90), cut(bytes, 95));
    if first == 0 || first >= second || second >= bytes.len() {
        return Err(DataError::TooSmallToDivide {
            path: path.to_owned(),
            bytes: bytes.len(),
        });
    }
    Ok(
        [0..first, first..second, second..bytes.len()].map(|range| Source {
            path: path.to_owned(),
            bytes: bytes[range].to_vec(),
        }),
    )
}

/// The end of the line at `percent`, or a place between two characters if that line is longer than 1 % of the file.
fn cut(bytes: &[u8], percent: usize) -> usize {
    let at = bytes.len() * percent / 100;
    let near = bytes.len() / 100;
    if let Some(line_end) = bytes[at..]
        .iter()
        .take(near)
        .position(|&byte| byte == b'\n')
    {
        return at + line_end + 1;
    }
    // Bytes 10xxxxxx continue a character of UTF-8.
    let inside = bytes[at..].iter().take_while(|&&byte| byte & 0xC0 == 0x80);
    at + inside.count()
}

impl Source {
    /// The text at the word level.
    pub(crate) fn text(&self) -> Result<&str, DataError> {
        std::str::from_utf8(&self.bytes).map_err(|error| DataError::NotUtf8 {
            path: self.path.clone(),
            position: error.valid_up_to(),
        })
    }

    /// The words of every line, each line followed by `<eos>`, as the original code reads WikiText.
    pub(crate) fn words(&self) -> Result<impl Iterator<Item = &str>, DataError> {
        let lines = self.text()?.lines();
        let end = super::Vocabulary::END_OF_LINE;
        Ok(lines.flat_map(move |line| line.split_whitespace().chain([end])))
    }
}
