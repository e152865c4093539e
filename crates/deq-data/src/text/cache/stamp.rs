//! How a text is recognised again.

use super::CacheProblem;
use crate::error::DataError;
use crate::text::source::Layout;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::UNIX_EPOCH;
use xxhash_rust::xxh3::Xxh3Default;

/// The number that stands for the list of words in the place of a split's.
const LIST: u8 = 4;

/// One file of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// As seen from the folder of the text; empty for a text that is one file.
    file: String,
    /// The number of its split, 3 where the text is cut into splits, 4 for a list of words.
    split: u8,
    pub(crate) bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
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
                checksum: 0,
            })
        })
        .collect()
}

/// Checks that these are the files that a token file was made of.
///
/// A file of the same length and time of change is taken for the same, without being read, unless `thorough`. One of another time, such as a copy,
/// is read and compared.
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
        let known = then.modified != 0 && then.modified == now.modified;
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
