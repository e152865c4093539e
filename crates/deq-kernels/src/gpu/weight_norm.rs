//! Weight normalisation, one cube of units for every slice.

use super::{UNITS, cube_each, like, sum};
use crate::backend::weight_norm::WeightNormBackend;
use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

impl WeightNormBackend for CubeBackend {
    fn weight_norm(direction: CubeTensor, gain: CubeTensor) -> (CubeTensor, CubeTensor) {
        let [direction, gain] = [direction, gain].map(into_contiguous);
        let [outer, slices, inner] = direction.shape().dims();
        let weight = like(&direction, [outer, slices, inner]);
        let lengths = like(&direction, [1, slices, 1]);
        weight_norm_kernel::launch(
            &direction.client.clone(),
            cube_each(slices),
            CubeDim::new_1d(UNITS),
            direction.into_buffer_arg(),
            gain.into_buffer_arg(),
            weight.clone().into_buffer_arg(),
            lengths.clone().into_buffer_arg(),
            outer,
            slices,
            inner,
        );
        (weight, lengths)
    }

    #[cfg(feature = "autodiff")]
    fn carry_weight_norm(
        direction: CubeTensor,
        gain: CubeTensor,
        lengths: CubeTensor,
        g: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let [direction, gain, lengths, g] = [direction, gain, lengths, g].map(into_contiguous);
        let [outer, slices, inner] = direction.shape().dims();
        let to_direction = like(&direction, [outer, slices, inner]);
        let to_gain = like(&direction, [1, slices, 1]);
        carry_weight_norm_kernel::launch(
            &direction.client.clone(),
            cube_each(slices),
            CubeDim::new_1d(UNITS),
            direction.into_buffer_arg(),
            gain.into_buffer_arg(),
            lengths.into_buffer_arg(),
            g.into_buffer_arg(),
            to_direction.clone().into_buffer_arg(),
            to_gain.clone().into_buffer_arg(),
            outer,
            slices,
            inner,
        );
        (to_direction, to_gain)
    }
}

/// Where the number `i` of a slice lies.
#[cube]
fn place(i: usize, slice: usize, slices: usize, inner: usize) -> usize {
    (i / inner * slices + slice) * inner + i % inner
}

#[cube(launch)]
fn weight_norm_kernel(
    direction: &[f32],   // [outer, slices, inner]
    gain: &[f32],        // [slices]
    weight: &mut [f32],  // [outer, slices, inner]
    lengths: &mut [f32], // [slices]
    outer: usize,
    slices: usize,
    inner: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut slice = CUBE_POS_X as usize;
    while slice < slices {
        let mut squares = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < outer * inner {
            let entry = direction[place(i, slice, slices, inner)];
            squares += entry * entry;
            i += CUBE_DIM as usize;
        }
        let squares = sum(squares, &mut scratch);
        let length = max(squares, 1e-30f32).sqrt();
        if UNIT_POS == 0 {
            lengths[slice] = length;
        }
        let factor = gain[slice] / length;
        let mut i = UNIT_POS as usize;
        while i < outer * inner {
            let at = place(i, slice, slices, inner);
            weight[at] = direction[at] * factor;
            i += CUBE_DIM as usize;
        }
        slice += CUBE_COUNT_X as usize;
    }
}

#[cfg(feature = "autodiff")]
#[cube(launch)]
fn carry_weight_norm_kernel(
    direction: &[f32], // [outer, slices, inner]
    gain: &[f32],      // [slices]
    lengths: &[f32],   // [slices]
    g: &[f32],         // [outer, slices, inner]
    to_direction: &mut [f32],
    to_gain: &mut [f32],
    outer: usize,
    slices: usize,
    inner: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut slice = CUBE_POS_X as usize;
    while slice < slices {
        let length = lengths[slice];
        let mut along = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < outer * inner {
            let at = place(i, slice, slices, inner);
            along += g[at] * (direction[at] / length);
            i += CUBE_DIM as usize;
        }
        let along = sum(along, &mut scratch);
        if UNIT_POS == 0 {
            to_gain[slice] = along;
        }
        // A length that is bounded from below is a constant.
        let mut turning = along;
        if length <= 1e-15f32 {
            turning = 0.0f32;
        }
        let factor = gain[slice] / length;
        let mut i = UNIT_POS as usize;
        while i < outer * inner {
            let at = place(i, slice, slices, inner);
            to_direction[at] = factor * (g[at] - turning * (direction[at] / length));
            i += CUBE_DIM as usize;
        }
        slice += CUBE_COUNT_X as usize;
    }
}
