//! Tokens by id.

use super::level::Level;
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The tokens of a corpus; a token's id is its place.
///
/// It is serialised as the list of its tokens, and saved as a file with one token a line.
///
/// ```
/// use deq_data::Vocabulary;
///
/// let vocabulary = Vocabulary::of_words(["the", "state", "<eos>", "the", "<unk>"]);
/// let ids = vocabulary.encode("the new state\n")?;
/// assert_eq!(ids, [1, 3, 2, 0]);
/// assert_eq!(vocabulary.decode(&ids)?, "the <unk> state\n");
/// # Ok::<(), deq_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    level: Level,
}

impl TryFrom<Vec<String>> for Vocabulary {
    type Error = DataError;

    /// The tokens in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`DataError::DuplicateToken`] if a token is there twice.
    fn try_from(tokens: Vec<String>) -> Result<Self, DataError> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0_u32..).zip(&tokens) {
            if let Some(first) = ids.insert(token.clone(), id) {
                return Err(DataError::DuplicateToken {
                    token: token.clone(),
                    first: first as usize,
                    second: id as usize,
                });
            }
        }
        Ok(Self::from_parts(tokens, ids))
    }
}

impl From<Vocabulary> for Vec<String> {
    fn from(vocabulary: Vocabulary) -> Self {
        vocabulary.tokens
    }
}

impl Vocabulary {
    /// Ends every line at the word level.
    pub const END_OF_LINE: &str = "<eos>";
    /// Stands for words outside the vocabulary.
    pub const UNKNOWN: &str = "<unk>";

    /// The words of a text: [`END_OF_LINE`](Self::END_OF_LINE) first, then by falling frequency, ties by first
    /// appearance.
    ///
    /// Transformer-XL sorts its vocabularies in this way, and an adaptive softmax relies on it, because its clusters are ranges of ids.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let counts = count(words).into_iter();
        Self::of_distinct(by_frequency(
            counts.filter(|(word, _)| *word != Self::END_OF_LINE),
        ))
    }

    /// The words of a text in the order of first appearance, with [`END_OF_LINE`](Self::END_OF_LINE) first.
    ///
    /// The `vocab.txt` files that are passed around with WikiText-2 have this order: its first line is empty, so that `<eos>` is the first
    /// token anyway. It does not suit an adaptive softmax; see [`of_words`](Self::of_words).
    pub fn by_appearance<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut seen = HashSet::from([Self::END_OF_LINE]);
        Self::of_distinct(words.into_iter().filter(|word| seen.insert(word)))
    }

    /// The words of a text as in [`of_words`](Self::of_words), except that words found fewer than `least` times become
    /// [`UNKNOWN`](Self::UNKNOWN), which therefore has the frequency of all of them together.
    pub(crate) fn of_frequent_words<'a>(
        words: impl IntoIterator<Item = &'a str>,
        least: usize,
    ) -> Self {
        let (common, rare): (Vec<_>, Vec<_>) = count(words)
            .into_iter()
            .filter(|(word, _)| *word != Self::END_OF_LINE)
            .partition(|(word, count)| *count >= least && *word != Self::UNKNOWN);
        let unknown = rare.iter().map(|(_, count)| count).sum();
        Self::of_distinct(by_frequency(
            common.into_iter().chain([(Self::UNKNOWN, unknown)]),
        ))
    }

    /// These tokens by their frequency in a text, ties by first appearance there; those that it does not have come last, in the order they
    /// have here.
    pub(crate) fn sorted_for<'a>(&'a self, words: impl IntoIterator<Item = &'a str>) -> Self {
        let unknown = Self::UNKNOWN;
        let known = words
            .into_iter()
            .map(|word| match self.ids.contains_key(word) {
                true => word,
                false => unknown,
            });
        let mut counts = count(known);
        counts.retain(|(word, _)| self.ids.contains_key(*word) && *word != Self::END_OF_LINE);
        let seen: HashSet<&str> = counts.iter().map(|(word, _)| *word).collect();
        let unseen = self.tokens.iter().map(String::as_str);
        let unseen = unseen.filter(|word| !seen.contains(word) && *word != Self::END_OF_LINE);
        Self::of_distinct(by_frequency(counts.into_iter()).into_iter().chain(unseen))
    }

    /// All 256 bytes; printable ASCII stands for itself, the others for `<0x..>`.
    pub fn of_bytes() -> Self {
        let tokens: Vec<String> = byte_names().collect();
        let ids = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id));
        let ids = ids.collect();
        Self::from_parts(tokens, ids)
    }

    /// [`END_OF_LINE`](Self::END_OF_LINE) and words that differ from it and from one another.
    fn of_distinct<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let tokens: Vec<String> = [Self::END_OF_LINE]
            .into_iter()
            .chain(words)
            .map(str::to_owned)
            .collect();
        let ids = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id));
        let ids = ids.collect();
        Self::from_parts(tokens, ids)
    }

    fn from_parts(tokens: Vec<String>, ids: HashMap<String, u32>) -> Self {
        let level = match tokens.iter().map(String::as_str).eq(byte_names()) {
            true => Level::Byte,
            false => Level::Word,
        };
        Self { tokens, ids, level }
    }

    /// Reads a file with one token a line, the first of which has id 0.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the file and line: it cannot be read, is not UTF-8, is empty, has an empty line, or repeats a token.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|error| DataError::read(path, error))?;
        let path = path.to_owned();
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let position = error.utf8_error().valid_up_to();
                return Err(DataError::NotUtf8 { path, position });
            }
        };
        if text.is_empty() {
            return Err(DataError::Empty { path });
        }
        let tokens: Vec<String> = text.lines().map(str::to_owned).collect();
        if let Some(blank) = tokens.iter().position(String::is_empty) {
            let line = blank + 1;
            return Err(DataError::BlankLine { path, line });
        }
        Self::try_from(tokens).map_err(|error| match error {
            DataError::DuplicateToken { token, second, .. } => {
                let line = second + 1;
                DataError::DuplicateLine { path, line, token }
            }
            other => other,
        })
    }

    /// Writes the file that [`load`](Self::load) reads.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        let text: String = self.tokens.iter().flat_map(|token| [token, "\n"]).collect();
        std::fs::write(path, text).map_err(|error| DataError::write(path, error))
    }

    /// What a token is.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The id of a token, or of [`UNKNOWN`](Self::UNKNOWN); `None` if the vocabulary has neither.
    pub fn id(&self, token: &str) -> Option<u32> {
        let known = self.ids.get(token);
        known.or_else(|| self.ids.get(Self::UNKNOWN)).copied()
    }

    /// The id of a token, without falling back to [`UNKNOWN`](Self::UNKNOWN).
    pub(crate) fn id_of_known(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The token of an id, if there is one.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The ids of a text: its bytes, or its words with [`END_OF_LINE`](Self::END_OF_LINE) for every line feed.
    ///
    /// A last line without a line feed gets no `<eos>`, so that a model can be asked to go on with it.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownToken`] for a word that the vocabulary does not have, if it has no [`UNKNOWN`](Self::UNKNOWN) either.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        if self.level == Level::Byte {
            return Ok(text.bytes().map(u32::from).collect());
        }
        let words = text.split_inclusive('\n').flat_map(|line| {
            let end = line.ends_with('\n').then_some(Self::END_OF_LINE);
            line.split_whitespace().chain(end)
        });
        words
            .map(|word| {
                self.id(word).ok_or_else(|| DataError::UnknownToken {
                    word: word.to_owned(),
                })
            })
            .collect()
    }

    /// The text of these ids: their bytes, or their words with single spaces between them and a line feed for
    /// [`END_OF_LINE`](Self::END_OF_LINE).
    ///
    /// Bytes that are not UTF-8, such as half a letter at the end, become the replacement character U+FFFD.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownId`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let tokens = ids.iter().map(|&id| {
            self.token(id).ok_or(DataError::UnknownId {
                id,
                len: self.len(),
            })
        });
        let tokens: Vec<&str> = tokens.collect::<Result<_, _>>()?;
        if self.level == Level::Byte {
            let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        let mut text = String::new();
        for token in tokens {
            if token == Self::END_OF_LINE {
                text.push('\n');
                continue;
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push(' ');
            }
            text += token;
        }
        Ok(text)
    }

    /// A number that differs between vocabularies, to match a model with its data.
    ///
    /// It is the 64-bit FNV-1a hash of the tokens, each followed by a zero byte, and stays the same in all versions of this crate.
    pub fn fingerprint(&self) -> u64 {
        let bytes = self
            .tokens
            .iter()
            .flat_map(|token| token.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Checks that this is the vocabulary with a given [`fingerprint`](Self::fingerprint).
    ///
    /// # Errors
    ///
    /// [`DataError::OtherVocabulary`] if it is not. A vocabulary of the same size in another order is refused too: a model would read it without
    /// complaint and predict nonsense.
    pub fn require(&self, fingerprint: u64) -> Result<(), DataError> {
        let found = self.fingerprint();
        match found == fingerprint {
            true => Ok(()),
            false => Err(DataError::OtherVocabulary {
                expected: fingerprint,
                found,
            }),
        }
    }
}

fn byte_names() -> impl Iterator<Item = String> {
    (0..=255_u8).map(|byte| match byte {
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("<0x{byte:02X}>"),
    })
}

/// Distinct words with their counts, in the order of first appearance.
fn count<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<(&'a str, usize)> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for word in words {
        let place = *places.entry(word).or_insert_with(|| {
            counts.push((word, 0));
            counts.len() - 1
        });
        counts[place].1 += 1;
    }
    counts
}

/// Words by falling count; a stable sort keeps ties in order.
fn by_frequency<'a>(counts: impl Iterator<Item = (&'a str, usize)>) -> Vec<&'a str> {
    let mut counts: Vec<(&str, usize)> = counts.collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.into_iter().map(|(word, _)| word).collect()
}

#[cfg(test)]
#[path = "vocabulary/tests.rs"]
mod tests;
