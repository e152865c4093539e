//! Normalisation in groups with its Jacobian, one cube of units for every group of a sample.

use super::maps::{Maps, Steps};
use super::{MOST_CUBES, UNITS, like, sum};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, TensorMetadata, backend_extension};
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// Units of a cube for long rows, where the device grants so many.
const MANY_UNITS: u32 = 1024;

/// The numbers of a row from which `MANY_UNITS` share it.
const LONG_ROW: usize = 8 * MANY_UNITS as usize;

/// Maps, and what is added before and after the norm; where nothing is, any of the others.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Normed<B: Backend> {
    pub(crate) x: FloatTensor<B>,
    pub(crate) before: FloatTensor<B>,
    pub(crate) after: FloatTensor<B>,
    pub(crate) scale: FloatTensor<B>,
    pub(crate) shift: FloatTensor<B>,
}

/// What an application of a norm reads and writes.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct NormRules {
    pub(crate) before: bool,
    pub(crate) after: bool,
    pub(crate) affine: bool,
    pub(crate) relu: bool,
    /// Whether the normalised maps are written beside the value.
    pub(crate) apart: bool,
}

/// Maps, the normalised ones of the point, and what they are scaled and gated by; where they are
/// not, any of the others.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Carried<B: Backend> {
    pub(crate) d: FloatTensor<B>,
    pub(crate) normed: FloatTensor<B>,
    pub(crate) inverse_deviation: FloatTensor<B>,
    pub(crate) scale: FloatTensor<B>,
    pub(crate) gate: FloatTensor<B>,
}

/// What a product with the Jacobian reads.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct CarryRules {
    pub(crate) transposed: bool,
    pub(crate) affine: bool,
    pub(crate) gated: bool,
}

/// A point, a direction, and what the product is scaled and gated by; where it is not, any of the
/// others.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Moved<B: Backend> {
    pub(crate) x: FloatTensor<B>,
    pub(crate) d: FloatTensor<B>,
    pub(crate) scale: FloatTensor<B>,
    pub(crate) gate: FloatTensor<B>,
}

#[backend_extension(Cube, Fusion)]
pub(crate) trait NormBackend: Backend {
    /// The value, the normalised maps (one number if they are not apart), and the inverse
    /// deviations `[batch, groups, 1]`.
    #[fusion(meta = |parts, groups, _, rules| normed_specs(&parts.x, *groups, *rules))]
    fn normalize(
        #[extension_type] parts: Normed<Self>,
        groups: usize,
        epsilon: f32,
        rules: NormRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |parts, _| parts.d.clone())]
    fn carry_norm(#[extension_type] parts: Carried<Self>, rules: CarryRules) -> FloatTensor<Self>;

    /// The product of the Jacobian at `x` with `d`, and the same before it is scaled and gated.
    #[fusion(meta = |parts, _, _, _| (parts.x.clone(), parts.x.clone()))]
    fn norm_tangent(
        #[extension_type] parts: Moved<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The cotangents of `x` and `d` for that of the first output of
    /// [`norm_tangent`](Self::norm_tangent).
    #[fusion(meta = |parts, _, _, _, _| (parts.x.clone(), parts.x.clone()))]
    fn carry_norm_tangent(
        #[extension_type] parts: Moved<Self>,
        h: FloatTensor<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The sums over samples and pixels of `g * normed` and of `g`, `[1, channels, 1, 1]`, where
    /// the gate is open if there is one.
    #[fusion(meta = |g, _, _, _| (per_channel(g), per_channel(g)))]
    fn affine_gradients(
        g: FloatTensor<Self>,
        normed: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        gated: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

fn per_channel(maps: &Spec) -> Spec {
    Spec::new(Shape::new([1, maps.shape[1], 1, 1]), maps.dtype)
}

type Spec = burn::backend::fusion::custom::TensorSpec;

fn normed_specs(x: &Spec, groups: usize, rules: NormRules) -> (Spec, Spec, Spec) {
    let normed = match rules.apart {
        true => x.clone(),
        false => Spec::new(Shape::new([1, 1, 1, 1]), x.dtype),
    };
    let deviations = Spec::new(Shape::new([x.shape[0], groups, 1]), x.dtype);
    (x.clone(), normed, deviations)
}

/// How the rows of maps lie and how many units share one.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Rows {
    channels_last: bool,
    units: u32,
}

impl Rows {
    fn of(maps: &Maps, size: usize) -> Self {
        let most = maps.tensor.client.properties().hardware.max_units_per_cube;
        let many = size >= LONG_ROW && most >= MANY_UNITS;
        Self {
            channels_last: maps.channels_last(),
            units: if many { MANY_UNITS } else { UNITS },
        }
    }
}

impl NormBackend for CubeBackend {
    fn normalize(
        parts: Normed<Self>,
        groups: usize,
        epsilon: f32,
        rules: NormRules,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let x = Maps::of(parts.x);
        let shape = x.shape();
        let [batch, channels, height, width] = shape;
        let [before, after] = [(rules.before, parts.before), (rules.after, parts.after)]
            .map(|(is_read, maps)| Maps::of(if is_read { maps } else { x.tensor.clone() }));
        let [scale, shift] = [parts.scale, parts.shift].map(|affine| {
            if rules.affine {
                into_contiguous(affine)
            } else {
                x.tensor.clone()
            }
        });
        let value = x.like(shape);
        let normed = x.like(if rules.apart { shape } else { [1; 4] });
        let inverse_deviation = like(&x.tensor, [batch, groups, 1]);
        let (channels, plane) = (channels / groups, height * width);
        let of = Rows::of(&x, channels * plane);
        normalize_kernel::launch(
            &x.tensor.client.clone(),
            CubeCount::Static((batch * groups).min(MOST_CUBES) as u32, 1, 1),
            CubeDim::new_1d(of.units),
            x.tensor.clone().into_buffer_arg(),
            before.tensor.clone().into_buffer_arg(),
            after.tensor.clone().into_buffer_arg(),
            scale.into_buffer_arg(),
            shift.into_buffer_arg(),
            value.tensor.clone().into_buffer_arg(),
            normed.tensor.clone().into_buffer_arg(),
            inverse_deviation.clone().into_buffer_arg(),
            x.steps(),
            before.steps(),
            after.steps(),
            value.steps(),
            batch * groups,
            groups,
            channels,
            plane,
            epsilon,
            rules,
            of,
        );
        (value.tensor, normed.tensor, inverse_deviation)
    }

    fn carry_norm(parts: Carried<Self>, rules: CarryRules) -> CubeTensor {
        let normed = Maps::of(parts.normed);
        let shape = normed.shape();
        let [batch, channels, height, width] = shape;
        let d = Maps::of(parts.d);
        let gate = Maps::of(if rules.gated {
            parts.gate
        } else {
            d.tensor.clone()
        });
        let scale = if rules.affine {
            into_contiguous(parts.scale)
        } else {
            d.tensor.clone()
        };
        let inverse_deviation = into_contiguous(parts.inverse_deviation);
        let [_, groups, _] = inverse_deviation.shape().dims();
        let out = normed.like(shape);
        let (channels, plane) = (channels / groups, height * width);
        let of = Rows::of(&normed, channels * plane);
        carry_kernel::launch(
            &d.tensor.client.clone(),
            CubeCount::Static((batch * groups).min(MOST_CUBES) as u32, 1, 1),
            CubeDim::new_1d(of.units),
            d.tensor.clone().into_buffer_arg(),
            normed.tensor.clone().into_buffer_arg(),
            inverse_deviation.into_buffer_arg(),
            scale.into_buffer_arg(),
            gate.tensor.clone().into_buffer_arg(),
            out.tensor.clone().into_buffer_arg(),
            d.steps(),
            normed.steps(),
            gate.steps(),
            out.steps(),
            batch * groups,
            groups,
            channels,
            plane,
            rules,
            of,
        );
        out.tensor
    }

    fn norm_tangent(
        parts: Moved<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (CubeTensor, CubeTensor) {
        let moved = Move::of(parts, groups, rules);
        let [out, apart] = [0; 2].map(|_| moved.x.like(moved.x.shape()));
        tangent_kernel::launch(
            &moved.x.tensor.client.clone(),
            moved.cubes(),
            CubeDim::new_1d(moved.of.units),
            moved.x.tensor.clone().into_buffer_arg(),
            moved.d.tensor.clone().into_buffer_arg(),
            moved.scale.clone().into_buffer_arg(),
            moved.gate.tensor.clone().into_buffer_arg(),
            out.tensor.clone().into_buffer_arg(),
            apart.tensor.clone().into_buffer_arg(),
            moved.x.steps(),
            moved.d.steps(),
            moved.gate.steps(),
            out.steps(),
            moved.rows,
            groups,
            moved.channels,
            moved.plane,
            epsilon,
            rules,
            moved.of,
        );
        (out.tensor, apart.tensor)
    }

    fn carry_norm_tangent(
        parts: Moved<Self>,
        h: CubeTensor,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> (CubeTensor, CubeTensor) {
        let moved = Move::of(parts, groups, rules);
        let h = Maps::of(h);
        let [to_x, to_d] = [0; 2].map(|_| moved.x.like(moved.x.shape()));
        tangent_back_kernel::launch(
            &moved.x.tensor.client.clone(),
            moved.cubes(),
            CubeDim::new_1d(moved.of.units),
            moved.x.tensor.clone().into_buffer_arg(),
            moved.d.tensor.clone().into_buffer_arg(),
            h.tensor.clone().into_buffer_arg(),
            moved.scale.clone().into_buffer_arg(),
            moved.gate.tensor.clone().into_buffer_arg(),
            to_x.tensor.clone().into_buffer_arg(),
            to_d.tensor.clone().into_buffer_arg(),
            moved.x.steps(),
            moved.d.steps(),
            h.steps(),
            moved.gate.steps(),
            to_x.steps(),
            moved.rows,
            groups,
            moved.channels,
            moved.plane,
            epsilon,
            rules,
            moved.of,
        );
        (to_x.tensor, to_d.tensor)
    }

    fn affine_gradients(
        g: CubeTensor,
        normed: CubeTensor,
        gate: CubeTensor,
        gated: bool,
    ) -> (CubeTensor, CubeTensor) {
        let [g, normed, gate] = [g, normed, gate].map(Maps::of);
        let [batch, channels, height, width] = g.shape();
        let [to_scale, to_shift] = [0; 2].map(|_| like(&g.tensor, [1, channels, 1, 1]));
        let plane = height * width;
        let of = Rows::of(&g, batch * plane);
        affine_gradients_kernel::launch(
            &g.tensor.client.clone(),
            CubeCount::Static(channels.min(MOST_CUBES) as u32, 1, 1),
            CubeDim::new_1d(of.units),
            g.tensor.clone().into_buffer_arg(),
            normed.tensor.clone().into_buffer_arg(),
            gate.tensor.clone().into_buffer_arg(),
            to_scale.clone().into_buffer_arg(),
            to_shift.clone().into_buffer_arg(),
            g.steps(),
            normed.steps(),
            gate.steps(),
            batch,
            channels,
            plane,
            gated,
            of.units,
        );
        (to_scale, to_shift)
    }
}

/// A [`Moved`] as kernels read it.
struct Move {
    x: Maps,
    d: Maps,
    scale: CubeTensor,
    gate: Maps,
    rows: usize,
    /// Of a group.
    channels: usize,
    plane: usize,
    of: Rows,
}

impl Move {
    fn of(parts: Moved<CubeBackend>, groups: usize, rules: CarryRules) -> Self {
        let [x, d] = [parts.x, parts.d].map(Maps::of);
        let [batch, channels, height, width] = x.shape();
        let (channels, plane) = (channels / groups, height * width);
        Self {
            gate: Maps::of(if rules.gated {
                parts.gate
            } else {
                x.tensor.clone()
            }),
            scale: match rules.affine {
                true => into_contiguous(parts.scale),
                false => x.tensor.clone(),
            },
            rows: batch * groups,
            channels,
            plane,
            of: Rows::of(&x, channels * plane),
            x,
            d,
        }
    }

    fn cubes(&self) -> CubeCount {
        CubeCount::Static(self.rows.min(MOST_CUBES) as u32, 1, 1)
    }
}

/// Where a number of a row lies, of maps whose row begins at `start`.
#[cube]
fn place(
    start: usize,
    i: usize,
    steps: &Steps,
    channels: usize,
    plane: usize,
    #[comptime] of: Rows,
) -> usize {
    let mut channel = i / plane;
    let mut pixel = i % plane;
    if comptime!(of.channels_last) {
        channel = i % channels;
        pixel = i / channels;
    }
    start + channel * steps.channel + pixel * steps.pixel
}

/// The channel of a number of a row, within its group.
#[cube]
fn channel_of(i: usize, channels: usize, plane: usize, #[comptime] of: Rows) -> usize {
    let mut channel = i / plane;
    if comptime!(of.channels_last) {
        channel = i % channels;
    }
    channel
}

#[cube(launch)]
fn normalize_kernel(
    x: &[f32],
    before: &[f32],
    after: &[f32],
    scale: &[f32], // [channels of all groups]
    shift: &[f32], // [channels of all groups]
    value: &mut [f32],
    normed: &mut [f32],
    inverse_deviation: &mut [f32], // [rows]
    of_x: Steps,
    of_before: Steps,
    of_after: Steps,
    of_value: Steps, // and of the normalised maps
    rows: usize,
    groups: usize,
    channels: usize, // of a group
    plane: usize,
    epsilon: f32,
    #[comptime] rules: NormRules,
    #[comptime] of: Rows,
) {
    let size = channels * plane;
    let units = comptime!(of.units as usize);
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let sample = row / groups;
        let first = row % groups * channels;
        let x_start = sample * of_x.sample + first * of_x.channel;
        let before_start = sample * of_before.sample + first * of_before.channel;
        let after_start = sample * of_after.sample + first * of_after.channel;
        let value_start = sample * of_value.sample + first * of_value.channel;

        let mut total = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            total += x[place(x_start, i, &of_x, channels, plane, of)];
            if comptime!(rules.before) {
                total += before[place(before_start, i, &of_before, channels, plane, of)];
            }
            i += units;
        }
        let mean = sum(total, &mut scratch) / size as f32;

        // Around the mean, since a mean may be large beside the deviation.
        let mut squares = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            let mut entry = x[place(x_start, i, &of_x, channels, plane, of)];
            if comptime!(rules.before) {
                entry += before[place(before_start, i, &of_before, channels, plane, of)];
            }
            let centered = entry - mean;
            squares += centered * centered;
            i += units;
        }
        let variance = sum(squares, &mut scratch) / size as f32;
        let inverse = 1.0f32 / (variance + epsilon).sqrt();
        if UNIT_POS == 0 {
            inverse_deviation[row] = inverse;
        }

        let mut i = UNIT_POS as usize;
        while i < size {
            let mut entry = x[place(x_start, i, &of_x, channels, plane, of)];
            if comptime!(rules.before) {
                entry += before[place(before_start, i, &of_before, channels, plane, of)];
            }
            entry = (entry - mean) * inverse;
            let at = place(value_start, i, &of_value, channels, plane, of);
            if comptime!(rules.apart) {
                normed[at] = entry;
            }
            if comptime!(rules.affine) {
                let channel = first + channel_of(i, channels, plane, of);
                entry = entry * scale[channel] + shift[channel];
            }
            if comptime!(rules.after) {
                entry += after[place(after_start, i, &of_after, channels, plane, of)];
            }
            if comptime!(rules.relu) {
                // Not by a maximum, which may drop a NaN.
                if entry < 0.0f32 {
                    entry = 0.0f32;
                }
            }
            value[at] = entry;
            i += units;
        }
        row += CUBE_COUNT_X as usize;
    }
}

#[cube]
fn gated(entry: f32, gate: &[f32], at: usize, #[comptime] rules: CarryRules) -> f32 {
    let mut passed = entry;
    if comptime!(rules.gated) {
        passed = 0.0f32;
        if gate[at] > 0.0f32 {
            passed = entry;
        }
    }
    passed
}

#[cube]
fn scaled(entry: f32, scale: &[f32], channel: usize, #[comptime] rules: CarryRules) -> f32 {
    let mut scaled = entry;
    if comptime!(rules.affine) {
        scaled *= scale[channel];
    }
    scaled
}

#[cube(launch)]
fn carry_kernel(
    d: &[f32],
    normed: &[f32],
    inverse_deviation: &[f32], // [rows]
    scale: &[f32],             // [channels of all groups]
    gate: &[f32],              // open where above 0
    out: &mut [f32],
    of_d: Steps,
    of_normed: Steps,
    of_gate: Steps,
    of_out: Steps,
    rows: usize,
    groups: usize,
    channels: usize, // of a group
    plane: usize,
    #[comptime] rules: CarryRules,
    #[comptime] of: Rows,
) {
    let size = channels * plane;
    let units = comptime!(of.units as usize);
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let sample = row / groups;
        let first = row % groups * channels;
        let d_start = sample * of_d.sample + first * of_d.channel;
        let normed_start = sample * of_normed.sample + first * of_normed.channel;
        let gate_start = sample * of_gate.sample + first * of_gate.channel;
        let out_start = sample * of_out.sample + first * of_out.channel;

        let mut total = 0.0f32;
        let mut along = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            let gate_at = place(gate_start, i, &of_gate, channels, plane, of);
            let channel = first + channel_of(i, channels, plane, of);
            let mut entry = d[place(d_start, i, &of_d, channels, plane, of)];
            if comptime!(rules.transposed) {
                entry = gated(entry, gate, gate_at, rules);
                entry = scaled(entry, scale, channel, rules);
            }
            total += entry;
            along += entry * normed[place(normed_start, i, &of_normed, channels, plane, of)];
            i += units;
        }
        let mean = sum(total, &mut scratch) / size as f32;
        let along = sum(along, &mut scratch) / size as f32;

        let inverse = inverse_deviation[row];
        let mut i = UNIT_POS as usize;
        while i < size {
            let gate_at = place(gate_start, i, &of_gate, channels, plane, of);
            let channel = first + channel_of(i, channels, plane, of);
            let mut entry = d[place(d_start, i, &of_d, channels, plane, of)];
            if comptime!(rules.transposed) {
                entry = gated(entry, gate, gate_at, rules);
                entry = scaled(entry, scale, channel, rules);
            }
            let at_normed = normed[place(normed_start, i, &of_normed, channels, plane, of)];
            let mut carried = (entry - mean - at_normed * along) * inverse;
            if comptime!(!rules.transposed) {
                carried = scaled(carried, scale, channel, rules);
                carried = gated(carried, gate, gate_at, rules);
            }
            out[place(out_start, i, &of_out, channels, plane, of)] = carried;
            i += units;
        }
        row += CUBE_COUNT_X as usize;
    }
}

#[cube(launch)]
fn affine_gradients_kernel(
    g: &[f32],
    normed: &[f32],
    gate: &[f32],         // open where above 0
    to_scale: &mut [f32], // [channels]
    to_shift: &mut [f32], // [channels]
    of_g: Steps,
    of_normed: Steps,
    of_gate: Steps,
    batch: usize,
    channels: usize,
    plane: usize,
    #[comptime] gated: bool,
    #[comptime] units: u32,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(units as usize));
    let mut channel = CUBE_POS_X as usize;
    while channel < channels {
        let mut of_scale = 0.0f32;
        let mut of_shift = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < batch * plane {
            let (sample, pixel) = (i / plane, i % plane);
            let gate_at = sample * of_gate.sample + channel * of_gate.channel;
            let mut entry = g[sample * of_g.sample + channel * of_g.channel + pixel * of_g.pixel];
            if comptime!(gated) {
                if gate[gate_at + pixel * of_gate.pixel] <= 0.0f32 {
                    entry = 0.0f32;
                }
            }
            let normed_at = sample * of_normed.sample + channel * of_normed.channel;
            of_scale += entry * normed[normed_at + pixel * of_normed.pixel];
            of_shift += entry;
            i += comptime!(units as usize);
        }
        let of_scale = sum(of_scale, &mut scratch);
        let of_shift = sum(of_shift, &mut scratch);
        if UNIT_POS == 0 {
            to_scale[channel] = of_scale;
            to_shift[channel] = of_shift;
        }
        channel += CUBE_COUNT_X as usize;
    }
}

/// The product `J(x) d` with the Jacobian of the normalisation, `(d - mean(d) - n mean(n d)) / s`
/// with the normalised `n` and the deviation `s`, then scaled and gated.
#[cube(launch)]
fn tangent_kernel(
    x: &[f32],
    d: &[f32],
    scale: &[f32], // [channels of all groups]
    gate: &[f32],  // open where above 0
    out: &mut [f32],
    apart: &mut [f32], // before scale and gate
    of_x: Steps,
    of_d: Steps,
    of_gate: Steps,
    of_out: Steps, // and of `apart`
    rows: usize,
    groups: usize,
    channels: usize, // of a group
    plane: usize,
    epsilon: f32,
    #[comptime] rules: CarryRules,
    #[comptime] of: Rows,
) {
    let size = channels * plane;
    let units = comptime!(of.units as usize);
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let sample = row / groups;
        let first = row % groups * channels;
        let x_start = sample * of_x.sample + first * of_x.channel;
        let d_start = sample * of_d.sample + first * of_d.channel;
        let gate_start = sample * of_gate.sample + first * of_gate.channel;
        let out_start = sample * of_out.sample + first * of_out.channel;

        let mut total = 0.0f32;
        let mut of_d_total = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            total += x[place(x_start, i, &of_x, channels, plane, of)];
            of_d_total += d[place(d_start, i, &of_d, channels, plane, of)];
            i += units;
        }
        let mean = sum(total, &mut scratch) / size as f32;
        let mean_d = sum(of_d_total, &mut scratch) / size as f32;

        let mut squares = 0.0f32;
        let mut along = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            let centered = x[place(x_start, i, &of_x, channels, plane, of)] - mean;
            squares += centered * centered;
            along += centered * d[place(d_start, i, &of_d, channels, plane, of)];
            i += units;
        }
        let variance = sum(squares, &mut scratch) / size as f32;
        let inverse = 1.0f32 / (variance + epsilon).sqrt();
        let along = sum(along, &mut scratch) * inverse / size as f32;

        let mut i = UNIT_POS as usize;
        while i < size {
            let normed = (x[place(x_start, i, &of_x, channels, plane, of)] - mean) * inverse;
            let entry = d[place(d_start, i, &of_d, channels, plane, of)];
            let carried = (entry - mean_d - normed * along) * inverse;
            let at = place(out_start, i, &of_out, channels, plane, of);
            let gate_at = place(gate_start, i, &of_gate, channels, plane, of);
            let channel = first + channel_of(i, channels, plane, of);
            apart[at] = carried;
            out[at] = gated(scaled(carried, scale, channel, rules), gate, gate_at, rules);
            i += units;
        }
        row += CUBE_COUNT_X as usize;
    }
}

/// The cotangents of `x` and of `d` for the cotangent `h` of [`tangent_kernel`].
///
/// With `g` behind gate and scale, `G = g - mean(g) - n mean(n g)`, `D` likewise of `d`,
/// `c = mean(n d)`, `e = mean(n g)` and `q = mean(G D)`: that of `d` is `G / s`, since the Jacobian
/// is symmetric, and that of `x` is `-(c G + e D + q n) / s^2`.
#[cube(launch)]
fn tangent_back_kernel(
    x: &[f32],
    d: &[f32],
    h: &[f32],
    scale: &[f32], // [channels of all groups]
    gate: &[f32],  // open where above 0
    to_x: &mut [f32],
    to_d: &mut [f32],
    of_x: Steps,
    of_d: Steps,
    of_h: Steps,
    of_gate: Steps,
    of_out: Steps,
    rows: usize,
    groups: usize,
    channels: usize, // of a group
    plane: usize,
    epsilon: f32,
    #[comptime] rules: CarryRules,
    #[comptime] of: Rows,
) {
    let size = channels * plane;
    let units = comptime!(of.units as usize);
    let mut scratch = Shared::<[f32]>::new_slice(units);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let sample = row / groups;
        let first = row % groups * channels;
        let x_start = sample * of_x.sample + first * of_x.channel;
        let d_start = sample * of_d.sample + first * of_d.channel;
        let h_start = sample * of_h.sample + first * of_h.channel;
        let gate_start = sample * of_gate.sample + first * of_gate.channel;
        let out_start = sample * of_out.sample + first * of_out.channel;

        let mut total = 0.0f32;
        let mut of_d_total = 0.0f32;
        let mut of_g_total = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            let gate_at = place(gate_start, i, &of_gate, channels, plane, of);
            let channel = first + channel_of(i, channels, plane, of);
            let passed = gated(
                h[place(h_start, i, &of_h, channels, plane, of)],
                gate,
                gate_at,
                rules,
            );
            total += x[place(x_start, i, &of_x, channels, plane, of)];
            of_d_total += d[place(d_start, i, &of_d, channels, plane, of)];
            of_g_total += scaled(passed, scale, channel, rules);
            i += units;
        }
        let mean = sum(total, &mut scratch) / size as f32;
        let mean_d = sum(of_d_total, &mut scratch) / size as f32;
        let mean_g = sum(of_g_total, &mut scratch) / size as f32;

        let mut squares = 0.0f32;
        let mut d_along = 0.0f32;
        let mut g_along = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            let gate_at = place(gate_start, i, &of_gate, channels, plane, of);
            let channel = first + channel_of(i, channels, plane, of);
            let passed = gated(
                h[place(h_start, i, &of_h, channels, plane, of)],
                gate,
                gate_at,
                rules,
            );
            let centered = x[place(x_start, i, &of_x, channels, plane, of)] - mean;
            squares += centered * centered;
            d_along += centered * d[place(d_start, i, &of_d, channels, plane, of)];
            g_along += centered * scaled(passed, scale, channel, rules);
            i += units;
        }
        let variance = sum(squares, &mut scratch) / size as f32;
        let inverse = 1.0f32 / (variance + epsilon).sqrt();
        let d_along = sum(d_along, &mut scratch) * inverse / size as f32;
        let g_along = sum(g_along, &mut scratch) * inverse / size as f32;

        // The parts across are written first and read again by the same unit.
        let mut together = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            let gate_at = place(gate_start, i, &of_gate, channels, plane, of);
            let channel = first + channel_of(i, channels, plane, of);
            let passed = gated(
                h[place(h_start, i, &of_h, channels, plane, of)],
                gate,
                gate_at,
                rules,
            );
            let normed = (x[place(x_start, i, &of_x, channels, plane, of)] - mean) * inverse;
            let entry = d[place(d_start, i, &of_d, channels, plane, of)];
            let d_across = entry - mean_d - normed * d_along;
            let g_across = scaled(passed, scale, channel, rules) - mean_g - normed * g_along;
            let at = place(out_start, i, &of_out, channels, plane, of);
            to_x[at] = d_along * g_across + g_along * d_across;
            to_d[at] = g_across * inverse;
            together += d_across * g_across;
            i += units;
        }
        let together = sum(together, &mut scratch) / size as f32;
        let mut i = UNIT_POS as usize;
        while i < size {
            let normed = (x[place(x_start, i, &of_x, channels, plane, of)] - mean) * inverse;
            let at = place(out_start, i, &of_out, channels, plane, of);
            to_x[at] = -(to_x[at] + together * normed) * inverse * inverse;
            i += units;
        }
        row += CUBE_COUNT_X as usize;
    }
}
