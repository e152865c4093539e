//! What a token is.

use super::layout::{Layout, find_file, is_named};
use super::lines::words;
use super::vocabulary::{TOKENIZER_FILE, Vocabulary, WORDS_FILE};
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a token is.
///
/// ```
/// use deq_data::Level;
///
/// assert_eq!("word".parse::<Level>()?, Level::Word);
/// assert_eq!(Level::Byte.to_string(), "byte");
/// # Ok::<(), deq_data::DataError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// One byte of the file: any file will do, and the vocabulary always has 256 tokens.
    Byte,
    /// One word between white space; every line ends with `<eos>`.
    Word,
    /// One token of a `tokenizer.json`, the format of Hugging Face.
    Tokenizer,
}

/// How many bytes of train are searched for `<unk>`; a word-level corpus has it every few lines.
const SEARCHED: u64 = 1 << 20;

impl Level {
    /// The level that suits a text which says nothing else:
    ///
    /// - [`Tokenizer`](Self::Tokenizer) for a folder with a `tokenizer.json`, if the feature
    ///   `tokenizers` is on;
    /// - [`Word`](Self::Word) for a folder with a `vocab.txt`, for the published word-level files
    ///   of WikiText and Penn Treebank (`wiki.train.tokens`, `ptb.train.txt`), and for any text
    ///   that has the word `<unk>` in the first mebibyte of train;
    /// - [`Byte`](Self::Byte) for any other, since no text has a byte that this level does not
    ///   know.
    ///
    /// # Errors
    ///
    /// [`DataError`] if the text is missing, lacks a split, or cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use deq_data::Level;
    ///
    /// let file = tempfile::NamedTempFile::new()?;
    /// std::fs::write(file.path(), "Call me Ishmael.\n")?;
    /// assert_eq!(Level::default_for(file.path())?, Level::Byte);
    /// std::fs::write(file.path(), " call me <unk> .\n")?;
    /// assert_eq!(Level::default_for(file.path())?, Level::Word);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn default_for(path: &Path) -> Result<Self, DataError> {
        let layout = Layout::find(path)?;
        let has = |name| find_file(path, name).is_some();
        if cfg!(feature = "tokenizers") && has(TOKENIZER_FILE) {
            return Ok(Level::Tokenizer);
        }
        let files = layout.training_files();
        let published = ["wiki.train.tokens", "ptb.train.txt"];
        let published = published.iter().any(|name| is_named(&files[0], name));
        match has(WORDS_FILE) || published || marks_unknown(files)? {
            true => Ok(Level::Word),
            false => Ok(Level::Byte),
        }
    }
}

/// Whether `<unk>` is one of the first words of these files. What is no regular file, such as a
/// pipe, can be read only once and is left alone.
fn marks_unknown(files: &[PathBuf]) -> Result<bool, DataError> {
    let mut left = SEARCHED;
    for path in files.iter().filter(|path| path.is_file()) {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(left).read_to_end(&mut bytes))
            .map_err(|source| DataError::read(path, source))?;
        left -= bytes.len() as u64;
        let text = String::from_utf8_lossy(&bytes);
        if words(&text).any(|word| word == Vocabulary::UNKNOWN) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl std::str::FromStr for Level {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "byte" => Ok(Level::Byte),
            "word" => Ok(Level::Word),
            "tokenizer" => Ok(Level::Tokenizer),
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
            Level::Tokenizer => "tokenizer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    #[test]
    fn the_default_level_fits_the_text() {
        let level = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            Level::default_for(folder.path()).unwrap()
        };
        let splits = |train, valid| [(train, "a b\n"), (valid, "a\n")];
        assert_eq!(level(&splits("train.txt", "valid.txt")), Level::Byte);
        assert_eq!(level(&[("a.TXT", "a"), ("b.txt", "a")]), Level::Byte);
        let raw = splits("wiki.train.raw", "wiki.valid.raw");
        assert_eq!(level(&raw), Level::Byte);
        let published = splits("wiki.train.tokens", "wiki.valid.tokens");
        assert_eq!(level(&published), Level::Word);
        let treebank = splits("ptb.train.txt", "ptb.valid.txt");
        assert_eq!(level(&treebank), Level::Word);
        let marked = [("train.txt", "a\r<unk>"), ("valid.txt", "a")];
        assert_eq!(level(&marked), Level::Word);
        // Only in valid, or as part of a word.
        let elsewhere = [("train.txt", "a <unk>s\n"), ("valid.txt", "<unk>\n")];
        assert_eq!(level(&elsewhere), Level::Byte);
        let listed = [("a.txt", "a b\n"), ("vocab.txt", "<eos>\na\n")];
        assert_eq!(level(&listed), Level::Word);
        let tokenizer = [("a.txt", "a b\n"), ("Tokenizer.json", "{}")];
        let expected = match cfg!(feature = "tokenizers") {
            true => Level::Tokenizer,
            false => Level::Byte,
        };
        assert_eq!(level(&tokenizer), expected);
        assert!(Level::default_for(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn text_and_serde_agree_on_the_names() {
        for level in [Level::Byte, Level::Word, Level::Tokenizer] {
            let name = level.to_string();
            assert_eq!(name.parse::<Level>().unwrap(), level);
            let value: StrDeserializer<'_, Error> = name.as_str().into_deserializer();
            assert_eq!(Level::deserialize(value).unwrap(), level);
        }
        assert_eq!(
            "letter".parse::<Level>().unwrap_err().to_string(),
            "there is no level \"letter\": choose byte, word or tokenizer"
        );
    }
}
