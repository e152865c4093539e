//! Functions of one number, written so that the compiler makes vectors of them.

use super::{PARALLEL, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::f32::consts::LOG2_E;

/// `e^x` to about one unit in the last place; 0 for `x` below -87.3, near the smallest normal
/// number, infinity above 88.7, near the largest, NaN for NaN.
///
/// `e^x = 2^n e^r` with the whole number `n` nearest to `x log2(e)`; `|r| <= ln(2) / 2`, where the
/// Taylor polynomial of degree 7 is off by less than a rounding.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln(2) in two parts, so that the product of the first with `n` is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    // Where the result is a normal number.
    let within = x.clamp(-87.3, 88.7);
    let shifted = within * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = within - n * HIGH - n * LOW;
    let mut sum = 1.0 / 5040.0;
    for term in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * r + term;
    }
    // Times 2^n, added to the exponent: 2^128 is no number itself, though the largest results are.
    let value = f32::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 23));
    let value = if x < -87.3 { 0.0 } else { value };
    // The sum is infinity, or NaN for NaN, whose bits may have been changed.
    if x <= 88.7 { value } else { x + f32::INFINITY }
}

/// `tanh(x)` to about two units in the last place.
///
/// Near 0 the odd polynomial of the Cephes library (Moshier 1989), beyond by the exponential.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut sum = -5.704_988_7e-3;
    for term in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        sum = sum * square + term;
    }
    let near = sum * square * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if square < 0.390_625 { near } else { far }
}

/// `tanh` of every number.
pub(crate) fn tanh_all(x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let share = share(x.len());
    out.par_chunks_mut(share)
        .zip(x.par_chunks(share))
        .for_each(|(out, x)| dispatch(Tanh { x, out }));
    out
}

/// 0 where the gate is not above 0.
pub(crate) fn pass_gate(x: &mut [f32], gate: &[f32]) {
    let share = share(x.len());
    x.par_chunks_mut(share)
        .zip(gate.par_chunks(share))
        .for_each(|(x, gate)| dispatch(PassGate { x, gate }));
}

/// [`pass_gate`] within a kernel.
#[inline(always)]
pub(crate) fn close(x: &mut [f32], gate: &[f32]) {
    for (x, gate) in x.iter_mut().zip(gate) {
        *x = if *gate > 0.0 { *x } else { 0.0 };
    }
}

/// The numbers that one task takes.
fn share(count: usize) -> usize {
    count.div_ceil(rayon::current_num_threads()).max(PARALLEL)
}

struct Tanh<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Tanh<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = tanh(*x);
        }
    }
}

struct PassGate<'a> {
    x: &'a mut [f32],
    gate: &'a [f32],
}

impl WithSimd for PassGate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        close(self.x, self.gate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units in the last place between two numbers.
    fn distance(a: f32, b: f64) -> f64 {
        let smallest = f64::from(f32::MIN_POSITIVE);
        (f64::from(a) - b).abs() / (f64::from(f32::EPSILON) * b.abs().max(smallest))
    }

    #[test]
    fn the_exponential_to_two_roundings() {
        for i in -8_729..=8_869 {
            let x = i as f32 * 0.01;
            assert!(distance(exp(x), f64::from(x).exp()) < 2.0, "{x}");
        }
        assert_eq!(exp(-1e9).to_bits(), 0);
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert!(exp(200.0).is_infinite() && exp(f32::INFINITY).is_infinite());
        for bits in [0x7fc0_0000, 0x7fc0_0001, 0xffc0_00ff] {
            assert!(exp(f32::from_bits(bits)).is_nan());
        }
    }

    #[test]
    fn the_hyperbolic_tangent_to_three_roundings() {
        for i in -20_000..=20_000 {
            let x = i as f32 * 0.001;
            assert!(distance(tanh(x), f64::from(x).tanh()) < 3.0, "{x}");
        }
        assert!((tanh(1e9) - 1.0).abs() < f32::EPSILON && tanh(f32::NAN).is_nan());
        assert!((tanh(f32::NEG_INFINITY) + 1.0).abs() < f32::EPSILON);
    }
}
