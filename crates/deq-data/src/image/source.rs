//! Data sets by name.

use super::cifar::Cifar10;
use super::dataset::{ImageDataset, VisionSplits, VisionTask};
use super::folder::ImageFolder;
use super::segmentation::SegmentationFolder;
use super::shapes::Shapes;
use super::transform::Normalization;
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Where pictures come from. As text: `shapes`, `shapes-segmentation`, `cifar10:PATH`, `imagefolder:PATH`, `segmentation:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// Generated [`Shapes`] of 32 x 32 pixels to classify.
    Shapes,
    /// Generated shapes of 48 x 48 pixels to segment.
    ShapesSegmentation,
    /// [`Cifar10`] in a folder.
    Cifar10(PathBuf),
    /// An [`ImageFolder`] with the parts `train` and `val`.
    ImageFolder(PathBuf),
    /// A [`SegmentationFolder`] with the splits `train` and `val`.
    Segmentation(PathBuf),
}

/// Generated pictures for training and for test.
const SHAPES: (usize, usize) = (8192, 1024);
/// Seeds of the two, for which nothing speaks but that they differ.
const SHAPES_SEEDS: (u64, u64) = (1, 2);

impl ImageSource {
    /// Opens both parts. Files are listed, those of CIFAR-10 read; pictures are decoded when they are asked for.
    ///
    /// # Errors
    ///
    /// [`DataError`] naming the folder or file and what would be right.
    pub fn open(&self) -> Result<VisionSplits, DataError> {
        let shapes = |task, size| -> Result<_, DataError> {
            let train = Shapes::new(task, size, SHAPES.0, SHAPES_SEEDS.0)?;
            let test = Shapes::new(task, size, SHAPES.1, SHAPES_SEEDS.1)?;
            Ok(splits(train, test, Normalization::SHAPES))
        };
        match self {
            ImageSource::Shapes => shapes(VisionTask::Classification, 32),
            ImageSource::ShapesSegmentation => shapes(VisionTask::Segmentation, 48),
            ImageSource::Cifar10(path) => Ok(splits(
                Cifar10::train(path)?,
                Cifar10::test(path)?,
                Normalization::CIFAR10,
            )),
            ImageSource::ImageFolder(path) => {
                let train = ImageFolder::open(&path.join("train"))?;
                let val = ImageFolder::open_with(&path.join("val"), train.classes())?;
                Ok(splits(train, val, Normalization::IMAGENET))
            }
            ImageSource::Segmentation(path) => Ok(splits(
                SegmentationFolder::open(path, "train")?,
                SegmentationFolder::open(path, "val")?,
                Normalization::IMAGENET,
            )),
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
