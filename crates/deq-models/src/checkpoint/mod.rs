//! Checkpoints of the original programs: PyTorch files and safetensors in, safetensors with the
//! same names out.
//!
//! A model says which tensor of the original's state dict is which of its parameters
//! ([`OriginalNames`]); [`load`] and [`save`] do the rest. What did not fit is told, tensor by
//! tensor, in a [`LoadReport`].
//!
//! Files may come from anywhere: no code in them is run, and what they say is checked before memory
//! is asked for ([`StateDict::open`]). What they call their tensors is [`printable`] before it is
//! shown.
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
#![doc = include_str!("../../docs/checkpoints.md")]

mod file;
mod group;
mod names;
mod report;
mod state_dict;
mod transfer;

pub use file::ElementType;
pub(crate) use group::Group;
pub use group::WeightsChoice;
pub use names::{Layout, OriginalNames, OriginalTensor, Source};
pub use report::{LoadReport, ShapeMismatch};
pub use state_dict::{StateDict, TensorInfo};
pub use transfer::{load, save, state_dict, write};

/// The longest text from a file that is shown, in characters.
const SHOWN: usize = 160;

/// Text from a file as it can be shown on a terminal: control characters escaped, and cut after 160
/// characters.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == SHOWN {
            shown.push('…');
            break;
        }
        match character {
            '\'' | '"' | '\\' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}
