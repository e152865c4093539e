//! From the image to what is injected into the cell.

use super::config::MdeqConfig;
use super::ops::initial_weights;
use crate::layers::{ConvNorm, ConvShape};
use burn::module::Module;
use burn::tensor::{Device, Tensor, activation::relu};

/// Two 3x3 convolutions, each with batch norm and ReLU, that halve the image `downsample_times`
/// times; then a 1x1 convolution, batch norm and ReLU, but not for a model of at most two branches
/// that does not halve the image.
#[derive(Module, Debug)]
pub struct MdeqStem {
    /// From the colours; halves the image if it is to be halved at all.
    pub conv1: ConvNorm,
    /// Halves the image if it is to be halved twice.
    pub conv2: ConvNorm,
    /// 1x1.
    pub injection: Option<ConvNorm>,
}

impl MdeqStem {
    pub(crate) fn new(config: &MdeqConfig, momentum: f64, device: &Device) -> Self {
        let channels = config.channels[0];
        let times = config.downsample_times;
        let layer = |input, kernel, stride| {
            let shape = ConvShape::new(input, channels, kernel, initial_weights());
            ConvNorm::new(&shape.with_stride(stride), momentum, device)
        };
        Self {
            conv1: layer(3, 3, if times >= 1 { 2 } else { 1 }),
            conv2: layer(channels, 3, if times >= 2 { 2 } else { 1 }),
            injection: config.has_injection_layer().then(|| layer(channels, 1, 1)),
        }
    }

    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`
    /// - output: of the finest branch, `[batch, channels, height, width]`
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let x = relu(self.conv1.forward(images));
        let x = relu(self.conv2.forward(x));
        match &self.injection {
            Some(injection) => relu(injection.forward(x)),
            None => x,
        }
    }
}
