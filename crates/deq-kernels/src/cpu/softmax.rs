//! The softmax of rows.

use super::pointwise::exp;
use super::{dispatch, rows_per_task};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Sums and maxima that are taken side by side.
const WIDTH: usize = 16;

/// `x = e^(x - largest)` in place; returns the sum.
#[inline(always)]
pub(crate) fn exponentials(x: &mut [f32], largest: f32) -> f32 {
    let mut sums = [0.0; WIDTH];
    for x in x.chunks_mut(WIDTH) {
        for (x, sum) in x.iter_mut().zip(&mut sums) {
            *x = exp(*x - largest);
            *sum += *x;
        }
    }
    sums.iter().sum()
}

#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; WIDTH];
    for x in x.chunks(WIDTH) {
        for (x, largest) in x.iter().zip(&mut largest) {
            *largest = largest.max(*x);
        }
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The logarithm of the sum of the exponentials of a row.
struct LogSum<'a>(&'a [f32]);

impl WithSimd for LogSum<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        let largest = largest(self.0);
        let mut sums = [0.0; WIDTH];
        for x in self.0.chunks(WIDTH) {
            for (x, sum) in x.iter().zip(&mut sums) {
                *sum += exp(*x - largest);
            }
        }
        largest + sums.iter().sum::<f32>().ln()
    }
}

/// `-log softmax(row)[column]` for every row.
pub(crate) fn cross_entropy(scores: &[f32], columns: &[usize]) -> Vec<f32> {
    let count = (scores.len() / columns.len().max(1)).max(1);
    scores
        .par_chunks(count)
        .zip(columns)
        .with_min_len(rows_per_task(count))
        .map(|(row, column)| dispatch(LogSum(row)) - row[*column])
        .collect()
}

/// The cotangent of the scores: `g (softmax(row) - unit(column))`.
pub(crate) fn cross_entropy_gradient(scores: &[f32], columns: &[usize], g: &[f32]) -> Vec<f32> {
    let count = (scores.len() / columns.len().max(1)).max(1);
    let mut out = vec![0.0; scores.len()];
    out.par_chunks_mut(count)
        .zip(scores.par_chunks(count))
        .zip(columns.par_iter().zip(g))
        .with_min_len(rows_per_task(count))
        .for_each(|((out, row), (column, g))| {
            dispatch(ScaledSoftmax { row, g: *g, out });
            out[*column] -= g;
        });
    out
}

/// `out = g softmax(row)`
struct ScaledSoftmax<'a> {
    row: &'a [f32],
    g: f32,
    out: &'a mut [f32],
}

impl WithSimd for ScaledSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.out.copy_from_slice(self.row);
        let sum = exponentials(self.out, largest(self.row));
        let factor = self.g / sum;
        for out in self.out {
            *out *= factor;
        }
    }
}
