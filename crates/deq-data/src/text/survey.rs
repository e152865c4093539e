//! What can be told about a text without reading it.

use super::cache::{self, CachePlace, CacheProblem, Stamp, TokenFile, stamps};
use super::layout::{Arrangement, Layout, find_file};
use super::level::Level;
use super::vocabulary::WORDS_FILE;
use crate::error::DataError;
use std::path::{Path, PathBuf};

/// The files of a text, and the token files made of it.
#[derive(Debug)]
pub struct TextSurvey {
    /// How it is divided into splits.
    pub arrangement: Arrangement,
    /// The number of its files.
    pub files: usize,
    /// Their total size in bytes.
    pub bytes: u64,
    /// Files and folders beside it that are not read.
    pub left_out: Vec<PathBuf>,
    /// Its token files.
    pub cached: Vec<CachedText>,
}

/// A token file.
#[derive(Debug)]
pub struct CachedText {
    /// Its path.
    pub file: PathBuf,
    /// What a token is, if the header can be read.
    pub level: Option<Level>,
    /// Tokens of train, valid and test, if the header can be read; 0 if there is no test split.
    pub tokens: Option<[u64; 3]>,
    /// The number of tokens in the vocabulary, if the header can be read.
    pub vocabulary: Option<u64>,
    /// Why it cannot be used, if it cannot. Reading the text replaces it.
    pub problem: Option<CacheProblem>,
}

/// Finds the files of a text and its token files in a place; for [`CachePlace::Auto`], whatever the
/// size of the text.
///
/// With `thorough`, every byte of text and token files is read and compared with the checksums;
/// otherwise only what reading a corpus without [`check`](super::CorpusReader::check) compares.
///
/// # Errors
///
/// [`DataError`] if the text is missing or cannot be read; what is wrong with a token file is part
/// of the result.
///
/// # Examples
///
/// ```
/// use deq_data::{Arrangement, CachePlace};
///
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), "one line\n")?;
/// let survey = deq_data::survey(file.path(), &CachePlace::Off, true)?;
/// assert_eq!((survey.arrangement, survey.bytes), (Arrangement::File, 9));
/// assert!(survey.cached.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn survey(path: &Path, place: &CachePlace, thorough: bool) -> Result<TextSurvey, DataError> {
    let layout = Layout::find(path)?;
    let text = stamps(path, &layout, None)?;
    let listed = match find_file(path, WORDS_FILE) {
        Some(list) => stamps(path, &layout, Some(&list))?,
        None => text.clone(),
    };
    let cached = cache::all(path, place).into_iter().map(|file| {
        let opened = TokenFile::open(&file);
        let problem = match &opened {
            Ok(opened) => {
                let derived = opened.header.derived;
                let now = if derived { &listed } else { &text };
                check(opened, path, (now, !derived), thorough).err()
            }
            Err(_) => None,
        };
        let (header, unread) = match opened {
            Ok(opened) => (Some(opened.header), None),
            Err(problem) => (None, Some(problem)),
        };
        CachedText {
            file,
            level: header.as_ref().map(|header| header.level),
            tokens: header.as_ref().map(|header| header.tokens),
            vocabulary: header.as_ref().map(|header| header.vocabulary_len),
            problem: problem.or(unread),
        }
    });
    Ok(TextSurvey {
        arrangement: layout.arrangement(),
        files: text.len(),
        bytes: text.iter().map(|stamp| stamp.bytes).sum(),
        cached: cached.collect(),
        left_out: layout.left_out,
    })
}

fn check(
    file: &TokenFile,
    text: &Path,
    (now, given): (&[Stamp], bool),
    thorough: bool,
) -> Result<(), CacheProblem> {
    file.check_text(text, now, given, thorough)?;
    if thorough {
        file.vocabulary()?;
        file.check_tokens()?;
    }
    Ok(())
}
