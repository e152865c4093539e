//! Functions of one number.

#[cfg(feature = "flex")]
use crate::{cpu, flex};
use burn::tensor::Tensor;

/// `tanh(x)`, number by number.
pub fn tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if let Some(values) = flex::Host::of(&x) {
        return flex::tensor(cpu::pointwise::tanh_all(values.values()), x.dims());
    }
    x.tanh()
}
