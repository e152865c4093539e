//! Classification and segmentation of images by multiscale equilibrium models.
//!
//! ```no_run
//! use deq_train::tasks::images::preset_for;
//! use deq_train::{TrainOptions, train};
//!
//! let recipe = preset_for("mini", &"cifar10:cifar-10-batches-bin".parse()?)?;
//! let summary = train(recipe, &TrainOptions::new("flex", "runs/cifar10".into()))?;
//! println!("{} {}", summary.eval.quality.measure.name(), summary.eval.quality.text());
//! # Ok::<(), deq_train::TrainError>(())
//! ```

mod batches;
mod config;
mod confusion;
mod error;
mod gallery;
mod model;
mod predict;
mod task;

pub use batches::{IGNORED, ImagesBatch, ImagesData};
pub use config::{ImagesModelConfig, ImagesTask, default_preset, preset_for};
pub use confusion::Confusion;
pub use error::ImagesError;
pub use model::ImagesModel;
pub use predict::{PredictOptions, Prediction, predict};
