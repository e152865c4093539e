//! How a data set is recognised again, wherever it lies.

use crate::error::DataError;
use rayon::prelude::*;
use std::io::Read;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3Default;

/// Up to this many bytes, all contents count. A fraction of a second to read.
const WHOLE: u64 = 64 << 20;
/// The files whose contents count in a larger data set.
const SAMPLED: usize = 256;
/// The bytes that count of each of these.
const SAMPLED_BYTES: u64 = 1 << 20;

/// A hash in the making. Every part goes in with its length, so that no two sequences of parts are
/// the same bytes.
pub(super) struct Fingerprint(Xxh3Default);

impl Fingerprint {
    /// Of a data set of one kind.
    pub(super) fn new(kind: &str) -> Self {
        let mut hash = Self(Xxh3Default::new());
        hash.bytes(kind.as_bytes());
        hash
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub(super) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(super) fn names(&mut self, names: &[String]) {
        self.number(names.len() as u64);
        for name in names {
            self.bytes(name.as_bytes());
        }
    }

    /// Files: their paths as seen from `root`, their sizes, and the contents of all of them, or of
    /// some spread evenly over a large data set.
    pub(super) fn files(&mut self, root: &Path, files: &[&PathBuf]) -> Result<(), DataError> {
        let size = |path: &&PathBuf| {
            let data = std::fs::metadata(path).map_err(|error| DataError::read(path, error))?;
            Ok(data.len())
        };
        let sizes = files.par_iter().map(size);
        let sizes = sizes.collect::<Result<Vec<u64>, DataError>>()?;
        self.number(files.len() as u64);
        for (path, size) in files.iter().zip(&sizes) {
            let name = path.strip_prefix(root).unwrap_or(path);
            let parts: Vec<&[u8]> = name.iter().map(|part| part.as_encoded_bytes()).collect();
            self.bytes(&parts.join(&b'/'));
            self.number(*size);
        }
        let all = sizes
            .iter()
            .fold(0_u64, |sum, size| sum.saturating_add(*size))
            <= WHOLE;
        let step = if all {
            1
        } else {
            files.len().div_ceil(SAMPLED)
        };
        let most = if all { WHOLE } else { SAMPLED_BYTES };
        for path in files.iter().step_by(step) {
            let mut contents = Vec::new();
            std::fs::File::open(path)
                .and_then(|file| file.take(most).read_to_end(&mut contents))
                .map_err(|error| DataError::read(path, error))?;
            self.bytes(&contents);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> u64 {
        self.0.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(root: &Path, names: &[&str]) -> u64 {
        let files: Vec<PathBuf> = names.iter().map(|name| root.join(name)).collect();
        let mut fingerprint = Fingerprint::new("test");
        let files: Vec<&PathBuf> = files.iter().collect();
        fingerprint.files(root, &files).unwrap();
        fingerprint.finish()
    }

    #[test]
    fn of_large_data_a_sample_of_the_contents_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        // 600 files are sampled in steps of 3.
        let names: Vec<String> = (0..600).map(|index| format!("{index:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for name in &names {
            let file = std::fs::File::create(root.join(name)).unwrap();
            // Holes, which take no space.
            file.set_len(1 << 17).unwrap();
        }
        let first = of(root, &names);
        assert_eq!(first, of(root, &names));
        let mut bytes = vec![0; 1 << 17];
        bytes[1000] = 1;
        std::fs::write(root.join("001"), &bytes).unwrap();
        assert_eq!(first, of(root, &names));
        std::fs::write(root.join("003"), &bytes).unwrap();
        assert_ne!(first, of(root, &names));
        bytes.push(0);
        std::fs::write(root.join("003"), [0; 1 << 17]).unwrap();
        assert_eq!(first, of(root, &names));
        std::fs::write(root.join("001"), &bytes).unwrap();
        assert_ne!(first, of(root, &names));
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        let of = |parts: [&str; 2]| {
            let mut fingerprint = Fingerprint::new("");
            fingerprint.names(&parts.map(str::to_owned));
            fingerprint.finish()
        };
        assert_ne!(of(["ab", "c"]), of(["a", "bc"]));
    }
}
