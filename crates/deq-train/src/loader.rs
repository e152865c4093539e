//! Batches of a task as a burn data loader.

use crate::error::BoxError;
use crate::step::{InputOf, input};
use crate::task::{BatchOf, Batches, Task};
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use std::ops::Range;
use std::sync::Arc;

/// Batches at a range of places. An item is one batch, so a slice is a range of steps.
pub(crate) struct BatchLoader<T: Task> {
    batches: Arc<dyn Batches<BatchOf<T>>>,
    places: Range<usize>,
    device: Device,
}

impl<T: Task> BatchLoader<T> {
    /// The batches of training steps `0..steps`, over any number of passes.
    pub(crate) fn training(
        batches: Box<dyn Batches<BatchOf<T>>>,
        steps: usize,
        device: &Device,
    ) -> Self {
        Self {
            batches: batches.into(),
            places: 0..steps,
            device: device.clone(),
        }
    }

    /// At most `most` batches of one pass.
    pub(crate) fn held_out(
        batches: Arc<dyn Batches<BatchOf<T>>>,
        most: Option<usize>,
        device: &Device,
    ) -> Self {
        let all = batches.per_pass();
        Self {
            places: 0..most.map_or(all, |most| most.min(all)),
            batches,
            device: device.clone(),
        }
    }

    fn with(&self, places: Range<usize>, device: &Device) -> Arc<dyn DataLoader<InputOf<T>>> {
        Arc::new(Self {
            batches: self.batches.clone(),
            places,
            device: device.clone(),
        })
    }
}

impl<T: Task> DataLoader<InputOf<T>> for BatchLoader<T> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<InputOf<T>> + 'a> {
        Box::new(BatchIterator::<T> {
            batches: self.batches.batches(self.places.clone(), &self.device),
            places: self.places.clone(),
            done: 0,
        })
    }

    fn num_items(&self) -> usize {
        self.places.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<InputOf<T>>> {
        self.with(self.places.clone(), device)
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<InputOf<T>>> {
        let first = self.places.start;
        self.with(first + start..first + end, &self.device)
    }
}

type Batch<T> = Result<BatchOf<T>, crate::error::BoxError>;

struct BatchIterator<'a, T: Task> {
    batches: Box<dyn Iterator<Item = Batch<T>> + 'a>,
    places: Range<usize>,
    done: usize,
}

/// Why there is no batch, for Burn.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Cause(BoxError);

impl<T: Task> Iterator for BatchIterator<'_, T> {
    type Item = Result<InputOf<T>, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        let step = self.places.start + self.done;
        self.done += 1;
        Some(match batch {
            Ok(batch) => Ok(input::<T>(batch, step)),
            Err(error) => Err(DatasetError::new(Cause(error))),
        })
    }
}

impl<T: Task> DataLoaderIterator<InputOf<T>> for BatchIterator<'_, T> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.places.len(), Some("batches".to_owned()))
    }
}
