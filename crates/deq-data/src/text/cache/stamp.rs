//! How a text is recognised again.

use super::CacheProblem;
use crate::error::DataError;
use crate::text::layout::Layout;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use std::time::UNIX_EPOCH;
use xxhash_rust::xxh3::Xxh3Default;

/// The split number of a list of words.
const LIST: u8 = 4;

/// One file of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// The path relative to the folder of the text; empty for a text that is one file.
    file: String,
    /// The number of its split, 3 where the text is cut into splits, 4 for a list of words.
    split: u8,
    pub(crate) bytes: u64,
    /// When its content was changed, in nanoseconds since 1970.
    modified: u64,
    /// When its content or metadata was changed, which no program can set; 0 where the system does
    /// not tell.
    changed: u64,
    /// The hash of its content; 0 until it has been read.
    pub(crate) checksum: u64,
}

impl Stamp {
    /// Whether this is the list of words, not text.
    pub(crate) fn is_list(&self) -> bool {
        self.split == LIST
    }
}

/// The files of a text as they are now, unread.
pub(crate) fn stamps(
    path: &Path,
    layout: &Layout,
    list: Option<&Path>,
) -> Result<Vec<Stamp>, DataError> {
    let files = layout.files().chain(list.map(|list| (LIST, list)));
    files
        .map(|(split, file)| {
            let data = std::fs::metadata(file).map_err(|error| DataError::read(file, error))?;
            let modified = data.modified().ok();
            let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let name = file.strip_prefix(path).unwrap_or(file);
            Ok(Stamp {
                file: name.to_string_lossy().into_owned(),
                split,
                bytes: data.len(),
                modified: modified.map_or(0, |time| time.as_nanos() as u64),
                changed: changed(&data),
                checksum: 0,
            })
        })
        .collect()
}

/// Checks that these are the files that a token file was made of.
///
/// A file of the same length and times is not read, unless `thorough`. One of other times, such as
/// a copy, is read and compared.
pub(crate) fn compare(
    path: &Path,
    then: &[&Stamp],
    now: &[Stamp],
    thorough: bool,
) -> Result<(), CacheProblem> {
    let key = |stamp: &Stamp| (stamp.file.clone(), stamp.split);
    if !then.iter().copied().map(key).eq(now.iter().map(key)) {
        return Err(CacheProblem::OtherFiles);
    }
    for (then, now) in then.iter().zip(now) {
        let changed = || CacheProblem::Changed {
            file: match then.file.is_empty() {
                true => path.display().to_string(),
                false => then.file.clone(),
            },
        };
        if then.bytes != now.bytes {
            return Err(changed());
        }
        let same_times = (then.modified, then.changed) == (now.modified, now.changed);
        let known = then.modified != 0 && same_times;
        if known && !thorough {
            continue;
        }
        let file = match now.file.is_empty() {
            true => path.to_owned(),
            false => path.join(&now.file),
        };
        let checksum = checksum(&file).map_err(CacheProblem::Unreadable)?;
        if checksum != then.checksum {
            return Err(changed());
        }
    }
    Ok(())
}

/// When the content or metadata of a file was last changed, in nanoseconds since 1970.
#[cfg(unix)]
fn changed(data: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let seconds = data.ctime().saturating_mul(1_000_000_000);
    seconds.saturating_add(data.ctime_nsec()).max(0) as u64
}

#[cfg(not(unix))]
fn changed(_: &Metadata) -> u64 {
    0
}

/// The XXH3 hash of a file.
fn checksum(path: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut hash = Xxh3Default::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.digest()),
            read => hash.update(&buffer[..read]),
        }
    }
}
