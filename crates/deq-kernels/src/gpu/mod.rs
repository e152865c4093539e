//! Kernels for what CubeCL compiles for: CUDA, ROCm, Metal, Vulkan, WebGPU.
//!
//! They enter through Burn's backend extension. Fusion takes each as one operation whose shapes are
//! known beforehand, and calls it with the tensors of the backend below.

pub(crate) mod attention;
pub(crate) mod kept;
pub(crate) mod maps;
pub(crate) mod norm;
#[cfg(feature = "autodiff")]
pub(crate) mod norm_gradients;
pub(crate) mod pointwise;
pub(crate) mod solver;
#[cfg(feature = "autodiff")]
pub(crate) mod tracked;
pub(crate) mod weight_norm;

#[cfg(feature = "cpu")]
use burn::backend::CubeDevice;
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// Units of a cube: what WebGPU grants everywhere, and a power of two for sums by halves.
const UNITS: u32 = 256;

/// The most numbers of a tensor. 32 bits count twice as many, which leaves room for lines that are
/// padded, and for the last step of a loop beyond the end.
pub(crate) const MOST_NUMBERS: usize = i32::MAX as usize;

/// Cubes of one launch along an axis, WebGPU's bound.
const MOST_CUBES: usize = 65_535;

/// Whether the tensor is of f32, on a GPU, nothing differentiates it, it has numbers, and 32 bits
/// count them.
pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    !tensor.is_autodiff() && is_ours(tensor)
}

/// The same as for [`takes`], whether or not something differentiates the tensor.
pub(crate) fn is_ours<const D: usize>(tensor: &Tensor<D>) -> bool {
    let numbers = tensor.shape().num_elements();
    tensor.dtype() == DType::F32
        && numbers > 0
        && numbers <= MOST_NUMBERS
        && is_gpu(tensor.device().inner().as_dispatch())
}

/// Units of one cube wait for each other, which threads of a CPU are not made for.
fn is_gpu(device: &DispatchDevice) -> bool {
    match device {
        #[cfg(feature = "cpu")]
        DispatchDevice::Cube(CubeDevice::Cpu(_)) => false,
        DispatchDevice::Cube(_) => true,
        #[allow(
            unreachable_patterns,
            reason = "without another backend there is no other"
        )]
        _ => false,
    }
}

/// The tensor with its numbers in order, in memory that nobody else holds.
fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    match tensor.can_mut() {
        true => tensor,
        false => into_contiguous(tensor.copy()),
    }
}

/// Memory for numbers of the type and on the device of a tensor.
fn like<const D: usize>(tensor: &CubeTensor, shape: [usize; D]) -> CubeTensor {
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::new(shape), tensor.dtype)
}

/// A cube for each of so many rows, as far as one launch has them.
fn cube_each(rows: usize) -> CubeCount {
    CubeCount::Static(rows.min(MOST_CUBES) as u32, 1, 1)
}

/// Cubes for so many numbers, each of which is written by a unit.
fn cubes(entries: usize) -> CubeCount {
    CubeCount::Static(
        entries.div_ceil(UNITS as usize).min(MOST_CUBES) as u32,
        1,
        1,
    )
}

/// The sum of one number of every unit, the same for all of them.
#[cube]
fn sum(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    // Nobody still reads the last result.
    sync_cube();
    scratch[UNIT_POS as usize] = value;
    sync_cube();
    let mut active = CUBE_DIM / 2;
    while active > 0 {
        if UNIT_POS < active {
            let other = scratch[(UNIT_POS + active) as usize];
            scratch[UNIT_POS as usize] += other;
        }
        sync_cube();
        active /= 2;
    }
    scratch[0]
}

/// The sums of three numbers of every unit, the same for all of them; `scratch` holds three for
/// each.
#[cube]
fn sum_three(a: f32, b: f32, c: f32, scratch: &mut Shared<[f32]>) -> (f32, f32, f32) {
    sync_cube();
    let own = 3 * UNIT_POS as usize;
    scratch[own] = a;
    scratch[own + 1] = b;
    scratch[own + 2] = c;
    sync_cube();
    let mut active = CUBE_DIM / 2;
    while active > 0 {
        if UNIT_POS < active {
            let other = 3 * (UNIT_POS + active) as usize;
            #[unroll]
            for i in 0..3usize {
                let added = scratch[other + i];
                scratch[own + i] += added;
            }
        }
        sync_cube();
        active /= 2;
    }
    (scratch[0], scratch[1], scratch[2])
}

/// The largest of one number of every unit, the same for all of them.
#[cube]
fn largest(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    sync_cube();
    scratch[UNIT_POS as usize] = value;
    sync_cube();
    let mut active = CUBE_DIM / 2;
    while active > 0 {
        if UNIT_POS < active {
            let own = scratch[UNIT_POS as usize];
            let other = scratch[(UNIT_POS + active) as usize];
            scratch[UNIT_POS as usize] = max(own, other);
        }
        sync_cube();
        active /= 2;
    }
    scratch[0]
}
