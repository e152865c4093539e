//! Damaged checkpoints whose checksums are right.

use deq_train::files::FileSum;
use std::path::Path;

/// Changes a file of the newest checkpoint, and the checksums with it.
pub(crate) fn forge(run: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let checkpoints = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let newest = checkpoints
        .map(|entry| entry.unwrap().path())
        .max()
        .unwrap();
    let mut bytes = std::fs::read(newest.join(name)).unwrap();
    let before = FileSum::of(&bytes);
    change(&mut bytes);
    std::fs::write(newest.join(name), &bytes).unwrap();
    let path = newest.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let entry = |sum: FileSum| {
        let FileSum { bytes, xxh3 } = sum;
        format!("\"bytes\": {bytes},\n      \"xxh3\": \"{xxh3}\"")
    };
    let text = text.replace(&entry(before), &entry(FileSum::of(&bytes)));
    // The checksum of the manifest is that with an empty one.
    let (rest, _) = text.rsplit_once("\"bytes\"").unwrap();
    let sealed = |FileSum { bytes, xxh3 }: FileSum| {
        format!("{rest}\"bytes\": {bytes},\n    \"xxh3\": \"{xxh3}\"\n  }}\n}}")
    };
    let unsealed = sealed(FileSum::default());
    std::fs::write(&path, sealed(FileSum::of(unsealed.as_bytes()))).unwrap();
}
