//! Normalisation of rows to mean 0 and variance 1, and its Jacobian.

use super::reduce::{dot, sum};
use super::{dispatch, rows_per_task};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that are normalised one by one, each made of channels with a scale and a shift.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    /// Numbers of a row.
    pub(crate) size: usize,
    /// Numbers of a channel.
    pub(crate) plane: usize,
    /// One per channel of `cycle` rows; the next rows begin anew.
    pub(crate) scale: Option<&'a [f32]>,
    /// As the scale.
    pub(crate) shift: Option<&'a [f32]>,
    /// Rows after which channels repeat.
    pub(crate) cycle: usize,
}

impl<'a> Rows<'a> {
    fn channels(&self, values: Option<&'a [f32]>, row: usize) -> Option<&'a [f32]> {
        let count = self.size / self.plane;
        values.map(|values| &values[row % self.cycle * count..][..count])
    }
}

/// What the Jacobian of a normalisation needs.
#[derive(Debug)]
pub(crate) struct Normed {
    /// `scale * normed + shift`, and its ReLU if wanted.
    pub(crate) value: Vec<f32>,
    /// Without scale and shift; empty unless kept.
    pub(crate) normed: Vec<f32>,
    /// One per row.
    pub(crate) inverse_deviations: Vec<f32>,
}

/// `value = scale (x - mean) / sqrt(variance + epsilon) + shift`, then its ReLU if wanted.
pub(crate) fn normalize(x: &[f32], rows: Rows<'_>, epsilon: f32, relu: bool, keep: bool) -> Normed {
    let size = rows.size;
    let count = x.len() / size;
    let mut result = Normed {
        value: vec![0.0; x.len()],
        normed: vec![0.0; if keep { x.len() } else { 0 }],
        inverse_deviations: vec![0.0; count],
    };
    // Without one, its rows are empty.
    let kept = if keep { size } else { 0 };
    let mut empty: Vec<&mut [f32]> = Vec::new();
    let normed: Vec<&mut [f32]> = if keep {
        result.normed.chunks_mut(kept).collect()
    } else {
        empty.resize_with(count, || &mut []);
        empty
    };
    (
        x.par_chunks(size),
        result.value.par_chunks_mut(size),
        normed,
        result.inverse_deviations.par_iter_mut(),
    )
        .into_par_iter()
        .with_min_len(rows_per_task(size))
        .enumerate()
        .for_each(|(row, (x, value, normed, inverse_deviation))| {
            *inverse_deviation = dispatch(NormalizeRow {
                x,
                value,
                normed,
                plane: rows.plane,
                scale: rows.channels(rows.scale, row),
                shift: rows.channels(rows.shift, row),
                epsilon,
                relu,
            });
        });
    result
}

struct NormalizeRow<'a> {
    x: &'a [f32],
    value: &'a mut [f32],
    normed: &'a mut [f32],
    plane: usize,
    scale: Option<&'a [f32]>,
    shift: Option<&'a [f32]>,
    epsilon: f32,
    relu: bool,
}

impl WithSimd for NormalizeRow<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let count = self.x.len() as f32;
        let mean = sum(simd, self.x) / count;
        let means = simd.splat_f32s(mean);
        // Zeros behind the end are no deviations, so the squares are those of whole vectors and
        // of the rest one by one.
        let (vectors, rest) = S::as_simd_f32s(self.x);
        let mut squares = [simd.splat_f32s(0.0); 4];
        for (i, x) in vectors.iter().enumerate() {
            let x = simd.sub_f32s(*x, means);
            squares[i % 4] = simd.mul_add_e_f32s(x, x, squares[i % 4]);
        }
        let [a, b, c, d] = squares;
        let squares = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
        let rest: f32 = rest.iter().map(|x| (x - mean) * (x - mean)).sum();
        let variance = (simd.reduce_sum_f32s(squares) + rest) / count;
        let inverse = (variance + self.epsilon).sqrt().recip();
        for (to, x) in self.normed.iter_mut().zip(self.x) {
            *to = (x - mean) * inverse;
        }
        let planes = self.x.chunks(self.plane);
        for (channel, (to, x)) in self.value.chunks_mut(self.plane).zip(planes).enumerate() {
            let scale = self.scale.map_or(inverse, |scale| scale[channel] * inverse);
            let shift = self.shift.map_or(0.0, |shift| shift[channel]);
            if self.relu {
                for (to, x) in to.iter_mut().zip(x) {
                    let value = (x - mean) * scale + shift;
                    // Not `max`, which would turn a NaN into 0.
                    *to = if value < 0.0 { 0.0 } else { value };
                }
            } else {
                for (to, x) in to.iter_mut().zip(x) {
                    *to = (x - mean) * scale + shift;
                }
            }
        }
        inverse
    }
}

/// A product with the Jacobian of a normalisation, or with its transpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The scale comes last.
    Forward,
    /// The scale comes first.
    Transposed,
}

/// `(d - mean(d) - n mean(n d)) / deviation` per row, with the normalised `n`, and the scale where
/// the direction wants it.
pub(crate) fn carry(
    d: &[f32],
    normed: &[f32],
    inverse_deviations: &[f32],
    rows: Rows<'_>,
    direction: Direction,
) -> Vec<f32> {
    let size = rows.size;
    let mut out = vec![0.0; d.len()];
    (
        d.par_chunks(size),
        normed.par_chunks(size),
        out.par_chunks_mut(size),
        inverse_deviations.par_iter(),
    )
        .into_par_iter()
        .with_min_len(rows_per_task(size))
        .enumerate()
        .for_each(|(row, (d, normed, out, inverse))| {
            dispatch(CarryRow {
                d,
                normed,
                out,
                inverse: *inverse,
                plane: rows.plane,
                scale: rows.channels(rows.scale, row),
                direction,
            });
        });
    out
}

struct CarryRow<'a> {
    d: &'a [f32],
    normed: &'a [f32],
    out: &'a mut [f32],
    inverse: f32,
    plane: usize,
    scale: Option<&'a [f32]>,
    direction: Direction,
}

impl WithSimd for CarryRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let count = self.d.len() as f32;
        let scale = |channel: usize| self.scale.map_or(1.0, |scale| scale[channel]);
        let before = |channel: usize| match self.direction {
            Direction::Forward => 1.0,
            Direction::Transposed => scale(channel),
        };
        let after = |channel: usize| match self.direction {
            Direction::Forward => self.inverse * scale(channel),
            Direction::Transposed => self.inverse,
        };
        let (mut mean, mut along) = (0.0, 0.0);
        let planes = || {
            self.d
                .chunks(self.plane)
                .zip(self.normed.chunks(self.plane))
        };
        for (channel, (d, normed)) in planes().enumerate() {
            mean += before(channel) * sum(simd, d);
            along += before(channel) * dot(simd, d, normed);
        }
        let (mean, along) = (mean / count, along / count);
        let out = self.out.chunks_mut(self.plane);
        for (channel, (out, (d, normed))) in out.zip(planes()).enumerate() {
            let (before, after) = (before(channel), after(channel));
            for ((out, d), normed) in out.iter_mut().zip(d).zip(normed) {
                *out = (d * before - mean - normed * along) * after;
            }
        }
    }
}
