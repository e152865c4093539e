//! Corpora recognised again.

use super::corpus::Corpus;
use super::tokens::{Tokens, Width};
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// What the splits of a corpus hold, in one number each, to recognise the corpus again.
///
/// A number depends on the token ids of its split and on the vocabulary alone: not on the place,
/// the names or the times of the files, nor on whether the ids come from a token file. So a text
/// that has been moved has the same fingerprint, and one that has changed has another, unless a
/// model cannot tell the difference: at the word level, the amount of white space between words.
/// It is kept in run folders and is the same on all machines; a version of this crate that reads
/// a text differently gives it another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CorpusFingerprint {
    /// That of the training split.
    pub train: u64,
    /// That of the validation split.
    pub valid: u64,
    /// That of the test split, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<u64>,
}

impl Corpus {
    /// The fingerprint of the splits: the XXH3 hash of their ids as little-endian `u32`, with the
    /// [fingerprint of the vocabulary](super::Vocabulary::fingerprint) as its seed.
    ///
    /// It reads all ids once.
    ///
    /// # Examples
    ///
    /// ```
    /// use deq_data::{Corpus, Level};
    ///
    /// let corpus = Corpus::builtin(Level::Byte)?;
    /// let known = corpus.fingerprint();
    /// assert!(corpus.require(&known).is_ok());
    /// assert!(Corpus::builtin(Level::Word)?.require(&known).is_err());
    /// # Ok::<(), deq_data::DataError>(())
    /// ```
    pub fn fingerprint(&self) -> CorpusFingerprint {
        let seed = self.vocabulary.fingerprint();
        CorpusFingerprint {
            train: hash(&self.train, seed),
            valid: hash(&self.valid, seed),
            test: self.test.as_ref().map(|test| hash(test, seed)),
        }
    }

    /// Checks that this is the corpus with a given [`fingerprint`](Self::fingerprint). A test split
    /// may have been added or removed.
    ///
    /// # Errors
    ///
    /// [`DataError::OtherText`] with the first split that differs.
    pub fn require(&self, expected: &CorpusFingerprint) -> Result<(), DataError> {
        let found = self.fingerprint();
        let test = expected.test.zip(found.test);
        let splits = [
            ("train", Some((expected.train, found.train))),
            ("valid", Some((expected.valid, found.valid))),
            ("test", test),
        ];
        for (split, pair) in splits {
            if let Some((expected, found)) = pair
                && expected != found
            {
                return Err(DataError::OtherText {
                    split,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

fn hash(tokens: &Tokens, seed: u64) -> u64 {
    let mut hash = Xxh3::with_seed(seed);
    tokens.each_block(Width::Four, |block| hash.update(block));
    hash.digest()
}

#[cfg(test)]
mod tests {
    use crate::{CachePlace, Corpus, CorpusFingerprint, CorpusReader, Level};
    use std::fs::{File, metadata, read, rename, write};
    use std::path::Path;
    use std::time::Duration;

    fn folder(place: &Path) {
        std::fs::create_dir(place).unwrap();
        for (name, text) in [
            ("train.txt", "a b a c\n"),
            ("valid.txt", "b\n"),
            ("test.txt", "c\n"),
        ] {
            write(place.join(name), text).unwrap();
        }
    }

    fn fingerprint(place: &Path, level: Level) -> CorpusFingerprint {
        Corpus::open(place, level).unwrap().fingerprint()
    }

    #[test]
    fn a_moved_text_is_the_same_and_one_changed_byte_another() {
        let root = tempfile::tempdir().unwrap();
        let (here, there) = (root.path().join("here"), root.path().join("there"));
        folder(&here);
        let before = [Level::Byte, Level::Word].map(|level| fingerprint(&here, level));
        rename(&here, &there).unwrap();
        let moved = [Level::Byte, Level::Word].map(|level| fingerprint(&there, level));
        assert_eq!(before, moved);
        for (name, split) in [
            ("train.txt", "train"),
            ("valid.txt", "valid"),
            ("test.txt", "test"),
        ] {
            let file = there.join(name);
            let content = read(&file).unwrap();
            let mut changed = content.clone();
            // The first word, which becomes another one.
            changed[0] = if changed[0] == b'a' { b'b' } else { b'a' };
            write(&file, changed).unwrap();
            for (level, before) in [Level::Byte, Level::Word].into_iter().zip(&before) {
                let corpus = Corpus::open(&there, level).unwrap();
                let message = corpus.require(before).unwrap_err().to_string();
                assert!(message.contains(&format!("{split} split")), "{message}");
            }
            write(&file, content).unwrap();
        }
        // The same ids of another word.
        write(there.join("train.txt"), "a b a d\n").unwrap();
        write(there.join("test.txt"), "d\n").unwrap();
        assert_ne!(fingerprint(&there, Level::Word).train, before[1].train);
    }

    #[test]
    fn a_test_split_may_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("here");
        folder(&here);
        let with = Corpus::open(&here, Level::Byte).unwrap();
        std::fs::remove_file(here.join("test.txt")).unwrap();
        let without = Corpus::open(&here, Level::Byte).unwrap();
        assert_eq!(without.fingerprint().test, None);
        without.require(&with.fingerprint()).unwrap();
        with.require(&without.fingerprint()).unwrap();
        let saved = serde_json::to_string(&without.fingerprint()).unwrap();
        let loaded: CorpusFingerprint = serde_json::from_str(&saved).unwrap();
        assert_eq!(loaded, without.fingerprint());
    }

    /// Also through a token file, which is mapped and recognises its text by length and times.
    #[test]
    #[cfg(unix)]
    fn the_same_length_and_time_do_not_make_it_the_same() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("here");
        folder(&here);
        let read = || {
            let reader = CorpusReader::new(&here, Level::Byte);
            let place = CachePlace::In(root.path().join("cache"));
            reader.cache(place).read().unwrap()
        };
        let before = read().fingerprint();
        let mapped = read();
        assert!(mapped.train.is_mapped());
        assert_eq!(mapped.fingerprint(), before);
        assert_eq!(fingerprint(&here, Level::Byte), before);

        let file = here.join("train.txt");
        let time = metadata(&file).unwrap().modified().unwrap();
        // The clock of a file system has steps of a few milliseconds.
        std::thread::sleep(Duration::from_millis(50));
        write(&file, "a b b c\n").unwrap();
        let options = File::options().write(true).open(&file).unwrap();
        options.set_modified(time).unwrap();
        assert_eq!(metadata(&file).unwrap().modified().unwrap(), time);
        let after = read().fingerprint();
        assert_ne!(after.train, before.train);
        assert_eq!((after.valid, after.test), (before.valid, before.test));
    }
}
