//! The DEQ-Transformer language model.

mod attention;
mod cell;
mod linear;
mod lm;
mod memory;
mod softmax;

pub use attention::Attention;
pub use cell::{DropoutRates, FeedForward, TransformerCell, TransformerContext};
pub use linear::NormedLinear;
pub use lm::{Depth, DeqTransformerLm, DeqTransformerLmConfig, LmOutput};
pub use memory::LmMemory;
pub use softmax::OutputLayer;

/// Variational dropout masks: `1 / (1 - rate)` with probability `1 - rate`, else 0; `None` for rate 0.
fn dropout_mask<const D: usize>(
    shape: [usize; D],
    rate: f64,
    device: &burn::tensor::Device,
) -> Option<burn::tensor::Tensor<D>> {
    use burn::tensor::{Distribution, Tensor};
    (rate > 0.0).then(|| {
        // Constants of the graph, hence on the plain device.
        let device = device.clone().inner();
        Tensor::random(shape, Distribution::Bernoulli(1.0 - rate), &device).div_scalar(1.0 - rate)
    })
}

fn masked<const D: usize>(
    tensor: burn::tensor::Tensor<D>,
    mask: &Option<burn::tensor::Tensor<D>>,
) -> burn::tensor::Tensor<D> {
    match mask {
        Some(mask) => tensor * mask.clone(),
        None => tensor,
    }
}

fn plain<const D: usize>(
    tensor: &Option<burn::tensor::Tensor<D>>,
) -> Option<burn::tensor::Tensor<D>> {
    tensor.clone().map(|tensor| tensor.inner())
}
