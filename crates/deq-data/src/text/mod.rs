//! Text for language models.

mod batching;
mod builtin;
mod cache;
mod corpus;
mod counts;
mod derive;
mod encode;
mod fingerprint;
pub(crate) mod layout;
mod level;
mod lines;
mod map;
mod pieces;
mod reader;
mod source;
#[cfg_attr(not(feature = "tokenizers"), path = "no_subwords.rs")]
mod subwords;
mod survey;
mod tokens;
mod unigram;
mod vocabulary;

pub use batching::{Position, Segment, StreamBatcher};
pub use cache::{CachePlace, CacheProblem};
pub use corpus::Corpus;
pub use fingerprint::CorpusFingerprint;
pub use layout::Arrangement;
pub use level::Level;
pub use reader::{CorpusEvent, CorpusReader};
pub use survey::{CachedText, TextSurvey, survey};
pub use tokens::{TokenIter, Tokens};
pub use unigram::unigram_perplexity;
pub use vocabulary::Vocabulary;
