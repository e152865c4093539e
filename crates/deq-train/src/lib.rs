#![cfg_attr(docsrs, feature(doc_cfg))]

//! Training recipes for deep equilibrium models.
//!
//! [`lm::train`] trains a DEQ-Transformer language model from an [`lm::LmRecipe`]: unrolled pre-training, then the equilibrium with the
//! Jacobian penalty. A run is a folder:
//!
//! - `config.json`: the whole recipe;
//! - `vocab.txt` or `tokenizer.json`: the vocabulary, see [`deq_data::Vocabulary::load_from`];
//! - `metrics.jsonl`: one JSON object per training step and evaluation, see [`records::Record`];
//! - `checkpoints/`: the newest two, each written whole or not at all;
//! - `report.html`: tables and curves in one self-contained page.
//!
//! [`vision::train`] does the same for multiscale models on pictures, from a [`vision::VisionRecipe`]; the folder also gets `predictions.svg`, held-out pictures with
//! what the model says about them. [`vision::predict`] applies a run to other pictures.
//!
//! [`lm::evaluate_run`] measures a run: perplexity, evaluations per solve, residual, spectral radius.
//!
//! ```no_run
//! use deq_train::lm::{LmRecipe, TrainOptions, train};
//!
//! let recipe = LmRecipe::preset("tiny")?;
//! let summary = train(recipe, &TrainOptions::new("flex", "runs/demo".into()))?;
//! println!("{:.2} against {:.2}", summary.eval.perplexity(), summary.unigram_perplexity);
//! # Ok::<(), deq_train::TrainError>(())
//! ```
//!
//! # Feature flags
//!
//! No backend is selected by default. `flex`, `wgpu`, `vulkan`, `metal`, `cuda` and `rocm` pass through to Burn, and
//! [`device`] knows which are there. `tokenizers`, a default, reads text by a `tokenizer.json`.

mod budget;
mod chart;
mod checkpoint;
mod clip;
mod dashboard;
mod device;
mod error;
mod exchange;
mod files;
pub mod lm;
mod measure;
pub mod records;
mod report;
pub mod reproduce;
mod rounds;
mod run_folder;
mod step;
pub mod vision;

pub use budget::{Timed, affordable_steps, train_for};
pub use checkpoint::{CheckpointStore, Position};
pub use dashboard::{clock, number, status_text};
pub use device::{any_device, device};
pub use error::TrainError;
pub use exchange::Imported;
pub use report::{ReportHeader, totals, write_report};
pub use run_folder::RunFolder;
