//! Training and evaluation of the DEQ-Transformer language model.

mod data;
mod evaluate;
mod learner;
mod loader;
mod recipe;
mod run;
mod strategy;

pub use data::DataListener;
pub use recipe::{DataSource, LmRecipe, Network};
pub use run::{EvalOptions, LmSummary, RunFolder, TrainOptions, evaluate_run, train};
