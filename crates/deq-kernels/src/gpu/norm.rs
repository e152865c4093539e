//! Normalisation in groups with its Jacobian, one cube of units for every group of a sample.

use super::maps::{Maps, Steps};
use super::{UNITS, cube_each, like, sum};
use crate::backend::norm::{Carried, CarryRules, NormBackend, NormRules, Normed};
use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// Units of a cube for long rows, where the device grants so many.
const MANY_UNITS: u32 = 1024;

/// The numbers of a row from which `MANY_UNITS` share it.
const LONG_ROW: usize = 8 * MANY_UNITS as usize;

/// How the rows of maps lie and how many units share one.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) channels_last: bool,
    pub(super) units: u32,
}

impl Rows {
    pub(super) fn of(maps: &Maps, size: usize) -> Self {
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
            cube_each(batch * groups),
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
            cube_each(batch * groups),
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
}

/// The way of a unit through the numbers of a row, without a division for each: along the axis that
/// lies closest in memory in steps of `width`, and along the other in steps of `height`.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Walk {
    pub(super) minor: usize,
    pub(super) minors: usize,
    pub(super) width: usize,
    pub(super) major: usize,
    pub(super) majors: usize,
    pub(super) height: usize,
}

#[cube]
pub(super) fn walk(channels: usize, plane: usize, #[comptime] of: Rows) -> Walk {
    let units = comptime!(of.units as usize);
    let mut minors = plane;
    let mut majors = channels;
    if comptime!(of.channels_last) {
        minors = channels;
        majors = plane;
    }
    let width = min(minors, units);
    let height = units / width;
    let mut minor = UNIT_POS as usize % width;
    let major = UNIT_POS as usize / width;
    // Units beyond the last whole line have none.
    if major >= height {
        minor = minors;
    }
    Walk {
        minor,
        minors,
        width,
        major,
        majors,
        height,
    }
}

/// Where a number of a row lies, of maps whose row begins at `start`.
#[cube]
pub(super) fn place(
    start: usize,
    minor: usize,
    major: usize,
    steps: &Steps,
    #[comptime] of: Rows,
) -> usize {
    let mut at = start + minor * steps.pixel + major * steps.channel;
    if comptime!(of.channels_last) {
        at = start + minor * steps.channel + major * steps.pixel;
    }
    at
}

/// The channel of a number of a row, within its group.
#[cube]
pub(super) fn channel_of(minor: usize, major: usize, #[comptime] of: Rows) -> usize {
    let mut channel = major;
    if comptime!(of.channels_last) {
        channel = minor;
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
    let walk = walk(channels, plane, of);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let sample = row / groups;
        let first = row % groups * channels;
        let x_start = sample * of_x.sample + first * of_x.channel;
        let before_start = sample * of_before.sample + first * of_before.channel;
        let after_start = sample * of_after.sample + first * of_after.channel;
        let value_start = sample * of_value.sample + first * of_value.channel;

        let mut total = 0.0f32;
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                total += x[place(x_start, minor, major, &of_x, of)];
                if comptime!(rules.before) {
                    total += before[place(before_start, minor, major, &of_before, of)];
                }
                major += walk.height;
            }
            minor += walk.width;
        }
        let mean = sum(total, &mut scratch) / size as f32;

        // Around the mean, since a mean may be large beside the deviation.
        let mut squares = 0.0f32;
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let mut entry = x[place(x_start, minor, major, &of_x, of)];
                if comptime!(rules.before) {
                    entry += before[place(before_start, minor, major, &of_before, of)];
                }
                let centered = entry - mean;
                squares += centered * centered;
                major += walk.height;
            }
            minor += walk.width;
        }
        let variance = sum(squares, &mut scratch) / size as f32;
        let inverse = 1.0f32 / (variance + epsilon).sqrt();
        if UNIT_POS == 0 {
            inverse_deviation[row] = inverse;
        }

        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let mut entry = x[place(x_start, minor, major, &of_x, of)];
                if comptime!(rules.before) {
                    entry += before[place(before_start, minor, major, &of_before, of)];
                }
                entry = (entry - mean) * inverse;
                let at = place(value_start, minor, major, &of_value, of);
                if comptime!(rules.apart) {
                    normed[at] = entry;
                }
                if comptime!(rules.affine) {
                    let channel = first + channel_of(minor, major, of);
                    entry = entry * scale[channel] + shift[channel];
                }
                if comptime!(rules.after) {
                    entry += after[place(after_start, minor, major, &of_after, of)];
                }
                if comptime!(rules.relu) {
                    // Not by a maximum, which may drop a NaN.
                    if entry < 0.0f32 {
                        entry = 0.0f32;
                    }
                }
                value[at] = entry;
                major += walk.height;
            }
            minor += walk.width;
        }
        row += CUBE_COUNT_X as usize;
    }
}

#[cube]
pub(super) fn gated(entry: f32, gate: &[f32], at: usize, #[comptime] rules: CarryRules) -> f32 {
    let mut passed = entry;
    if comptime!(rules.gated) {
        passed = 0.0f32;
        if gate[at] > 0.0f32 {
            passed = entry;
        }
    }
    passed
}

/// Through gate and scale, which commute.
#[cube]
pub(super) fn through(
    entry: f32,
    gate: &[f32],
    gate_at: usize,
    scale: &[f32],
    channel: usize,
    #[comptime] rules: CarryRules,
) -> f32 {
    let mut passed = gated(entry, gate, gate_at, rules);
    if comptime!(rules.affine) {
        passed *= scale[channel];
    }
    passed
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
    let walk = walk(channels, plane, of);
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
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let gate_at = place(gate_start, minor, major, &of_gate, of);
                let channel = first + channel_of(minor, major, of);
                let mut entry = d[place(d_start, minor, major, &of_d, of)];
                if comptime!(rules.transposed) {
                    entry = through(entry, gate, gate_at, scale, channel, rules);
                }
                total += entry;
                along += entry * normed[place(normed_start, minor, major, &of_normed, of)];
                major += walk.height;
            }
            minor += walk.width;
        }
        let mean = sum(total, &mut scratch) / size as f32;
        let along = sum(along, &mut scratch) / size as f32;

        let inverse = inverse_deviation[row];
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let gate_at = place(gate_start, minor, major, &of_gate, of);
                let channel = first + channel_of(minor, major, of);
                let mut entry = d[place(d_start, minor, major, &of_d, of)];
                if comptime!(rules.transposed) {
                    entry = through(entry, gate, gate_at, scale, channel, rules);
                }
                let at_normed = normed[place(normed_start, minor, major, &of_normed, of)];
                let mut carried = (entry - mean - at_normed * along) * inverse;
                if comptime!(!rules.transposed) {
                    carried = through(carried, gate, gate_at, scale, channel, rules);
                }
                out[place(out_start, minor, major, &of_out, of)] = carried;
                major += walk.height;
            }
            minor += walk.width;
        }
        row += CUBE_COUNT_X as usize;
    }
}
