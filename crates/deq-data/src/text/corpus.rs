//! Three splits of text as token ids.

use super::builtin;
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// One byte of the file.
    Byte,
    /// One word between white space; every line ends with `<eos>`.
    Word,
}

impl std::str::FromStr for Level {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "byte" => Ok(Level::Byte),
            "word" => Ok(Level::Word),
            _ => Err(DataError::UnknownLevel {
                name: name.to_owned(),
            }),
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Byte => "byte",
            Level::Word => "word",
        })
    }
}

/// A text in three splits.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The tokens; at the word level those of the training split.
    pub vocabulary: Vocabulary,
    /// Token ids to train on.
    pub train: Vec<u32>,
    /// Token ids to choose a model by.
    pub valid: Vec<u32>,
    /// Token ids to report.
    pub test: Vec<u32>,
}

const SPLITS: [&str; 3] = ["train", "valid", "test"];

/// The file names of a split: WikiText as in the authors' scripts, WikiText as published, Penn Treebank.
fn names(split: &str) -> [String; 3] {
    [
        format!("{split}.txt"),
        format!("wiki.{split}.tokens"),
        format!("ptb.{split}.txt"),
    ]
}

/// A split's bytes with the path to name in errors.
struct Source {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Corpus {
    /// Reads a folder with the files of three splits, or a single text file, of which the first 90 % become train and 5 % each valid
    /// and test.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the file and what would be right: a path or split that is missing, an empty file, text that is not
    /// UTF-8 at the word level, a word of another split that train does not have while the vocabulary has no `<unk>`.
    pub fn open(path: &Path, level: Level) -> Result<Self, DataError> {
        if !path.exists() {
            return Err(DataError::NotFound {
                path: path.to_owned(),
            });
        }
        let sources = if path.is_dir() {
            let [train, valid, test] = SPLITS.map(|split| find(path, split));
            [train?, valid?, test?]
        } else {
            divide(path, &read(path)?)
        };
        Self::from_sources(&sources, level)
    }

    /// The handbook on deep equilibrium models that is compiled into this crate.
    ///
    /// Its paragraphs are numbered from 1; the 10th, 30th, 50th, ... are the valid split, the 20th, 40th, ... the test split, and the others train, so
    /// that every chapter is represented everywhere.
    ///
    /// # Errors
    ///
    /// None in practice: the text is fixed. At the word level, words outside train become `<unk>`.
    pub fn builtin(level: Level) -> Result<Self, DataError> {
        let [train, valid, test] = builtin::splits();
        let source = |split: &str, text: String| Source {
            path: PathBuf::from(format!("built-in {split}")),
            bytes: text.into_bytes(),
        };
        let sources = [
            source("train", train),
            source("valid", valid),
            source("test", test),
        ];
        Self::from_sources(&sources, level)
    }

    fn from_sources(sources: &[Source; 3], level: Level) -> Result<Self, DataError> {
        for source in sources {
            if source.bytes.is_empty() {
                return Err(DataError::Empty {
                    path: source.path.clone(),
                });
            }
        }
        let [train, valid, test] = sources;
        match level {
            Level::Byte => {
                let ids = |source: &Source| source.bytes.iter().map(|&b| u32::from(b)).collect();
                Ok(Self {
                    vocabulary: Vocabulary::of_bytes(),
                    train: ids(train),
                    valid: ids(valid),
                    test: ids(test),
                })
            }
            Level::Word => {
                let vocabulary = Vocabulary::of_words(words(text(train)?));
                let ids = |source: &Source| encode(&vocabulary, source);
                Ok(Self {
                    train: ids(train)?,
                    valid: ids(valid)?,
                    test: ids(test)?,
                    vocabulary,
                })
            }
        }
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
    std::fs::read(path).map_err(|source| DataError::io(path, source))
}

/// Cuts a file at line ends near 90 % and 95 %.
fn divide(path: &Path, bytes: &[u8]) -> [Source; 3] {
    let cut = |percent: usize| {
        let at = bytes.len() * percent / 100;
        let rest = bytes[at..].iter().position(|&byte| byte == b'\n');
        rest.map_or(at, |line_end| at + line_end + 1)
    };
    let (first, second) = (cut(90), cut(95));
    [0..first, first..second, second..bytes.len()].map(|range| Source {
        path: path.to_owned(),
        bytes: bytes[range].to_vec(),
    })
}

fn text(source: &Source) -> Result<&str, DataError> {
    std::str::from_utf8(&source.bytes).map_err(|error| DataError::NotUtf8 {
        path: source.path.clone(),
        position: error.valid_up_to(),
    })
}

/// The words of every line, each line followed by `<eos>`, as the original code reads WikiText.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split_whitespace().chain([Vocabulary::END_OF_LINE]))
}

fn encode(vocabulary: &Vocabulary, source: &Source) -> Result<Vec<u32>, DataError> {
    words(text(source)?)
        .map(|word| {
            let unknown = || DataError::UnknownWord {
                path: source.path.clone(),
                word: word.to_owned(),
            };
            vocabulary.id(word).ok_or_else(unknown)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: [(&str, &[u8]); 3]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn words_and_line_ends_are_read_as_the_original_does() {
        let files: [(&str, &[u8]); 3] = [
            ("wiki.train.tokens", b" \n a b <unk> \n"),
            ("valid.txt", b"b z\n"),
            ("ptb.test.txt", b"a\n"),
        ];
        let folder = folder(files);
        let corpus = Corpus::open(folder.path(), Level::Word).unwrap();
        let tokens = |ids: &[u32]| -> Vec<&str> {
            let token = |id: &u32| corpus.vocabulary.token(*id).unwrap();
            ids.iter().map(token).collect()
        };
        assert_eq!(tokens(&corpus.train), ["<eos>", "a", "b", "<unk>", "<eos>"]);
        assert_eq!(tokens(&corpus.valid), ["b", "<unk>", "<eos>"]);
        assert_eq!(tokens(&corpus.test), ["a", "<eos>"]);
    }

    #[test]
    fn a_single_file_is_cut_at_line_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, "0123456789\n".repeat(100)).unwrap();
        let corpus = Corpus::open(&path, Level::Byte).unwrap();
        assert_eq!(
            corpus.train.len() + corpus.valid.len() + corpus.test.len(),
            1100
        );
        for split in [&corpus.train, &corpus.valid, &corpus.test] {
            assert!(split.len() >= 44 && split.last() == Some(&10));
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_path() {
        let message = |path: &Path, level| Corpus::open(path, level).unwrap_err().to_string();
        let missing = message(Path::new("/nowhere"), Level::Byte);
        assert!(missing.starts_with("there is no /nowhere"), "{missing}");

        let good: [(&str, &[u8]); 3] = [("train.txt", b"a"), ("valid.txt", b"a"), ("other", b"")];
        let no_test = folder(good);
        let text = message(no_test.path(), Level::Byte);
        assert!(
            text.ends_with("test.txt, wiki.test.tokens, ptb.test.txt"),
            "{text}"
        );

        let empty = folder([("train.txt", b"a"), ("valid.txt", b""), ("test.txt", b"a")]);
        assert!(message(empty.path(), Level::Word).contains("valid.txt is empty"));

        let binary = folder([
            ("train.txt", b"ab\xff"),
            ("valid.txt", b"a"),
            ("test.txt", b"a"),
        ]);
        let text = message(binary.path(), Level::Word);
        assert!(
            text.contains("(byte 2)") && text.contains("byte level"),
            "{text}"
        );
        assert!(Corpus::open(binary.path(), Level::Byte).is_ok());

        let unknown = folder([("train.txt", b"a"), ("valid.txt", b"z"), ("test.txt", b"a")]);
        assert!(message(unknown.path(), Level::Word).contains("\"z\""));
        assert_eq!(
            "letter".parse::<Level>().unwrap_err().to_string(),
            "there is no level \"letter\": choose byte or word"
        );
    }
}
