//! What a token is.

use crate::error::DataError;
use serde::{Deserialize, Serialize};

/// What a token is.
///
/// ```
/// use deq_data::Level;
///
/// assert_eq!("word".parse::<Level>()?, Level::Word);
/// assert_eq!(Level::Byte.to_string(), "byte");
/// # Ok::<(), deq_data::DataError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// One byte of the file: any file will do, and the vocabulary always has 256 tokens.
    Byte,
    /// One word between white space; every line ends with `<eos>`.
    Word,
    /// One token of a `tokenizer.json`, the format of Hugging Face.
    Tokenizer,
}

impl std::str::FromStr for Level {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "byte" => Ok(Level::Byte),
            "word" => Ok(Level::Word),
            "tokenizer" => Ok(Level::Tokenizer),
            _ => Err(DataError::UnknownLevel {
                name: name.to_owned(),
            }),
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Byte => "byte",
            Level::Word => "word",
            Level::Tokenizer => "tokenizer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    #[test]
    fn text_and_serde_agree_on_the_names() {
        for level in [Level::Byte, Level::Word, Level::Tokenizer] {
            let name = level.to_string();
            assert_eq!(name.parse::<Level>().unwrap(), level);
            let value: StrDeserializer<'_, Error> = name.as_str().into_deserializer();
            assert_eq!(Level::deserialize(value).unwrap(), level);
        }
        assert_eq!(
            "letter".parse::<Level>().unwrap_err().to_string(),
            "there is no level \"letter\": choose byte, word or tokenizer"
        );
    }
}
