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
