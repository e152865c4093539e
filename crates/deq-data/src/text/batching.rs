//! Parallel streams cut into segments, contiguous from one segment to the next.

use super::tokens::Tokens;
use crate::error::DataError;

/// A split as `batch` parallel streams, read in segments of `len` tokens. The tokens stay where
/// they are, also in a mapped file.
///
/// The tokens are trimmed to a multiple of `batch` and cut into that many contiguous streams, as
/// Transformer-XL's ordered iterator does. Segment `i` continues segment `i - 1` in every stream;
/// the last one may be shorter.
///
/// Every token of a stream but its first is a target exactly once in a pass. One stream therefore
/// predicts all of a split but its first token; with more, the first token of each and the fewer
/// than `batch` tokens trimmed at the end are not predicted. Use one stream to report a perplexity
/// of the whole split.
///
/// # Examples
///
/// ```
/// use deq_data::StreamBatcher;
///
/// let tokens: Vec<u32> = (0..11).collect();
/// // Streams 0..5 and 5..10; token 10 is trimmed.
/// let batches = StreamBatcher::new(tokens, 2, 3)?;
/// assert_eq!(batches.segment(0).inputs, [0, 1, 2, 5, 6, 7]);
/// assert_eq!(batches.segment(0).targets, [1, 2, 3, 6, 7, 8]);
/// assert_eq!(batches.segment(1).inputs, [3, 8]);
/// # Ok::<(), deq_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StreamBatcher {
    /// `[batch, stream]`, row-major, and what was trimmed.
    tokens: Tokens,
    batch: usize,
    stream: usize,
    len: usize,
}

/// One segment of every stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Token ids, `[batch, len]`, row-major.
    pub inputs: Vec<i32>,
    /// The token after each input, `[batch, len]`.
    pub targets: Vec<i32>,
    /// Streams.
    pub batch: usize,
    /// Tokens per stream in this segment.
    pub len: usize,
    /// The place in the pass, from 0.
    pub index: usize,
    /// Whether the streams begin here, so that no memory applies.
    pub starts_stream: bool,
}

/// Where a training step stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Complete passes over the text before this one.
    pub pass: usize,
    /// The segment of the pass.
    pub segment: usize,
}

impl StreamBatcher {
    /// Cuts `tokens` into `batch` streams with segments of `len`.
    ///
    /// # Errors
    ///
    /// [`DataError::TooFewTokens`] if a stream would have no token to predict,
    /// [`DataError::NothingToPredict`] if even a single one would have none.
    ///
    /// # Panics
    ///
    /// If `batch` or `len` is 0.
    pub fn new(tokens: impl Into<Tokens>, batch: usize, len: usize) -> Result<Self, DataError> {
        let tokens = tokens.into();
        assert!(batch > 0 && len > 0, "batch and len must be at least 1");
        let stream = tokens.len() / batch;
        if stream < 2 {
            let tokens = tokens.len();
            return Err(match tokens / 2 {
                0 => DataError::NothingToPredict { tokens },
                most => DataError::TooFewTokens {
                    tokens,
                    batch,
                    most,
                },
            });
        }
        Ok(Self {
            tokens,
            batch,
            stream,
            len,
        })
    }

    /// Segments in one pass, a shorter last one included.
    pub fn num_segments(&self) -> usize {
        (self.stream - 1).div_ceil(self.len)
    }

    /// Segments of full length in one pass.
    pub fn num_full_segments(&self) -> usize {
        (self.stream - 1) / self.len
    }

    /// Tokens predicted in one pass.
    pub fn num_targets(&self) -> usize {
        self.batch * (self.stream - 1)
    }

    /// Segment `index` of a pass.
    ///
    /// # Panics
    ///
    /// If there is no such segment.
    pub fn segment(&self, index: usize) -> Segment {
        let start = index * self.len;
        assert!(start + 1 < self.stream, "there is no segment {index}");
        let len = self.len.min(self.stream - 1 - start);
        let gather = |offset: usize| {
            let mut ids = Vec::with_capacity(self.batch * len);
            for stream in 0..self.batch {
                let first = stream * self.stream + start + offset;
                let tokens = self.tokens.range(first..first + len);
                ids.extend(tokens.map(|token| token as i32));
            }
            ids
        };
        Segment {
            inputs: gather(0),
            targets: gather(1),
            batch: self.batch,
            len,
            index,
            starts_stream: index == 0,
        }
    }

    /// The place of training step `step`, counted from 0, over any number of passes.
    ///
    /// It depends on nothing but the step, so that training can go on at any step.
    ///
    /// Only full segments are used, so that every step has the same shape. Streams shorter than one
    /// segment are an exception: they are their own, shorter segment.
    pub fn position(&self, step: usize) -> Position {
        let segments = self.num_full_segments().max(1);
        Position {
            pass: step / segments,
            segment: step % segments,
        }
    }

    /// The segment at the [`position`](Self::position) of training step `step`.
    pub fn training_segment(&self, step: usize) -> Segment {
        self.segment(self.position(step).segment)
    }

    /// All segments of one pass.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        (0..self.num_segments()).map(|index| self.segment(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_is_contiguous_and_every_target_counted_once() {
        let tokens: Vec<u32> = (0..103).collect();
        let batcher = StreamBatcher::new(&tokens, 4, 8).unwrap();
        assert_eq!((batcher.stream, batcher.num_segments()), (25, 3));
        let mut streams = vec![Vec::new(); 4];
        for (index, segment) in batcher.iter().enumerate() {
            assert_eq!((segment.index, segment.starts_stream), (index, index == 0));
            for (row, stream) in streams.iter_mut().enumerate() {
                let range = row * segment.len..(row + 1) * segment.len;
                for (input, target) in segment.inputs[range.clone()]
                    .iter()
                    .zip(&segment.targets[range])
                {
                    assert_eq!(input + 1, *target);
                    stream.push(*target);
                }
            }
        }
        for (row, stream) in streams.iter().enumerate() {
            let expected: Vec<i32> = (25 * row as i32 + 1..25 * (row as i32 + 1)).collect();
            assert_eq!(*stream, expected);
        }
        assert_eq!(batcher.num_targets(), 96);
    }

    #[test]
    fn one_stream_misses_no_token_and_its_last_segment_is_partial() {
        let tokens: Vec<u32> = (0..20).collect();
        let batcher = StreamBatcher::new(&tokens, 1, 8).unwrap();
        let lens: Vec<usize> = batcher.iter().map(|segment| segment.len).collect();
        assert_eq!(lens, [8, 8, 3]);
        assert_eq!(batcher.num_targets(), 19);
    }

    #[test]
    fn training_wraps_around_over_full_segments_and_forgets_at_the_seam() {
        let tokens: Vec<u32> = (0..40).collect();
        let batcher = StreamBatcher::new(&tokens, 2, 8).unwrap();
        assert_eq!(
            (batcher.num_segments(), batcher.num_full_segments()),
            (3, 2)
        );
        assert_eq!(batcher.training_segment(3), batcher.segment(1));
        assert!(batcher.training_segment(2).starts_stream);
        let (pass, segment) = (2, 1);
        assert_eq!(batcher.position(5), Position { pass, segment });
        // A stream shorter than a segment is a segment of its own.
        let short = StreamBatcher::new(&tokens[..10], 2, 8).unwrap();
        assert_eq!(short.training_segment(7).len, 4);
    }

    #[test]
    fn too_few_tokens_are_refused_with_what_would_do() {
        let message = StreamBatcher::new(&[1, 2, 3, 4, 5], 4, 8)
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "5 tokens are too few for 4 streams: each needs at least 2, so reduce the batch to 2 or less"
        );
        let message = StreamBatcher::new(&[1], 4, 8).unwrap_err().to_string();
        assert_eq!(
            message,
            "1 tokens are too few: a stream needs at least 2, one to read and one to predict"
        );
    }
}
