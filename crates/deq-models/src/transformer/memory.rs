//! The memory carried from one segment of a stream to the next.

use burn::tensor::Tensor;

/// Past equilibria and their injections, constants of later segments.
///
/// A DEQ has one layer, so the memory of one layer is all there is; the injections are kept because keys and values of a
/// past position need both.
#[derive(Clone, Debug, Default)]
pub struct LmMemory {
    state: Option<(Tensor<3>, Tensor<3>)>,
}

impl LmMemory {
    /// No past.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A memory of given equilibria and injections.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, memory, d_model]`
    /// - injection: `[batch, memory, 3 d_model]`
    pub fn new(z: Tensor<3>, injection: Tensor<3>) -> Self {
        Self {
            state: Some((z.inner(), injection.inner())),
        }
    }

    /// The number of positions remembered.
    pub fn len(&self) -> usize {
        self.state.as_ref().map_or(0, |(z, _)| z.dims()[1])
    }

    /// Whether there is no past.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Equilibria `[batch, memory, d_model]` and injections `[batch, memory, 3 d_model]`.
    pub fn state(&self) -> Option<&(Tensor<3>, Tensor<3>)> {
        self.state.as_ref()
    }

    /// The last `length` positions of this memory followed by a new segment.
    pub(crate) fn extended(&self, z: Tensor<3>, injection: Tensor<3>, length: usize) -> Self {
        if length == 0 {
            return Self::empty();
        }
        let join = |past: Option<&Tensor<3>>, new: Tensor<3>| {
            let new = new.inner();
            let all = match past {
                Some(past) => Tensor::cat(vec![past.clone(), new], 1),
                None => new,
            };
            let [_, total, _] = all.dims();
            all.narrow(1, total.saturating_sub(length), length.min(total))
        };
        Self::new(
            join(self.state.as_ref().map(|(z, _)| z), z),
            join(self.state.as_ref().map(|(_, u)| u), injection),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// `[2, time, width]` whose entries are `start + position` in the first stream, 100 more in the second.
    fn stretch(start: usize, time: usize, width: usize) -> Tensor<3> {
        let values: Vec<f32> = (0..2 * time * width)
            .map(|k| (start + (k / width) % time + 100 * (k / (time * width))) as f32)
            .collect();
        Tensor::from_data(TensorData::new(values, [2, time, width]), &Device::flex())
    }

    fn assert_holds(memory: &LmMemory, start: usize, time: usize) {
        assert_eq!(memory.len(), time);
        let (z, injection) = memory.state().expect("the memory holds something").clone();
        assert_eq!(z.into_data(), stretch(start, time, 2).into_data());
        assert_eq!(injection.into_data(), stretch(start, time, 6).into_data());
    }

    #[test]
    fn the_last_positions_are_kept_across_segments_of_any_length() {
        let read = |memory: &LmMemory, start, time, length| {
            memory.extended(stretch(start, time, 2), stretch(start, time, 6), length)
        };
        let short = read(&LmMemory::empty(), 0, 3, 5);
        assert_holds(&short, 0, 3);
        let full = read(&short, 3, 3, 5);
        assert_holds(&full, 1, 5);
        assert_holds(&read(&full, 6, 8, 5), 9, 5);
        assert!(read(&full, 6, 8, 0).is_empty());
    }

    #[test]
    fn what_is_remembered_is_a_constant() {
        let z = stretch(0, 3, 2).autodiff().require_grad();
        let memory = LmMemory::empty().extended(z.clone() * 2, stretch(0, 3, 6), 2);
        let (z, injection) = memory.state().expect("the memory holds something");
        assert!(!z.is_tracked() && !injection.is_tracked());
    }
}
