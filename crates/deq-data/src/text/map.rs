//! Files as memory. This is the only file of the workspace with unsafe code.

#![allow(
    unsafe_code,
    reason = "mapping a file is unsafe in every library that does not merely hide it"
)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file as a slice of bytes; what is not read is not loaded.
#[derive(Debug)]
pub(crate) struct Map(memmap2::Mmap);

impl Map {
    /// Maps a file that is never written in place.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the bytes of the map must stay as they are while it exists. It is read-only, and
        // only token files are mapped, which come into being by `files::write_whole` alone: a file
        // under this name is complete, is never opened for writing again, and when it is replaced
        // or removed the map keeps the old one. Bytes are only ever read as bytes, so any content
        // is valid. What remains is another program that writes into or truncates a token file
        // while it is mapped; no program that maps files can exclude that, and the folder says that
        // its files are not to be edited.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
