//! 16-bit floats.

use burn::tensor::{DType, Tensor};

/// The type of the tensor, if it is one of 16 bits.
pub(crate) fn half<const D: usize>(tensor: &Tensor<D>) -> Option<DType> {
    match tensor.dtype() {
        own @ (DType::F16 | DType::BF16) => Some(own),
        _ => None,
    }
}
