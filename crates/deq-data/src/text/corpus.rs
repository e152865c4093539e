//! A text as token ids.

use super::builtin;
use super::derive::derive;
use super::encode::encode;
use super::level::Level;
use super::reader::CorpusReader;
use super::source::Source;
use super::tokens::Tokens;
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use std::path::{Path, PathBuf};

/// A text as token ids, in the splits train, valid and, if there is one, test.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The tokens by id.
    pub vocabulary: Vocabulary,
    /// Token ids to train on.
    pub train: Tokens,
    /// Token ids to select a model by.
    pub valid: Tokens,
    /// Token ids to report results on, if the text has a test split.
    pub test: Option<Tokens>,
    /// Words of train, valid and test that the vocabulary does not have, which became `<unk>`.
    /// Words that the text itself writes as `<unk>` do not count.
    pub unknown_words: [u64; 3],
    /// Files and folders beside the text that are not read.
    pub left_out: Vec<PathBuf>,
}

impl Corpus {
    /// Reads a text into memory; see [`CorpusReader`] for what a text can be, for token files, and
    /// for progress.
    ///
    /// At the byte level any content will do. At the word level a line is its words between white
    /// space and an `<eos>`, also if it is empty, as in the code of Transformer-XL and of the
    /// DEQ-Transformer. Lines end as in Python's text mode: with a line feed, a carriage return, or
    /// both. At the tokenizer level the folder must have a `tokenizer.json`; to use another one,
    /// pass what [`Vocabulary::load`] makes of it to [`open_with`](Self::open_with).
    ///
    /// [`Level::default_for`] names the level that suits a text.
    ///
    /// # Words
    ///
    /// The words are those of train, or of `vocab.txt` if the folder has one. Their ids follow
    /// their frequency in train in either case, `<eos>` first and ties by first appearance, as an
    /// adaptive softmax needs it, and as the original reads WikiText-103. (It counts all three
    /// splits of WikiText-2 and of the Penn Treebank: the same words in another order.) Where
    /// `vocab.txt` has another order that must be kept, as that of WikiText-2 has, use
    /// [`open_with`](Self::open_with).
    ///
    /// Any other word becomes `<unk>`. If there are other words but neither train nor `vocab.txt`
    /// has `<unk>`, it is added. Without a `vocab.txt`, words found only once in train then become
    /// `<unk>` too, so that a model learns what it stands for. A text without other words keeps
    /// all of its words. [`unknown_words`](Self::unknown_words) says how many were replaced.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the file and what would be right: a path or split that is missing, an
    /// empty file, UTF-16, text that is not UTF-8 at the word or tokenizer level, a `vocab.txt`
    /// that is broken or has no `<eos>`, or a `tokenizer.json` that is missing or broken.
    ///
    /// # Examples
    ///
    /// ```
    /// use deq_data::{Corpus, Level};
    ///
    /// let folder = tempfile::tempdir()?;
    /// for (name, text) in [("train.txt", "a b a <unk>\n"), ("valid.txt", "a c\n")] {
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
    /// A trained model must read any text with the ids that it was trained with. A `vocab.txt` or
    /// `tokenizer.json` in the folder is not read; pass what [`Vocabulary::load`] makes of it to
    /// keep its ids.
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
    /// Its paragraphs are numbered from 1, headings included; the 10th, 30th, 50th, ... are the
    /// valid split, the 20th, 40th, ... the test split, and the others train. Every chapter is
    /// thus represented in every split, and no sentence is in two of them.
    ///
    /// At the word level, words found only once in train become `<unk>`, as do words that train
    /// does not have.
    ///
    /// # Errors
    ///
    /// [`DataError::NoTokenizer`] at the tokenizer level: the handbook has none; see
    /// [`builtin_with`](Self::builtin_with).
    pub fn builtin(level: Level) -> Result<Self, DataError> {
        let sources = builtin::sources();
        let vocabulary = match level {
            Level::Byte => Vocabulary::of_bytes(),
            Level::Word => derive(&sources, None, &|_| ())?,
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
    /// [`DataError::UnknownWord`] if the vocabulary has neither a word of the handbook nor `<unk>`;
    /// [`DataError::Tokenizer`] if the tokenizer fails.
    pub fn builtin_with(vocabulary: Vocabulary) -> Result<Self, DataError> {
        Self::encode(&builtin::sources(), vocabulary, &|_| ())
    }

    /// The test split.
    ///
    /// # Errors
    ///
    /// [`DataError::NoTest`] if the text has none.
    pub fn require_test(&self) -> Result<&Tokens, DataError> {
        self.test.as_ref().ok_or(DataError::NoTest)
    }

    /// The ids of two or three splits. `done` is called with the bytes of every piece that has been
    /// read.
    pub(crate) fn encode(
        sources: &[Source],
        vocabulary: Vocabulary,
        done: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, DataError> {
        let ids = |source: &Source| encode(&vocabulary, source, done);
        let (train, unknown_in_train) = ids(&sources[0])?;
        let (valid, unknown_in_valid) = ids(&sources[1])?;
        let (test, unknown_in_test) = match sources.get(2) {
            Some(source) => ids(source).map(|(ids, unknown)| (Some(ids.into()), unknown))?,
            None => (None, 0),
        };
        Ok(Self {
            train: train.into(),
            valid: valid.into(),
            test,
            vocabulary,
            unknown_words: [unknown_in_train, unknown_in_valid, unknown_in_test],
            left_out: Vec::new(),
        })
    }
}

#[cfg(test)]
#[path = "corpus/tests.rs"]
mod tests;
