//! Reading a corpus: from its text or from its token file.

use super::cache::{CachePlace, CacheProblem, Candidates, Stamp, TokenFile, format, stamps};
use super::corpus::Corpus;
use super::derive::derive;
use super::layout::{Layout, find_file};
use super::level::Level;
use super::source;
use super::vocabulary::{TOKENIZER_FILE, Vocabulary, WORDS_FILE};
use crate::error::DataError;
use crate::files;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Progress and findings while a corpus is read.
#[derive(Debug)]
#[non_exhaustive]
pub enum CorpusEvent<'a> {
    /// The words of train are being counted.
    Counting {
        /// Bytes of text done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The splits are being encoded.
    Encoding {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// These files and folders beside the text are not read.
    LeftOut {
        /// Their paths, in order.
        files: &'a [PathBuf],
    },
    /// A token file cannot be used; the text is read instead.
    Discarded {
        /// The token file.
        file: &'a Path,
        /// What is wrong with it.
        problem: &'a CacheProblem,
    },
    /// A token file was written.
    Written {
        /// The token file.
        file: &'a Path,
    },
    /// No token file could be written; the text will be read again the next time.
    NotWritten {
        /// The error at the last place tried.
        error: &'a DataError,
    },
}

/// Reads a text as token ids in two or three splits.
///
/// A text is the first of these that applies:
///
/// - a file. The first 90 % become train and 5 % each valid and test, cut at line ends, or between
///   words where the line at the cut is longer than 1 % of the file;
/// - a folder with a file for each split: `train.txt`, `wiki.train.tokens`, `wiki.train.raw` or
///   `ptb.train.txt`, likewise for `valid` and `test`, where `validation.txt`, `val.txt` and
///   `dev.txt` are accepted for `valid.txt`; or with a sub-folder for a split, `train` and so on,
///   whose `.txt` files and those of the folders in it are joined in the order of their paths. The
///   test split is optional;
/// - a folder with other `.txt` files, also in folders in it. Files are numbered from 1 in the
///   order of their paths; the 10th, 30th, 50th, ... are valid, the 20th, 40th, ... test, and the
///   others train. Fewer than 20 files are joined and cut like a single file.
///
/// Two joined files are separated by a line feed if the first does not end with one. Names and
/// endings are compared without case. Hidden files, `vocab.txt` and `tokenizer.json` do not count;
/// every other file or folder that is not read is listed in [`Corpus::left_out`] and reported as
/// [`CorpusEvent::LeftOut`]. A byte-order mark at the beginning of a file is not part of the text.
///
/// The work is divided among the threads of rayon's current pool; the ids do not depend on their
/// number. A tokenizer reads about 256 KiB at a time, cut at a line end, so that no token reaches
/// across such a cut.
///
/// # Token files
///
/// With [`cache`](Self::cache), the ids are kept in a file, which is mapped into memory the next
/// time instead of reading the text. It is used if the files of the text have the names, lengths
/// and times that they had, or, where only a time differs, the same content. Header and length are
/// checked whenever it is opened, and the checksum of the ids too unless [`check`](Self::check)
/// says otherwise. A token file that does not match is replaced, with
/// [`CorpusEvent::Discarded`] as the explanation.
///
/// # Examples
///
/// ```
/// use deq_data::{CachePlace, CorpusReader, Level};
///
/// let folder = tempfile::tempdir()?;
/// let text = folder.path().join("text.txt");
/// std::fs::write(&text, "a line of text\n".repeat(100))?;
/// let read = || {
///     CorpusReader::new(&text, Level::Word)
///         .cache(CachePlace::In(folder.path().join("cache")))
///         .read()
/// };
/// let first = read()?;
/// let second = read()?;
/// assert!(second.train.is_mapped());
/// assert_eq!(first.train, second.train);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct CorpusReader<'a> {
    path: PathBuf,
    tokens: Choice,
    cache: CachePlace,
    check: bool,
    on_event: &'a (dyn Fn(&CorpusEvent<'_>) + Sync),
}

#[derive(Clone)]
enum Choice {
    Level(Level),
    Vocabulary(Vocabulary),
}

impl<'a> CorpusReader<'a> {
    /// A reader with the vocabulary that belongs to the text, see [`Corpus::open`].
    pub fn new(path: &Path, level: Level) -> Self {
        Self::of(path, Choice::Level(level))
    }

    /// A reader with a given vocabulary, see [`Corpus::open_with`].
    pub fn with_vocabulary(path: &Path, vocabulary: Vocabulary) -> Self {
        Self::of(path, Choice::Vocabulary(vocabulary))
    }

    fn of(path: &Path, tokens: Choice) -> Self {
        Self {
            path: path.to_owned(),
            tokens,
            cache: CachePlace::Off,
            check: true,
            on_event: &|_| (),
        }
    }

    /// Keeps the ids in a token file. By default they are not kept.
    pub fn cache(mut self, place: CachePlace) -> Self {
        self.cache = place;
        self
    }

    /// Whether to verify the checksum of the ids when a token file is opened, which reads the whole
    /// file. On by default: nobody should train on damaged data, and training reads all of it
    /// anyway.
    pub fn check(mut self, ids: bool) -> Self {
        self.check = ids;
        self
    }

    /// Calls `listener` with progress and findings, from any thread. By default they are ignored.
    pub fn on_event(mut self, listener: &'a (dyn Fn(&CorpusEvent<'_>) + Sync)) -> Self {
        self.on_event = listener;
        self
    }

    /// Reads the corpus.
    ///
    /// # Errors
    ///
    /// [`DataError`] as in [`Corpus::open`]. A token file that cannot be used or written is no
    /// error.
    pub fn read(&self) -> Result<Corpus, DataError> {
        let layout = Layout::find(&self.path)?;
        if !layout.left_out.is_empty() {
            let files = &layout.left_out;
            (self.on_event)(&CorpusEvent::LeftOut { files });
        }
        let given = self.given()?;
        let list = match given {
            Some(_) => None,
            None => find_file(&self.path, WORDS_FILE),
        };
        let mut stamps = stamps(&self.path, &layout, list.as_deref())?;
        let level = given.as_ref().map_or(Level::Word, Vocabulary::level);
        let bytes = stamps.iter().map(|stamp| stamp.bytes).sum();
        let candidates = Candidates::of(&self.path, &self.cache, level, given.as_ref(), bytes);

        for file in candidates.read.iter().filter(|file| file.is_file()) {
            match self.open_token_file(file, given.as_ref(), &stamps) {
                Ok(Some(mut corpus)) => {
                    corpus.left_out = layout.left_out;
                    return Ok(corpus);
                }
                Ok(None) => {}
                Err(problem) => (self.on_event)(&CorpusEvent::Discarded {
                    file,
                    problem: &problem,
                }),
            }
        }
        let derived = given.is_none();
        let corpus = self.read_text(&layout, given, list.as_deref(), &mut stamps)?;
        let mut corpus = self.keep(corpus, derived, &candidates.write, &stamps);
        corpus.left_out = layout.left_out;
        Ok(corpus)
    }

    /// The vocabulary, if it does not depend on the text.
    fn given(&self) -> Result<Option<Vocabulary>, DataError> {
        match &self.tokens {
            Choice::Vocabulary(vocabulary) => Ok(Some(vocabulary.clone())),
            Choice::Level(Level::Word) => Ok(None),
            Choice::Level(Level::Byte) => Ok(Some(Vocabulary::of_bytes())),
            Choice::Level(Level::Tokenizer) => match find_file(&self.path, TOKENIZER_FILE) {
                Some(file) => Vocabulary::load(&file).map(Some),
                None => Err(DataError::NoTokenizer {
                    path: self.path.clone(),
                }),
            },
        }
    }

    /// The corpus in a token file, or `None` if it was made with another vocabulary.
    fn open_token_file(
        &self,
        file: &Path,
        given: Option<&Vocabulary>,
        stamps: &[Stamp],
    ) -> Result<Option<Corpus>, CacheProblem> {
        let file = TokenFile::open(file)?;
        if given.is_some_and(|given| given.fingerprint() != file.header.vocabulary) {
            return Ok(None);
        }
        if file.header.level != given.map_or(Level::Word, Vocabulary::level) {
            return Err(CacheProblem::DamagedHeader);
        }
        file.check_text(&self.path, stamps, given.is_some(), false)?;
        if self.check {
            file.check_tokens()?;
        }
        let vocabulary = match given {
            Some(given) if given.len() as u64 != file.header.vocabulary_len => {
                return Err(CacheProblem::DamagedHeader);
            }
            Some(given) => given.clone(),
            None => file.vocabulary()?,
        };
        Ok(Some(file.corpus(vocabulary)))
    }

    /// Reads the text itself, and adds its checksums to the stamps.
    fn read_text(
        &self,
        layout: &Layout,
        given: Option<Vocabulary>,
        list: Option<&Path>,
        stamps: &mut [Stamp],
    ) -> Result<Corpus, DataError> {
        let (sources, mut checksums) = source::read(layout)?;
        let vocabulary = match given {
            Some(given) => given,
            None => {
                let mut listed = None;
                if let Some(list) = list {
                    listed = Some(load_list(list)?);
                    checksums.push(xxh3_64(&files::read(list)?));
                }
                let done = Share::of(sources[0].bytes.len());
                derive(&sources, listed, &|bytes| {
                    let (done, total) = done.add(bytes);
                    (self.on_event)(&CorpusEvent::Counting { done, total });
                })?
            }
        };
        let done = Share::of(sources.iter().map(|source| source.bytes.len()).sum());
        let corpus = Corpus::encode(&sources, vocabulary, &|bytes| {
            let (done, total) = done.add(bytes);
            (self.on_event)(&CorpusEvent::Encoding { done, total });
        })?;
        for (stamp, checksum) in stamps.iter_mut().zip(checksums) {
            stamp.checksum = checksum;
        }
        Ok(corpus)
    }

    /// Writes the corpus to the first of these files that can be written, and maps it.
    fn keep(&self, corpus: Corpus, derived: bool, files: &[PathBuf], stamps: &[Stamp]) -> Corpus {
        let mut failed = None;
        for file in files {
            match format::write(file, &corpus, derived, stamps) {
                Ok(()) => {
                    (self.on_event)(&CorpusEvent::Written { file });
                    // Mapped, the ids need not stay in memory as well.
                    return match TokenFile::open(file) {
                        Ok(file) => file.corpus(corpus.vocabulary),
                        Err(_) => corpus,
                    };
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = &failed {
            (self.on_event)(&CorpusEvent::NotWritten { error });
        }
        corpus
    }
}

/// The words listed in a `vocab.txt`.
fn load_list(path: &Path) -> Result<Vocabulary, DataError> {
    let vocabulary = Vocabulary::load(path)?;
    match vocabulary.id_of_known(Vocabulary::END_OF_LINE) {
        Some(_) => Ok(vocabulary),
        None => Err(DataError::NoEndOfLine {
            path: path.to_owned(),
        }),
    }
}

/// A progress counter shared by threads.
struct Share {
    done: AtomicU64,
    total: u64,
}

impl Share {
    fn of(total: usize) -> Self {
        Self {
            done: AtomicU64::new(0),
            total: total as u64,
        }
    }

    /// Bytes done and in all, after `bytes` more.
    fn add(&self, bytes: usize) -> (u64, u64) {
        let before = self.done.fetch_add(bytes as u64, Ordering::Relaxed);
        (before + bytes as u64, self.total)
    }
}
