//! Programs that show the crates in use; run one with `cargo run --release -p deq-examples
//! --example NAME`. `README.md` beside them says what each is about.

use flate2::read::GzDecoder;
use std::error::Error;
use std::io::Read;
use std::path::Path;

/// The code of the README of the workspace, compiled and run by `cargo test`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// The bytes of an IDX file behind its header of `header` bytes, of which there must be `length`.
/// The file is `path`, or `path.gz`, compressed.
///
/// # Errors
///
/// If neither can be read or the length is another.
pub fn idx(path: &Path, header: usize, length: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let packed = path.with_added_extension("gz");
    let mut open = |path: &Path| std::fs::File::open(path);
    let read = match open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes),
        Err(_) => open(&packed).and_then(|file| GzDecoder::new(file).read_to_end(&mut bytes)),
    };
    read.map_err(|e| format!("{} or {}: {e}", path.display(), packed.display()))?;
    if bytes.len() != header + length {
        let (found, wanted) = (bytes.len(), header + length);
        return Err(format!("{} holds {found} bytes, not {wanted}", path.display()).into());
    }
    Ok(bytes.split_off(header))
}
