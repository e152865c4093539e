//! Images: data sets, decoding, augmentation, and batches made by several threads.

mod check;
mod cifar;
mod classes;
mod dataset;
mod decode;
mod files;
mod fingerprint;
mod folder;
mod jpeg;
mod loader;
mod random;
mod raster;
mod segmentation;
mod shapes;
mod source;
mod survey;
mod transform;

pub use cifar::Cifar10;
pub use classes::LabelMeaning;
pub use dataset::{Example, ImageDataset, Spread, Target, VisionSplits, VisionTask};
pub use folder::ImageFolder;
pub use loader::{Batches, ImageBatch, Loader, LoaderConfig, Skipped};
pub use raster::{IGNORE_LABEL, LabelMap, Picture, Raster, Window};
pub use segmentation::SegmentationFolder;
pub use shapes::Shapes;
pub use source::ImageSource;
pub use survey::{LabelShare, LabelSurvey};
pub use transform::{Normalization, Transform};
