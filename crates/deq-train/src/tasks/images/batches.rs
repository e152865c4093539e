//! Batches of images on a device.

use super::config::ImagesTask;
use crate::error::{BoxError, TrainError};
use crate::task::Batches;
use burn::tensor::{Device, Tensor, TensorData};
use deq_data::{
    IGNORE_LABEL, ImageBatch, ImageDataset, LabelSurvey, Loader, LoaderConfig, Skipped, Transform,
    VisionSplits, VisionTask,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The target of pixels that are not to be predicted.
pub const IGNORED: i32 = -1;

/// Images with what is to be predicted.
#[derive(Clone, Debug)]
pub struct ImagesBatch {
    /// Normalised colours, `[batch, 3, height, width]`.
    pub images: Tensor<4>,
    /// The class of every image, or of every pixel in rows, image by image; or [`IGNORED`].
    pub targets: Vec<i32>,
}

impl ImagesBatch {
    fn new(batch: ImageBatch, task: VisionTask, device: &Device) -> Self {
        let shape = [batch.len, 3, batch.height, batch.width];
        let mut targets = batch.targets;
        // Where whole images are classified, there may be a class of this number.
        if task == VisionTask::Segmentation {
            let ignored = |target: &&mut i32| **target == i32::from(IGNORE_LABEL);
            targets
                .iter_mut()
                .filter(ignored)
                .for_each(|target| *target = IGNORED);
        }
        Self {
            images: Tensor::from_data(TensorData::new(batch.pixels, shape), device),
            targets,
        }
    }
}

/// Opened images.
#[derive(Debug)]
pub struct ImagesData {
    pub(super) splits: VisionSplits,
    /// The labels of training maps, where training steps are to be made.
    pub(super) labels: Option<LabelSurvey>,
    pub(super) left_out: LeftOut,
}

impl ImagesData {
    /// The batches of one part, whose images have sides of a `multiple`, or the batch is an error
    /// that names the `field` of the transform.
    pub(super) fn batches(
        &self,
        part: Arc<dyn ImageDataset>,
        (field, transform, multiple): (&'static str, &Transform, usize),
        config: LoaderConfig,
    ) -> Result<Box<dyn Batches<ImagesBatch>>, TrainError> {
        let (transform, normalization) = (transform.clone(), self.splits.normalization);
        Ok(Box::new(ImagesBatches {
            loader: Loader::new(part, transform, normalization, config)?,
            left_out: self.left_out.clone(),
            field,
            multiple,
        }))
    }
}

/// Files that could not be used, with the reason, over all batches made so far.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftOut(Arc<Mutex<Files>>);

#[derive(Debug, Default)]
struct Files {
    skipped: BTreeMap<PathBuf, String>,
    /// Used nevertheless.
    cut_short: BTreeSet<PathBuf>,
}

impl LeftOut {
    fn add(&self, batch: &mut ImageBatch) {
        self.extend(batch.skipped.drain(..));
        self.lock().cut_short.extend(batch.cut_short.drain(..));
    }

    pub(super) fn extend(&self, skipped: impl IntoIterator<Item = Skipped>) {
        let skipped = skipped.into_iter().map(|file| (file.path, file.reason));
        self.lock().skipped.extend(skipped);
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files by name.
    pub(super) fn list(&self) -> Vec<(PathBuf, String)> {
        self.lock().skipped.clone().into_iter().collect()
    }

    /// The number of files that were used although their end is missing.
    pub(super) fn cut_short(&self) -> usize {
        self.lock().cut_short.len()
    }
}

/// The batches of a [`Loader`].
struct ImagesBatches {
    loader: Loader,
    left_out: LeftOut,
    field: &'static str,
    multiple: usize,
}

impl Batches<ImagesBatch> for ImagesBatches {
    fn per_pass(&self) -> usize {
        self.loader.batches_per_epoch()
    }

    fn batches<'a>(
        &'a self,
        places: Range<usize>,
        device: &'a Device,
    ) -> Box<dyn Iterator<Item = Result<ImagesBatch, BoxError>> + 'a> {
        let task = self.loader.dataset().task();
        let batches = self.loader.batches(places).filter_map(move |batch| {
            let mut batch = match batch {
                Ok(batch) => batch,
                Err(error) => return Some(Err(error.into())),
            };
            self.left_out.add(&mut batch);
            // A held-out batch may have lost all of its files.
            if batch.len == 0 {
                return None;
            }
            let sides = [batch.height, batch.width];
            match ImagesTask::validate_sides(self.field, sides, self.multiple) {
                Ok(()) => Some(Ok(ImagesBatch::new(batch, task, device))),
                Err(error) => Some(Err(error.into())),
            }
        });
        Box::new(batches)
    }
}
