//! Batches of images on a device.

use crate::error::BoxError;
use crate::task::Batches;
use burn::tensor::{Device, Tensor, TensorData};
use deq_data::{IGNORE_LABEL, ImageBatch, Loader, Skipped, VisionSplits, VisionTask};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

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
            for target in &mut targets {
                if *target == i32::from(IGNORE_LABEL) {
                    *target = IGNORED;
                }
            }
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
    pub(super) left_out: LeftOut,
}

/// Files that could not be used, with the reason, over all batches made so far.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftOut(Arc<Mutex<BTreeMap<PathBuf, String>>>);

impl LeftOut {
    fn add(&self, skipped: Vec<Skipped>) {
        if !skipped.is_empty() {
            let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            files.extend(skipped.into_iter().map(|file| (file.path, file.reason)));
        }
    }

    /// The files by name.
    pub(super) fn list(&self) -> Vec<(PathBuf, String)> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.clone().into_iter().collect()
    }
}

/// The batches of a [`Loader`].
pub(super) struct ImagesBatches {
    pub(super) loader: Loader,
    pub(super) left_out: LeftOut,
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
            self.left_out.add(std::mem::take(&mut batch.skipped));
            // A held-out batch may have lost all of its files.
            (batch.len > 0).then(|| Ok(ImagesBatch::new(batch, task, device)))
        });
        Box::new(batches)
    }
}
