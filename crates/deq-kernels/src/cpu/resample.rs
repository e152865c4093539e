//! Maps of one resolution for those of another.

use super::{dispatch, rows_per_task};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// `to += upsample(x)`: each pixel of `x`, maps of `height` by `width`, is added to a square with
/// sides of `factor` pixels.
pub(crate) fn add_upsampled(to: &mut [f32], x: &[f32], [height, width]: [usize; 2], factor: usize) {
    let (fine, coarse) = (height * width * factor * factor, height * width);
    let maps = rows_per_task(fine);
    to.par_chunks_mut(maps * fine)
        .zip(x.par_chunks(maps * coarse))
        .for_each(|(to, x)| {
            dispatch(AddUpsampled {
                to,
                x,
                width,
                factor,
            });
        });
}

struct AddUpsampled<'a> {
    to: &'a mut [f32],
    x: &'a [f32],
    width: usize,
    factor: usize,
}

impl WithSimd for AddUpsampled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let length = self.width * self.factor;
        let mut line = vec![0.0; length];
        let lines = self.to.chunks_exact_mut(self.factor * length);
        for (to, x) in lines.zip(self.x.chunks_exact(self.width)) {
            for (line, x) in line.chunks_exact_mut(self.factor).zip(x) {
                line.fill(*x);
            }
            for to in to.chunks_exact_mut(length) {
                for (to, line) in to.iter_mut().zip(&line) {
                    *to += line;
                }
            }
        }
    }
}

/// The sums over squares of `x`, with sides of `factor` pixels, of maps of `height` by `width`
/// squares.
pub(crate) fn sum_squares(x: &[f32], [height, width]: [usize; 2], factor: usize) -> Vec<f32> {
    let (fine, coarse) = (height * width * factor * factor, height * width);
    let mut sums = vec![0.0; x.len() / (factor * factor)];
    let maps = rows_per_task(fine);
    sums.par_chunks_mut(maps * coarse)
        .zip(x.par_chunks(maps * fine))
        .for_each(|(sums, x)| {
            dispatch(SumSquares {
                sums,
                x,
                width,
                factor,
            });
        });
    sums
}

struct SumSquares<'a> {
    sums: &'a mut [f32],
    x: &'a [f32],
    width: usize,
    factor: usize,
}

impl WithSimd for SumSquares<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let length = self.width * self.factor;
        let mut line = vec![0.0; length];
        let lines = self.x.chunks_exact(self.factor * length);
        for (sums, x) in self.sums.chunks_exact_mut(self.width).zip(lines) {
            line.fill(0.0);
            for x in x.chunks_exact(length) {
                for (to, x) in line.iter_mut().zip(x) {
                    *to += x;
                }
            }
            for (sum, line) in sums.iter_mut().zip(line.chunks_exact(self.factor)) {
                *sum = line.iter().sum();
            }
        }
    }
}
