//! Operations on the rows of a batch: moves between host and device, norms, inner products,
//! choices.

use burn::tensor::{DType, Int, Tensor, TensorData};
use deq_kernels::row_squares;
use std::ops::Range;

/// The values of a tensor in f64, row-major. Waits for the device.
pub(crate) fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The sum of the squares of every row, `[batch, 1]`; see [`norms`].
pub(crate) fn squares(x: &Tensor<2>) -> Tensor<2> {
    row_squares(x)
}

/// The norms of rows by the [`squares`] that were read of them, and how many more reads that took.
///
/// Squares leave the range of the type long before the norm does. Rows to which that has happened,
/// and that are `wanted`, are scaled and read again; at ordinary scales there are none.
pub(crate) fn norms(
    x: &Tensor<2>,
    squares: &[f64],
    wanted: impl Fn(usize) -> bool,
) -> (Vec<f64>, usize) {
    let float = Float::of(x);
    let outside = |row: usize| !float.holds_square(squares[row]);
    let mut norms: Vec<f64> = squares.iter().map(|square| square.sqrt()).collect();
    if !(0..norms.len()).any(|row| outside(row) && wanted(row)) {
        return (norms, 0);
    }
    let largest = host_values(by_blocks(x, |rows| x.clone().slice(rows).max_abs_dim(1)));
    let powers: Vec<f64> = largest.into_iter().map(|x| float.power(x)).collect();
    let inverse = column(powers.iter().map(|power| power.recip()).collect(), x);
    let scaled = host_values(by_blocks(x, |rows| {
        self::squares(&(x.clone().slice(rows.clone()) * inverse.clone().slice(rows)))
    }));
    for row in (0..norms.len()).filter(|&row| outside(row)) {
        norms[row] = powers[row] * scaled[row].sqrt();
    }
    (norms, 2)
}

/// A column `[batch, 1]` made of some rows of `x` at a time, so that it takes a fraction of the
/// memory of `x`.
fn by_blocks(x: &Tensor<2>, column: impl Fn(Range<usize>) -> Tensor<2>) -> Tensor<2> {
    let [batch, _] = x.dims();
    let block = batch.div_ceil(8).max(1);
    let starts = (0..batch).step_by(block);
    let blocks = starts.map(|start| column(start..(start + block).min(batch)));
    Tensor::cat(blocks.collect(), 0)
}

/// The largest absolute value of every row, `[batch, 1]`, or, where that is 0, the smallest number
/// that can be divided by.
///
/// Divided by it, rows have entries of at most 1, whose products neither overflow nor vanish.
pub(crate) fn largest(x: &Tensor<2>) -> Tensor<2> {
    x.clone()
        .max_abs_dim(1)
        .clamp_min(Float::of(x).min_positive)
}

/// The range of a float type.
struct Float {
    min_positive: f64,
    epsilon: f64,
    /// A power of two that has an inverse in the type.
    power: f64,
}

impl Float {
    fn of(x: &Tensor<2>) -> Self {
        match x.dtype() {
            DType::F64 => Self {
                min_positive: f64::MIN_POSITIVE,
                epsilon: f64::EPSILON,
                power: 2.0_f64.powi(1000),
            },
            _ => Self {
                min_positive: f64::from(f32::MIN_POSITIVE),
                epsilon: f64::from(f32::EPSILON),
                power: 2.0_f64.powi(120),
            },
        }
    }

    /// Whether a sum of squares is right to rounding: nothing overflowed, and whatever underflowed,
    /// less than `min_positive` for each of at most `1 / epsilon` entries, does not matter.
    fn holds_square(&self, square: f64) -> bool {
        square.is_finite() && square >= self.min_positive / self.epsilon.powi(2)
    }

    /// A power of two near `x`, which scales without rounding.
    fn power(&self, x: f64) -> f64 {
        let exponent = f64::INFINITY.to_bits();
        f64::from_bits(x.to_bits() & exponent).clamp(self.power.recip(), self.power)
    }
}

/// The rows of `then` where `chosen`, else those of `otherwise`, `[batch, dim]` each.
///
/// A gather, so that a NaN in the row not taken cannot leak, and cheaper than a mask of the full
/// size.
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
