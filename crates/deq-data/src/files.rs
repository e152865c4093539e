//! Files that are written whole or not at all.

use crate::error::DataError;
use std::io::{self, Write};
use std::path::Path;

/// Writes a file through `fill` under a temporary name beside `path` and renames it into place, so that nobody ever sees a part of it.
pub(crate) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), DataError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
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

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::read(path, source))
}
