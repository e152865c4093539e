//! Exact Jacobians, for small models and tests.

use crate::difference::wide;
use burn::tensor::Tensor;
use deq_core::{EquilibriumCell, FrozenCell};

/// The Jacobian `df/dz` of every sample.
///
/// The state counts as one row of `dim` numbers per sample, as
/// [`StateLayout`](deq_core::StateLayout) makes it. Costs `dim` vector-Jacobian products and `batch
/// * dim^2` numbers: for small states.
///
/// # Shapes
///
/// - output: `[batch, dim, dim]`; entry `[s, i, j]` is `df_i/dz_j` of sample `s`
pub fn dense_jacobian<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: &C::State,
) -> Tensor<3> {
    let (frozen, z) = frozen(cell, context, z);
    let rows: Vec<Tensor<3>> = jacobian_rows(&frozen, z, |row| row.unsqueeze_dim(1));
    Tensor::cat(rows, 1)
}

/// The squared Frobenius norm `|J|_F^2` of the Jacobian of every sample, exactly.
///
/// Costs `dim` vector-Jacobian products; keeps none of them. Divided by `dim` and averaged over the
/// batch, it is the expectation of [`Penalty::value`](crate::Penalty::value).
///
/// # Shapes
///
/// - output: `[batch]`
pub fn frobenius_norm_sq<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: &C::State,
) -> Tensor<1> {
    let (frozen, z) = frozen(cell, context, z);
    let zero = z.zeros_like().sum_dim(1);
    jacobian_rows(&frozen, z, |row| row.square().sum_dim(1))
        .into_iter()
        .fold(zero, |sum, row| sum + row)
        .squeeze_dim(1)
}

/// The cell without a tape, and the state as rows `[batch, dim]` on the plain device.
pub(crate) fn frozen<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: &C::State,
) -> (FrozenCell<C>, Tensor<2>) {
    let frozen = FrozenCell::new(cell, context, z);
    let rows = frozen.layout().flatten(z.clone()).inner();
    (frozen, rows)
}

/// Products of vectors of norm 1 with `J(z)^T`, `[batch, dim]`, of the [`wide`] type of the state.
pub(crate) fn unit_products<C: EquilibriumCell>(
    frozen: &FrozenCell<C>,
    z: Tensor<2>,
) -> impl Fn(Tensor<2>) -> Tensor<2> {
    let [_, dim] = z.dims();
    let own = z.dtype();
    // Brings the numbers of a vector to order 1, in the midst of the range of f16.
    let length = (dim as f64).sqrt();
    let multiply = frozen.linearize(z);
    move |vector| {
        if own == wide(own) {
            return multiply(vector);
        }
        let product = multiply((vector * length).cast(own));
        product.cast(wide(own)) * (1.0 / length)
    }
}

/// Row `i` of the Jacobian of every sample, `[batch, dim]`, for all `i`.
fn jacobian_rows<C: EquilibriumCell, T>(
    cell: &FrozenCell<C>,
    z: Tensor<2>,
    reduce: impl Fn(Tensor<2>) -> T,
) -> Vec<T> {
    let [batch, dim] = z.dims();
    let multiply = cell.linearize(z.clone());
    (0..dim)
        .map(|index| {
            let unit = z.zeros_like().slice_fill([0..batch, index..index + 1], 1.0);
            reduce(multiply(unit))
        })
        .collect()
}
