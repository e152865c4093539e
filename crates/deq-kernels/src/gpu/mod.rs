//! Kernels for what CubeCL compiles for: CUDA, ROCm, Metal, Vulkan, WebGPU.
//!
//! They enter through Burn's backend extension. Fusion takes each as one operation whose shapes are
//! known beforehand, and calls it with the tensors of the backend below.

pub(crate) mod kept;
pub(crate) mod solver;

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// Whether the tensor is of f32, on a device of CubeCL, and nothing differentiates it.
pub(crate) fn takes<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32
        && !tensor.is_autodiff()
        && matches!(tensor.device().as_dispatch(), DispatchDevice::Cube(_))
}

/// The tensor with its numbers in order, in memory that nobody else holds.
fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    match tensor.can_mut() {
        true => tensor,
        false => into_contiguous(tensor.copy()),
    }
}
