//! Token files: where they lie, and whether they still belong to a text.

pub(crate) mod format;
mod stamp;

pub(crate) use format::TokenFile;
pub(crate) use stamp::{Stamp, stamps};

use super::level::Level;
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use crate::files;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// The end of the name of a token file.
const EXTENSION: &str = ".tokens";
/// The folder of token files beside a text.
const FOLDER: &str = ".deq-cache";
/// Smaller texts are read in less than a second and need no token file.
const WORTH_CACHING: u64 = 4 << 20;

/// Where the token file of a text is kept.
///
/// A token file is written whole or not at all, so that several processes may read the same text at
/// the same time. It is found by the path of the text, and replaced if the text has changed. Token
/// files may be deleted at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CachePlace {
    /// Nowhere: the text is read into memory every time.
    #[default]
    Off,
    /// For texts of 4 MiB and more, in the folder `.deq-cache` beside the text, or, if that cannot
    /// be written, in the user's cache folder: `$XDG_CACHE_HOME/deq`, else `~/.cache/deq`.
    Auto,
    /// In this folder.
    In(PathBuf),
}

/// What is wrong with a token file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheProblem {
    /// It cannot be opened.
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// It does not begin as a token file does.
    #[error("it is not a token file")]
    NotATokenFile,
    /// It was written by another version of this crate.
    #[error("its format has version {found}, not {expected}")]
    OtherVersion {
        /// The version of the file.
        found: u32,
        /// The version of this crate.
        expected: u32,
    },
    /// Its first part does not match its checksum.
    #[error("its header is damaged")]
    DamagedHeader,
    /// It is shorter or longer than its header says.
    #[error("it has {found} bytes instead of {expected}")]
    WrongLength {
        /// The bytes there are.
        found: u64,
        /// The bytes there should be.
        expected: u64,
    },
    /// The vocabulary in it does not match its checksum.
    #[error("its vocabulary is damaged")]
    DamagedVocabulary,
    /// The token ids do not match their checksum.
    #[error("its tokens are damaged")]
    DamagedTokens,
    /// Files have been added to the text or removed from it.
    #[error("the text has other files now")]
    OtherFiles,
    /// A file of the text has changed.
    #[error("{file} has changed")]
    Changed {
        /// The file, as seen from the folder of the text.
        file: String,
    },
}

/// The names that a token file of this text may have, the one to write first.
///
/// A file whose words were derived from the text also serves an equal vocabulary that is given.
fn names(stem: &str, level: Level, given: Option<&Vocabulary>) -> Vec<String> {
    let derived = format!("{stem}.{level}{EXTENSION}");
    match given {
        Some(given) if level != Level::Byte => {
            let named = format!("{stem}.{level}.{:016x}{EXTENSION}", given.fingerprint());
            vec![named, derived]
        }
        _ => vec![derived],
    }
}

/// Whether a name is one that [`names`] may give, and not one of a text whose name only begins
/// alike, as that of `enwik8.txt` begins like `enwik8`.
fn is_named(name: &str, stem: &str) -> bool {
    let rest = name.strip_prefix(stem);
    let rest = rest.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(EXTENSION));
    rest.is_some_and(|rest| {
        let (level, given) = match rest.split_once('.') {
            Some((level, given)) => (level, Some(given)),
            None => (rest, None),
        };
        let is_hash =
            |given: &str| given.len() == 16 && given.bytes().all(|byte| byte.is_ascii_hexdigit());
        level.parse::<Level>().is_ok() && given.is_none_or(is_hash)
    })
}

/// The folders that may hold token files of a text, each with the beginning of their names.
fn folders(path: &Path, place: &CachePlace) -> Vec<(PathBuf, String)> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let hashed = format!("{:016x}", xxh3_64(path.as_os_str().as_encoded_bytes()));
    match place {
        CachePlace::Off => Vec::new(),
        CachePlace::In(folder) => vec![(folder.clone(), hashed)],
        CachePlace::Auto => {
            let name = path.file_name().unwrap_or_default();
            let beside = match path.is_dir() {
                true => (path.join(FOLDER), "text".to_owned()),
                false => (
                    path.with_file_name(FOLDER),
                    name.to_string_lossy().into_owned(),
                ),
            };
            let user = user_folder().map(|folder| (folder, hashed));
            [beside].into_iter().chain(user).collect()
        }
    }
}

/// `$XDG_CACHE_HOME/deq`, else `~/.cache/deq`.
fn user_folder() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let named = named.filter(|folder| folder.is_absolute());
    let folder = named.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    folder.map(|folder| folder.join("deq"))
}

/// The files that may hold the tokens of a text, best first, and for each folder the one to write.
pub(crate) struct Candidates {
    pub(crate) read: Vec<PathBuf>,
    pub(crate) write: Vec<PathBuf>,
}

impl Candidates {
    pub(crate) fn of(
        path: &Path,
        place: &CachePlace,
        level: Level,
        given: Option<&Vocabulary>,
        bytes: u64,
    ) -> Self {
        let small = *place == CachePlace::Auto && bytes < WORTH_CACHING;
        let folders = match small {
            true => Vec::new(),
            false => folders(path, place),
        };
        let named = folders.iter().map(|(folder, stem)| {
            let names = names(stem, level, given);
            names.into_iter().map(|name| folder.join(name)).collect()
        });
        let named: Vec<Vec<PathBuf>> = named.collect();
        Self {
            write: named.iter().map(|names| names[0].clone()).collect(),
            read: named.into_iter().flatten().collect(),
        }
    }
}

/// Every token file of a text in the places that [`CachePlace::Auto`] or another place names.
pub(crate) fn all(path: &Path, place: &CachePlace) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (folder, stem) in folders(path, place) {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        found.extend(entries.flatten().map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            is_named(&name, &stem) && path.is_file()
        }));
    }
    found.sort();
    found
}

/// Creates the folder of a token file, tagged as a cache as in <https://bford.info/cachedir>.
pub(crate) fn prepare_folder(file: &Path) -> Result<(), DataError> {
    let folder = file.parent().unwrap_or(Path::new("."));
    // Permissions do not bind an administrator, but a read-only folder is left as it is.
    let above = folder.ancestors().find(|above| above.exists());
    if let Some(above) = above
        && std::fs::metadata(above).is_ok_and(|data| data.permissions().readonly())
    {
        let refused = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        return Err(DataError::write(above, refused));
    }
    std::fs::create_dir_all(folder).map_err(|error| DataError::write(folder, error))?;
    files::remove_abandoned(folder, &[files::PARTIAL]);
    let tag = folder.join("CACHEDIR.TAG");
    if tag.exists() {
        return Ok(());
    }
    files::write_whole(&tag, |file| {
        file.write_all(
            b"Signature: 8a477f597d28d172789f06886806bc55\n\
            # Tokens of texts, made by deq-data. The files can be deleted at any time, but must \
            not be edited: they may be in use as memory.\n",
        )
    })
}
