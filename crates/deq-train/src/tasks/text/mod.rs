//! Language models: text in contiguous streams, the DEQ-Transformer and the Transformer-XL.

mod data;
mod error;
mod generate;
mod memory_file;
mod model;
mod sampling;
mod task;

pub use data::{DataSource, reading_text};
pub use error::TextError;
pub use generate::{GenerateOptions, Generation, generate};
pub use model::{TextBatch, TextModel};
pub use sampling::Sampling;
pub use task::TextTask;
