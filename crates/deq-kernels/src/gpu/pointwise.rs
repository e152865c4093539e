//! What is done to every number of maps, one unit for each that is written.

use super::maps::{Maps, Steps};
use super::{UNITS, cubes};
use crate::backend::pointwise::PointwiseBackend;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;

impl PointwiseBackend for CubeBackend {
    fn pass_gate(d: CubeTensor, gate: CubeTensor) -> CubeTensor {
        let [d, gate] = [d, gate].map(Maps::of);
        let shape = gate.shape();
        let [_, channels, height, width] = shape;
        let out = gate.like(shape);
        let entries = shape.iter().product();
        pass_gate_kernel::launch(
            &d.tensor.client.clone(),
            cubes(entries),
            CubeDim::new_1d(UNITS),
            d.tensor.clone().into_buffer_arg(),
            gate.tensor.clone().into_buffer_arg(),
            out.tensor.clone().into_buffer_arg(),
            d.steps(),
            gate.steps(),
            out.steps(),
            entries,
            channels,
            height,
            width,
            out.channels_last(),
            // Both without gaps, as the output.
            d.lies_as(&out) && gate.lies_as(&out),
        );
        out.tensor
    }

    fn add_upsampled(to: CubeTensor, x: CubeTensor, factor: usize) -> CubeTensor {
        let [to, x] = [to, x].map(Maps::of);
        let shape = to.shape();
        let [_, channels, height, width] = shape;
        let out = to.like(shape);
        let entries = shape.iter().product();
        add_upsampled_kernel::launch(
            &to.tensor.client.clone(),
            cubes(entries),
            CubeDim::new_1d(UNITS),
            to.tensor.clone().into_buffer_arg(),
            x.tensor.clone().into_buffer_arg(),
            out.tensor.clone().into_buffer_arg(),
            to.steps(),
            x.steps(),
            out.steps(),
            entries,
            channels,
            height,
            width,
            factor,
            out.channels_last(),
        );
        out.tensor
    }

    fn sum_squares(x: CubeTensor, factor: usize) -> CubeTensor {
        let x = Maps::of(x);
        let [batch, channels, height, width] = x.shape();
        let [height, width] = [height, width].map(|side| side / factor);
        let shape = [batch, channels, height, width];
        let out = x.like(shape);
        let entries = shape.iter().product();
        sum_squares_kernel::launch(
            &x.tensor.client.clone(),
            cubes(entries),
            CubeDim::new_1d(UNITS),
            x.tensor.clone().into_buffer_arg(),
            out.tensor.clone().into_buffer_arg(),
            x.steps(),
            out.steps(),
            entries,
            channels,
            height,
            width,
            factor,
            out.channels_last(),
        );
        out.tensor
    }
}

/// Sample, channel, line and column of the number `i` of maps in the order of memory.
#[cube]
fn position(
    i: usize,
    channels: usize,
    height: usize,
    width: usize,
    #[comptime] channels_last: bool,
) -> (usize, usize, usize, usize) {
    let plane = height * width;
    let sample = i / (channels * plane);
    let within = i % (channels * plane);
    let mut channel = within / plane;
    let mut pixel = within % plane;
    if comptime!(channels_last) {
        channel = within % channels;
        pixel = within / channels;
    }
    (sample, channel, pixel / width, pixel % width)
}

#[cube]
fn place(sample: usize, channel: usize, pixel: usize, steps: &Steps) -> usize {
    sample * steps.sample + channel * steps.channel + pixel * steps.pixel
}

#[cube(launch)]
fn pass_gate_kernel(
    d: &[f32],
    gate: &[f32],
    out: &mut [f32],
    of_d: Steps,
    of_gate: Steps,
    of_out: Steps,
    entries: usize,
    channels: usize,
    height: usize,
    width: usize,
    #[comptime] channels_last: bool,
    #[comptime] alike: bool,
) {
    let mut i = ABSOLUTE_POS;
    while i < entries {
        let mut at_gate = i;
        let mut at_d = i;
        let mut at_out = i;
        if comptime!(!alike) {
            let (sample, channel, line, column) =
                position(i, channels, height, width, channels_last);
            let pixel = line * width + column;
            at_gate = place(sample, channel, pixel, &of_gate);
            at_d = place(sample, channel, pixel, &of_d);
            at_out = place(sample, channel, pixel, &of_out);
        }
        let mut passed = 0.0f32;
        if gate[at_gate] > 0.0f32 {
            passed = d[at_d];
        }
        out[at_out] = passed;
        i += (CUBE_COUNT_X * CUBE_DIM) as usize;
    }
}

#[cube(launch)]
fn add_upsampled_kernel(
    to: &[f32],
    x: &[f32],
    out: &mut [f32],
    of_to: Steps,
    of_x: Steps,
    of_out: Steps,
    entries: usize,
    channels: usize,
    height: usize,
    width: usize,
    factor: usize,
    #[comptime] channels_last: bool,
) {
    let mut i = ABSOLUTE_POS;
    while i < entries {
        let (sample, channel, line, column) = position(i, channels, height, width, channels_last);
        let pixel = line * width + column;
        let coarse = line / factor * (width / factor) + column / factor;
        let added = x[place(sample, channel, coarse, &of_x)];
        out[place(sample, channel, pixel, &of_out)] =
            to[place(sample, channel, pixel, &of_to)] + added;
        i += (CUBE_COUNT_X * CUBE_DIM) as usize;
    }
}

#[cube(launch)]
fn sum_squares_kernel(
    x: &[f32],
    out: &mut [f32],
    of_x: Steps,
    of_out: Steps,
    entries: usize,
    channels: usize,
    height: usize, // of the output
    width: usize,
    factor: usize,
    #[comptime] channels_last: bool,
) {
    let mut i = ABSOLUTE_POS;
    while i < entries {
        let (sample, channel, line, column) = position(i, channels, height, width, channels_last);
        let mut total = 0.0f32;
        for down in 0..factor {
            for right in 0..factor {
                let fine = (line * factor + down) * (width * factor) + column * factor + right;
                total += x[place(sample, channel, fine, &of_x)];
            }
        }
        out[place(sample, channel, line * width + column, &of_out)] = total;
        i += (CUBE_COUNT_X * CUBE_DIM) as usize;
    }
}
