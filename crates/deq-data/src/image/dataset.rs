//! What a data set of images is.

use super::decode;
use super::fingerprint::Fingerprint;
use super::loader::Skipped;
use super::raster::{LabelMap, Picture};
use super::survey::LabelSurvey;
use super::transform::Normalization;
use crate::error::DataError;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionTask {
    /// The class of an image.
    Classification,
    /// The class of every pixel.
    Segmentation,
}

/// The right answer for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The class.
    Class(u16),
    /// The class of every pixel, of the image's size.
    Map(LabelMap),
}

/// An image with the right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The image.
    pub picture: Picture,
    /// The answer.
    pub target: Target,
    /// The file, if it was read although it is cut short: all pixels are there, the end is not.
    pub cut_short: Option<PathBuf>,
}

impl Example {
    /// An image from nowhere, or from a file that is whole.
    pub fn new(picture: Picture, target: Target) -> Self {
        Self {
            picture,
            target,
            cut_short: None,
        }
    }

    /// The image of a file with its answer.
    pub(super) fn read(path: &Path, target: Target) -> Result<Self, DataError> {
        let decoded = decode::open(path)?;
        Ok(Self {
            picture: decoded.picture,
            target,
            cut_short: decoded.cut_short.then(|| path.to_owned()),
        })
    }
}

/// Images by index.
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
    /// [`DataError`] naming the file, if it cannot be read or is damaged. A
    /// [`Loader`](crate::Loader) counts such files and goes on.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    fn example(&self, index: usize) -> Result<Example, DataError>;

    /// The names of the classes, in the order of their ids.
    fn classes(&self) -> &[String];

    /// What each class counts in the loss, relative to the others, where classes are so uneven that
    /// rare ones would not be learnt; empty if all count the same.
    fn class_weights(&self) -> Vec<f32> {
        Vec::new()
    }

    /// What is to be predicted.
    fn task(&self) -> VisionTask;

    /// Files that lie among the images but are not read, as their ending says; hidden ones aside.
    fn left_out(&self) -> &[PathBuf] {
        &[]
    }

    /// Counts the ids in the label maps. `None` where there are none in files.
    ///
    /// # Errors
    ///
    /// [`DataError::BadImage`] if not one label map can be read.
    fn label_survey(&self) -> Result<Option<LabelSurvey>, DataError> {
        Ok(None)
    }

    /// The files that cannot be used, with the reason, as far as a quick look tells: up to 256
    /// examples are read in full; of more, 256 spread evenly, and of the others the first bytes,
    /// which say format and size. Empty where there are no files of single images.
    ///
    /// # Errors
    ///
    /// [`DataError`] if something else is wrong than single files.
    fn unusable(&self) -> Result<Vec<Skipped>, DataError> {
        Ok(Vec::new())
    }

    /// A number by which the data are recognised again wherever they lie: it depends on the classes
    /// and on the names (as seen from the folder of the data), sizes and contents of the files. Of
    /// more than 64 MiB of image files, contents are those of 256 files spread evenly, the first
    /// MiB of each. It is the same for every run and machine.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] naming a file that cannot be read.
    fn fingerprint(&self) -> Result<u64, DataError>;
}

/// The two parts of a data set.
#[derive(Clone, Debug)]
pub struct VisionSplits {
    /// What to learn from.
    pub train: Arc<dyn ImageDataset>,
    /// What to measure on.
    pub test: Arc<dyn ImageDataset>,
    /// How to centre and scale the images of both.
    pub normalization: Normalization,
}

impl VisionSplits {
    /// The [fingerprint](ImageDataset::fingerprint) of both parts.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] naming a file that cannot be read.
    pub fn fingerprint(&self) -> Result<u64, DataError> {
        let mut both = Fingerprint::new("splits");
        both.number(self.train.fingerprint()?);
        both.number(self.test.fingerprint()?);
        Ok(both.finish())
    }
}

/// The most label maps whose pixels are counted for the weights of classes.
pub(super) const COUNTED_MAPS: usize = 100;

/// `1 / ln(1.02 + p)` for a class that is the share `p` of the pixels, which lets rare ones count
/// more (Paszke et al. 2016, "ENet", section 5.2).
pub(super) fn weights_by_share(classes: usize, maps: impl Iterator<Item = LabelMap>) -> Vec<f32> {
    let mut pixels = vec![0_u64; classes];
    for map in maps {
        for label in map.data() {
            if let Some(count) = pixels.get_mut(usize::from(*label)) {
                *count += 1;
            }
        }
    }
    let all = pixels.iter().sum::<u64>().max(1) as f64;
    let weight = |count: &u64| (1.0 / (1.02 + *count as f64 / all).ln()) as f32;
    pixels.iter().map(weight).collect()
}

/// A data set in an order where neighbours lie far apart, so that any first part of it is a sample
/// of all: class folders and films come sorted.
///
/// ```
/// use deq_data::{ImageDataset, Shapes, Spread, VisionTask};
/// use std::sync::Arc;
///
/// let shapes = Shapes::new(VisionTask::Classification, 32, 100, 7)?;
/// let spread = Spread::new(Arc::new(shapes.clone()));
/// assert_eq!(spread.len(), 100);
/// assert_eq!(spread.example(1)?.picture, shapes.example(61)?.picture);
/// # Ok::<(), deq_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Spread {
    inner: Arc<dyn ImageDataset>,
    stride: usize,
}

impl Spread {
    /// All examples of `inner`, each once.
    pub fn new(inner: Arc<dyn ImageDataset>) -> Self {
        let len = inner.len().max(1);
        // About a golden section of the way round each time; a stride without a common factor meets
        // every example.
        let section = (len as f64 * 0.618_034) as usize;
        let stride = (section.max(1)..=len).find(|stride| gcd(*stride, len) == 1);
        Self {
            inner,
            stride: stride.unwrap_or(1),
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl ImageDataset for Spread {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        assert!(index < self.len(), "index {index} of {}", self.len());
        self.inner.example(index * self.stride % self.len())
    }

    fn classes(&self) -> &[String] {
        self.inner.classes()
    }

    fn class_weights(&self) -> Vec<f32> {
        self.inner.class_weights()
    }

    fn task(&self) -> VisionTask {
        self.inner.task()
    }

    fn left_out(&self) -> &[PathBuf] {
        self.inner.left_out()
    }

    fn label_survey(&self) -> Result<Option<LabelSurvey>, DataError> {
        self.inner.label_survey()
    }

    fn unusable(&self) -> Result<Vec<Skipped>, DataError> {
        self.inner.unusable()
    }

    fn fingerprint(&self) -> Result<u64, DataError> {
        self.inner.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::shapes::Shapes;

    #[test]
    fn a_spread_meets_every_example_once_and_no_first_part_lacks_a_class() {
        for len in [1, 2, 3, 8, 60, 97, 1024] {
            let shapes = Shapes::new(VisionTask::Classification, 16, len, 1).unwrap();
            let spread = Spread::new(Arc::new(shapes));
            let mut seen: Vec<usize> = (0..len).map(|i| i * spread.stride % len).collect();
            // Of four equal parts of the data, each has its share of the first half.
            if len >= 60 {
                let in_first_part = seen[..len / 2].iter().filter(|i| **i < len / 4).count();
                assert!(
                    in_first_part.abs_diff(len / 8) <= 2,
                    "{len}: {in_first_part}"
                );
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }
}
