//! Text for language models.

mod batching;
mod builtin;
mod corpus;
mod unigram;
mod vocabulary;

pub use batching::{Segment, StreamBatcher};
pub use corpus::{Corpus, Level};
pub use unigram::unigram_perplexity;
pub use vocabulary::Vocabulary;
