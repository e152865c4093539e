//! Files that are read as text, and files that are written whole or not at all.

use crate::error::DataError;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

/// The beginning of the names of files that are being written.
pub(crate) const PARTIAL: &str = ".partial-";
/// No file takes this long to write: an older one was left by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// The byte-order mark that some editors put before UTF-8 text.
const UTF8_MARK: &[u8] = "\u{FEFF}".as_bytes();

/// Writes a file through `fill` under a temporary name beside `path` and renames it into place, so
/// that no reader ever sees a part of it.
pub(crate) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), DataError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PARTIAL);
        // Temporary files are private by default; this one is as readable as any other file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let file = builder.tempfile_in(folder)?;
        let mut buffered = io::BufWriter::new(file);
        fill(&mut buffered)?;
        let file = buffered
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| DataError::write(path, source))
}

/// Removes files and folders more than a day old whose names have one of these beginnings: what
/// killed processes have left in a folder. What cannot be removed stays.
pub fn remove_abandoned(folder: &Path, beginnings: &[&str]) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|data| data.modified());
        let age = age.map(|time| time.elapsed().unwrap_or_default());
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let ours = beginnings.iter().any(|begin| name.starts_with(begin));
        if ours && age.is_ok_and(|age| age > ABANDONED) {
            let _ = match path.is_dir() {
                true => std::fs::remove_dir_all(path),
                false => std::fs::remove_file(path),
            };
        }
    }
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::read(path, source))
}

/// Reads a UTF-8 file of at most `most` bytes, without its byte-order mark.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, DataError> {
    let error = |source| DataError::read(path, source);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(error)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > most {
        return Err(DataError::TooLarge {
            path: path.to_owned(),
            most,
        });
    }
    String::from_utf8(unmarked(path, bytes)?).map_err(|error| DataError::NotUtf8 {
        path: path.to_owned(),
        position: error.utf8_error().valid_up_to(),
    })
}

/// The content of a text file without the byte-order mark of UTF-8. UTF-16 is refused.
pub(crate) fn unmarked(path: &Path, mut bytes: Vec<u8>) -> Result<Vec<u8>, DataError> {
    if is_utf16(&bytes) {
        return Err(DataError::Utf16 {
            path: path.to_owned(),
        });
    }
    if bytes.starts_with(UTF8_MARK) {
        bytes.drain(..UTF8_MARK.len());
    }
    Ok(bytes)
}

/// Whether a file begins with the byte-order mark of UTF-16 and is valid UTF-16 all through, so
/// that binary files which merely begin like it are left alone.
fn is_utf16(bytes: &[u8]) -> bool {
    let unit: fn([u8; 2]) -> u16 = match bytes {
        [0xFF, 0xFE, ..] => u16::from_le_bytes,
        [0xFE, 0xFF, ..] => u16::from_be_bytes,
        _ => return false,
    };
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    char::decode_utf16(units).all(|character| character.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn only_old_parts_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, hours) in [(".partial-a", 25), (".partial-b", 1), ("old", 25)] {
            let file = File::create(folder.path().join(name)).unwrap();
            let time = SystemTime::now() - Duration::from_secs(hours * 3600);
            file.set_modified(time).unwrap();
        }
        remove_abandoned(folder.path(), &[PARTIAL]);
        let left = ["old", ".partial-b"].map(|name| folder.path().join(name).exists());
        assert_eq!(left, [true, true]);
        assert!(!folder.path().join(".partial-a").exists());
    }

    #[test]
    fn text_is_read_without_its_mark_and_up_to_a_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            read_text(file.path(), 8).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"\xEF\xBB\xBFabcde").unwrap(), "abcde");
        assert!(
            read(b"123456789")
                .unwrap_err()
                .contains("more than 8 bytes")
        );
        assert!(read(b"ab\xFF").unwrap_err().contains("(byte 2)"));
        for utf16 in [b"\xFF\xFEa\0b\0", b"\xFE\xFF\0a\0b"] {
            assert!(read(utf16).unwrap_err().contains("is UTF-16 text"));
        }
        // An unpaired surrogate: a binary file that begins like UTF-16.
        let binary = b"\xFF\xFE\x00\xD8a\0".to_vec();
        assert_eq!(unmarked(file.path(), binary.clone()).unwrap(), binary);
    }
}
