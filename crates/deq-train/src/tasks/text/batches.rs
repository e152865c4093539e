//! Segments of contiguous streams as batches.

use super::model::TextBatch;
use crate::error::BoxError;
use crate::task::Batches;
use burn::tensor::Device;
use deq_data::StreamBatcher;
use std::ops::Range;

/// The segments of a text, one of all streams in each batch, in the order of time.
pub(super) enum Segments {
    /// Segments of full length, over any number of passes.
    Training(StreamBatcher),
    /// One pass, the shorter last segment included.
    HeldOut(StreamBatcher),
}

impl Batches<TextBatch> for Segments {
    fn per_pass(&self) -> usize {
        match self {
            Segments::Training(streams) => streams.num_full_segments().max(1),
            Segments::HeldOut(streams) => streams.num_segments(),
        }
    }

    fn batches<'a>(
        &'a self,
        places: Range<usize>,
        device: &'a Device,
    ) -> Box<dyn Iterator<Item = Result<TextBatch, BoxError>> + 'a> {
        Box::new(places.map(move |place| {
            let segment = match self {
                Segments::Training(streams) => streams.training_segment(place),
                Segments::HeldOut(streams) => streams.segment(place),
            };
            Ok(TextBatch::new(segment, device))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places, inputs of the first stream, and whether streams begin there.
    fn read(segments: &Segments, places: Range<usize>) -> Vec<(Vec<i32>, bool)> {
        let device = Device::flex();
        let batches = segments.batches(places, &device).map(Result::unwrap);
        batches
            .map(|batch| {
                let first = batch.tokens.narrow(0, 0, 1).into_data();
                (first.iter::<i32>().collect(), batch.starts_stream)
            })
            .collect()
    }

    #[test]
    fn training_wraps_around_and_held_out_text_is_read_to_its_end() {
        let tokens: Vec<u32> = (0..20).collect();
        let streams = StreamBatcher::new(&tokens, 2, 4).unwrap();
        let training = Segments::Training(streams.clone());
        assert_eq!(training.per_pass(), 2);
        let [first, second] = [(vec![0, 1, 2, 3], true), (vec![4, 5, 6, 7], false)];
        let expected = [second.clone(), first.clone(), second.clone()];
        assert_eq!(read(&training, 1..4), expected);
        let held_out = Segments::HeldOut(streams);
        assert_eq!(held_out.per_pass(), 3);
        assert_eq!(read(&held_out, 0..3), [first, second, (vec![8], false)]);
    }
}
