//! Normalisation of rows to mean 0 and variance 1, its Jacobian, and what differentiates both.
//!
//! A row is read from memory once: what is written first is worked on in place, in the cache.

use super::pointwise::close;
use super::reduce::{dot, sum, sum_pairs};
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
    /// Scale or shift of the channels of a row.
    fn channels(&self, values: Option<&'a [f32]>, row: usize) -> Option<&'a [f32]> {
        let count = self.size / self.plane;
        values.map(|values| &values[row % self.cycle * count..][..count])
    }

    fn of<'b>(&self, values: &'b [f32], row: usize) -> &'b [f32] {
        &values[row * self.size..][..self.size]
    }

    fn maybe_of<'b>(&self, values: Option<&'b [f32]>, row: usize) -> Option<&'b [f32]> {
        values.map(|values| self.of(values, row))
    }

    /// What `each` makes of the number of every row, the row of `a`, and that of `b` if there is
    /// one.
    fn map<T: Send>(
        &self,
        a: &mut [f32],
        b: Option<&mut [f32]>,
        each: impl Fn(usize, &mut [f32], Option<&mut [f32]>) -> T + Sync + Send,
    ) -> Vec<T> {
        let least = rows_per_task(self.size);
        let a = a.par_chunks_mut(self.size);
        match b {
            Some(b) => (a, b.par_chunks_mut(self.size))
                .into_par_iter()
                .with_min_len(least)
                .enumerate()
                .map(|(row, (a, b))| each(row, a, Some(b)))
                .collect(),
            None => a
                .with_min_len(least)
                .enumerate()
                .map(|(row, a)| each(row, a, None))
                .collect(),
        }
    }
}

/// `value = scale n + shift + after` with `n = (x + before - mean) / sqrt(variance + epsilon)`,
/// then its ReLU if wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalization<'a> {
    /// Where the numbers are, if not in the place of the result.
    pub(crate) x: Option<&'a [f32]>,
    pub(crate) before: Option<&'a [f32]>,
    pub(crate) after: Option<&'a [f32]>,
    pub(crate) rows: Rows<'a>,
    pub(crate) epsilon: f32,
    pub(crate) relu: bool,
}

impl Normalization<'_> {
    /// Writes the value to `value`, if it is given, and `n` to `result`; else the value to
    /// `result`. The answer is `1 / sqrt(variance + epsilon)` of every row.
    pub(crate) fn run(&self, result: &mut [f32], value: Option<&mut [f32]>) -> Vec<f32> {
        let rows = &self.rows;
        rows.map(result, value, |row, result, value| {
            dispatch(NormalizeRow {
                x: rows.maybe_of(self.x, row),
                before: rows.maybe_of(self.before, row),
                after: rows.maybe_of(self.after, row),
                result,
                value,
                plane: rows.plane,
                scale: rows.channels(rows.scale, row),
                shift: rows.channels(rows.shift, row),
                epsilon: self.epsilon,
                relu: self.relu,
            })
        })
    }
}

struct NormalizeRow<'a> {
    x: Option<&'a [f32]>,
    before: Option<&'a [f32]>,
    after: Option<&'a [f32]>,
    result: &'a mut [f32],
    value: Option<&'a mut [f32]>,
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
        load(self.result, self.x);
        if let Some(before) = self.before {
            for (to, before) in self.result.iter_mut().zip(before) {
                *to += before;
            }
        }
        let (mean, inverse) = moments(simd, self.result, self.epsilon);
        // Without scale and shift a row is one channel.
        let plane = if self.scale.is_some() || self.shift.is_some() {
            self.plane
        } else {
            self.result.len()
        };
        let affine = |channel: usize| {
            let scale = self.scale.map_or(inverse, |scale| scale[channel] * inverse);
            (scale, self.shift.map_or(0.0, |shift| shift[channel]))
        };
        let value = match self.value {
            Some(value) => {
                let normed = self.result.chunks_mut(plane);
                for (channel, (to, normed)) in value.chunks_mut(plane).zip(normed).enumerate() {
                    let (scale, shift) = affine(channel);
                    for (to, normed) in to.iter_mut().zip(normed) {
                        let centered = *normed - mean;
                        *normed = centered * inverse;
                        *to = centered * scale + shift;
                    }
                }
                value
            }
            None => {
                for (channel, to) in self.result.chunks_mut(plane).enumerate() {
                    let (scale, shift) = affine(channel);
                    for to in to {
                        *to = (*to - mean) * scale + shift;
                    }
                }
                self.result
            }
        };
        // Not `max`, which would turn a NaN into 0.
        let relu = |x: f32| if x < 0.0 { 0.0 } else { x };
        match (self.after, self.relu) {
            (Some(after), true) => {
                for (to, after) in value.iter_mut().zip(after) {
                    *to = relu(*to + after);
                }
            }
            (Some(after), false) => {
                for (to, after) in value.iter_mut().zip(after) {
                    *to += after;
                }
            }
            (None, true) => {
                for to in value {
                    *to = relu(*to);
                }
            }
            (None, false) => {}
        }
        inverse
    }
}

/// Fills a row with other numbers, if there are any.
#[inline(always)]
fn load(row: &mut [f32], from: Option<&[f32]>) {
    if let Some(from) = from {
        row.copy_from_slice(from);
    }
}

/// `mean(x)` and `1 / sqrt(variance(x) + epsilon)`
#[inline(always)]
fn moments<S: Simd>(simd: S, x: &[f32], epsilon: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(simd, x) / count;
    let means = simd.splat_f32s(mean);
    // Zeros behind the end are no deviations, so the squares are those of whole vectors and of the
    // rest one by one.
    let (vectors, rest) = S::as_simd_f32s(x);
    let mut squares = [simd.splat_f32s(0.0); 4];
    for (i, x) in vectors.iter().enumerate() {
        let x = simd.sub_f32s(*x, means);
        squares[i % 4] = simd.mul_add_e_f32s(x, x, squares[i % 4]);
    }
    let [a, b, c, d] = squares;
    let squares = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
    let rest: f32 = rest.iter().map(|x| (x - mean) * (x - mean)).sum();
    let variance = (simd.reduce_sum_f32s(squares) + rest) / count;
    (mean, (variance + epsilon).sqrt().recip())
}

/// Through gate and scale, which commute.
#[inline(always)]
fn through(row: &mut [f32], gate: Option<&[f32]>, scale: Option<&[f32]>, plane: usize) {
    if let Some(gate) = gate {
        close(row, gate);
    }
    if let Some(scale) = scale {
        for (row, scale) in row.chunks_mut(plane).zip(scale) {
            for x in row {
                *x *= scale;
            }
        }
    }
}

/// A product with the Jacobian of a normalisation, or with its transpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Scale and gate come last.
    Forward,
    /// Scale and gate come first.
    Transposed,
}

/// `(d - mean(d) - n mean(n d)) / deviation` per row, with the normalised `n`, and scale and gate
/// where the direction wants them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carry<'a> {
    /// Where the numbers are, if not in the place of the result.
    pub(crate) d: Option<&'a [f32]>,
    pub(crate) normed: &'a [f32],
    pub(crate) inverse_deviations: &'a [f32],
    /// Open where above 0.
    pub(crate) gate: Option<&'a [f32]>,
    pub(crate) rows: Rows<'a>,
    pub(crate) direction: Direction,
}

impl Carry<'_> {
    pub(crate) fn run(&self, result: &mut [f32]) {
        let rows = &self.rows;
        result
            .par_chunks_mut(rows.size)
            .with_min_len(rows_per_task(rows.size))
            .enumerate()
            .for_each(|(row, result)| {
                dispatch(CarryRow {
                    d: rows.maybe_of(self.d, row),
                    normed: rows.of(self.normed, row),
                    inverse: self.inverse_deviations[row],
                    gate: rows.maybe_of(self.gate, row),
                    result,
                    plane: rows.plane,
                    scale: rows.channels(rows.scale, row),
                    direction: self.direction,
                });
            });
    }
}

struct CarryRow<'a> {
    d: Option<&'a [f32]>,
    normed: &'a [f32],
    inverse: f32,
    gate: Option<&'a [f32]>,
    result: &'a mut [f32],
    plane: usize,
    scale: Option<&'a [f32]>,
    direction: Direction,
}

impl WithSimd for CarryRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let count = self.result.len() as f32;
        load(self.result, self.d);
        if self.direction == Direction::Transposed {
            through(self.result, self.gate, self.scale, self.plane);
        }
        let mean = sum(simd, self.result) / count;
        let along = dot(simd, self.result, self.normed) / count;
        for (x, normed) in self.result.iter_mut().zip(self.normed) {
            *x = (*x - mean - normed * along) * self.inverse;
        }
        if self.direction == Direction::Forward {
            through(self.result, self.gate, self.scale, self.plane);
        }
    }
}

/// The product of the Jacobian at `x` with `d`, then through scale and gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tangent<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) d: &'a [f32],
    /// Open where above 0.
    pub(crate) gate: Option<&'a [f32]>,
    pub(crate) rows: Rows<'a>,
    pub(crate) epsilon: f32,
}

impl Tangent<'_> {
    /// Writes the product to `result`, and to `apart` as it is before scale and gate.
    pub(crate) fn run(&self, result: &mut [f32], apart: Option<&mut [f32]>) {
        let rows = &self.rows;
        rows.map(result, apart, |row, result, apart| {
            dispatch(TangentRow {
                x: rows.of(self.x, row),
                d: rows.of(self.d, row),
                gate: rows.maybe_of(self.gate, row),
                result,
                apart,
                plane: rows.plane,
                scale: rows.channels(rows.scale, row),
                epsilon: self.epsilon,
            });
        });
    }

    /// Writes the cotangent of `x` to `to_x` and that of `d` to `to_d`, for the cotangent `h` of
    /// the product, which lies in the place of `to_d` if it is not given.
    pub(crate) fn carry(&self, h: Option<&[f32]>, to_x: &mut [f32], to_d: &mut [f32]) {
        let rows = &self.rows;
        let least = rows_per_task(rows.size);
        (
            to_x.par_chunks_mut(rows.size),
            to_d.par_chunks_mut(rows.size),
        )
            .into_par_iter()
            .with_min_len(least)
            .enumerate()
            .for_each(|(row, (to_x, to_d))| {
                dispatch(TangentBackRow {
                    x: rows.of(self.x, row),
                    d: rows.of(self.d, row),
                    h: rows.maybe_of(h, row),
                    gate: rows.maybe_of(self.gate, row),
                    to_x,
                    to_d,
                    plane: rows.plane,
                    scale: rows.channels(rows.scale, row),
                    epsilon: self.epsilon,
                });
            });
    }
}

struct TangentRow<'a> {
    x: &'a [f32],
    d: &'a [f32],
    gate: Option<&'a [f32]>,
    result: &'a mut [f32],
    apart: Option<&'a mut [f32]>,
    plane: usize,
    scale: Option<&'a [f32]>,
    epsilon: f32,
}

impl WithSimd for TangentRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let count = self.x.len() as f32;
        let (mean, inverse) = moments(simd, self.x, self.epsilon);
        let mean_d = sum(simd, self.d) / count;
        let along = centered_dot(simd, self.x, mean, self.d) * inverse / count;
        for ((to, x), d) in self.result.iter_mut().zip(self.x).zip(self.d) {
            let normed = (x - mean) * inverse;
            *to = (d - mean_d - normed * along) * inverse;
        }
        if let Some(apart) = self.apart {
            apart.copy_from_slice(self.result);
        }
        through(self.result, self.gate, self.scale, self.plane);
    }
}

/// `(x - mean) . d`
#[inline(always)]
fn centered_dot<S: Simd>(simd: S, x: &[f32], mean: f32, d: &[f32]) -> f32 {
    let means = simd.splat_f32s(mean);
    sum_pairs(simd, x, d, |sum, x, d| {
        simd.mul_add_e_f32s(simd.sub_f32s(x, means), d, sum)
    })
}

struct TangentBackRow<'a> {
    x: &'a [f32],
    d: &'a [f32],
    h: Option<&'a [f32]>,
    gate: Option<&'a [f32]>,
    to_x: &'a mut [f32],
    to_d: &'a mut [f32],
    plane: usize,
    scale: Option<&'a [f32]>,
    epsilon: f32,
}

impl WithSimd for TangentBackRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let count = self.x.len() as f32;
        load(self.to_d, self.h);
        through(self.to_d, self.gate, self.scale, self.plane);
        let (mean, inverse) = moments(simd, self.x, self.epsilon);
        let mean_d = sum(simd, self.d) / count;
        let mean_g = sum(simd, self.to_d) / count;
        let d_along = centered_dot(simd, self.x, mean, self.d) * inverse / count;
        let g_along = centered_dot(simd, self.x, mean, self.to_d) * inverse / count;
        let places = self.to_x.iter_mut().zip(self.to_d.iter_mut());
        for ((to_x, to_d), (x, d)) in places.zip(self.x.iter().zip(self.d)) {
            let normed = (x - mean) * inverse;
            *to_x = d - mean_d - normed * d_along;
            *to_d = *to_d - mean_g - normed * g_along;
        }
        let rest = d_along * g_along * self.epsilon * inverse * inverse;
        let together = dot(simd, self.to_x, self.to_d) / count + rest;
        for ((to_x, to_d), x) in self.to_x.iter_mut().zip(self.to_d).zip(self.x) {
            let normed = (x - mean) * inverse;
            let along = d_along * *to_d + g_along * *to_x + together * normed;
            *to_x = -along * inverse * inverse;
            *to_d *= inverse;
        }
    }
}

/// The sums of `g n` and of `g` by channel, over samples and pixels, where the gate is open if
/// there is one; of maps with so many samples, channels and pixels.
pub(crate) fn affine_gradients(
    g: &[f32],
    normed: &[f32],
    gate: Option<&[f32]>,
    [batch, channels, plane]: [usize; 3],
) -> (Vec<f32>, Vec<f32>) {
    (0..channels)
        .into_par_iter()
        .with_min_len(rows_per_task(batch * plane))
        .map(|channel| {
            dispatch(ChannelSums {
                g,
                normed,
                gate,
                first: channel * plane,
                step: channels * plane,
                plane,
            })
        })
        .unzip()
}

struct ChannelSums<'a> {
    g: &'a [f32],
    normed: &'a [f32],
    gate: Option<&'a [f32]>,
    /// Where the channel of the first sample begins.
    first: usize,
    /// From one sample to the next.
    step: usize,
    plane: usize,
}

impl WithSimd for ChannelSums<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
        let mut open = vec![0.0; if self.gate.is_some() { self.plane } else { 0 }];
        let (mut of_scale, mut of_shift) = (0.0, 0.0);
        for start in (self.first..self.g.len()).step_by(self.step) {
            let plane = start..start + self.plane;
            let mut g = &self.g[plane.clone()];
            if let Some(gate) = self.gate {
                open.copy_from_slice(g);
                close(&mut open, &gate[plane.clone()]);
                g = &open;
            }
            of_scale += dot(simd, g, &self.normed[plane]);
            of_shift += sum(simd, g);
        }
        (of_scale, of_shift)
    }
}
