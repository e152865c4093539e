//! What can be wrong with data, each in one sentence that says what would be right.

use std::path::{Path, PathBuf};

/// Data cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path does not exist.
    #[error(
        "there is no {path}: give a folder with train.txt, valid.txt and test.txt, or one text file"
    )]
    NotFound {
        /// The path given.
        path: PathBuf,
    },
    /// A split of a corpus folder is missing.
    #[error("{folder} has no {split} split: it must hold one of {accepted}")]
    MissingSplit {
        /// The folder.
        folder: PathBuf,
        /// `train`, `valid` or `test`.
        split: &'static str,
        /// The file names looked for, separated by commas.
        accepted: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds no token.
    #[error("{path} is empty: a split needs at least one token")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A word-level file is not text.
    #[error("{path} is not UTF-8 text (byte {position}): convert it, or read it at the byte level")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the text stops being valid.
        position: usize,
    },
    /// A word is not in the vocabulary, and the vocabulary has no `<unk>`.
    #[error(
        "{path} holds {word:?}, which train does not, and the vocabulary has no <unk> for it: mark rare words as <unk>"
    )]
    UnknownWord {
        /// The file.
        path: PathBuf,
        /// The word.
        word: String,
    },
    /// There are not enough tokens for one segment of every stream.
    #[error(
        "{tokens} tokens are too few for {batch} streams: each needs at least 2, so reduce the batch to {most} or less"
    )]
    TooFewTokens {
        /// The tokens there are.
        tokens: usize,
        /// The streams asked for.
        batch: usize,
        /// The most streams possible.
        most: usize,
    },
    /// There is no such level.
    #[error("there is no level {name:?}: choose byte or word")]
    UnknownLevel {
        /// The name given.
        name: String,
    },
}

impl DataError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        DataError::Io {
            path: path.to_owned(),
            source,
        }
    }
}
