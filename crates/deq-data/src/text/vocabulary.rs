//! Tokens by id.

use super::counts::{Counts, by_frequency, count};
use super::level::Level;
use super::lines::{lines, words};
use super::subwords::Subwords;
use crate::error::{DataError, excerpt};
use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The file of a vocabulary of words or bytes.
pub(crate) const WORDS_FILE: &str = "vocab.txt";
/// The file of a tokenizer.
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
/// The most bytes of a vocabulary file that is read; the largest tokenizers in use have 40 MB.
const LARGEST: u64 = 256 << 20;

/// The tokens of a corpus by id, and the conversion between text and ids.
///
/// It is saved as `vocab.txt`, with one token a line, or as the `tokenizer.json` that it was made
/// of, byte for byte, and serialised as the list of its tokens or as the text of that file.
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
#[serde(try_from = "Saved", into = "Saved")]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Bytes,
    Words,
    Subwords(Subwords),
}

/// What a vocabulary is serialised as.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Saved {
    Tokens(Vec<String>),
    Tokenizer { tokenizer: String },
}

impl TryFrom<Saved> for Vocabulary {
    type Error = DataError;

    fn try_from(saved: Saved) -> Result<Self, DataError> {
        match saved {
            Saved::Tokens(tokens) => Self::try_from(tokens),
            Saved::Tokenizer { tokenizer } => {
                Subwords::parse(Path::new(TOKENIZER_FILE), tokenizer).map(Self::of_subwords)
            }
        }
    }
}

impl From<Vocabulary> for Saved {
    fn from(vocabulary: Vocabulary) -> Self {
        match &vocabulary.kind {
            Kind::Subwords(subwords) => Saved::Tokenizer {
                tokenizer: subwords.json().to_owned(),
            },
            _ => Saved::Tokens(vocabulary.tokens),
        }
    }
}

impl TryFrom<Vec<String>> for Vocabulary {
    type Error = DataError;

    /// The words, or bytes if they are those of [`of_bytes`](Vocabulary::of_bytes), in the order of
    /// their ids.
    ///
    /// # Errors
    ///
    /// [`DataError::DuplicateToken`] if a token occurs twice.
    fn try_from(tokens: Vec<String>) -> Result<Self, DataError> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in (0_u32..).zip(&tokens) {
            if let Some(first) = ids.insert(token.clone(), id) {
                return Err(DataError::DuplicateToken {
                    token: excerpt(token),
                    first: first as usize,
                    second: id as usize,
                });
            }
        }
        Ok(Self::from_parts(tokens, ids))
    }
}

impl From<Vocabulary> for Vec<String> {
    /// The tokens in the order of their ids.
    fn from(vocabulary: Vocabulary) -> Self {
        vocabulary.tokens
    }
}

impl Vocabulary {
    /// Ends every line at the word level.
    pub const END_OF_LINE: &str = "<eos>";
    /// Stands for words outside the vocabulary.
    pub const UNKNOWN: &str = "<unk>";

    /// The words of a text: [`END_OF_LINE`](Self::END_OF_LINE) first, then by falling frequency,
    /// ties by first appearance.
    ///
    /// Transformer-XL sorts its vocabularies in this way, and an adaptive softmax relies on it,
    /// because its clusters are ranges of ids.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self::of_counts(count(words))
    }

    /// [`of_words`](Self::of_words) of words that have been counted.
    pub(crate) fn of_counts(counts: Counts<'_>) -> Self {
        let counts = counts.into_iter();
        Self::of_distinct(by_frequency(
            counts.filter(|(word, _)| *word != Self::END_OF_LINE),
        ))
    }

    /// The words of a text in the order of first appearance, with
    /// [`END_OF_LINE`](Self::END_OF_LINE) first.
    ///
    /// The `vocab.txt` files in circulation with WikiText-2 have this order: the first line of the
    /// text is empty, which makes `<eos>` its first token anyway. It does not suit an adaptive
    /// softmax; see [`of_words`](Self::of_words).
    pub fn by_appearance<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut seen = HashSet::from([Self::END_OF_LINE]);
        Self::of_distinct(words.into_iter().filter(|word| seen.insert(word)))
    }

    /// Counted words as in [`of_words`](Self::of_words), except that words found fewer than `least`
    /// times become [`UNKNOWN`](Self::UNKNOWN), which therefore has the frequency of all of them
    /// together.
    pub(crate) fn of_frequent(counts: Counts<'_>, least: usize) -> Self {
        let (common, rare): (Counts<'_>, Counts<'_>) = counts
            .into_iter()
            .filter(|(word, _)| *word != Self::END_OF_LINE)
            .partition(|(word, count)| *count >= least && *word != Self::UNKNOWN);
        let unknown = rare.iter().map(|(_, count)| count).sum();
        Self::of_distinct(by_frequency(
            common.into_iter().chain([(Self::UNKNOWN, unknown)]),
        ))
    }

    /// These tokens by their frequency in a text, ties by first appearance there; those that it
    /// does not have come last, in the order they have here.
    pub(crate) fn sorted_for(&self, counts: Counts<'_>) -> Self {
        let unknown = Self::UNKNOWN;
        let mut known: Counts<'_> = Vec::new();
        let mut unknown_place: Option<usize> = None;
        for (word, count) in counts {
            match self.ids.contains_key(word) && word != unknown {
                true => known.push((word, count)),
                // Unknown words are one token, which first appears where the first of them does.
                false => match unknown_place {
                    Some(place) => known[place].1 += count,
                    None => {
                        unknown_place = Some(known.len());
                        known.push((unknown, count));
                    }
                },
            }
        }
        known.retain(|(word, _)| self.ids.contains_key(*word) && *word != Self::END_OF_LINE);
        let seen: HashSet<&str> = known.iter().map(|(word, _)| *word).collect();
        let unseen = self.tokens.iter().map(String::as_str);
        let unseen = unseen.filter(|word| !seen.contains(word) && *word != Self::END_OF_LINE);
        Self::of_distinct(
            by_frequency(known.iter().copied())
                .into_iter()
                .chain(unseen),
        )
    }

    /// This vocabulary with [`UNKNOWN`](Self::UNKNOWN), which it does not have yet, as the last
    /// word.
    pub(crate) fn with_unknown(self) -> Self {
        let tokens = self.tokens.iter().map(String::as_str);
        Self::of_all(tokens.chain([Self::UNKNOWN]))
    }

    /// The tokens in the order of their ids.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(String::as_str)
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
        Self::of_all([Self::END_OF_LINE].into_iter().chain(words))
    }

    /// Words that differ from one another.
    fn of_all<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let tokens: Vec<String> = words.map(str::to_owned).collect();
        let ids = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id));
        let ids = ids.collect();
        Self::from_parts(tokens, ids)
    }

    fn from_parts(tokens: Vec<String>, ids: HashMap<String, u32>) -> Self {
        let kind = match tokens.iter().map(String::as_str).eq(byte_names()) {
            true => Kind::Bytes,
            false => Kind::Words,
        };
        Self { tokens, ids, kind }
    }

    fn of_subwords(subwords: Subwords) -> Self {
        let tokens = subwords.tokens();
        let ids = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id));
        let ids = ids.collect();
        let kind = Kind::Subwords(subwords);
        Self { tokens, ids, kind }
    }

    /// Reads a `tokenizer.json` if the name ends in `.json`, or else a file with one token a line,
    /// the first of which has id 0. A byte-order mark is left out.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the file and line: it cannot be read, has more than 256 MiB, is not
    /// UTF-8, is empty, has an empty line, or repeats a token; a tokenizer that the library does
    /// not understand or whose ids are far apart, or [`DataError::TokenizersNotCompiled`].
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let text = files::read_text(path, LARGEST)?;
        match path
            .extension()
            .is_some_and(|end| end.eq_ignore_ascii_case("json"))
        {
            true => Subwords::parse(path, text).map(Self::of_subwords),
            false => Self::of_lines(path, &text),
        }
    }

    /// Reads the vocabulary that [`save_in`](Self::save_in) left in a folder.
    ///
    /// # Errors
    ///
    /// [`DataError::NoVocabulary`] if there is none, otherwise as [`load`](Self::load).
    pub fn load_from(folder: &Path) -> Result<Self, DataError> {
        let files = [TOKENIZER_FILE, WORDS_FILE].map(|name| folder.join(name));
        match files.iter().find(|path| path.is_file()) {
            Some(path) => Self::load(path),
            None => Err(DataError::NoVocabulary {
                folder: folder.to_owned(),
            }),
        }
    }

    /// What [`text`](Self::text) makes of a vocabulary; `path` is for errors.
    pub(crate) fn of_text(path: &Path, level: Level, text: String) -> Result<Self, DataError> {
        match level {
            Level::Tokenizer => Subwords::parse(path, text).map(Self::of_subwords),
            Level::Byte | Level::Word => Self::of_lines(path, &text),
        }
    }

    fn of_lines(path: &Path, text: &str) -> Result<Self, DataError> {
        let path = path.to_owned();
        if text.is_empty() {
            return Err(DataError::Empty { path });
        }
        let tokens: Vec<String> = lines(text).map(|(line, _)| line.to_owned()).collect();
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

    /// Writes the file that [`load`](Self::load) reads, whole or not at all. That of a tokenizer
    /// must end in `.json`.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        files::write_whole(path, |file| file.write_all(self.text().as_bytes()))
    }

    /// Writes `vocab.txt` or `tokenizer.json` into a folder, to be found by
    /// [`load_from`](Self::load_from), and returns its path.
    ///
    /// The file belongs to a model: it converts any text to the ids that the model was trained
    /// with, and ids to text.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] if the file cannot be written.
    pub fn save_in(&self, folder: &Path) -> Result<PathBuf, DataError> {
        let path = folder.join(match self.kind {
            Kind::Subwords(_) => TOKENIZER_FILE,
            Kind::Bytes | Kind::Words => WORDS_FILE,
        });
        self.save(&path).map(|()| path)
    }

    /// The content of the file that the vocabulary is saved as.
    pub(crate) fn text(&self) -> String {
        match &self.kind {
            Kind::Subwords(subwords) => subwords.json().to_owned(),
            Kind::Bytes | Kind::Words => {
                self.tokens.iter().flat_map(|token| [token, "\n"]).collect()
            }
        }
    }

    /// What a token is.
    pub fn level(&self) -> Level {
        match self.kind {
            Kind::Bytes => Level::Byte,
            Kind::Words => Level::Word,
            Kind::Subwords(_) => Level::Tokenizer,
        }
    }

    /// The number of tokens; all ids are below it.
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

    /// The ids of a text: its bytes, its words with [`END_OF_LINE`](Self::END_OF_LINE) for every
    /// line end, or what the tokenizer makes of it.
    ///
    /// A last line without its end gets no `<eos>`, so that a model can continue it. A tokenizer
    /// adds no special tokens at the beginning or the end, and truncates nothing, whatever its file
    /// says; special tokens that the text names are read as such.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownToken`] for a word that the vocabulary does not have, if it has no
    /// [`UNKNOWN`](Self::UNKNOWN) either; [`DataError::Tokenizer`] if the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_counted(text).map(|(ids, _)| ids)
    }

    /// [`encode`](Self::encode), and how many words it read as [`UNKNOWN`](Self::UNKNOWN) because
    /// the vocabulary does not have them.
    pub(crate) fn encode_counted(&self, text: &str) -> Result<(Vec<u32>, u64), DataError> {
        match &self.kind {
            Kind::Bytes => return Ok((text.bytes().map(u32::from).collect(), 0)),
            Kind::Subwords(subwords) => return Ok((subwords.encode(text)?, 0)),
            Kind::Words => {}
        }
        let unknown_id = self.ids.get(Self::UNKNOWN);
        let mut unknown = 0;
        let ids = words(text).map(|word| {
            let known = self.ids.get(word);
            unknown += u64::from(known.is_none());
            known.or(unknown_id).copied().ok_or_else(|| {
                let word = excerpt(word);
                DataError::UnknownToken { word }
            })
        });
        let ids = ids.collect::<Result<_, _>>()?;
        Ok((ids, unknown))
    }

    /// The text of these ids: their bytes, their words with single spaces between them and a line
    /// feed for [`END_OF_LINE`](Self::END_OF_LINE), or what the tokenizer's decoder makes of them.
    ///
    /// Bytes that are not UTF-8, such as half a letter at the end, become the replacement character
    /// U+FFFD; so do the byte tokens of tokenizers.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownId`] for an id outside the vocabulary, [`DataError::Tokenizer`] if the
    /// decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let tokens = ids.iter().map(|&id| {
            self.token(id).ok_or(DataError::UnknownId {
                id,
                len: self.len(),
            })
        });
        let tokens: Vec<&str> = tokens.collect::<Result<_, _>>()?;
        match &self.kind {
            Kind::Bytes => {
                let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            Kind::Subwords(subwords) => return subwords.decode(ids),
            Kind::Words => {}
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

    /// A number that tells vocabularies apart, to match a model with its data.
    ///
    /// It is the 64-bit FNV-1a hash of the tokens, each followed by a zero byte, or of the bytes of
    /// `tokenizer.json`, and stays the same in all versions of this crate.
    pub fn fingerprint(&self) -> u64 {
        match &self.kind {
            Kind::Subwords(subwords) => fnv_1a(subwords.json().bytes()),
            Kind::Bytes | Kind::Words => fnv_1a(
                self.tokens
                    .iter()
                    .flat_map(|token| token.bytes().chain([0])),
            ),
        }
    }

    /// Checks that this is the vocabulary with a given [`fingerprint`](Self::fingerprint).
    ///
    /// # Errors
    ///
    /// [`DataError::OtherVocabulary`] if it is not. A vocabulary of the same size in another order
    /// is refused too: a model would read it without complaint and predict nonsense.
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

fn fnv_1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn byte_names() -> impl Iterator<Item = String> {
    (0..=255_u8).map(|byte| match byte {
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("<0x{byte:02X}>"),
    })
}

#[cfg(test)]
#[path = "vocabulary/tests.rs"]
mod tests;
