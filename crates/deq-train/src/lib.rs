#![cfg_attr(docsrs, feature(doc_cfg))]

//! Training of deep equilibrium models on burn-train: one trainer, any task.
//!
//! A [`Recipe`] determines a run: the [`Task`] with its data and model, the equilibrium layer, the
//! Jacobian penalty, the schedule, the seed. [`train`] trains it: unrolled pre-training, then the
//! equilibrium with the penalty. A run is a folder:
//!
//! - `config.json`: the whole recipe;
//! - `metrics.jsonl`: one JSON object per training step, evaluation, and change by a resumed run,
//!   see [`records::Record`];
//! - `events.out.tfevents.*`: the numbers of these records for TensorBoard;
//! - `checkpoints/`: the newest two, each written whole or not at all;
//! - `report.html`: tables and curves in one self-contained page;
//! - what the task keeps, such as a vocabulary.
//!
//! [`tasks::text`] trains the DEQ-Transformer on text, [`tasks::images`] MDEQ on images; a model
//! and data of your own implement [`TaskModel`] and [`Task`].
//!
//! ```no_run
//! use deq_train::tasks::text::TextTask;
//! use deq_train::{Recipe, TrainOptions, train};
//!
//! let recipe = Recipe::<TextTask>::preset("tiny")?;
//! let summary = train(recipe, &TrainOptions::new("flex", "runs/demo".into()))?;
//! println!("held-out perplexity: {}", summary.eval.quality.text());
//! # Ok::<(), deq_train::TrainError>(())
//! ```
//!
//! # Contents
//!
//! - [`Recipe`], [`Preset`]: what determines a run, and where to start from.
//! - [`train`], [`evaluate`], [`evaluate_budgets`], [`import`], [`export`], [`Trained`].
//! - [`Task`], [`TaskModel`], [`Batches`]: what a task of your own implements.
//! - [`Devices`]: several devices, here and elsewhere.
//! - [`affordable_steps`], [`MemoryPlan`], [`step_memory`], [`Workload`]: what a run costs.
//! - [`records`], [`report`]: what a run writes.
//!
//! The book's page on this crate is
//! [Your own data and task](https://github.com/deq-rs/deq/blob/main/docs/src/own-task.md).
//!
//! # Feature flags
//!
//! No backend is selected by default. `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm` and `cpu`
//! bring Burn's backend and the kernels for it, and [`device`] knows which are there. `remote` adds
//! devices of other processes and machines, and hosting them. Defaults: `charts` draws the curves
//! of reports, `dashboard` shows training in the terminal (plain lines without it), `tokenizers`
//! reads text by a `tokenizer.json`.

mod budget_table;
mod checkpoint;
mod clip;
mod dashboard;
mod device;
mod devices;
mod error;
mod evaluate;
mod events;
mod exchange;
pub mod files;
mod measure;
mod memory_plan;
mod parallel;
mod presets;
mod recipe;
pub mod records;
#[cfg(feature = "remote")]
mod remote;
pub mod report;
mod rounds;
mod run;
mod run_folder;
mod scaling;
mod step;
mod step_memory;
mod task;
pub mod tasks;
mod time;

pub use budget_table::{BudgetRow, BudgetTable, Variant, evaluate_budgets};
#[cfg(feature = "dashboard")]
pub use dashboard::restore_terminal;
pub use dashboard::{clock, number, status_text};
pub use device::{any_device, best_device, device, device_failure, is_out_of_memory};
pub use devices::{Devices, DevicesError};
pub use error::{
    BoxError, DeviceError, ExchangeError, RecipeError, RunError, Stopped, TrainError, require,
    with_causes,
};
pub use exchange::{Imported, export, import};
pub use measure::{Detail, Measure, Quality};
pub use memory_plan::{MemoryPlan, PhaseBytes};
pub use presets::Preset;
pub use recipe::{FORMAT, Network, Optimizer, Recipe};
#[cfg(feature = "remote")]
pub use remote::{WorkerOptions, serve};
pub use run::{
    EvalOptions, OnProgress, Start, Summary, TrainOptions, Trained, evaluate, evaluate_with, train,
    train_only,
};
pub use run_folder::RunFolder;
pub use scaling::{LINKS, Link, ScalingRow, WORKLOADS, Workload};
pub use step_memory::{StepMemory, step_memory};
pub use task::{
    BatchOf, BatchPlan, Batches, BatchesFn, Memory, MemoryOf, Opening, Reading, Solved, Split,
    Tally, TallyOf, Task, TaskModel,
};
pub use time::{affordable_steps, evaluation_seconds, without_tolerance};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
