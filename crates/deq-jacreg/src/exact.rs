//! Exact Jacobians, for small models and tests.

use burn::tensor::Tensor;
use deq_core::{EquilibriumCell, FrozenCell};

/// The Jacobian `df/dz` of every sample.
///
/// Costs `dim` vector-Jacobian products and `batch * dim^2` numbers: for small states.
///
/// # Shapes
///
/// - z: `[batch, dim]`
/// - output: `[batch, dim, dim]`; entry `[s, i, j]` is `df_i/dz_j` of sample `s`
pub fn dense_jacobian<C: EquilibriumCell>(cell: &FrozenCell<C>, z: Tensor<2>) -> Tensor<3> {
    let rows: Vec<Tensor<3>> = jacobian_rows(cell, z, |row| row.unsqueeze_dim(1));
    Tensor::cat(rows, 1)
}

/// The squared Frobenius norm `|J|_F^2` of the Jacobian of every sample, exactly.
///
/// Costs `dim` vector-Jacobian products; keeps none of them. Divided by `dim` and averaged over the batch, it is
/// the expectation of [`Penalty::value`](crate::Penalty::value).
///
/// # Shapes
///
/// - z: `[batch, dim]`
/// - output: `[batch]`
pub fn frobenius_norm_sq<C: EquilibriumCell>(cell: &FrozenCell<C>, z: Tensor<2>) -> Tensor<1> {
    let zero = z.clone().inner().zeros_like().sum_dim(1);
    jacobian_rows(cell, z, |row| row.square().sum_dim(1))
        .into_iter()
        .fold(zero, |sum, row| sum + row)
        .squeeze_dim(1)
}

/// Row `i` of the Jacobian of every sample, `[batch, dim]`, for all `i`.
fn jacobian_rows<C: EquilibriumCell, T>(
    cell: &FrozenCell<C>,
    z: Tensor<2>,
    reduce: impl Fn(Tensor<2>) -> T,
) -> Vec<T> {
    let z = z.inner();
    let [batch, dim] = z.dims();
    let product = cell.linearize(z.clone());
    (0..dim)
        .map(|index| {
            let unit = z.zeros_like().slice_fill([0..batch, index..index + 1], 1.0);
            reduce(product(unit))
        })
        .collect()
}
