//! Training and evaluation of the DEQ-Transformer language model.

mod evaluate;
mod learner;
mod loader;
mod memory;
mod presets;
mod recipe;
mod run;
mod strategy;

pub use memory::{StepMemory, step_memory};
pub use recipe::{DataSource, LmRecipe, Network};
pub use run::{EvalOptions, LmSummary, RunFolder, TrainOptions, evaluate_run, train};
