//! Training and evaluation of the DEQ-Transformer language model.

mod data;
mod evaluate;
mod exchange;
mod generate;
mod learner;
mod loader;
mod memory;
mod presets;
mod recipe;
mod run;
mod sampling;
mod strategy;
mod table;

pub use crate::run_folder::RunFolder;
pub use data::DataListener;
pub use exchange::{export_run, import_run};
pub use generate::{GenerateOptions, Generation, generate};
pub use memory::{StepMemory, step_memory};
pub use recipe::{DataSource, LmRecipe, Network};
pub use run::{EvalOptions, LmSummary, TrainOptions, evaluate_run, train};
pub use sampling::Sampling;
pub use table::{EvalTable, evaluate_table};
