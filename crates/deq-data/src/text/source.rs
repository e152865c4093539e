//! The text of the three splits: where it lies, and its bytes.

use crate::error::DataError;
use crate::files;
use crate::splits::aliases;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// The splits, in the order of all arrays of three.
pub(crate) const SPLITS: [&str; 3] = ["train", "valid", "test"];

/// Files that are divided one by one need at least this many, so that valid and test get one each.
const FILES_TO_DIVIDE: usize = 20;

/// A split's bytes.
pub(crate) struct Source {
    /// The file or folder to name in errors.
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    /// Where each file begins, if several were joined.
    parts: Vec<(usize, PathBuf)>,
}

/// The files of a text and how they make three splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Each split has its own file or files.
    Splits([Split; 3]),
    /// The files are joined in this order and cut into three.
    Whole(Split),
}

/// How a text is divided into train, valid and test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// One file, cut into three.
    File,
    /// A folder with a file or a sub-folder for each split.
    Splits,
    /// A folder of files that are divided among the splits one by one.
    DividedFiles,
    /// A folder of a few files, joined and cut into three.
    JoinedFiles,
}

/// What a split, or a whole text, is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// The file or folder to name in errors.
    pub(crate) path: PathBuf,
    /// The files, in order; never none.
    pub(crate) files: Vec<PathBuf>,
}

/// The file names of a split: plain, as in the authors' scripts; WikiText as published, by words and raw; Penn Treebank.
fn names(split: &str) -> Vec<String> {
    let plain = aliases(split).iter().map(|alias| format!("{alias}.txt"));
    let published = [
        format!("wiki.{split}.tokens"),
        format!("wiki.{split}.raw"),
        format!("ptb.{split}.txt"),
    ];
    plain.chain(published).collect()
}

impl Layout {
    /// Finds the files, without reading them.
    pub(crate) fn find(path: &Path) -> Result<Self, DataError> {
        if !path.exists() {
            return Err(DataError::NotFound {
                path: path.to_owned(),
            });
        }
        let of = |path: &Path, files| Split {
            path: path.to_owned(),
            files,
        };
        if !path.is_dir() {
            return Ok(Layout::Whole(of(path, vec![path.to_owned()])));
        }
        let [train, valid, test] = SPLITS.map(|split| find_split(path, split));
        match (train?, valid?, test?) {
            (Some(train), Some(valid), Some(test)) => Ok(Layout::Splits([train, valid, test])),
            (None, None, None) => match texts(path)? {
                files if files.is_empty() => Err(missing(path, SPLITS[0])),
                files if files.len() < FILES_TO_DIVIDE => Ok(Layout::Whole(of(path, files))),
                files => Ok(Layout::Splits(
                    divide_files(files).map(|files| of(path, files)),
                )),
            },
            (None, _, _) => Err(missing(path, SPLITS[0])),
            (_, None, _) => Err(missing(path, SPLITS[1])),
            (_, _, None) => Err(missing(path, SPLITS[2])),
        }
    }

    /// All files with the number of their split, or 3 where the text is yet to be cut.
    pub(crate) fn files(&self) -> impl Iterator<Item = (u8, &Path)> {
        let (splits, first): (&[Split], u8) = match self {
            Layout::Splits(splits) => (splits, 0),
            Layout::Whole(whole) => (std::slice::from_ref(whole), 3),
        };
        splits.iter().zip(first..).flat_map(|(split, number)| {
            let files = split.files.iter();
            files.map(move |file| (number, file.as_path()))
        })
    }

    /// How the files make three splits, in words that a user knows.
    pub(crate) fn arrangement(&self) -> Arrangement {
        match self {
            Layout::Whole(whole) if whole.files[..] == [whole.path.clone()] => Arrangement::File,
            Layout::Whole(_) => Arrangement::JoinedFiles,
            Layout::Splits([train, valid, _]) if train.path == valid.path => {
                Arrangement::DividedFiles
            }
            Layout::Splits(_) => Arrangement::Splits,
        }
    }

    /// Reads train, valid and test, none of them empty, with the checksum of each of the [`files`](Self::files).
    pub(crate) fn read(&self) -> Result<([Source; 3], Vec<u64>), DataError> {
        let mut checksums = Vec::new();
        let mut join = |split| join(split, &mut checksums);
        let sources = match self {
            Layout::Whole(whole) => divide(join(whole)?)?,
            Layout::Splits([train, valid, test]) => [join(train)?, join(valid)?, join(test)?],
        };
        match sources.iter().find(|source| source.bytes.is_empty()) {
            Some(empty) => Err(DataError::Empty {
                path: empty.path.clone(),
            }),
            None => Ok((sources, checksums)),
        }
    }
}

fn missing(folder: &Path, split: &'static str) -> DataError {
    DataError::MissingSplit {
        folder: folder.to_owned(),
        split,
        accepted: names(split).join(", "),
    }
}

/// The file of a split, or the text files in its sub-folder.
fn find_split(folder: &Path, split: &'static str) -> Result<Option<Split>, DataError> {
    let file = names(split).into_iter().map(|name| folder.join(name));
    if let Some(path) = file.into_iter().find(|path| path.is_file()) {
        let files = vec![path.clone()];
        return Ok(Some(Split { path, files }));
    }
    let subfolder = aliases(split).iter().map(|alias| folder.join(alias));
    let Some(path) = subfolder.into_iter().find(|path| path.is_dir()) else {
        return Ok(None);
    };
    let files = texts(&path)?;
    match files.is_empty() {
        true => Err(DataError::NoText { folder: path }),
        false => Ok(Some(Split { path, files })),
    }
}

/// All `.txt` files in a folder and the folders in it, in the order of their paths. Hidden ones and lists of words do not count.
fn texts(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let error = |source| DataError::read(&folder, source);
        for entry in std::fs::read_dir(&folder).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = entry.file_name();
            let path = entry.path();
            let kind = entry.file_type().map_err(error)?;
            if name.to_string_lossy().starts_with('.') || name == super::vocabulary::WORDS_FILE {
                continue;
            }
            // A link to a folder is not followed, so that there is no way round in a circle.
            if kind.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "txt") && path.is_file()
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Files by their number, counted from 1: the 10th, 30th, 50th, ... are valid, the 20th, 40th, ... test, and the others train.
fn divide_files(files: Vec<PathBuf>) -> [Vec<PathBuf>; 3] {
    let mut splits = [const { Vec::new() }; 3];
    for (number, file) in (1..).zip(files) {
        splits[split_of(number)].push(file);
    }
    splits
}

/// The split of the part of a text with this number, counted from 1.
pub(crate) fn split_of(number: usize) -> usize {
    match number % 20 {
        10 => 1,
        0 => 2,
        _ => 0,
    }
}

/// Reads files one after the other, with a line feed between two where there is none.
fn join(split: &Split, checksums: &mut Vec<u64>) -> Result<Source, DataError> {
    let path = split.path.clone();
    if let [file] = &split.files[..] {
        let bytes = files::read(file)?;
        checksums.push(xxh3_64(&bytes));
        return Ok(Source::new(path, bytes));
    }
    let mut source = Source::new(path, Vec::new());
    for file in &split.files {
        if source.bytes.last().is_some_and(|&byte| byte != b'\n') {
            source.bytes.push(b'\n');
        }
        source.parts.push((source.bytes.len(), file.clone()));
        let bytes = files::read(file)?;
        checksums.push(xxh3_64(&bytes));
        source.bytes.extend(bytes);
    }
    Ok(source)
}

/// Cuts a text into 90 %, 5 % and 5 %.
fn divide(mut whole: Source) -> Result<[Source; 3], DataError> {
    let len = whole.bytes.len();
    let path = whole.path.clone();
    if len == 0 {
        return Err(DataError::Empty { path });
    }
    let (first, second) = (cut(&whole.bytes, 90), cut(&whole.bytes, 95));
    if first == 0 || first >= second || second >= len {
        return Err(DataError::TooSmallToDivide { path, bytes: len });
    }
    let test = whole.split_off(second);
    let valid = whole.split_off(first);
    Ok([whole, valid, test])
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
    pub(crate) fn new(path: PathBuf, bytes: Vec<u8>) -> Self {
        let parts = Vec::new();
        Self { path, bytes, parts }
    }

    /// Keeps what is before `at`, and returns the rest.
    fn split_off(&mut self, at: usize) -> Self {
        let bytes = self.bytes.split_off(at);
        let first = self.parts.partition_point(|(start, _)| *start < at);
        let mut parts: Vec<_> = self.parts.split_off(first);
        parts.iter_mut().for_each(|(start, _)| *start -= at);
        // The file that goes on across the cut; its place before it would be negative, so places in it count from the cut.
        if let Some((_, file)) = self.parts.last()
            && parts.first().is_none_or(|(start, _)| *start > 0)
        {
            parts.insert(0, (0, file.clone()));
        }
        let path = self.path.clone();
        Self { path, bytes, parts }
    }

    /// The text, at all levels but that of bytes.
    pub(crate) fn text(&self) -> Result<&str, DataError> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to();
            let part = self.parts.partition_point(|(start, _)| *start <= at);
            let (start, path) = match part {
                0 => (0, &self.path),
                _ => (self.parts[part - 1].0, &self.parts[part - 1].1),
            };
            DataError::NotUtf8 {
                path: path.clone(),
                position: at - start,
            }
        })
    }
}

#[cfg(test)]
#[path = "source/tests.rs"]
mod tests;
