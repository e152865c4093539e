//! Files that are written whole or not at all.

use crate::error::DataError;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// The beginning of the names of files that are being written.
const PARTIAL: &str = ".partial-";
/// Nothing takes so long to write: a file that was last touched before was left by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Writes a file through `fill` under a temporary name beside `path` and renames it into place, so that nobody ever sees a part of it.
pub(crate) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), DataError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PARTIAL);
        // Temporary files are private by default; this one is as readable as any other file of its owner.
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

/// Removes what killed processes have left half-written in a folder of large files. What cannot be removed stays.
pub(crate) fn remove_abandoned(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|data| data.modified());
        let age = age.map(|time| time.elapsed().unwrap_or_default());
        let partial = entry.file_name().to_string_lossy().starts_with(PARTIAL);
        if partial && age.is_ok_and(|age| age > ABANDONED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::read(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn only_old_parts_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, hours) in [(".partial-a", 25), (".partial-b", 1), ("old", 25)] {
            let file = std::fs::File::create(folder.path().join(name)).unwrap();
            let time = SystemTime::now() - Duration::from_secs(hours * 3600);
            file.set_modified(time).unwrap();
        }
        remove_abandoned(folder.path());
        let left = ["old", ".partial-b"].map(|name| folder.path().join(name).exists());
        assert_eq!(left, [true, true]);
        assert!(!folder.path().join(".partial-a").exists());
    }
}
