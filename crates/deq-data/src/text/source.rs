//! The bytes of the splits.

use super::layout::{Content, Layout, Split};
use super::lines::line_end;
use crate::error::DataError;
use crate::files;
use std::path::PathBuf;
use xxhash_rust::xxh3::xxh3_64;

/// No word of any language is as long, in bytes; a longer run without white space is no word.
const LONGEST_WORD: usize = 1024;

/// A split's bytes.
pub(crate) struct Source {
    /// The file or folder to name in errors.
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    /// Where each file begins: before 0 if a byte-order mark or an earlier split has its beginning.
    parts: Vec<(isize, PathBuf)>,
}

/// Reads train, valid and test if there is one, none of them empty, with the checksum of each of
/// the files of the layout.
pub(crate) fn read(layout: &Layout) -> Result<(Vec<Source>, Vec<u64>), DataError> {
    let mut checksums = Vec::new();
    let mut join = |split| join(split, &mut checksums);
    let sources = match &layout.content {
        Content::Whole(whole) => divide(join(whole)?)?.into(),
        Content::Splits(splits) => splits.iter().map(join).collect::<Result<Vec<_>, _>>()?,
    };
    match sources.iter().find(|source| source.bytes.is_empty()) {
        Some(empty) => Err(DataError::Empty {
            path: empty.path.clone(),
        }),
        None => Ok((sources, checksums)),
    }
}

/// Reads files one after the other, with a line feed between two where there is none. Their
/// byte-order marks are left out, and counted in their checksums.
fn join(split: &Split, checksums: &mut Vec<u64>) -> Result<Source, DataError> {
    let mut source = Source::new(split.path.clone(), Vec::new());
    for file in &split.files {
        let content = files::read(file)?;
        checksums.push(xxh3_64(&content));
        let len = content.len();
        let bytes = files::unmarked(file, content)?;
        // After a carriage return, too: the two are one line end, whatever the next file begins
        // with.
        if source.bytes.last().is_some_and(|&byte| byte != b'\n') {
            source.bytes.push(b'\n');
        }
        let mark = len - bytes.len();
        let start = source.bytes.len() as isize - mark as isize;
        source.parts.push((start, file.clone()));
        match source.bytes.is_empty() {
            true => source.bytes = bytes,
            false => source.bytes.extend(bytes),
        }
    }
    Ok(source)
}

/// Cuts a text into 90 %, 5 % and 5 %.
fn divide(mut whole: Source) -> Result<[Source; 3], DataError> {
    let len = whole.bytes.len();
    let path = whole.path.clone();
    if len == 0 {
        return Err(DataError::Empty { path });
    }
    let second = cut(&whole.bytes, 95);
    let mut first = cut(&whole.bytes, 90);
    if first >= second {
        // The same long word is at both places: valid is the one before it.
        first = word_start(&whole.bytes[..second.saturating_sub(1)]).unwrap_or(second);
    }
    if first == 0 || first >= second || second >= len {
        return Err(DataError::TooSmallToDivide { path, bytes: len });
    }
    let test = whole.split_off(second);
    let valid = whole.split_off(first);
    Ok([whole, valid, test])
}

/// A place near `percent`: the end of the line there, or between two words if that line is longer
/// than 1 % of the text, or between two characters where there are no words.
fn cut(bytes: &[u8], percent: usize) -> usize {
    let at = bytes.len() * percent / 100;
    let near = bytes.len() / 100;
    if let Some(end) = line_end(&bytes[at..], near) {
        return at + end;
    }
    // Bytes 10xxxxxx continue a character of UTF-8.
    let inside = bytes[at..].iter().take_while(|&&byte| byte & 0xC0 == 0x80);
    let at = at + inside.count();
    let before = word_start(&bytes[..at]).map(|place| whole_line_end(bytes, place));
    if before == Some(at) {
        return at;
    }
    let ahead = &bytes[at..bytes.len().min(at + LONGEST_WORD)];
    let mut after = spaces(ahead).map(|end| whole_line_end(bytes, at + end));
    // A place at the very end would leave nothing for the rest.
    let after = after.find(|&place| place < bytes.len());
    after.or(before).unwrap_or(at)
}

/// Where the last word of a text begins, if it is no longer than words are.
fn word_start(bytes: &[u8]) -> Option<usize> {
    let start = bytes.len().saturating_sub(LONGEST_WORD);
    spaces(&bytes[start..]).last().map(|end| start + end)
}

/// The places after each white space character; bytes that are not UTF-8 are no white space.
fn spaces(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut start = 0;
    bytes.utf8_chunks().flat_map(move |chunk| {
        let at = start;
        start += chunk.valid().len() + chunk.invalid().len();
        let characters = chunk.valid().char_indices();
        let spaces = characters.filter(|(_, character)| character.is_whitespace());
        spaces.map(move |(place, space)| at + place + space.len_utf8())
    })
}

/// The same place, or the next one if it lies between a carriage return and its line feed.
fn whole_line_end(bytes: &[u8], at: usize) -> usize {
    match bytes[..at].ends_with(b"\r") && bytes[at..].starts_with(b"\n") {
        true => at + 1,
        false => at,
    }
}

impl Source {
    pub(crate) fn new(path: PathBuf, bytes: Vec<u8>) -> Self {
        let parts = Vec::new();
        Self { path, bytes, parts }
    }

    /// Keeps what is before `at`, and returns the rest.
    fn split_off(&mut self, at: usize) -> Self {
        let bytes = self.bytes.split_off(at);
        let at = at as isize;
        let first = self.parts.partition_point(|(start, _)| *start < at);
        // The file before the cut goes on after it.
        let rest = self.parts[first.saturating_sub(1)..].iter();
        let parts = rest
            .map(|(start, file)| (start - at, file.clone()))
            .collect();
        self.parts.truncate(first);
        let path = self.path.clone();
        Self { path, bytes, parts }
    }

    /// The text, at all levels but that of bytes.
    pub(crate) fn text(&self) -> Result<&str, DataError> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to() as isize;
            let before = self.parts.iter().rev().find(|(start, _)| *start <= at);
            let (start, path) = before.map_or((0, &self.path), |(start, path)| (*start, path));
            DataError::NotUtf8 {
                path: path.clone(),
                position: (at - start) as usize,
            }
        })
    }
}

#[cfg(test)]
#[path = "source/tests.rs"]
mod tests;
