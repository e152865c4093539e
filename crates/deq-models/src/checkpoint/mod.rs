//! Checkpoints of the original programs: PyTorch files and safetensors in, safetensors with the
//! same names out.
//!
//! A model says which tensor of the original's state dict is which of its parameters
//! ([`OriginalNames`]); [`load`] and [`save`] do the rest. What did not fit is told, tensor by
//! tensor, in a [`LoadReport`].
//!
//! ```
//! use burn::tensor::Device;
//! use deq_models::DeqTransformerLmConfig;
//! use deq_models::checkpoint::{StateDict, load, save};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! let config = DeqTransformerLmConfig::new(50, 16, 2, 32);
//! let model = config.init(&Device::flex())?;
//! save(&model, &path)?;
//!
//! let (_, report) = load(config.init(&Device::flex())?, &StateDict::open(&path)?)?;
//! assert!(report.is_complete(), "{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod names;
mod state_dict;
mod transfer;

pub use names::{Layout, OriginalNames, OriginalTensor, Source};
pub use state_dict::{StateDict, TensorInfo};
pub use transfer::{LoadReport, ShapeMismatch, load, save, state_dict, write};
