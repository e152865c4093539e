//! Up to so many vectors per sample, side by side, so that products with all of them are one operation.

use burn::tensor::Tensor;

/// `[batch, slots, dim]`. Slots not yet used are zero and take part in products without effect.
#[derive(Clone, Debug)]
pub(crate) struct History {
    vectors: Tensor<3>,
    len: usize,
    capacity: usize,
}

/// Short histories are allocated at once, longer ones grow by doubling.
const AT_ONCE: usize = 8;

impl History {
    pub(crate) fn new(like: &Tensor<2>, capacity: usize) -> Self {
        let [batch, dim] = like.dims();
        let slots = capacity.min(AT_ONCE);
        Self {
            vectors: Tensor::zeros([batch, slots, dim], (&like.device(), like.dtype())),
            len: 0,
            capacity,
        }
    }

    /// The number of slots in use.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number of slots that products run over.
    pub(crate) fn slots(&self) -> usize {
        self.vectors.dims()[1]
    }

    /// Forgets all vectors, keeping the slots.
    pub(crate) fn clear(&mut self) {
        self.update(|vectors| {
            let shape = vectors.shape();
            let options = (&vectors.device(), vectors.dtype());
            drop(vectors);
            Tensor::zeros(shape, options)
        });
        self.len = 0;
    }

    /// Writes `[batch, dim]` into a slot, at most one beyond those in use.
    pub(crate) fn set(&mut self, slot: usize, rows: Tensor<2>) {
        let [batch, slots, dim] = self.vectors.dims();
        if slot >= slots {
            let more = (2 * slots).min(self.capacity) - slots;
            let options = (&self.vectors.device(), self.vectors.dtype());
            let zeros = Tensor::zeros([batch, more, dim], options);
            self.update(|vectors| Tensor::cat(vec![vectors, zeros], 1));
        }
        self.len = self.len.max(slot + 1);
        let rows: Tensor<3> = rows.unsqueeze_dim(1);
        self.update(|vectors| vectors.slice_assign([0..batch, slot..slot + 1, 0..dim], rows));
    }

    /// Lets `change` own the tensor, so that it can work in place.
    fn update(&mut self, change: impl FnOnce(Tensor<3>) -> Tensor<3>) {
        let empty = Tensor::zeros([1, 1, 1], (&self.vectors.device(), self.vectors.dtype()));
        self.vectors = change(std::mem::replace(&mut self.vectors, empty));
    }

    /// The inner products of all vectors with `x`, `[batch, slots, 1]`.
    pub(crate) fn dot(&self, x: &Tensor<2>) -> Tensor<3> {
        let x: Tensor<3> = x.clone().unsqueeze_dim(2);
        self.vectors.clone().matmul(x)
    }

    /// `sum_i weights_i vector_i`, `[batch, dim]`, for weights `[batch, slots, 1]`.
    pub(crate) fn combine(&self, weights: &Tensor<3>) -> Tensor<2> {
        let sum = self.vectors.clone().swap_dims(1, 2).matmul(weights.clone());
        sum.squeeze_dim::<2>(2)
    }
}

/// `[batch, slots, 1]`, such as inner products with the slots of a history, completed by zeros to `[batch, len, 1]`.
pub(crate) fn pad(column: Tensor<3>, len: usize) -> Tensor<3> {
    let [batch, slots, _] = column.dims();
    if slots == len {
        return column;
    }
    let zeros = Tensor::zeros([batch, len - slots, 1], (&column.device(), column.dtype()));
    Tensor::cat(vec![column, zeros], 1)
}
