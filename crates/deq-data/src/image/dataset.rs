//! What a data set of pictures is.

use super::raster::{LabelMap, Picture};
use super::transform::Normalization;
use crate::error::DataError;
use std::fmt::Debug;
use std::sync::Arc;

/// What is to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionTask {
    /// The class of a picture.
    Classification,
    /// The class of every pixel.
    Segmentation,
}

/// The right answer for one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The class.
    Class(u16),
    /// The class of every pixel, of the picture's size.
    Map(LabelMap),
}

/// A picture with the right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The picture.
    pub picture: Picture,
    /// The answer.
    pub target: Target,
}

/// Pictures by index.
pub trait ImageDataset: Debug + Send + Sync {
    /// The number of examples.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads or makes the example `index`, always the same for the same index.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the file, if it cannot be read or is damaged. A [`Loader`](crate::Loader) counts such files and goes on.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    fn example(&self, index: usize) -> Result<Example, DataError>;

    /// The names of the classes, in the order of their ids.
    fn classes(&self) -> &[String];

    /// What each class counts in the loss, relative to the others, where classes are so uneven that rare ones would not be learnt; empty if all count the same.
    fn class_weights(&self) -> Vec<f32> {
        Vec::new()
    }

    /// What is to be predicted.
    fn task(&self) -> VisionTask;
}

/// The two parts of a data set.
#[derive(Clone, Debug)]
pub struct VisionSplits {
    /// What to learn from.
    pub train: Arc<dyn ImageDataset>,
    /// What to measure on.
    pub test: Arc<dyn ImageDataset>,
    /// How to centre and scale the pictures of both.
    pub normalization: Normalization,
}
