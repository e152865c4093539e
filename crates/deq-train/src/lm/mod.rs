//! Training and evaluation of the DEQ-Transformer language model.

mod evaluate;
mod learner;
mod loader;
mod recipe;
mod run;
mod strategy;

pub use crate::run_folder::RunFolder;
pub use recipe::{DataSource, LmRecipe, Network};
pub use run::{EvalOptions, LmSummary, TrainOptions, evaluate_run, train};
