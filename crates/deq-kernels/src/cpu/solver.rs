//! The vector work of a solver's step, sample by sample: what a step remembers is read once from
//! memory for all its inner products, and once more for all its combinations.

use super::dispatch;
use super::reduce::dot;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of a vector that are worked on at a time, so that they stay in the first-level cache.
///
/// Sums are taken block by block in order, so that they do not depend on the threads.
const BLOCK: usize = 4096;

/// Calls `work` on every sample: several at once if there are enough of them, else one after the
/// other with `true`, so that each can divide its own blocks.
fn for_samples<T: Send>(samples: Vec<T>, work: impl Fn(T, bool) + Sync + Send) {
    if samples.len() >= rayon::current_num_threads() {
        samples
            .into_par_iter()
            .for_each(|sample| work(sample, false));
    } else {
        samples.into_iter().for_each(|sample| work(sample, true));
    }
}

fn min_blocks(divide: bool) -> usize {
    if divide { 4 } else { usize::MAX }
}

/// `work` on every block, in order.
fn by_block<T: Send>(
    dim: usize,
    divide: bool,
    work: impl Fn(Range<usize>) -> T + Sync + Send,
) -> Vec<T> {
    let blocks = dim.div_ceil(BLOCK);
    (0..blocks)
        .into_par_iter()
        .with_min_len(min_blocks(divide))
        .map(|block| work(block * BLOCK..dim.min((block + 1) * BLOCK)))
        .collect()
}

/// The sums of columns.
fn totals(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut rows = rows.iter();
    let mut sums = rows.next().cloned().unwrap_or_default();
    for row in rows {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sums
}

/// `vectors[i][range] . x` for every vector.
struct Dots<'a> {
    vectors: &'a [f32],
    dim: usize,
    range: Range<usize>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.vectors.chunks_exact(self.dim);
        for (out, vector) in self.out.iter_mut().zip(vectors) {
            *out = dot(simd, &vector[self.range.clone()], self.x);
        }
    }
}

/// `out += sum_i weights_i vectors[i][range]`
struct Combine<'a> {
    vectors: &'a [f32],
    dim: usize,
    range: Range<usize>,
    weights: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let length = self.out.len();
        let vector = |i: usize| &self.vectors[i * self.dim + self.range.start..][..length];
        let (fours, rest) = self.weights.as_chunks::<4>();
        for (group, w) in fours.iter().enumerate() {
            let (a, b) = (vector(4 * group), vector(4 * group + 1));
            let (c, d) = (vector(4 * group + 2), vector(4 * group + 3));
            for (j, out) in self.out.iter_mut().enumerate() {
                *out += w[0] * a[j] + w[1] * b[j] + (w[2] * c[j] + w[3] * d[j]);
            }
        }
        for (i, w) in rest.iter().enumerate() {
            for (out, a) in self.out.iter_mut().zip(vector(4 * fours.len() + i)) {
                *out += w * a;
            }
        }
    }
}

/// The inner products of the first `used` vectors of every sample with its `x`; 0 for the others.
///
/// `vectors` is `[batch, slots, dim]`, the output `[batch, slots]`.
pub(crate) fn dots(vectors: &[f32], x: &[f32], [slots, dim]: [usize; 2], used: usize) -> Vec<f32> {
    let batch = x.len() / dim;
    let mut out = vec![0.0; batch * slots];
    let samples: Vec<_> = out
        .chunks_exact_mut(slots)
        .zip(vectors.chunks_exact(slots * dim))
        .zip(x.chunks_exact(dim))
        .collect();
    for_samples(samples, |((out, vectors), x), divide| {
        let parts = by_block(dim, divide, |range| {
            let mut out = vec![0.0; used];
            dispatch(Dots {
                vectors,
                dim,
                x: &x[range.clone()],
                range,
                out: &mut out,
            });
            out
        });
        out[..used].copy_from_slice(&totals(&parts));
    });
    out
}

/// `sum_i weights_i vectors_i` over the first `used` vectors of every sample, `[batch, dim]`.
pub(crate) fn combine(
    vectors: &[f32],
    weights: &[f32],
    [slots, dim]: [usize; 2],
    used: usize,
) -> Vec<f32> {
    let batch = weights.len() / slots;
    let mut out = vec![0.0; batch * dim];
    let samples: Vec<_> = out
        .chunks_exact_mut(dim)
        .zip(vectors.chunks_exact(slots * dim))
        .zip(weights.chunks_exact(slots))
        .collect();
    for_samples(samples, |((out, vectors), weights), divide| {
        out.par_chunks_mut(BLOCK)
            .with_min_len(min_blocks(divide))
            .enumerate()
            .for_each(|(block, out)| {
                let start = block * BLOCK;
                dispatch(Combine {
                    vectors,
                    dim,
                    range: start..start + out.len(),
                    weights: &weights[..used],
                    out,
                });
            });
    });
    out
}

/// The sums of squares of rows of length `dim`.
pub(crate) fn squares(x: &[f32], dim: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / dim];
    let samples: Vec<_> = out.iter_mut().zip(x.chunks_exact(dim)).collect();
    for_samples(samples, |(out, x), divide| {
        let parts = by_block(dim, divide, |range| {
            let x = &x[range];
            let mut square = [0.0];
            dispatch(Dots {
                vectors: x,
                dim: x.len(),
                range: 0..x.len(),
                x,
                out: &mut square,
            });
            square[0]
        });
        *out = parts.iter().sum();
    });
    out
}

/// The largest `|x|`, at least the smallest number that can be divided by.
struct Largest<'a>(&'a [f32]);

impl WithSimd for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        let mut most = [f32::MIN_POSITIVE; 16];
        for x in self.0.chunks(16) {
            for (most, x) in most.iter_mut().zip(x) {
                *most = most.max(x.abs());
            }
        }
        most.into_iter().fold(f32::MIN_POSITIVE, f32::max)
    }
}

/// `out = (a - b) / length`
struct Difference<'a> {
    a: &'a [f32],
    b: &'a [f32],
    length: f32,
    out: &'a mut [f32],
}

impl WithSimd for Difference<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((out, a), b) in self.out.iter_mut().zip(self.a).zip(self.b) {
            *out = (a - b) / self.length;
        }
    }
}

/// One step of Broyden's method for every sample.
#[derive(Debug)]
pub(crate) struct BroydenStep<'a> {
    /// The points before and now, `[batch, dim]`.
    pub(crate) z: [&'a [f32]; 2],
    /// Their residuals.
    pub(crate) residual: [&'a [f32]; 2],
    /// Terms `[batch, slots, dim]`, of which `used` count.
    pub(crate) u: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
    pub(crate) slots: usize,
    pub(crate) used: usize,
    pub(crate) dim: usize,
    /// `v = B^T dz`, else `v = dg`.
    pub(crate) good: bool,
}

impl BroydenStep<'_> {
    /// Writes the next term and returns `z - B g` with it, `[batch, dim]`.
    pub(crate) fn run(self) -> Vec<f32> {
        let (dim, length) = (self.dim, self.slots * self.dim);
        let mut next = vec![0.0; self.z[0].len()];
        let terms = self
            .u
            .chunks_exact_mut(length)
            .zip(self.v.chunks_exact_mut(length));
        let samples: Vec<_> = terms
            .zip(next.chunks_exact_mut(dim))
            .enumerate()
            .map(|(i, ((u, v), next))| BroydenRow {
                z: self.z.map(|z| &z[i * dim..][..dim]),
                g: self.residual.map(|g| &g[i * dim..][..dim]),
                u: u.split_at_mut(self.used * dim),
                v: v.split_at_mut(self.used * dim),
                next,
                good: self.good,
            })
            .collect();
        for_samples(samples, BroydenRow::step);
        next
    }
}

/// One sample; the new terms lie behind the old ones.
struct BroydenRow<'a> {
    z: [&'a [f32]; 2],
    g: [&'a [f32]; 2],
    u: (&'a mut [f32], &'a mut [f32]),
    v: (&'a mut [f32], &'a mut [f32]),
    next: &'a mut [f32],
    good: bool,
}

impl BroydenRow<'_> {
    fn step(self, divide: bool) {
        let dim = self.next.len();
        let ([z0, z], [g0, g]) = (self.z, self.g);
        let (u, v) = (&*self.u.0, &*self.v.0);
        let used = u.len() / dim;
        let largest = by_block(dim, divide, |range| {
            let mut dz = [0.0; BLOCK];
            let dz = &mut dz[..range.len()];
            difference(&z[range.clone()], &z0[range], 1.0, dz);
            dispatch(Largest(dz))
        });
        let length = largest.into_iter().fold(f32::MIN_POSITIVE, f32::max);
        // u . dz, v . dg, v . g
        let products = totals(&by_block(dim, divide, |range| {
            let mut difference_of = [0.0; BLOCK];
            let d = &mut difference_of[..range.len()];
            let mut out = vec![0.0; 3 * used];
            let (with_u, with_v) = out.split_at_mut(used);
            let (with_dg, with_g) = with_v.split_at_mut(used);
            if self.good {
                difference(&z[range.clone()], &z0[range.clone()], length, d);
                dot_all(u, dim, &range, d, with_u);
            }
            difference(&g[range.clone()], &g0[range.clone()], length, d);
            dot_all(v, dim, &range, d, with_dg);
            dot_all(v, dim, &range, &g[range.clone()], with_g);
            out
        }));
        let (with_u, with_v) = products.split_at(used);
        let (with_dg, with_g) = with_v.split_at(used);

        // The numerator of the new u, the new v, and B g with the old terms.
        let new_u = &mut self.u.1[..dim];
        let new_v = &mut self.v.1[..dim];
        let sums: Vec<[f32; 4]> = (
            new_u.par_chunks_mut(BLOCK),
            new_v.par_chunks_mut(BLOCK),
            self.next.par_chunks_mut(BLOCK),
        )
            .into_par_iter()
            .with_min_len(min_blocks(divide))
            .enumerate()
            .map(|(block, (new_u, new_v, next))| {
                let range = block * BLOCK..block * BLOCK + next.len();
                let mut dg = [0.0; BLOCK];
                let dg = &mut dg[..range.len()];
                difference(&g[range.clone()], &g0[range.clone()], length, dg);
                difference(&z[range.clone()], &z0[range.clone()], length, new_u);
                if self.good {
                    negate(new_u, new_v);
                    combine_all(v, dim, &range, with_u, new_v);
                } else {
                    new_v.copy_from_slice(dg);
                }
                // dz - (sum b_i u_i - dg); `next` is lent for the sum.
                next.fill(0.0);
                combine_all(u, dim, &range, with_dg, next);
                for ((u, dg), sum) in new_u.iter_mut().zip(&*dg).zip(&*next) {
                    *u -= sum - dg;
                }
                negate(&g[range.clone()], next);
                combine_all(u, dim, &range, with_g, next);
                let g = &g[range];
                [
                    inner(new_v, dg),
                    inner(new_v, new_v),
                    inner(dg, dg),
                    inner(new_v, g),
                ]
            })
            .collect();
        let mut total = [0.0; 4];
        for sums in sums {
            for (total, sum) in total.iter_mut().zip(sums) {
                *total += sum;
            }
        }
        let [denominator, v_square, dg_square, with_g] = total;
        let size = (v_square * dg_square).sqrt();
        // False for a NaN anywhere.
        let usable = denominator.abs() > size * f32::EPSILON && denominator.is_finite();
        (
            new_u.par_chunks_mut(BLOCK),
            new_v.par_chunks_mut(BLOCK),
            self.next.par_chunks_mut(BLOCK),
            z.par_chunks(BLOCK),
        )
            .into_par_iter()
            .with_min_len(min_blocks(divide))
            .for_each(|(u, v, next, z)| {
                if usable {
                    for ((u, next), z) in u.iter_mut().zip(next).zip(z) {
                        *u /= denominator;
                        *next = z - (*next + *u * with_g);
                    }
                } else {
                    u.fill(0.0);
                    v.fill(0.0);
                    for (next, z) in next.iter_mut().zip(z) {
                        *next = z - *next;
                    }
                }
            });
    }
}

fn difference(a: &[f32], b: &[f32], length: f32, out: &mut [f32]) {
    dispatch(Difference { a, b, length, out });
}

fn negate(from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = -from;
    }
}

fn inner(a: &[f32], b: &[f32]) -> f32 {
    let mut out = [0.0];
    dot_all(a, a.len(), &(0..a.len()), b, &mut out);
    out[0]
}

fn dot_all(vectors: &[f32], dim: usize, range: &Range<usize>, x: &[f32], out: &mut [f32]) {
    dispatch(Dots {
        vectors,
        dim,
        range: range.clone(),
        x,
        out,
    });
}

fn combine_all(
    vectors: &[f32],
    dim: usize,
    range: &Range<usize>,
    weights: &[f32],
    out: &mut [f32],
) {
    dispatch(Combine {
        vectors,
        dim,
        range: range.clone(),
        weights,
        out,
    });
}

/// What a step of Anderson's method of type II goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AndersonRules {
    pub(crate) mixing: f32,
    pub(crate) regularization: f64,
    /// Relative to the residuals, else in the units of the state squared.
    pub(crate) relative: bool,
    /// The largest sum of absolute weights that is trusted.
    pub(crate) max_weight: f64,
}

/// One step of Anderson's method of type II for every sample.
#[derive(Debug)]
pub(crate) struct AndersonStep<'a> {
    /// `[batch, dim]`
    pub(crate) z: &'a [f32],
    pub(crate) fz: &'a [f32],
    pub(crate) residual: &'a [f32],
    /// `[batch, slots, dim]`
    pub(crate) residuals: &'a mut [f32],
    pub(crate) points: &'a mut [f32],
    /// `[batch, m, m]`
    pub(crate) products: &'a mut [f32],
    /// `[batch, m]`
    pub(crate) sizes: &'a mut [f32],
    pub(crate) valid: &'a mut [f32],
    /// Where the new entry goes.
    pub(crate) slot: usize,
    /// Slots that count, the new one included.
    pub(crate) used: usize,
    pub(crate) slots: usize,
    pub(crate) m: usize,
    pub(crate) dim: usize,
    pub(crate) rules: AndersonRules,
}

impl AndersonStep<'_> {
    /// Writes the new entry and returns the next points, `[batch, dim]`.
    pub(crate) fn run(self) -> Vec<f32> {
        let (dim, m, length) = (self.dim, self.m, self.slots * self.dim);
        let mut next = vec![0.0; self.z.len()];
        let row = |i: usize| i * dim..(i + 1) * dim;
        let histories =
            (self.residuals.chunks_exact_mut(length)).zip(self.points.chunks_exact_mut(length));
        let small = (self.products.chunks_exact_mut(m * m))
            .zip(self.sizes.chunks_exact_mut(m))
            .zip(self.valid.chunks_exact_mut(m));
        let samples: Vec<_> = histories
            .zip(small)
            .zip(next.chunks_exact_mut(dim))
            .enumerate()
            .map(
                |(i, (((residuals, points), ((products, sizes), valid)), next))| AndersonRow {
                    z: &self.z[row(i)],
                    fz: &self.fz[row(i)],
                    residual: &self.residual[row(i)],
                    residuals,
                    points,
                    window: Window {
                        products,
                        sizes,
                        valid,
                        slot: self.slot,
                    },
                    used: self.used,
                    next,
                    rules: self.rules,
                },
            )
            .collect();
        for_samples(samples, AndersonRow::step);
        next
    }
}

struct AndersonRow<'a> {
    z: &'a [f32],
    fz: &'a [f32],
    residual: &'a [f32],
    residuals: &'a mut [f32],
    points: &'a mut [f32],
    window: Window<'a>,
    used: usize,
    next: &'a mut [f32],
    rules: AndersonRules,
}

impl AndersonRow<'_> {
    fn step(self, divide: bool) {
        let Self {
            z,
            fz,
            residual,
            points,
            mut window,
            used,
            next,
            rules,
            ..
        } = self;
        let dim = next.len();
        let slot = window.slot;
        let largest = by_block(dim, divide, |range| dispatch(Largest(&residual[range])));
        let size = largest.into_iter().fold(f32::MIN_POSITIVE, f32::max);
        let (before, rest) = self.residuals.split_at_mut(slot * dim);
        let (direction, after) = rest.split_at_mut(dim);
        let point = &mut points[slot * dim..][..dim];
        let parts: Vec<Vec<f32>> = (direction.par_chunks_mut(BLOCK), point.par_chunks_mut(BLOCK))
            .into_par_iter()
            .with_min_len(min_blocks(divide))
            .enumerate()
            .map(|(block, (direction, point))| {
                let range = block * BLOCK..block * BLOCK + point.len();
                let residual = &residual[range.clone()];
                for (to, residual) in direction.iter_mut().zip(residual) {
                    *to = residual / size;
                }
                if rules.mixing >= 1.0 {
                    point.copy_from_slice(&fz[range.clone()]);
                } else {
                    let from = z[range.clone()].iter().zip(residual);
                    for (to, (z, residual)) in point.iter_mut().zip(from) {
                        *to = z + residual * rules.mixing;
                    }
                }
                let mut out = vec![0.0; used];
                let (with_before, rest) = out.split_at_mut(slot);
                dot_all(before, dim, &range, direction, with_before);
                if let Some((own, with_after)) = rest.split_first_mut() {
                    *own = inner(direction, direction);
                    dot_all(after, dim, &range, direction, with_after);
                }
                out
            })
            .collect();
        let weights = window.weights(&totals(&parts), size, rules);
        next.par_chunks_mut(BLOCK)
            .with_min_len(min_blocks(divide))
            .enumerate()
            .for_each(|(block, next)| {
                let range = block * BLOCK..block * BLOCK + next.len();
                combine_all(points, dim, &range, &weights[..used], next);
            });
    }
}

/// The small problem of one sample.
struct Window<'a> {
    /// Inner products of the kept directions, `[m, m]`.
    products: &'a mut [f32],
    /// The sizes of the residuals.
    sizes: &'a mut [f32],
    /// 1 for the slots that may be used.
    valid: &'a mut [f32],
    slot: usize,
}

impl Window<'_> {
    /// Takes in the newest residual, by its products with all and its size, and solves for the
    /// weights of the combination.
    fn weights(&mut self, row: &[f32], size: f32, rules: AndersonRules) -> Vec<f32> {
        let (m, slot) = (self.sizes.len(), self.slot);
        for j in 0..m {
            let product = row.get(j).copied().unwrap_or(0.0);
            self.products[slot * m + j] = product;
            self.products[j * m + slot] = product;
        }
        self.sizes[slot] = size;
        self.valid[slot] = 1.0;
        // Scaled to a unit diagonal, the system does not notice that residuals shrink by orders
        // of magnitude. Slots that must not be used get a zero row and a zero right side.
        let of_directions: Vec<f64> = (0..m)
            .map(|i| {
                let square = f64::from(self.products[i * m + i]).max(1.0);
                f64::from(self.valid[i]) / square.sqrt()
            })
            .collect();
        let of_residuals: Vec<f64> = of_directions
            .iter()
            .zip(&*self.sizes)
            .map(|(inverse, size)| inverse / f64::from(*size))
            .collect();
        let largest = of_residuals.iter().copied().fold(0.0, f64::max);
        let scale: Vec<f64> = of_residuals
            .iter()
            .map(|inverse| inverse / largest)
            .collect();
        let mut system = vec![0.0; m * (m + 1)];
        for (i, line) in system.chunks_exact_mut(m + 1).enumerate() {
            for (j, entry) in line[..m].iter_mut().enumerate() {
                let product = f64::from(self.products[i * m + j]);
                *entry = product * of_directions[i] * of_directions[j];
            }
            line[i] += if rules.relative {
                rules.regularization
            } else {
                let inverse = of_residuals[i].min(1e18);
                inverse * inverse * rules.regularization + 1.0 - f64::from(self.valid[i])
            };
            line[m] = scale[i];
        }
        let solution = solve(&mut system, m);
        let solution: Vec<f64> = solution.iter().zip(&scale).map(|(x, s)| x * s).collect();
        let sum: f64 = solution.iter().sum();
        let weights: Vec<f64> = solution.iter().map(|x| x / sum).collect();
        // False for a NaN.
        if weights.iter().map(|w| w.abs()).sum::<f64>() <= rules.max_weight {
            return weights.into_iter().map(|w| w as f32).collect();
        }
        self.valid.fill(0.0);
        self.valid[slot] = 1.0;
        (0..m).map(|i| f32::from(u8::from(i == slot))).collect()
    }
}

/// Gauss-Jordan elimination without pivoting of `[A | b]`, for a positive definite `A`.
fn solve(system: &mut [f64], m: usize) -> Vec<f64> {
    for i in 0..m {
        let pivot = system[i * (m + 1) + i];
        for j in i..=m {
            system[i * (m + 1) + j] /= pivot;
        }
        for k in (0..m).filter(|&k| k != i) {
            let factor = system[k * (m + 1) + i];
            for j in i..=m {
                system[k * (m + 1) + j] -= factor * system[i * (m + 1) + j];
            }
        }
    }
    system.chunks_exact(m + 1).map(|line| line[m]).collect()
}
