//! Training, evaluation and use of multiscale equilibrium models on pictures.

mod budgets;
mod evaluate;
mod exchange;
mod gallery;
mod learner;
mod loader;
mod model;
mod predict;
mod presets;
mod recipe;
mod run;

pub use budgets::{BudgetRow, BudgetTable, evaluate_budgets};
pub use exchange::{export_run, import_run};
pub use model::VisionModelConfig;
pub use predict::{PredictOptions, Prediction, predict};
pub use recipe::{OptimizerKind, VisionRecipe};
pub use run::{VisionEvalOptions, VisionOptions, VisionSummary, evaluate_run, train};
