//! Operations on the rows of a batch: moves between host and device, inner products, choices.

use burn::tensor::{Int, Tensor, TensorData};

/// The values of a tensor in f64, row-major. Waits for the device.
pub(crate) fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The rows of `then` where `chosen`, else those of `otherwise`, `[batch, dim]` each.
///
/// A gather, so that a NaN in the row not taken cannot leak, and cheaper than a mask of the full size.
pub(crate) fn merge_rows(then: &Tensor<2>, otherwise: &Tensor<2>, chosen: &[bool]) -> Tensor<2> {
    if chosen.iter().all(|&c| c) {
        return then.clone();
    }
    if !chosen.contains(&true) {
        return otherwise.clone();
    }
    let batch = chosen.len();
    let rows: Vec<i64> = chosen
        .iter()
        .enumerate()
        .map(|(row, &chosen)| (if chosen { row } else { batch + row }) as i64)
        .collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [batch]), &then.device());
    Tensor::cat(vec![then.clone(), otherwise.clone()], 0).select(0, rows)
}

/// Inner products per sample, `[batch, 1]`.
pub(crate) fn dot(a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
    (a.clone() * b.clone()).sum_dim(1)
}

/// One number per sample as a `[batch, 1]` tensor of the type of `like`.
pub(crate) fn column(values: Vec<f64>, like: &Tensor<2>) -> Tensor<2> {
    let batch = values.len();
    Tensor::from_data(
        TensorData::new(values, [batch, 1]),
        (&like.device(), like.dtype()),
    )
}
