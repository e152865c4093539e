//! Batches of pictures as a burn data loader.

use super::learner::VisionInput;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use deq_data::{Batches, Loader, Skipped};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Files that were left out, with the reason, over all loaders of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct SkippedFiles(Arc<Mutex<BTreeMap<PathBuf, String>>>);

impl SkippedFiles {
    fn add(&self, skipped: Vec<Skipped>) {
        if !skipped.is_empty() {
            let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            files.extend(skipped.into_iter().map(|file| (file.path, file.reason)));
        }
    }

    /// The files by name.
    pub(crate) fn list(&self) -> Vec<(PathBuf, String)> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.clone().into_iter().collect()
    }
}

/// The batches of training steps `range`, or of one pass over held-out pictures.
#[derive(Clone)]
pub(crate) struct PictureLoader {
    loader: Loader,
    range: Range<usize>,
    device: Device,
    skipped: SkippedFiles,
}

impl PictureLoader {
    /// Batches `0..batches`, over any number of epochs.
    pub(crate) fn new(
        loader: Loader,
        batches: usize,
        device: &Device,
        skipped: &SkippedFiles,
    ) -> Self {
        Self {
            loader,
            range: 0..batches,
            device: device.clone(),
            skipped: skipped.clone(),
        }
    }
}

impl DataLoader<VisionInput> for PictureLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<VisionInput> + 'a> {
        Box::new(PictureIterator {
            loader: self,
            batches: self.loader.batches(self.range.clone()),
            done: 0,
        })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<VisionInput>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<VisionInput>> {
        let first = self.range.start;
        Arc::new(Self {
            range: first + start..first + end,
            ..self.clone()
        })
    }
}

struct PictureIterator<'a> {
    loader: &'a PictureLoader,
    batches: Batches,
    done: usize,
}

impl Iterator for PictureIterator<'_> {
    type Item = Result<VisionInput, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut batch = match self.batches.next()? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(DatasetError::new(error))),
            };
            self.done += 1;
            self.loader.skipped.add(std::mem::take(&mut batch.skipped));
            // A batch of held-out pictures may have lost all of its files.
            if batch.len > 0 {
                let task = self.loader.loader.dataset().task();
                return Some(Ok(VisionInput::new(batch, task, &self.loader.device)));
            }
        }
    }
}

impl DataLoaderIterator<VisionInput> for PictureIterator<'_> {
    fn progress(&self) -> Progress {
        let total = self.loader.range.len();
        Progress::new(self.done, total, Some("batches".to_owned()))
    }
}
