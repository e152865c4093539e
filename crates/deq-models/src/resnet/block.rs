//! The residual blocks.

use super::config::ResNetBlockKind;
use crate::layers::{ConvNorm, ConvShape};
use burn::module::Module;
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor, activation::relu};

/// Two or three convolutions around a residual.
///
/// Basic: 3x3, 3x3. Bottleneck: 1x1, 3x3, 1x1 to four times the channels; the 3x3 strides, as in
/// torchvision. ReLU behind every batch norm but the last, which comes before the sum, and behind
/// the sum.
#[derive(Module, Debug)]
pub struct ResNetBlock {
    /// The convolutions in order.
    pub layers: Vec<ConvNorm>,
    /// 1x1 on the residual, where shapes differ.
    pub shortcut: Option<ConvNorm>,
}

impl ResNetBlock {
    pub(super) fn new(
        kind: ResNetBlockKind,
        input: usize,
        width: usize,
        stride: usize,
        device: &Device,
    ) -> Self {
        let output = width * kind.expansion();
        let conv = |input, output, kernel, stride| {
            let shape = ConvShape::new(input, output, kernel, initializer());
            ConvNorm::new(&shape.with_stride(stride), MOMENTUM, device)
        };
        let layers = match kind {
            ResNetBlockKind::Basic => {
                vec![conv(input, width, 3, stride), conv(width, width, 3, 1)]
            }
            ResNetBlockKind::Bottleneck => vec![
                conv(input, width, 1, 1),
                conv(width, width, 3, stride),
                conv(width, output, 1, 1),
            ],
        };
        let differs = stride != 1 || input != output;
        Self {
            layers,
            shortcut: differs.then(|| conv(input, output, 1, stride)),
        }
    }

    /// # Shapes
    ///
    /// - x: `[batch, input channels, height, width]`
    /// - output: `[batch, output channels, height, width]`, divided by the stride and rounded up
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let last = self.layers.len() - 1;
        let y = self
            .layers
            .iter()
            .enumerate()
            .fold(x.clone(), |y, (k, layer)| {
                let y = layer.forward(y);
                if k < last { relu(y) } else { y }
            });
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        relu(y + residual)
    }
}

/// Weight of the newest batch in the running statistics: PyTorch's default, as in torchvision.
pub(super) const MOMENTUM: f64 = 0.1;

/// Torchvision's: normal, so that ReLUs keep the variance of gradients.
pub(super) fn initializer() -> Initializer {
    Initializer::KaimingNormal {
        gain: std::f64::consts::SQRT_2,
        fan_out_only: true,
    }
}
