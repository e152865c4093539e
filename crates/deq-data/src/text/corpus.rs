//! Three splits of text as token ids.

use super::builtin;
use super::counts::count_text;
use super::encode::encode;
use super::level::Level;
use super::reader::CorpusReader;
use super::source::Source;
use super::tokens::Tokens;
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use std::path::Path;

/// A text in three splits.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The tokens by id.
    pub vocabulary: Vocabulary,
    /// Token ids to train on.
    pub train: Tokens,
    /// Token ids to choose a model by.
    pub valid: Tokens,
    /// Token ids to report.
    pub test: Tokens,
}

/// A word of the built-in text must occur twice in train to have a token: a word that occurs once could not be learnt, and only by
/// leaving some out does `<unk>` occur in train at all.
const BUILTIN_LEAST: usize = 2;

impl Corpus {
    /// Reads a text into memory; see [`CorpusReader`] for what a text can be, for token files, and to be told of the progress.
    ///
    /// At the byte level any content will do. At the word level a line is its words between white space and an `<eos>`, also if it is empty, as in
    /// the code of Transformer-XL and of the DEQ-Transformer. At the tokenizer level the folder must have a `tokenizer.json`; to use another one,
    /// pass what [`Vocabulary::load`] makes of it to [`open_with`](Self::open_with).
    ///
    /// The words are those of train, or of `vocab.txt` if the folder has one. Their ids follow their frequency in train in either case, `<eos>`
    /// first and ties by first appearance, as an adaptive softmax needs it, and as the original reads WikiText-103. (It counts all three splits of
    /// WikiText-2 and of the Penn Treebank: the same words in another order.) Where `vocab.txt` has another order that must be kept, as that of
    /// WikiText-2 has, use [`open_with`](Self::open_with). Other words become `<unk>`.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the file and what would be right: a path or split that is missing, an empty file, text that is not
    /// UTF-8 at the word or tokenizer level, a word outside the vocabulary if that has no `<unk>`, a `vocab.txt` that is broken or has no `<eos>`, or
    /// a `tokenizer.json` that is missing or broken.
    ///
    /// # Examples
    ///
    /// ```
    /// use deq_data::{Corpus, Level};
    ///
    /// let folder = tempfile::tempdir()?;
    /// for (name, text) in [("train.txt", "a b a <unk>\n"), ("valid.txt", "a c\n"), ("test.txt", "\n")] {
    ///     std::fs::write(folder.path().join(name), text)?;
    /// }
    /// let words = Corpus::open(folder.path(), Level::Word)?;
    /// assert_eq!(words.vocabulary.decode(&words.valid.to_vec())?, "a <unk>\n");
    /// let bytes = Corpus::open(folder.path(), Level::Byte)?;
    /// assert_eq!(bytes.valid, [97, 32, 99, 10]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(path: &Path, level: Level) -> Result<Self, DataError> {
        CorpusReader::new(path, level).read()
    }

    /// Reads like [`open`](Self::open), at the level of a given vocabulary and with its ids.
    ///
    /// This is for a model that exists: it must read its text with the ids that it was trained with, whatever the text. A `vocab.txt` or
    /// `tokenizer.json` in the folder is not read; pass what [`Vocabulary::load`] makes of it to keep its ids.
    ///
    /// # Errors
    ///
    /// [`DataError`] as in [`open`](Self::open).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use deq_data::{Corpus, Vocabulary};
    /// use std::path::Path;
    ///
    /// let folder = Path::new("wikitext-2");
    /// let vocabulary = Vocabulary::load(&folder.join("vocab.txt"))?;
    /// let corpus = Corpus::open_with(folder, vocabulary)?;
    /// # Ok::<(), deq_data::DataError>(())
    /// ```
    pub fn open_with(path: &Path, vocabulary: Vocabulary) -> Result<Self, DataError> {
        CorpusReader::with_vocabulary(path, vocabulary).read()
    }

    /// The handbook on deep equilibrium models that is compiled into this crate.
    ///
    /// Its paragraphs are numbered from 1, headings included; the 10th, 30th, 50th, ... are the valid split, the 20th, 40th, ... the test split,
    /// and the others train. So every chapter is represented everywhere, and no sentence is in two splits.
    ///
    /// At the word level, words found only once in train become `<unk>`, as do words that train does not have.
    ///
    /// # Errors
    ///
    /// [`DataError::NoTokenizer`] at the tokenizer level: the handbook has none; see [`builtin_with`](Self::builtin_with).
    pub fn builtin(level: Level) -> Result<Self, DataError> {
        let sources = builtin::sources();
        let vocabulary = match level {
            Level::Byte => Vocabulary::of_bytes(),
            Level::Word => {
                let counts = count_text(sources[0].text()?, &|_| ());
                Vocabulary::of_frequent(counts, BUILTIN_LEAST)
            }
            Level::Tokenizer => {
                return Err(DataError::NoTokenizer {
                    path: "the built-in handbook".into(),
                });
            }
        };
        Self::encode(&sources, vocabulary, &|_| ())
    }

    /// The handbook with the ids of a given vocabulary, at its level.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownWord`] if the vocabulary has neither a word of the handbook nor `<unk>`; [`DataError::Tokenizer`] if the tokenizer fails.
    pub fn builtin_with(vocabulary: Vocabulary) -> Result<Self, DataError> {
        Self::encode(&builtin::sources(), vocabulary, &|_| ())
    }

    /// The ids of three splits. `done` is told how many bytes have been read, piece by piece.
    pub(crate) fn encode(
        sources: &[Source; 3],
        vocabulary: Vocabulary,
        done: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, DataError> {
        let [train, valid, test] = sources;
        Ok(Self {
            train: encode(&vocabulary, train, done)?.into(),
            valid: encode(&vocabulary, valid, done)?.into(),
            test: encode(&vocabulary, test, done)?.into(),
            vocabulary,
        })
    }
}

#[cfg(test)]
#[path = "corpus/tests.rs"]
mod tests;
