//! The files of a text, and how they make the splits.

use super::vocabulary::{TOKENIZER_FILE, WORDS_FILE};
use crate::error::DataError;
use crate::splits::aliases;
use std::path::{Path, PathBuf};

/// The splits in the order of every list of splits. The last one is optional.
pub(crate) const SPLITS: [&str; 3] = ["train", "valid", "test"];

/// Files are divided one by one from this number on, which gives valid and test at least one each.
const FILES_TO_DIVIDE: usize = 20;

/// The files of a text and how they make the splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) content: Content,
    /// Files and folders found beside the text that are not part of it.
    pub(crate) left_out: Vec<PathBuf>,
}

/// The files that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Train, valid and perhaps test, each with its own files.
    Splits(Vec<Split>),
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
    /// The files in order, at least one.
    pub(crate) files: Vec<PathBuf>,
}

/// The file names of a split: plain, as in the authors' scripts; WikiText as published, by words
/// and raw; Penn Treebank.
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
            return Ok(Self {
                content: Content::Whole(of(path, vec![path.to_owned()])),
                left_out: Vec::new(),
            });
        }
        let listing = Listing::of(path)?;
        let mut left_out = Vec::new();
        let [train, valid, test] = SPLITS.map(|split| listing.split(split, &mut left_out));
        match (train?, valid?, test?) {
            (Some(train), Some(valid), test) => {
                let splits: Vec<Split> = [train, valid].into_iter().chain(test).collect();
                left_out.extend(listing.unused(&splits));
                left_out.sort();
                let content = Content::Splits(splits);
                Ok(Self { content, left_out })
            }
            (None, None, None) => {
                let Texts { files, left_out } = texts(path)?;
                let content = match files.len() {
                    0 => return Err(missing(path, SPLITS[0])),
                    1..FILES_TO_DIVIDE => Content::Whole(of(path, files)),
                    _ => Content::Splits(divide(files).map(|files| of(path, files)).into()),
                };
                Ok(Self { content, left_out })
            }
            (None, _, _) => Err(missing(path, SPLITS[0])),
            (_, None, _) => Err(missing(path, SPLITS[1])),
        }
    }

    /// All files with the number of their split, or 3 where the text is yet to be cut.
    pub(crate) fn files(&self) -> impl Iterator<Item = (u8, &Path)> {
        let (splits, first): (&[Split], u8) = match &self.content {
            Content::Splits(splits) => (splits, 0),
            Content::Whole(whole) => (std::slice::from_ref(whole), 3),
        };
        splits.iter().zip(first..).flat_map(|(split, number)| {
            let files = split.files.iter();
            files.map(move |file| (number, file.as_path()))
        })
    }

    /// The files that train is made of, or the beginning of which it is.
    pub(crate) fn training_files(&self) -> &[PathBuf] {
        match &self.content {
            Content::Splits(splits) => &splits[0].files,
            Content::Whole(whole) => &whole.files,
        }
    }

    /// The arrangement, as users know it.
    pub(crate) fn arrangement(&self) -> Arrangement {
        match &self.content {
            Content::Whole(whole) if whole.files[..] == [whole.path.clone()] => Arrangement::File,
            Content::Whole(_) => Arrangement::JoinedFiles,
            Content::Splits(splits) if splits[0].path == splits[1].path => {
                Arrangement::DividedFiles
            }
            Content::Splits(_) => Arrangement::Splits,
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

/// What lies in a folder, in the order of the names. Hidden entries and the files of vocabularies
/// are not listed.
#[derive(Default)]
struct Listing {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    /// Links to folders, which are not followed below the splits, lest they lead in a circle.
    links: Vec<PathBuf>,
}

impl Listing {
    fn of(folder: &Path) -> Result<Self, DataError> {
        let error = |source| DataError::read(folder, source);
        let mut listing = Self::default();
        for entry in std::fs::read_dir(folder).map_err(error)? {
            let entry = entry.map_err(error)?;
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if hidden || is_named(&path, WORDS_FILE) || is_named(&path, TOKENIZER_FILE) {
                continue;
            }
            let list = match entry.file_type().map_err(error)?.is_dir() {
                true => &mut listing.folders,
                false if path.is_dir() => &mut listing.links,
                false => &mut listing.files,
            };
            list.push(path);
        }
        for list in [&mut listing.files, &mut listing.folders, &mut listing.links] {
            list.sort();
        }
        Ok(listing)
    }

    /// The file of a split, or the text files in its sub-folder.
    fn split(
        &self,
        split: &'static str,
        left_out: &mut Vec<PathBuf>,
    ) -> Result<Option<Split>, DataError> {
        let file = names(split).into_iter().find_map(|name| {
            let files = self.files.iter().filter(|path| path.is_file());
            best_named(files, &name)
        });
        if let Some(path) = file {
            let (path, files) = (path.clone(), vec![path.clone()]);
            return Ok(Some(Split { path, files }));
        }
        let folder = aliases(split)
            .iter()
            .find_map(|alias| best_named(self.folders.iter().chain(&self.links), alias));
        let Some(path) = folder else {
            return Ok(None);
        };
        let found = texts(path)?;
        left_out.extend(found.left_out);
        let (path, files) = (path.clone(), found.files);
        match files.is_empty() {
            true => Err(DataError::NoText { folder: path }),
            false => Ok(Some(Split { path, files })),
        }
    }

    /// What no split is made of.
    fn unused(self, splits: &[Split]) -> impl Iterator<Item = PathBuf> {
        let all = self.files.into_iter().chain(self.folders).chain(self.links);
        all.filter(|path| splits.iter().all(|split| split.path != *path))
    }
}

/// Whether this is the name of a file or folder, in upper or lower case.
pub(crate) fn is_named(path: &Path, name: &str) -> bool {
    path.file_name()
        .is_some_and(|found| found.eq_ignore_ascii_case(name))
}

/// The path with exactly this name, or else the first one with this name in upper or lower case.
fn best_named<'a>(paths: impl Iterator<Item = &'a PathBuf>, name: &str) -> Option<&'a PathBuf> {
    let named = paths.filter(|path| is_named(path, name));
    named.min_by_key(|path| !path.ends_with(name))
}

/// The file of a folder with this name, in upper or lower case.
pub(crate) fn find_file(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| is_named(path, name) && path.is_file());
    files.sort();
    best_named(files.iter(), name).cloned()
}

/// What a folder and the folders in it hold, in the order of the paths.
struct Texts {
    /// All `.txt` files.
    files: Vec<PathBuf>,
    left_out: Vec<PathBuf>,
}

fn texts(folder: &Path) -> Result<Texts, DataError> {
    let (mut files, mut left_out) = (Vec::new(), Vec::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let listing = Listing::of(&folder)?;
        folders.extend(listing.folders);
        left_out.extend(listing.links);
        for file in listing.files {
            let extension = file.extension();
            let is_text = extension.is_some_and(|found| found.eq_ignore_ascii_case("txt"));
            match is_text && file.is_file() {
                true => files.push(file),
                false => left_out.push(file),
            }
        }
    }
    files.sort();
    left_out.sort();
    Ok(Texts { files, left_out })
}

/// Files by their number, counted from 1: the 10th, 30th, 50th, ... are valid, the 20th, 40th, ...
/// test, and the others train.
fn divide(files: Vec<PathBuf>) -> [Vec<PathBuf>; 3] {
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

#[cfg(test)]
#[path = "layout/tests.rs"]
mod tests;
