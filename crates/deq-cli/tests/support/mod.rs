//! What the tests of the command share.

use deq_train::files::FileSum;
use std::path::Path;

/// Makes a weight of the newest checkpoint NaN, with the right checksums.
pub(crate) fn poison(run: &Path) {
    let checkpoints = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let checkpoints = checkpoints.map(|entry| entry.unwrap().path());
    let newest = checkpoints.max().unwrap();
    let model = newest.join("model.bpk");
    let mut bytes = std::fs::read(&model).unwrap();
    let before = FileSum::of(&bytes);
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&model, &bytes).unwrap();
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
