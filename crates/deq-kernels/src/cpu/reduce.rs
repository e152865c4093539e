//! Sums over slices, in several vectors at once, so that one addition need not wait for another.

use pulp::Simd;

/// Vectors that are summed side by side.
const WIDTH: usize = 4;

/// A sum over slices of one length, to which `add(sum, a_i, b_i)` adds a term. It is given zeros
/// behind their end.
#[inline(always)]
pub(crate) fn sum_pairs<S: Simd>(
    simd: S,
    a: &[f32],
    b: &[f32],
    mut add: impl FnMut(S::f32s, S::f32s, S::f32s) -> S::f32s,
) -> f32 {
    let (a, a_rest) = S::as_simd_f32s(a);
    let (b, b_rest) = S::as_simd_f32s(b);
    let (a, a_last) = a.as_chunks::<WIDTH>();
    let (b, b_last) = b.as_chunks::<WIDTH>();
    let mut sums = [simd.splat_f32s(0.0); WIDTH];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = add(*sum, *a, *b);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_last).zip(b_last) {
        *sum = add(*sum, *a, *b);
    }
    if !a_rest.is_empty() {
        let (a, b) = (
            simd.partial_load_f32s(a_rest),
            simd.partial_load_f32s(b_rest),
        );
        sums[0] = add(sums[0], a, b);
    }
    let [a, b, c, d] = sums;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
}

/// `sum_i x_i`
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    sum_pairs(simd, x, x, |sum, x, _| simd.add_f32s(sum, x))
}

/// `a . b`
#[inline(always)]
pub(crate) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    sum_pairs(simd, a, b, |sum, a, b| simd.mul_add_e_f32s(a, b, sum))
}
