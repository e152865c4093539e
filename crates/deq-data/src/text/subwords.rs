//! Tokenizers of the Hugging Face `tokenizers` library.

use crate::error::{DataError, excerpt};
use crate::panics::catch_panic;
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer;

/// A `tokenizer.json`, ready to use, with its text.
#[derive(Clone, Debug)]
pub(crate) struct Subwords {
    tokenizer: Arc<Tokenizer>,
    json: Arc<str>,
}

impl PartialEq for Subwords {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl Subwords {
    /// Reads the text of a `tokenizer.json`; `path` is for errors.
    pub(crate) fn parse(path: &Path, json: String) -> Result<Self, DataError> {
        let broken = |reason: String| DataError::BrokenTokenizer {
            path: path.to_owned(),
            reason,
        };
        let tokenizer = guarded(|| {
            let mut tokenizer = Tokenizer::from_bytes(&json)?;
            // A file may truncate or pad every text to the length of some model; a corpus is read
            // whole.
            tokenizer.with_truncation(None)?;
            tokenizer.with_padding(None);
            Ok(tokenizer)
        });
        let tokenizer = tokenizer.map_err(broken)?;
        check_ids(&tokenizer).map_err(broken)?;
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            json: json.into(),
        })
    }

    pub(crate) fn json(&self) -> &str {
        &self.json
    }

    /// The tokens by id. Ids that the file leaves out get a placeholder.
    pub(crate) fn tokens(&self) -> Vec<String> {
        let mut listed: Vec<(u32, String)> = self
            .tokenizer
            .get_vocab(true)
            .into_iter()
            .map(|(token, id)| (id, token))
            .collect();
        listed.sort_unstable();
        let len = listed.last().map_or(0, |(id, _)| *id as usize + 1);
        let mut tokens: Vec<String> = (0..len).map(|id| format!("<id {id}>")).collect();
        for (id, token) in listed {
            tokens[id as usize] = token;
        }
        tokens
    }

    /// The ids of a text, without the special tokens that some files put around every text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let ids = guarded(|| {
            let encoding = self.tokenizer.encode_fast(text, false)?;
            Ok(encoding.get_ids().to_vec())
        });
        ids.map_err(|reason| DataError::Tokenizer {
            action: "read",
            reason,
        })
    }

    /// The text of ids by the decoder of the file, special tokens included.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let text = guarded(|| self.tokenizer.decode(ids, false));
        text.map_err(|reason| DataError::Tokenizer {
            action: "write",
            reason,
        })
    }
}

/// Checks that ids are dense enough for a table of them: a small file can name the id
/// 4,000,000,000.
fn check_ids(tokenizer: &Tokenizer) -> Result<(), String> {
    let vocabulary = tokenizer.get_vocab(true);
    let Some(largest) = vocabulary.values().max() else {
        return Err("it has no token".to_owned());
    };
    // Files in use leave out a few hundred.
    let most = 4 * vocabulary.len() + (1 << 16);
    match (*largest as usize) < most {
        true => Ok(()),
        false => Err(format!(
            "it has {} tokens, but one of them has the id {largest}",
            vocabulary.len()
        )),
    }
}

/// Calls the library, which panics on some files that it should refuse.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_panic(call) {
        Ok(result) => result.map_err(|error| excerpt(&error.to_string())),
        Err(_) => Err("the tokenizers library does not support what is in it".to_owned()),
    }
}
