//! Small dense systems, one per sample, solved on the device.

use burn::tensor::{Int, Tensor};
use deq_kernels::product;

/// Solves `A X = B` by Gauss-Jordan elimination without pivoting, for matrices whose symmetric part
/// is positive definite.
///
/// Every step is a rank-one update of the whole batch, about seven device operations, so `n`
/// unknowns cost `7 n` operations and no read from the device.
///
/// # Shapes
///
/// - matrix: `[batch, n, n]`
/// - rhs: `[batch, n, columns]`
/// - output: `[batch, n, columns]`
pub(crate) fn solve_positive_definite(matrix: Tensor<3>, rhs: Tensor<3>) -> Tensor<3> {
    let [_, n, _] = matrix.dims();
    let [_, _, columns] = rhs.dims();
    let eye = identity(n, &matrix);
    let mut augmented = Tensor::cat(vec![matrix, rhs], 2);
    for i in 0..n {
        let row = augmented.clone().narrow(1, i, 1);
        let column = augmented.clone().narrow(2, i, 1);
        let pivot = row.clone().narrow(2, i, 1);
        // Subtracting the unit vector leaves `row / pivot` in row i and clears the column
        // elsewhere.
        let column = column - eye.clone().narrow(2, i, 1);
        augmented = augmented - column * (row / pivot);
    }
    augmented.narrow(2, n, columns)
}

/// Solves `A x = b` for any regular `A` by Gauss-Jordan elimination with the largest pivot of every
/// column.
///
/// About twice the operations of [`solve_positive_definite`], and no read from the device either.
/// Rows are not swapped; a one-hot vector remembers which row served which column.
///
/// # Shapes
///
/// - matrix: `[batch, n, n]`
/// - rhs: `[batch, n, 1]`
/// - output: `[batch, n, 1]`
pub(crate) fn solve_general(matrix: Tensor<3>, rhs: Tensor<3>) -> Tensor<3> {
    let [batch, n, _] = matrix.dims();
    let places = Tensor::<1, Int>::arange(0..n as i64, &matrix.device()).reshape([1, n, 1]);
    let mut free = rhs.ones_like();
    let mut served = Vec::with_capacity(n);
    let mut augmented = Tensor::cat(vec![matrix, rhs], 2);
    for i in 0..n {
        let column = augmented.clone().narrow(2, i, 1);
        // Rows already used are out of the race, also where every other entry is 0.
        let candidates = column.clone().abs() * free.clone() + free.clone().sub_scalar(1.0);
        let largest = candidates.argmax(1);
        let chosen = places
            .clone()
            .expand([batch, n, 1])
            .equal(largest.expand([batch, n, 1]));
        let chosen = column.zeros_like().mask_fill(chosen, 1.0);
        let row = (augmented.clone() * chosen.clone()).sum_dim(1);
        let pivot = row.clone().narrow(2, i, 1);
        augmented = augmented - (column - chosen.clone()) * (row / pivot);
        free = free - chosen.clone();
        served.push(chosen);
    }
    let solution = augmented.narrow(2, n, 1);
    // Column i of `served` points at the row that holds unknown i.
    product(Tensor::cat(served, 2).swap_dims(1, 2), solution)
}

/// Columns `[batch, n, 1]` as rows `[batch, 1, n]`.
///
/// A reshape: where Burn 0.22 fuses operations, one kernel that reads a tensor and its transpose
/// reads the tensor in the wrong order afterwards.
pub(crate) fn as_rows(columns: Tensor<3>) -> Tensor<3> {
    let [batch, n, _] = columns.dims();
    columns.reshape([batch, 1, n])
}

/// The identity as `[1, n, n]`, in the type and on the device of `like`.
pub(crate) fn identity(n: usize, like: &Tensor<3>) -> Tensor<3> {
    Tensor::<2>::eye(n, &like.device())
        .cast(like.dtype())
        .unsqueeze::<3>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device};

    #[test]
    fn solves_a_known_positive_definite_system_to_rounding() {
        let device = Device::flex();
        let matrix = Tensor::<3>::from_data(
            [
                [[4.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 2.0]],
                [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]],
            ],
            (&device, DType::F64),
        );
        let x = Tensor::<3>::from_data(
            [[[1.0], [-2.0], [3.0]], [[0.5], [4.0], [-1.0]]],
            (&device, DType::F64),
        );
        let rhs = matrix.clone().matmul(x.clone());
        let error = (solve_positive_definite(matrix, rhs) - x).abs().max();
        // Condition numbers below 5, a dozen operations: a few units in the last place.
        assert!(error.into_scalar::<f64>() < 1e-14);
    }

    #[test]
    fn solves_systems_that_need_pivoting_to_rounding() {
        let device = Device::flex();
        let matrix = Tensor::<3>::from_data(
            [
                [[0.0, 2.0, 1.0], [1.0, 0.0, 0.0], [3.0, 0.0, 1.0]],
                [[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [0.0, 3.0, 0.0]],
            ],
            (&device, DType::F64),
        );
        let x = Tensor::<3>::from_data(
            [[[1.0], [-2.0], [3.0]], [[0.5], [4.0], [-1.0]]],
            (&device, DType::F64),
        );
        let rhs = matrix.clone().matmul(x.clone());
        let error = (solve_general(matrix, rhs) - x).abs().max();
        assert!(error.into_scalar::<f64>() < 1e-14);
    }
}
