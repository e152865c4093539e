//! Multiscale deep equilibrium models for images.

mod block;
mod cell;
mod config;
mod from_names;
mod fusion;
mod head;
mod model;
mod names;
mod ops;
mod presets;
mod size;
mod stem;

pub use block::ResidualBlock;
pub use cell::{Branch, FusionTarget, MdeqCell, MdeqContext};
pub use config::{MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig};
pub use fusion::{ConvGroupNorm, FusionPath};
pub use head::{Bottleneck, ClassificationHead, SegmentationHead};
pub use model::{Mdeq, MdeqClassifier, MdeqOutput, MdeqSegmenter};
pub use ops::NormedConv;
pub use stem::MdeqStem;
