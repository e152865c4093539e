//! What a file is, by its first bytes.

/// Bytes that [`of`] looks at.
pub(super) const WINDOW: u64 = 1024;

/// The kinds of files that may hold tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What `torch.save` writes since PyTorch 1.6.
    Zip,
    /// What it wrote before.
    Legacy,
    /// What it wrote before PyTorch 0.1.10.
    Tar,
    Safetensors,
    /// A pickle of something else.
    Pickle,
}

/// The number that PyTorch's files began with before 1.6, as pickles of protocols 1 and up have it,
/// and as protocol 0.
const LEGACY_MAGIC: [&[u8]; 2] = [
    &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19],
    b"119547037146038801333356",
];

/// What files begin with that are taken for checkpoints.
const OTHERS: [(&[u8], &str); 12] = [
    (
        b"version https://git-lfs.github.com/spec/v1",
        "it is a pointer of Git LFS, not the file that it stands for: \
         fetch that with `git lfs pull`",
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        "it is a file of HDF5, such as Keras writes",
    ),
    (b"\x93NUMPY", "it is an array of NumPy"),
    (b"GGUF", "it is a GGUF file"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
    (b"\xfd7zXZ\0", "it is compressed with xz: unpack it first"),
    (
        b"\x28\xb5\x2f\xfd",
        "it is compressed with Zstandard: unpack it first",
    ),
    (b"BZh", "it is compressed with bzip2: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive: unpack it first"),
    (b"%PDF", "it is a PDF document"),
    (b"\x89PNG", "it is a PNG image"),
    (b"\xff\xd8\xff", "it is a JPEG image"),
];

/// The kind of a file of `length` bytes, or what it is instead of a checkpoint.
pub(super) fn of(start: &[u8], length: u64) -> Result<Kind, String> {
    if length == 0 {
        return Err("it is empty".to_owned());
    }
    if start.iter().all(|&byte| byte == 0) {
        return Err(
            "it begins with zeros only: it was perhaps never written to its end".to_owned(),
        );
    }
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        return Ok(Kind::Zip);
    }
    if start.get(257..262) == Some(b"ustar") {
        return Ok(Kind::Tar);
    }
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err((*what).to_owned());
    }
    // Eight bytes of length, then JSON. Text that begins so would be a header longer than any.
    if start.get(8) == Some(&b'{') && start[4..8] == [0; 4] {
        return Ok(Kind::Safetensors);
    }
    if LEGACY_MAGIC.iter().any(|magic| {
        let mut head = start[..start.len().min(64)].windows(magic.len());
        head.any(|bytes| bytes == *magic)
    }) {
        return Ok(Kind::Legacy);
    }
    let text = start.trim_ascii_start();
    let lower = text[..text.len().min(16)].to_ascii_lowercase();
    if lower.starts_with(b"<!doctype") || lower.starts_with(b"<html") {
        return Err("it is a web page, perhaps that of a download that failed".to_owned());
    }
    if start[0] == 0x80 {
        return Ok(Kind::Pickle);
    }
    if text.starts_with(b"<?xml") {
        return Err("it is XML, perhaps the message of a download that failed".to_owned());
    }
    // Pickles of protocols 0 and 1 are text, or nearly so.
    if matches!(start[0], b'(' | b'}' | b']' | b'c') {
        return Ok(Kind::Pickle);
    }
    Err(nothing_known(start))
}

/// What to call a file that begins like none of the formats.
pub(super) fn nothing_known(start: &[u8]) -> String {
    let binary = start.iter().any(|byte| matches!(byte, 0..=8 | 14..=31));
    match binary {
        true => "it is neither a checkpoint of PyTorch nor a safetensors file".to_owned(),
        false => "it is text, not a checkpoint of PyTorch or a safetensors file".to_owned(),
    }
}
