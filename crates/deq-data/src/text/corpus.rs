//! Three splits of text as token ids.

use super::builtin;
use super::level::Level;
use super::source::{self, Source};
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use std::path::Path;

/// A text in three splits.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The tokens by id.
    pub vocabulary: Vocabulary,
    /// Token ids to train on.
    pub train: Vec<u32>,
    /// Token ids to choose a model by.
    pub valid: Vec<u32>,
    /// Token ids to report.
    pub test: Vec<u32>,
}

/// The vocabulary that a folder may bring with it.
const VOCABULARY_FILE: &str = "vocab.txt";

/// A word of the built-in text must occur twice in train to have a token: a word that occurs once could not be learnt, and only by
/// leaving some out does `<unk>` occur in train at all.
const BUILTIN_LEAST: usize = 2;

impl Corpus {
    /// Reads a folder with the files of three splits, or a single text file, of which the first 90 % become train and 5 % each valid
    /// and test, cut at line ends.
    ///
    /// The files are `train.txt`, `wiki.train.tokens` or `ptb.train.txt`, and likewise for `valid` and `test`. At the byte level any content will
    /// do. At the word level a line is its words between white space and an `<eos>`, also if it is empty, as in the code of Transformer-XL
    /// and of the DEQ-Transformer.
    ///
    /// The words are those of train, or of `vocab.txt` if the folder has one. Their ids follow their frequency in train in either case, `<eos>`
    /// first and ties by first appearance, as an adaptive softmax needs it. Where `vocab.txt` has another order that must be kept, as that of
    /// WikiText-2 has, use [`open_with`](Self::open_with). Other words become `<unk>`.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the file and what would be right: a path or split that is missing, an empty file, text that is not
    /// UTF-8 at the word level, a word outside the vocabulary if that has no `<unk>`, or a `vocab.txt` that is broken or has no `<eos>`.
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
    /// assert_eq!(words.vocabulary.decode(&words.valid)?, "a <unk>\n");
    /// let bytes = Corpus::open(folder.path(), Level::Byte)?;
    /// assert_eq!(bytes.valid, [97, 32, 99, 10]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(path: &Path, level: Level) -> Result<Self, DataError> {
        let sources = source::open(path)?;
        if level == Level::Byte {
            return Self::encode(&sources, Vocabulary::of_bytes());
        }
        let train = &sources[0];
        let listed = path.join(VOCABULARY_FILE);
        if !listed.is_file() {
            let vocabulary = Vocabulary::of_words(train.words()?);
            return Self::encode(&sources, vocabulary);
        }
        let vocabulary = Vocabulary::load(&listed)?;
        if vocabulary.id_of_known(Vocabulary::END_OF_LINE).is_none() {
            return Err(DataError::NoEndOfLine { path: listed });
        }
        let vocabulary = vocabulary.sorted_for(train.words()?);
        Self::encode(&sources, vocabulary)
    }

    /// Reads like [`open`](Self::open), at the level of a given vocabulary and with its ids.
    ///
    /// This is for a model that exists: it must read its text with the ids that it was trained with, whatever the text. A `vocab.txt` in the
    /// folder is not read; pass what [`Vocabulary::load`] makes of it to keep its ids.
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
        Self::encode(&source::open(path)?, vocabulary)
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
    /// None in practice: the text is fixed.
    pub fn builtin(level: Level) -> Result<Self, DataError> {
        let sources = builtin::sources();
        let vocabulary = match level {
            Level::Byte => Vocabulary::of_bytes(),
            Level::Word => Vocabulary::of_frequent_words(sources[0].words()?, BUILTIN_LEAST),
        };
        Self::encode(&sources, vocabulary)
    }

    fn encode(sources: &[Source; 3], vocabulary: Vocabulary) -> Result<Self, DataError> {
        let [train, valid, test] = sources;
        Ok(Self {
            train: ids(&vocabulary, train)?,
            valid: ids(&vocabulary, valid)?,
            test: ids(&vocabulary, test)?,
            vocabulary,
        })
    }
}

fn ids(vocabulary: &Vocabulary, source: &Source) -> Result<Vec<u32>, DataError> {
    if vocabulary.level() == Level::Byte {
        return Ok(source.bytes.iter().map(|&byte| byte.into()).collect());
    }
    source
        .words()?
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
#[path = "corpus/tests.rs"]
mod tests;
