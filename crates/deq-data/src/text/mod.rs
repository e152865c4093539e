//! Text for language models.

mod batching;
mod builtin;
mod corpus;
mod level;
mod source;
mod unigram;
mod vocabulary;

pub use batching::{Position, Segment, StreamBatcher};
pub use corpus::Corpus;
pub use level::Level;
pub use unigram::unigram_perplexity;
pub use vocabulary::Vocabulary;
