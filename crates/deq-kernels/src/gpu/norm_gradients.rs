//! What differentiates norms and products with their Jacobians.

use super::maps::{Maps, Steps};
use super::norm::{Rows, channel_of, gated, place, through, walk};
use super::{MOST_CUBES, UNITS, cube_each, like, sum};
use crate::backend::norm::{CarryRules, Moved, NormGradientsBackend};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// The pixels of maps with channels last from which cubes share the sums over them.
const SIDE_BY_SIDE: usize = 2_048;

/// Channels that units of a cube read side by side.
const LANES: usize = 32;

impl NormGradientsBackend for CubeBackend {
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
            cube_each(moved.rows),
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
            cube_each(moved.rows),
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
        let client = g.tensor.client.clone();
        let rules = CarryRules {
            transposed: true,
            affine: false,
            gated,
        };
        if of.channels_last && batch * plane > SIDE_BY_SIDE {
            let parts = (batch * plane).div_ceil(SIDE_BY_SIDE).min(MOST_CUBES);
            let [scale_parts, shift_parts] = [0; 2].map(|_| like(&g.tensor, [parts, channels]));
            affine_parts_kernel::launch(
                &client,
                CubeCount::Static(channels.div_ceil(LANES) as u32, parts as u32, 1),
                CubeDim::new_1d(UNITS),
                g.tensor.clone().into_buffer_arg(),
                normed.tensor.clone().into_buffer_arg(),
                gate.tensor.clone().into_buffer_arg(),
                scale_parts.clone().into_buffer_arg(),
                shift_parts.clone().into_buffer_arg(),
                g.steps(),
                normed.steps(),
                gate.steps(),
                batch,
                channels,
                plane,
                rules,
            );
            affine_totals_kernel::launch(
                &client,
                cube_each(channels),
                CubeDim::new_1d(UNITS),
                scale_parts.into_buffer_arg(),
                shift_parts.into_buffer_arg(),
                to_scale.clone().into_buffer_arg(),
                to_shift.clone().into_buffer_arg(),
                parts,
                channels,
            );
            return (to_scale, to_shift);
        }
        affine_gradients_kernel::launch(
            &client,
            cube_each(channels),
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
            rules,
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
    #[comptime] rules: CarryRules,
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
            entry = gated(entry, gate, gate_at + pixel * of_gate.pixel, rules);
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

/// What a part of the pixels adds to the sums. Neighbouring units read neighbouring channels, as
/// they lie in memory.
#[cube(launch)]
fn affine_parts_kernel(
    g: &[f32],
    normed: &[f32],
    gate: &[f32],         // open where above 0
    to_scale: &mut [f32], // [parts, channels]
    to_shift: &mut [f32], // [parts, channels]
    of_g: Steps,
    of_normed: Steps,
    of_gate: Steps,
    batch: usize,
    channels: usize,
    plane: usize,
    #[comptime] rules: CarryRules,
) {
    let lanes = comptime!(LANES);
    let rows = comptime!(UNITS as usize / LANES);
    let mut of_scale = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut of_shift = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let unit = UNIT_POS as usize;
    let channel = CUBE_POS_X as usize * lanes + unit % lanes;
    let mut scale = 0.0f32;
    let mut shift = 0.0f32;
    if channel < channels {
        let pixels = batch * plane;
        let mut i = CUBE_POS_Y as usize * rows + unit / lanes;
        while i < pixels {
            let (sample, pixel) = (i / plane, i % plane);
            let gate_at = sample * of_gate.sample + channel * of_gate.channel;
            let mut entry = g[sample * of_g.sample + channel * of_g.channel + pixel * of_g.pixel];
            entry = gated(entry, gate, gate_at + pixel * of_gate.pixel, rules);
            let normed_at = sample * of_normed.sample + channel * of_normed.channel;
            scale += entry * normed[normed_at + pixel * of_normed.pixel];
            shift += entry;
            i += CUBE_COUNT_Y as usize * rows;
        }
    }
    of_scale[unit] = scale;
    of_shift[unit] = shift;
    sync_cube();
    if unit < lanes && channel < channels {
        let mut scale = 0.0f32;
        let mut shift = 0.0f32;
        for row in 0..rows {
            scale += of_scale[row * lanes + unit];
            shift += of_shift[row * lanes + unit];
        }
        let at = CUBE_POS_Y as usize * channels + channel;
        to_scale[at] = scale;
        to_shift[at] = shift;
    }
}

#[cube(launch)]
fn affine_totals_kernel(
    scale_parts: &[f32],  // [parts, channels]
    shift_parts: &[f32],  // [parts, channels]
    to_scale: &mut [f32], // [channels]
    to_shift: &mut [f32], // [channels]
    parts: usize,
    channels: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut channel = CUBE_POS_X as usize;
    while channel < channels {
        let mut of_scale = 0.0f32;
        let mut of_shift = 0.0f32;
        let mut part = UNIT_POS as usize;
        while part < parts {
            of_scale += scale_parts[part * channels + channel];
            of_shift += shift_parts[part * channels + channel];
            part += CUBE_DIM as usize;
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

/// [`NormGradientsBackend::norm_tangent`]
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
    let walk = walk(channels, plane, of);
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
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                total += x[place(x_start, minor, major, &of_x, of)];
                of_d_total += d[place(d_start, minor, major, &of_d, of)];
                major += walk.height;
            }
            minor += walk.width;
        }
        let mean = sum(total, &mut scratch) / size as f32;
        let mean_d = sum(of_d_total, &mut scratch) / size as f32;

        let mut squares = 0.0f32;
        let mut along = 0.0f32;
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let centered = x[place(x_start, minor, major, &of_x, of)] - mean;
                squares += centered * centered;
                along += centered * d[place(d_start, minor, major, &of_d, of)];
                major += walk.height;
            }
            minor += walk.width;
        }
        let variance = sum(squares, &mut scratch) / size as f32;
        let inverse = 1.0f32 / (variance + epsilon).sqrt();
        let along = sum(along, &mut scratch) * inverse / size as f32;

        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let normed = (x[place(x_start, minor, major, &of_x, of)] - mean) * inverse;
                let entry = d[place(d_start, minor, major, &of_d, of)];
                let carried = (entry - mean_d - normed * along) * inverse;
                let at = place(out_start, minor, major, &of_out, of);
                let gate_at = place(gate_start, minor, major, &of_gate, of);
                let channel = first + channel_of(minor, major, of);
                apart[at] = carried;
                out[at] = through(carried, gate, gate_at, scale, channel, rules);
                major += walk.height;
            }
            minor += walk.width;
        }
        row += CUBE_COUNT_X as usize;
    }
}

/// [`NormGradientsBackend::carry_norm_tangent`]
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
    let walk = walk(channels, plane, of);
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
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let gate_at = place(gate_start, minor, major, &of_gate, of);
                let channel = first + channel_of(minor, major, of);
                let h_at = place(h_start, minor, major, &of_h, of);
                let g = through(h[h_at], gate, gate_at, scale, channel, rules);
                total += x[place(x_start, minor, major, &of_x, of)];
                of_d_total += d[place(d_start, minor, major, &of_d, of)];
                of_g_total += g;
                major += walk.height;
            }
            minor += walk.width;
        }
        let mean = sum(total, &mut scratch) / size as f32;
        let mean_d = sum(of_d_total, &mut scratch) / size as f32;
        let mean_g = sum(of_g_total, &mut scratch) / size as f32;

        let mut squares = 0.0f32;
        let mut d_along = 0.0f32;
        let mut g_along = 0.0f32;
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let gate_at = place(gate_start, minor, major, &of_gate, of);
                let channel = first + channel_of(minor, major, of);
                let h_at = place(h_start, minor, major, &of_h, of);
                let g = through(h[h_at], gate, gate_at, scale, channel, rules);
                let centered = x[place(x_start, minor, major, &of_x, of)] - mean;
                squares += centered * centered;
                d_along += centered * d[place(d_start, minor, major, &of_d, of)];
                g_along += centered * g;
                major += walk.height;
            }
            minor += walk.width;
        }
        let variance = sum(squares, &mut scratch) / size as f32;
        let inverse = 1.0f32 / (variance + epsilon).sqrt();
        let d_along = sum(d_along, &mut scratch) * inverse / size as f32;
        let g_along = sum(g_along, &mut scratch) * inverse / size as f32;

        // The parts across are written first and read again by the same unit.
        let mut together = 0.0f32;
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let gate_at = place(gate_start, minor, major, &of_gate, of);
                let channel = first + channel_of(minor, major, of);
                let h_at = place(h_start, minor, major, &of_h, of);
                let g = through(h[h_at], gate, gate_at, scale, channel, rules);
                let normed = (x[place(x_start, minor, major, &of_x, of)] - mean) * inverse;
                let entry = d[place(d_start, minor, major, &of_d, of)];
                let d_across = entry - mean_d - normed * d_along;
                let g_across = g - mean_g - normed * g_along;
                let at = place(out_start, minor, major, &of_out, of);
                to_x[at] = d_along * g_across + g_along * d_across;
                to_d[at] = g_across * inverse;
                together += d_across * g_across;
                major += walk.height;
            }
            minor += walk.width;
        }
        // What epsilon leaves of `D` along `n`.
        let rest = d_along * g_along * epsilon * inverse * inverse;
        let together = sum(together, &mut scratch) / size as f32 + rest;
        let mut minor = walk.minor;
        while minor < walk.minors {
            let mut major = walk.major;
            while major < walk.majors {
                let normed = (x[place(x_start, minor, major, &of_x, of)] - mean) * inverse;
                let at = place(out_start, minor, major, &of_out, of);
                to_x[at] = -(to_x[at] + together * normed) * inverse * inverse;
                major += walk.height;
            }
            minor += walk.width;
        }
        row += CUBE_COUNT_X as usize;
    }
}
