//! Language models: text in contiguous streams, the DEQ-Transformer and the Transformer-XL.
//!
//! ```no_run
//! use deq_train::tasks::text::TextTask;
//! use deq_train::{Recipe, TrainOptions, train};
//!
//! let recipe = Recipe::<TextTask>::preset("tiny")?;
//! let summary = train(recipe, &TrainOptions::new("flex", "runs/demo".into()))?;
//! println!("perplexity {}", summary.eval.quality.text());
//! # Ok::<(), deq_train::TrainError>(())
//! ```

mod batches;
mod data;
mod error;
mod generate;
mod memory_file;
mod model;
mod presets;
mod sampling;
mod task;

pub use data::DataSource;
pub use error::TextError;
pub use generate::{GenerateOptions, Generation, generate};
pub use model::{TextBatch, TextModel};
pub use sampling::Sampling;
pub use task::TextTask;
