//! Weights as length times direction, slice by slice.

use super::reduce::dot;
use super::{dispatch, rows_per_task};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// `direction * gain / |direction|` for every slice of `size` numbers, and the lengths.
pub(crate) fn weight_norm(direction: &[f32], gain: &[f32], size: usize) -> [Vec<f32>; 2] {
    let mut weight = vec![0.0; direction.len()];
    let mut lengths = vec![0.0; gain.len()];
    (
        direction.par_chunks(size),
        weight.par_chunks_mut(size),
        gain.par_iter(),
        lengths.par_iter_mut(),
    )
        .into_par_iter()
        .with_min_len(rows_per_task(size))
        .for_each(|(direction, weight, gain, length)| {
            *length = dispatch(Scale {
                direction,
                weight,
                gain: *gain,
            });
        });
    [weight, lengths]
}

/// Turns the cotangent of the weight into that of the direction. The answer is that of the gain.
pub(crate) fn carry(
    g: &mut [f32],
    direction: &[f32],
    gain: &[f32],
    lengths: &[f32],
    size: usize,
) -> Vec<f32> {
    let mut to_gain = vec![0.0; gain.len()];
    (
        g.par_chunks_mut(size),
        direction.par_chunks(size),
        gain.par_iter(),
        lengths.par_iter(),
        to_gain.par_iter_mut(),
    )
        .into_par_iter()
        .with_min_len(rows_per_task(size))
        .for_each(|(g, direction, gain, length, to_gain)| {
            *to_gain = dispatch(Carry {
                g,
                direction,
                gain: *gain,
                length: *length,
            });
        });
    to_gain
}

struct Scale<'a> {
    direction: &'a [f32],
    weight: &'a mut [f32],
    gain: f32,
}

impl WithSimd for Scale<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let squares = dot(simd, self.direction, self.direction);
        // Not `max`, which would turn a NaN into a number.
        let length = if squares < 1e-30 {
            1e-15
        } else {
            squares.sqrt()
        };
        let factor = self.gain / length;
        for (weight, direction) in self.weight.iter_mut().zip(self.direction) {
            *weight = direction * factor;
        }
        length
    }
}

struct Carry<'a> {
    g: &'a mut [f32],
    direction: &'a [f32],
    gain: f32,
    length: f32,
}

impl WithSimd for Carry<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let along = dot(simd, self.g, self.direction) / self.length;
        // A length that is bounded from below is a constant.
        let turning = if self.length <= 1e-15 { 0.0 } else { along };
        let (turning, factor) = (turning / self.length, self.gain / self.length);
        for (g, direction) in self.g.iter_mut().zip(self.direction) {
            *g = factor * (*g - turning * direction);
        }
        along
    }
}
