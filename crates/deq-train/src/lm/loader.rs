//! Segments of contiguous streams as a burn data loader.

use super::learner::LmInput;
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use deq_data::StreamBatcher;
use std::ops::Range;
use std::sync::Arc;

/// The segments of training steps `range`, over any number of passes, or of one evaluation pass.
///
/// An item is one segment of all streams, so the order of items is the order of time, and a slice is a range of steps.
#[derive(Clone)]
pub(crate) struct SegmentLoader {
    batcher: Arc<StreamBatcher>,
    range: Range<usize>,
    wrap: bool,
    device: Device,
}

impl SegmentLoader {
    /// Training steps `0..steps`, wrapping around at the end of the text.
    pub(crate) fn training(batcher: StreamBatcher, steps: usize, device: &Device) -> Self {
        Self {
            batcher: Arc::new(batcher),
            range: 0..steps,
            wrap: true,
            device: device.clone(),
        }
    }

    /// One pass over at most `most` segments, the shorter last one included.
    pub(crate) fn evaluation(batcher: StreamBatcher, most: usize, device: &Device) -> Self {
        let segments = batcher.num_segments().min(most);
        Self {
            batcher: Arc::new(batcher),
            range: 0..segments,
            wrap: false,
            device: device.clone(),
        }
    }
}

impl DataLoader<LmInput> for SegmentLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<LmInput> + 'a> {
        Box::new(SegmentIterator {
            loader: self,
            next: self.range.start,
        })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<LmInput>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<LmInput>> {
        let first = self.range.start;
        Arc::new(Self {
            range: first + start..first + end,
            ..self.clone()
        })
    }
}

struct SegmentIterator<'a> {
    loader: &'a SegmentLoader,
    next: usize,
}

impl Iterator for SegmentIterator<'_> {
    type Item = Result<LmInput, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let loader = self.loader;
        if self.next >= loader.range.end {
            return None;
        }
        let segment = match loader.wrap {
            true => loader.batcher.training_segment(self.next),
            false => loader.batcher.segment(self.next),
        };
        let input = LmInput::new(segment, self.next, &loader.device);
        self.next += 1;
        Some(Ok(input))
    }
}

impl DataLoaderIterator<LmInput> for SegmentIterator<'_> {
    fn progress(&self) -> Progress {
        let range = &self.loader.range;
        Progress::new(
            self.next - range.start,
            range.len(),
            Some("segments".to_owned()),
        )
    }
}
