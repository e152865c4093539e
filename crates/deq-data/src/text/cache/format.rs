//! The format of token files.
//!
//! All numbers are little-endian.
//!
//! | bytes | content |
//! | --- | --- |
//! | 8 | `deqtoken` |
//! | 4 | version, 2 |
//! | 4 | length of the header |
//! | 8 | XXH3 of the header |
//! | | the header, JSON |
//! | | the vocabulary: one token a line, or a `tokenizer.json` |
//! | | the ids of train, valid and test, 2 or 4 bytes each |
//!
//! The header says how long everything is and has the checksums of vocabulary and ids.

use super::stamp::{self, Stamp};
use super::{CacheProblem, prepare_folder};
use crate::error::DataError;
use crate::files;
use crate::text::corpus::Corpus;
use crate::text::level::Level;
use crate::text::map::Map;
use crate::text::tokens::{Tokens, Width};
use crate::text::vocabulary::Vocabulary;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

const MAGIC: [u8; 8] = *b"deqtoken";
/// Rises with the format, and with the rules by which a text becomes ids.
const VERSION: u32 = 2;
/// What stands before the header.
const PREFIX: usize = 24;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) level: Level,
    /// The fingerprint of the vocabulary.
    pub(crate) vocabulary: u64,
    /// Whether it was made of this text, instead of given.
    pub(crate) derived: bool,
    /// Its tokens.
    pub(crate) vocabulary_len: u64,
    /// The length and checksum of its text.
    vocabulary_bytes: u64,
    vocabulary_checksum: u64,
    /// The files that the ids were made of.
    pub(crate) files: Vec<Stamp>,
    /// Tokens of train, valid and test; 0 where there is no test split, since none is empty.
    pub(crate) tokens: [u64; 3],
    /// Words of train, valid and test that became `<unk>`.
    unknown_words: [u64; 3],
    /// Bytes of an id.
    width: u64,
    /// The checksum of all ids.
    tokens_checksum: u64,
}

/// An open token file whose header and length are right.
pub(crate) struct TokenFile {
    path: PathBuf,
    map: Arc<Map>,
    pub(crate) header: Header,
    /// Where the vocabulary begins.
    vocabulary_at: usize,
    /// Where the ids begin.
    tokens_at: usize,
    width: Width,
}

/// Writes the token file of a corpus, whole or not at all. `derived` says that its vocabulary was
/// made of the text.
pub(crate) fn write(
    path: &Path,
    corpus: &Corpus,
    derived: bool,
    stamps: &[Stamp],
) -> Result<(), DataError> {
    prepare_folder(path)?;
    let width = Width::of(corpus.vocabulary.len());
    let vocabulary = corpus.vocabulary.text();
    let splits: Vec<&Tokens> = [&corpus.train, &corpus.valid]
        .into_iter()
        .chain(&corpus.test)
        .collect();
    let mut checksum = Xxh3Default::new();
    for split in &splits {
        split.each_block(width, |block| checksum.update(block));
    }
    let header = Header {
        level: corpus.vocabulary.level(),
        vocabulary: corpus.vocabulary.fingerprint(),
        derived,
        vocabulary_len: corpus.vocabulary.len() as u64,
        vocabulary_bytes: vocabulary.len() as u64,
        vocabulary_checksum: xxh3_64(vocabulary.as_bytes()),
        files: stamps.to_vec(),
        tokens: [0, 1, 2].map(|split| splits.get(split).map_or(0, |ids| ids.len() as u64)),
        unknown_words: corpus.unknown_words,
        width: width.bytes() as u64,
        tokens_checksum: checksum.digest(),
    };
    files::write_whole(path, |file| {
        let header = serde_json::to_vec(&header).map_err(io::Error::from)?;
        file.write_all(&MAGIC)?;
        file.write_all(&VERSION.to_le_bytes())?;
        file.write_all(&(header.len() as u32).to_le_bytes())?;
        file.write_all(&xxh3_64(&header).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(vocabulary.as_bytes())?;
        let mut written = Ok(());
        for split in &splits {
            split.each_block(width, |block| {
                if written.is_ok() {
                    written = file.write_all(block);
                }
            });
        }
        written
    })
}

impl TokenFile {
    /// Opens a token file and checks its header and length.
    pub(crate) fn open(path: &Path) -> Result<Self, CacheProblem> {
        let map = Map::open(path).map_err(CacheProblem::Unreadable)?;
        let prefix = map.get(..PREFIX).ok_or(CacheProblem::NotATokenFile)?;
        let (magic, rest) = prefix.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(CacheProblem::NotATokenFile);
        }
        let found = number(&rest[..4]) as u32;
        if found != VERSION {
            let expected = VERSION;
            return Err(CacheProblem::OtherVersion { found, expected });
        }
        let vocabulary_at = (number(&rest[4..8]) as usize).saturating_add(PREFIX);
        let json = map.get(PREFIX..vocabulary_at);
        let json = json.ok_or(CacheProblem::DamagedHeader)?;
        if xxh3_64(json) != number(&rest[8..]) {
            return Err(CacheProblem::DamagedHeader);
        }
        let damaged = |_| CacheProblem::DamagedHeader;
        let header: Header = serde_json::from_slice(json).map_err(damaged)?;
        // No split that exists is empty.
        if header.tokens[0] == 0 || header.tokens[1] == 0 {
            return Err(CacheProblem::DamagedHeader);
        }
        let width = match header.width {
            2 => Width::Two,
            4 => Width::Four,
            _ => return Err(CacheProblem::DamagedHeader),
        };
        let parts = [vocabulary_at as u64, header.vocabulary_bytes];
        let ids = header.tokens.map(|len| len.saturating_mul(header.width));
        let parts = parts.iter().chain(&ids);
        let expected = parts.fold(0_u64, |sum, part| sum.saturating_add(*part));
        let found = map.len() as u64;
        if found != expected {
            return Err(CacheProblem::WrongLength { found, expected });
        }
        Ok(Self {
            path: path.to_owned(),
            tokens_at: vocabulary_at + header.vocabulary_bytes as usize,
            map: Arc::new(map),
            header,
            vocabulary_at,
            width,
        })
    }

    /// Checks that the file was made of these files. Where the vocabulary is `given`, and the right
    /// one, it does not matter which list of words it came from.
    pub(crate) fn check_text(
        &self,
        text: &Path,
        now: &[Stamp],
        given: bool,
        thorough: bool,
    ) -> Result<(), CacheProblem> {
        let then = self.header.files.iter();
        let then: Vec<&Stamp> = then.filter(|stamp| !(given && stamp.is_list())).collect();
        stamp::compare(text, &then, now, thorough)
    }

    /// Reads all ids, compares their checksum, and checks that the vocabulary has them.
    pub(crate) fn check_tokens(&self) -> Result<(), CacheProblem> {
        let bytes = self.tokens_at..self.map.len();
        if xxh3_64(&self.map[bytes.clone()]) != self.header.tokens_checksum {
            return Err(CacheProblem::DamagedTokens);
        }
        let ids = Tokens::mapped(self.map.clone(), bytes, self.width);
        let most = ids.iter().max().map_or(0, u64::from);
        match most < self.header.vocabulary_len {
            true => Ok(()),
            false => Err(CacheProblem::DamagedTokens),
        }
    }

    /// The vocabulary in the file.
    pub(crate) fn vocabulary(&self) -> Result<Vocabulary, CacheProblem> {
        let bytes = &self.map[self.vocabulary_at..self.tokens_at];
        if xxh3_64(bytes) != self.header.vocabulary_checksum {
            return Err(CacheProblem::DamagedVocabulary);
        }
        let text = String::from_utf8(bytes.to_vec());
        let text = text.map_err(|_| CacheProblem::DamagedVocabulary)?;
        let vocabulary = Vocabulary::of_text(&self.path, self.header.level, text);
        let vocabulary = vocabulary.map_err(|_| CacheProblem::DamagedVocabulary)?;
        match vocabulary.len() as u64 == self.header.vocabulary_len {
            true => Ok(vocabulary),
            false => Err(CacheProblem::DamagedVocabulary),
        }
    }

    /// The corpus with its ids in this file.
    pub(crate) fn corpus(&self, vocabulary: Vocabulary) -> Corpus {
        let mut start = self.tokens_at;
        let [train, valid, test] = self.header.tokens.map(|len| {
            let bytes = start..start + len as usize * self.width.bytes();
            start = bytes.end;
            Tokens::mapped(self.map.clone(), bytes, self.width)
        });
        Corpus {
            vocabulary,
            train,
            valid,
            test: (!test.is_empty()).then_some(test),
            unknown_words: self.header.unknown_words,
            left_out: Vec::new(),
        }
    }
}

/// A little-endian number of up to 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}
