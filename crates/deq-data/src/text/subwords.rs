//! Tokenizers of the Hugging Face `tokenizers` library.

use crate::error::DataError;
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
        let broken = |error: tokenizers::Error| DataError::BrokenTokenizer {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(&json).map_err(broken)?;
        // A file may cut or fill every text to the length that some model takes; a corpus is read whole.
        tokenizer.with_truncation(None).map_err(broken)?;
        tokenizer.with_padding(None);
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            json: json.into(),
        })
    }

    pub(crate) fn json(&self) -> &str {
        &self.json
    }

    /// The tokens by id. An id that no token has, as some files leave out, gets a name that no token has.
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
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| DataError::Tokenizer {
            action: "read",
            reason: error.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids by the decoder of the file, special tokens included.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        let text = self.tokenizer.decode(ids, false);
        text.map_err(|error| DataError::Tokenizer {
            action: "write",
            reason: error.to_string(),
        })
    }
}
