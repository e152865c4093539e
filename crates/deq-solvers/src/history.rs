//! The vectors that a solver remembers.

use burn::tensor::Tensor;
use deq_kernels::{combine, dots};

/// Up to so many vectors per sample, side by side, so that products with all of them are one
/// operation: `[batch, slots, dim]`.
///
/// Slots not yet used are zero and take part in products without effect. Up to eight are allocated
/// at once; a longer history grows by doubling.
#[derive(Clone, Debug)]
pub struct History {
    /// `None` only while [`update`](Self::update) works on it.
    vectors: Option<Tensor<3>>,
    len: usize,
    capacity: usize,
}

/// Short histories are allocated at once, longer ones grow by doubling.
const AT_ONCE: usize = 8;

impl History {
    /// An empty history of at most `capacity` vectors, in the type and on the device of `like`.
    ///
    /// # Shapes
    ///
    /// - like: `[batch, dim]`
    pub fn new(like: &Tensor<2>, capacity: usize) -> Self {
        let [batch, dim] = like.dims();
        let slots = capacity.min(AT_ONCE);
        Self {
            vectors: Some(Tensor::zeros(
                [batch, slots, dim],
                (&like.device(), like.dtype()),
            )),
            len: 0,
            capacity,
        }
    }

    /// The number of slots in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of slots that products run over.
    pub fn slots(&self) -> usize {
        self.vectors().dims()[1]
    }

    fn vectors(&self) -> &Tensor<3> {
        self.vectors.as_ref().expect("put back by every update")
    }

    /// Forgets all vectors, keeping the slots.
    pub fn clear(&mut self) {
        self.update(|vectors| {
            let shape = vectors.shape();
            let options = (&vectors.device(), vectors.dtype());
            drop(vectors);
            Tensor::zeros(shape, options)
        });
        self.len = 0;
    }

    /// Writes a vector for every sample into a slot, in place where nobody else holds the memory.
    ///
    /// # Shapes
    ///
    /// - rows: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If `slot` lies beyond the capacity, or more than one beyond those in use.
    pub fn set(&mut self, slot: usize, rows: Tensor<2>) {
        self.reserve(slot);
        let [batch, _, dim] = self.vectors().dims();
        let rows: Tensor<3> = rows.unsqueeze_dim(1);
        self.update(|vectors| vectors.slice_assign([0..batch, slot..slot + 1, 0..dim], rows));
    }

    /// Makes room for a vector in a slot, which counts as used from now on.
    ///
    /// # Panics
    ///
    /// As [`set`](Self::set).
    pub(crate) fn reserve(&mut self, slot: usize) {
        let [batch, slots, dim] = self.vectors().dims();
        assert!(
            slot <= self.len && slot < self.capacity,
            "slot {slot} of a history of {} vectors that holds {}",
            self.capacity,
            self.len
        );
        if slot >= slots {
            let more = (2 * slots).min(self.capacity) - slots;
            self.update(|vectors| {
                let options = (&vectors.device(), vectors.dtype());
                let zeros = Tensor::zeros([batch, more, dim], options);
                Tensor::cat(vec![vectors, zeros], 1)
            });
        }
        self.len = self.len.max(slot + 1);
    }

    /// All slots, `[batch, slots, dim]`; [`put`](Self::put) them back.
    pub(crate) fn take(&mut self) -> Tensor<3> {
        self.vectors.take().expect("put back by every update")
    }

    /// The counterpart of [`take`](Self::take).
    pub(crate) fn put(&mut self, vectors: Tensor<3>) {
        self.vectors = Some(vectors);
    }

    /// Lets `change` own the tensor, so that it can work in place.
    fn update(&mut self, change: impl FnOnce(Tensor<3>) -> Tensor<3>) {
        self.vectors = self.vectors.take().map(change);
    }

    /// The inner products of all vectors with `x`, `[batch, slots, 1]`.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, dim]`
    pub fn dot(&self, x: &Tensor<2>) -> Tensor<3> {
        dots(self.vectors(), self.len, x)
    }

    /// `sum_i weights_i vector_i`, `[batch, dim]`, for weights `[batch, slots, 1]`.
    pub fn combine(&self, weights: &Tensor<3>) -> Tensor<2> {
        combine(self.vectors(), self.len, weights)
    }
}

/// `[batch, slots, 1]`, such as inner products with the slots of a history, completed by zeros to
/// `[batch, len, 1]`.
pub(crate) fn pad(column: Tensor<3>, len: usize) -> Tensor<3> {
    let [batch, slots, _] = column.dims();
    if slots == len {
        return column;
    }
    let zeros = Tensor::zeros([batch, len - slots, 1], (&column.device(), column.dtype()));
    Tensor::cat(vec![column, zeros], 1)
}
