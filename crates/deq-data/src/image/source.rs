//! Data sets by name.

use super::cifar::Cifar10;
use super::dataset::{ImageDataset, VisionSplits, VisionTask};
use super::files;
use super::folder::ImageFolder;
use super::segmentation::SegmentationFolder;
use super::shapes::Shapes;
use super::transform::Normalization;
use crate::error::DataError;
use crate::splits::aliases;
use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Where images come from. As text: `shapes`, `shapes-segmentation`, `cifar10:PATH`,
/// `imagefolder:PATH`, `segmentation:PATH`.
///
/// The held-out part of a folder is found under any of the names `valid`, `validation`, `val`,
/// `dev`, or else `test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// Generated [`Shapes`] of 32 x 32 pixels to classify.
    Shapes,
    /// Generated shapes of 48 x 48 pixels to segment.
    ShapesSegmentation,
    /// [`Cifar10`] in a folder.
    Cifar10(PathBuf),
    /// An [`ImageFolder`] in `train`, and one held out.
    ImageFolder(PathBuf),
    /// The split `train` of a [`SegmentationFolder`], and one held out.
    Segmentation(PathBuf),
}

/// Generated images for training and for test.
const SHAPES: (usize, usize) = (8192, 1024);
/// Seeds of the two, for which nothing speaks but that they differ.
const SHAPES_SEEDS: (u64, u64) = (1, 2);

impl ImageSource {
    /// Where the data lie, if they are not generated.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Shapes | Self::ShapesSegmentation => None,
            Self::Cifar10(path) | Self::ImageFolder(path) | Self::Segmentation(path) => Some(path),
        }
    }

    /// Opens both parts. Files are listed, those of CIFAR-10 read; images are decoded when they are
    /// asked for.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the folder or file and what would be right.
    pub fn open(&self) -> Result<VisionSplits, DataError> {
        let shapes = |task, size| -> Result<_, DataError> {
            let train = Shapes::new(task, size, SHAPES.0, SHAPES_SEEDS.0)?;
            let test = Shapes::new(task, size, SHAPES.1, SHAPES_SEEDS.1)?;
            Ok(splits(train, test, self.normalization()))
        };
        match self {
            ImageSource::Shapes => shapes(VisionTask::Classification, 32),
            ImageSource::ShapesSegmentation => shapes(VisionTask::Segmentation, 48),
            ImageSource::Cifar10(path) => Ok(splits(
                Cifar10::train(path)?,
                Cifar10::test(path)?,
                self.normalization(),
            )),
            ImageSource::ImageFolder(path) => {
                let train = ImageFolder::open(&files::split(path, "training", train_names())?)?;
                let held_out = files::split(path, "held-out", held_out_names())?;
                let held_out = ImageFolder::open_with(&held_out, train.classes())?;
                Ok(splits(train, held_out, self.normalization()))
            }
            ImageSource::Segmentation(path) => Ok(splits(
                SegmentationFolder::open_any(path, "training", train_names())?,
                SegmentationFolder::open_any(path, "held-out", held_out_names())?,
                self.normalization(),
            )),
        }
    }

    /// How the images are centred and scaled.
    pub fn normalization(&self) -> Normalization {
        match self {
            ImageSource::Shapes | ImageSource::ShapesSegmentation => Normalization::SHAPES,
            ImageSource::Cifar10(_) => Normalization::CIFAR10,
            ImageSource::ImageFolder(_) | ImageSource::Segmentation(_) => Normalization::IMAGENET,
        }
    }

    /// What is to be predicted.
    pub fn task(&self) -> VisionTask {
        match self {
            ImageSource::Shapes | ImageSource::Cifar10(_) | ImageSource::ImageFolder(_) => {
                VisionTask::Classification
            }
            ImageSource::ShapesSegmentation | ImageSource::Segmentation(_) => {
                VisionTask::Segmentation
            }
        }
    }
}

fn train_names() -> impl Iterator<Item = &'static str> + Clone {
    aliases("train").iter().copied()
}

/// The test part last, which is often published without labels.
fn held_out_names() -> impl Iterator<Item = &'static str> + Clone {
    aliases("valid").iter().chain(aliases("test")).copied()
}

fn splits(
    train: impl ImageDataset + 'static,
    test: impl ImageDataset + 'static,
    normalization: Normalization,
) -> VisionSplits {
    VisionSplits {
        train: Arc::new(train),
        test: Arc::new(test),
        normalization,
    }
}

impl FromStr for ImageSource {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let (kind, path) = text.split_once(':').unwrap_or((text, ""));
        let place = PathBuf::from(path);
        match (kind, path) {
            ("shapes", "") => Ok(ImageSource::Shapes),
            ("shapes-segmentation", "") => Ok(ImageSource::ShapesSegmentation),
            ("cifar10", path) if !path.is_empty() => Ok(ImageSource::Cifar10(place)),
            ("imagefolder", path) if !path.is_empty() => Ok(ImageSource::ImageFolder(place)),
            ("segmentation", path) if !path.is_empty() => Ok(ImageSource::Segmentation(place)),
            _ => Err(DataError::UnknownImageSource {
                name: text.to_owned(),
            }),
        }
    }
}

impl Display for ImageSource {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageSource::Shapes => f.write_str("shapes"),
            ImageSource::ShapesSegmentation => f.write_str("shapes-segmentation"),
            ImageSource::Cifar10(path) => write!(f, "cifar10:{}", path.display()),
            ImageSource::ImageFolder(path) => write!(f, "imagefolder:{}", path.display()),
            ImageSource::Segmentation(path) => write!(f, "segmentation:{}", path.display()),
        }
    }
}
