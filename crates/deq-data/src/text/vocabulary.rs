//! Tokens by id.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The tokens of a corpus; a token's id is its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
}

impl From<Vec<String>> for Vocabulary {
    fn from(tokens: Vec<String>) -> Self {
        let ids = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id));
        Self {
            ids: ids.collect(),
            tokens,
        }
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
    /// appearance, as Transformer-XL sorts them; an adaptive softmax relies on that order.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for word in words {
            let place = *places.entry(word).or_insert_with(|| {
                counts.push((word, 0));
                counts.len() - 1
            });
            counts[place].1 += 1;
        }
        counts.retain(|(word, _)| *word != Self::END_OF_LINE);
        // A stable sort keeps ties in order of appearance.
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let words = counts.into_iter().map(|(word, _)| word);
        let tokens: Vec<String> = [Self::END_OF_LINE]
            .into_iter()
            .chain(words)
            .map(str::to_owned)
            .collect();
        tokens.into()
    }

    /// All 256 bytes; printable ASCII stands for itself, the others for `<0x..>`.
    pub fn of_bytes() -> Self {
        let tokens: Vec<String> = (0..=255_u8)
            .map(|byte| match byte {
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("<0x{byte:02X}>"),
            })
            .collect();
        tokens.into()
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

    /// The token of an id, if there is one.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// A number that differs between vocabularies (FNV-1a of the tokens), to match a model with its data.
    pub fn fingerprint(&self) -> u64 {
        let bytes = self
            .tokens
            .iter()
            .flat_map(|token| token.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_by_frequency_then_appearance() {
        let words = "b a <eos> c a b a <eos> d".split(' ');
        let vocabulary = Vocabulary::of_words(words);
        let tokens: Vec<String> = vocabulary.clone().into();
        assert_eq!(tokens, ["<eos>", "a", "b", "c", "d"]);
        assert_eq!(vocabulary.id("c"), Some(3));
        assert_eq!(vocabulary.id("missing"), None);
        assert_eq!(vocabulary.token(4), Some("d"));
    }

    #[test]
    fn unknown_words_become_unk_and_vocabularies_are_told_apart() {
        let vocabulary = Vocabulary::of_words(["x", "<unk>", "x"]);
        assert_eq!(vocabulary.id("y"), vocabulary.id("<unk>"));
        let bytes = Vocabulary::of_bytes();
        assert_eq!((bytes.len(), bytes.token(10)), (256, Some("<0x0A>")));
        assert_ne!(bytes.fingerprint(), vocabulary.fingerprint());
    }
}
