//! Operations that backends have kernels for, by Burn's backend extension: what they read and
//! write, and, where a tensor is tracked, what differentiates them.
//!
//! They take f32. Those of [`Flex`](crate::flex) run on the CPU, those of CubeCL
//! ([`gpu`](crate::gpu)) on GPUs.

pub(crate) mod norm;
pub(crate) mod pointwise;
#[cfg(feature = "autodiff")]
pub(crate) mod tracked;
pub(crate) mod weight_norm;

use burn::tensor::{DType, Tensor};

/// Whether a kernel is called as it is, or one beside it that is recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Plain,
    #[cfg(feature = "autodiff")]
    Tracked,
}

/// How kernels take all of these tensors, if they do.
pub(crate) fn way<const D: usize>(tensors: &[&Tensor<D>]) -> Option<Way> {
    if !tensors.iter().all(|tensor| is_taken(tensor)) {
        return None;
    }
    if tensors.iter().all(|tensor| !tensor.is_autodiff()) {
        return Some(Way::Plain);
    }
    #[cfg(feature = "autodiff")]
    return Some(Way::Tracked);
    #[cfg(not(feature = "autodiff"))]
    None
}

/// Whether kernels take all of these, tracked or not.
pub(crate) fn takes<const D: usize>(tensors: &[&Tensor<D>]) -> bool {
    way(tensors).is_some()
}

/// Of f32, with numbers, on a device that has kernels.
fn is_taken<const D: usize>(tensor: &Tensor<D>) -> bool {
    if tensor.dtype() != DType::F32 || tensor.shape().num_elements() == 0 {
        return false;
    }
    #[cfg(feature = "flex")]
    if crate::device::on_host(&tensor.device()) {
        return true;
    }
    #[cfg(feature = "_gpu")]
    return crate::gpu::is_ours(tensor);
    #[cfg(not(feature = "_gpu"))]
    false
}
