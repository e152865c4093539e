//! Relative positional attention and its transposed Jacobian, head by head, so that scores never
//! leave the cache.

use super::dispatch;
use super::gemm::{Lines, product};
use super::softmax::{exponentials, largest};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// What attention reads besides queries, keys and values of the segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constants<'a> {
    pub(crate) heads: usize,
    pub(crate) d_head: usize,
    /// Positions of the segment.
    pub(crate) time: usize,
    /// Positions of memory and segment.
    pub(crate) keys: usize,
    /// `[heads, d_head]`
    pub(crate) content_bias: &'a [f32],
    /// `[heads, d_head]`
    pub(crate) position_bias: &'a [f32],
    /// Keys, then values of the memory, `[batch, memory, 2, heads, d_head]`; empty without one.
    pub(crate) memory: &'a [f32],
    /// Embedded distances `keys - 1, ..., 0`, `[keys, heads, d_head]`.
    pub(crate) distances: &'a [f32],
    /// Added to scores, `[time, keys]`.
    pub(crate) mask: &'a [f32],
    /// Multiplies probabilities, `[batch, heads, time, keys]`; empty without dropout.
    pub(crate) dropout: &'a [f32],
}

impl<'a> Constants<'a> {
    fn width(&self) -> usize {
        self.heads * self.d_head
    }

    fn past(&self) -> usize {
        self.keys - self.time
    }

    fn scale(&self) -> f32 {
        (self.d_head as f32).sqrt().recip()
    }

    /// One of query, key and value of the segment, by position.
    fn segment(
        &self,
        qkv: &'a [f32],
        [batch, head]: [usize; 2],
        part: usize,
    ) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        let Self { d_head, time, .. } = *self;
        let width = self.width();
        (0..time).map(move |t| {
            let at = ((batch * time + t) * 3 + part) * width + head * d_head;
            &qkv[at..at + d_head]
        })
    }

    /// Keys (0) or values (1) of memory and segment, by position.
    fn all(
        &self,
        qkv: &'a [f32],
        [batch, head]: [usize; 2],
        part: usize,
    ) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        let Self {
            d_head,
            time,
            keys,
            memory,
            ..
        } = *self;
        let (width, past) = (self.width(), self.past());
        (0..keys).map(move |key| {
            let (from, at) = if key < past {
                (memory, ((batch * past + key) * 2 + part) * width)
            } else {
                let t = key - past;
                (qkv, ((batch * time + t) * 3 + 1 + part) * width)
            };
            &from[at + head * d_head..][..d_head]
        })
    }

    /// The distances as one head sees them, by position.
    fn distances(&self, head: usize) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        let Self {
            d_head,
            keys,
            distances,
            ..
        } = *self;
        let width = self.width();
        (0..keys).map(move |key| &distances[key * width + head * d_head..][..d_head])
    }

    fn dropout_of(&self, [batch, head]: [usize; 2]) -> &'a [f32] {
        if self.dropout.is_empty() {
            return &[];
        }
        let length = self.time * self.keys;
        &self.dropout[(batch * self.heads + head) * length..][..length]
    }

    fn bias(&self, biases: &'a [f32], head: usize) -> &'a [f32] {
        &biases[head * self.d_head..][..self.d_head]
    }
}

/// Attention at a point: `[batch, time, heads * d_head]`, and the probabilities before dropout,
/// `[batch, heads, time, keys]`, if they are kept.
pub(crate) fn attend(qkv: &[f32], constants: Constants<'_>, keep: bool) -> (Vec<f32>, Vec<f32>) {
    let Constants {
        heads,
        d_head,
        time,
        keys,
        ..
    } = constants;
    let batch = qkv.len() / (3 * time * constants.width());
    let mut mixed = vec![0.0; batch * heads * time * d_head];
    let mut probabilities = vec![0.0; if keep { batch * heads * time * keys } else { 0 }];
    let kept: Vec<&mut [f32]> = if keep {
        probabilities.chunks_mut(time * keys).collect()
    } else {
        (0..batch * heads)
            .map(|_| <&mut [f32]>::default())
            .collect()
    };
    mixed
        .par_chunks_mut(time * d_head)
        .zip(kept)
        .enumerate()
        .for_each(|(index, (mixed, kept))| {
            dispatch(Attend {
                qkv,
                constants,
                at: [index / heads, index % heads],
                mixed,
                kept,
            });
        });
    (merge(&mixed, constants, 1), probabilities)
}

/// `[batch, heads, time, parts, d_head]` to `[batch, time, parts, heads, d_head]`.
fn merge(x: &[f32], constants: Constants<'_>, parts: usize) -> Vec<f32> {
    let Constants {
        heads,
        d_head,
        time,
        ..
    } = constants;
    let mut merged = vec![0.0; x.len()];
    for (row, to) in merged.chunks_exact_mut(d_head).enumerate() {
        let (head, rest) = (row % heads, row / heads);
        let (part, rest) = (rest % parts, rest / parts);
        let (t, batch) = (rest % time, rest / time);
        let from = ((batch * heads + head) * time + t) * parts + part;
        to.copy_from_slice(&x[from * d_head..][..d_head]);
    }
    merged
}

struct Attend<'a> {
    qkv: &'a [f32],
    constants: Constants<'a>,
    at: [usize; 2],
    mixed: &'a mut [f32],
    kept: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            qkv, constants, at, ..
        } = self;
        let Constants {
            d_head,
            time,
            keys,
            mask,
            ..
        } = constants;
        let scale = constants.scale();
        let query: Vec<&[f32]> = constants.segment(qkv, at, 0).collect();
        let content = constants.bias(constants.content_bias, at[1]);
        let position = constants.bias(constants.position_bias, at[1]);
        let key = Lines::transposed(simd, d_head, constants.all(qkv, at, 0));
        let distances = Lines::transposed(simd, d_head, constants.distances(at[1]));
        let mut scores = Lines::zeros(simd, time, keys);
        let mut by_distance = Lines::zeros(simd, time, keys);
        let entry = |i: usize, k: usize| (query[i][k] + content[k]) * scale;
        product(simd, time, entry, &key, &mut scores);
        let entry = |i: usize, k: usize| (query[i][k] + position[k]) * scale;
        product(simd, time, entry, &distances, &mut by_distance);
        let length = scores.length;
        let rows = scores
            .values
            .chunks_exact_mut(length)
            .zip(mask.chunks_exact(keys));
        for (i, (row, mask)) in rows.enumerate() {
            // Scores by distance move left; what would wrap around belongs to keys in the future.
            let seen = i + 1 + constants.past();
            let shift = keys - seen;
            for (score, by_distance) in row[..seen].iter_mut().zip(&by_distance.row(i)[shift..]) {
                *score += by_distance;
            }
            softmax(&mut row[..keys], mask);
        }
        for (kept, row) in self
            .kept
            .chunks_exact_mut(keys)
            .zip(scores.values.chunks(length))
        {
            kept.copy_from_slice(&row[..keys]);
        }
        let dropout = constants.dropout_of(at).chunks_exact(keys);
        for (row, dropout) in scores.values.chunks_exact_mut(length).zip(dropout) {
            for (weight, dropout) in row.iter_mut().zip(dropout) {
                *weight *= dropout;
            }
        }
        let value = Lines::copied(simd, d_head, constants.all(qkv, at, 1));
        let mut mixed = Lines::zeros(simd, time, d_head);
        let entry = |i: usize, k: usize| scores.values[i * length + k];
        product(simd, time, entry, &value, &mut mixed);
        for (to, from) in self
            .mixed
            .chunks_exact_mut(d_head)
            .zip(mixed.values.chunks(mixed.length))
        {
            to.copy_from_slice(&from[..d_head]);
        }
    }
}

/// `softmax(x + mask)` in place.
#[inline(always)]
fn softmax(x: &mut [f32], mask: &[f32]) {
    for (x, mask) in x.iter_mut().zip(mask) {
        *x += mask;
    }
    let largest = largest(x);
    let inverse = exponentials(x, largest).recip();
    for x in x {
        *x *= inverse;
    }
}

/// The cotangent of queries, keys and values of the segment, `[batch, time, 3 heads d_head]`, from
/// that of the output, `[batch, time, heads d_head]`, at a point with these probabilities.
pub(crate) fn carry(
    g: &[f32],
    qkv: &[f32],
    probabilities: &[f32],
    constants: Constants<'_>,
) -> Vec<f32> {
    let Constants {
        heads,
        d_head,
        time,
        keys,
        ..
    } = constants;
    let mut out = vec![0.0; 3 * g.len()];
    out.par_chunks_mut(3 * time * d_head)
        .zip(probabilities.par_chunks(time * keys))
        .enumerate()
        .for_each(|(index, (out, probabilities))| {
            dispatch(Carry {
                g,
                qkv,
                probabilities,
                constants,
                at: [index / heads, index % heads],
                out,
            });
        });
    merge(&out, constants, 3)
}

struct Carry<'a> {
    g: &'a [f32],
    qkv: &'a [f32],
    probabilities: &'a [f32],
    constants: Constants<'a>,
    at: [usize; 2],
    /// `[time, 3, d_head]`
    out: &'a mut [f32],
}

impl WithSimd for Carry<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            qkv,
            probabilities,
            constants,
            at,
            ..
        } = self;
        let Constants {
            d_head, time, keys, ..
        } = constants;
        let (past, width) = (constants.past(), constants.width());
        let scale = constants.scale();
        let g = Lines::copied(
            simd,
            d_head,
            (0..time).map(|t| {
                let from = (at[0] * time + t) * width + at[1] * d_head;
                &self.g[from..from + d_head]
            }),
        );
        let value = Lines::transposed(simd, d_head, constants.all(qkv, at, 1));
        let mut g_scores = Lines::zeros(simd, time, keys);
        let length = g_scores.length;
        let entry = |i: usize, k: usize| g.row(i)[k];
        product(simd, time, entry, &value, &mut g_scores);
        let dropout = constants.dropout_of(at);
        let weight = |i: usize, key: usize| match dropout.is_empty() {
            true => probabilities[i * keys + key],
            false => probabilities[i * keys + key] * dropout[i * keys + key],
        };
        let mut g_value = Lines::zeros(simd, time, d_head);
        product(simd, time, |j, t| weight(t, past + j), &g, &mut g_value);

        let rows = g_scores.values.chunks_exact_mut(length);
        for (i, (g, p)) in rows.zip(probabilities.chunks_exact(keys)).enumerate() {
            if !dropout.is_empty() {
                for (g, dropout) in g.iter_mut().zip(&dropout[i * keys..]) {
                    *g *= dropout;
                }
            }
            // The Jacobian of the softmax is symmetric: p (g - p . g).
            let along = super::reduce::dot(simd, p, &g[..keys]);
            for (g, p) in g.iter_mut().zip(p) {
                *g = p * (*g - along);
            }
        }
        let score = |i: usize, key: usize| g_scores.values[i * length + key];
        let content = constants.bias(constants.content_bias, at[1]);
        let mut query = Lines::copied(simd, d_head, constants.segment(qkv, at, 0));
        let line = query.length;
        for query in query.values.chunks_exact_mut(line) {
            for (query, bias) in query.iter_mut().zip(content) {
                *query = (*query + bias) * scale;
            }
        }
        let mut g_key = Lines::zeros(simd, time, d_head);
        product(simd, time, |j, t| score(t, past + j), &query, &mut g_key);
        let key = Lines::copied(simd, d_head, constants.all(qkv, at, 0));
        let mut g_query = Lines::zeros(simd, time, d_head);
        product(simd, time, score, &key, &mut g_query);
        let distances = Lines::copied(simd, d_head, constants.distances(at[1]));
        let unshifted = |i: usize, c: usize| {
            let shift = time - 1 - i;
            if c < shift { 0.0 } else { score(i, c - shift) }
        };
        product(simd, time, unshifted, &distances, &mut g_query);
        for (t, out) in self.out.chunks_exact_mut(3 * d_head).enumerate() {
            let parts: [Range<usize>; 3] = std::array::from_fn(|p| p * d_head..(p + 1) * d_head);
            for (to, from) in out[parts[0].clone()].iter_mut().zip(g_query.row(t)) {
                *to = from * scale;
            }
            out[parts[1].clone()].copy_from_slice(&g_key.row(t)[..d_head]);
            out[parts[2].clone()].copy_from_slice(&g_value.row(t)[..d_head]);
        }
    }
}
