//! The memory carried from one segment of a stream to the next.

use burn::tensor::Tensor;

/// What a model keeps of the past positions of its streams, constants of later segments: `[batch,
/// memory, width]` each.
///
/// A DEQ has one layer, so it keeps two tensors: equilibria, and their injections, since keys and
/// values of a past position need both. An explicit network keeps the inputs of each of its layers.
#[derive(Clone, Debug, Default)]
pub struct LmMemory {
    tensors: Vec<Tensor<3>>,
}

impl LmMemory {
    /// No past.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A memory of given tensors, in the order in which [`tensors`](Self::tensors) had them.
    ///
    /// # Panics
    ///
    /// If they differ in their batch or their number of positions.
    pub fn new(tensors: Vec<Tensor<3>>) -> Self {
        let places = |tensor: &Tensor<3>| [tensor.dims()[0], tensor.dims()[1]];
        assert!(
            tensors
                .windows(2)
                .all(|pair| places(&pair[0]) == places(&pair[1])),
            "all tensors of a memory have the same streams and positions"
        );
        Self {
            tensors: tensors.into_iter().map(Tensor::inner).collect(),
        }
    }

    /// The number of positions remembered.
    pub fn len(&self) -> usize {
        self.tensors.first().map_or(0, |tensor| tensor.dims()[1])
    }

    /// Whether there is no past.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of a DEQ: equilibria `[batch, memory, d_model]` and injections `[batch, memory, 3 d_model]`.
    /// Of an explicit network: the inputs of every layer, `[batch, memory, d_model]`. Empty without
    /// a past.
    pub fn tensors(&self) -> &[Tensor<3>] {
        &self.tensors
    }

    /// At most the last `length` positions.
    pub fn truncated(&self, length: usize) -> Self {
        if length == 0 {
            return Self::empty();
        }
        let last = |tensor: &Tensor<3>| {
            let [_, total, _] = tensor.dims();
            let kept = length.min(total);
            tensor.clone().narrow(1, total - kept, kept)
        };
        Self {
            tensors: self.tensors.iter().map(last).collect(),
        }
    }

    /// The last `length` positions of this memory followed by a new segment.
    pub(crate) fn extended(&self, new: Vec<Tensor<3>>, length: usize) -> Self {
        if length == 0 {
            return Self::empty();
        }
        let new = new.into_iter().map(Tensor::inner);
        let all = match self.is_empty() {
            true => new.collect(),
            false => self
                .tensors
                .iter()
                .zip(new)
                .map(|(past, new)| Tensor::cat(vec![past.clone(), new], 1))
                .collect(),
        };
        Self { tensors: all }.truncated(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// `[2, time, width]` whose entries are `start + position` in the first stream, 100 more in the
    /// second.
    fn stretch(start: usize, time: usize, width: usize) -> Tensor<3> {
        let values: Vec<f32> = (0..2 * time * width)
            .map(|k| (start + (k / width) % time + 100 * (k / (time * width))) as f32)
            .collect();
        Tensor::from_data(TensorData::new(values, [2, time, width]), &Device::flex())
    }

    fn assert_holds(memory: &LmMemory, start: usize, time: usize) {
        assert_eq!(memory.len(), time);
        let [z, injection] = memory.tensors() else {
            panic!("the memory holds both");
        };
        assert_eq!(z.to_data(), stretch(start, time, 2).into_data());
        assert_eq!(injection.to_data(), stretch(start, time, 6).into_data());
    }

    #[test]
    fn the_last_positions_are_kept_across_segments_of_any_length() {
        let read = |memory: &LmMemory, start, time, length| {
            memory.extended(
                vec![stretch(start, time, 2), stretch(start, time, 6)],
                length,
            )
        };
        let short = read(&LmMemory::empty(), 0, 3, 5);
        assert_holds(&short, 0, 3);
        let full = read(&short, 3, 3, 5);
        assert_holds(&full, 1, 5);
        assert_holds(&read(&full, 6, 8, 5), 9, 5);
        assert!(read(&full, 6, 8, 0).is_empty());
        assert_holds(&full.truncated(2), 4, 2);
    }

    #[test]
    fn what_is_remembered_is_a_constant() {
        let z = stretch(0, 3, 2).autodiff().require_grad();
        let memory = LmMemory::empty().extended(vec![z.clone() * 2, stretch(0, 3, 6)], 2);
        assert!(memory.tensors().iter().all(|tensor| !tensor.is_tracked()));
    }
}
