//! Images in, classes out.

use super::block::{MOMENTUM, ResNetBlock, initializer};
use super::config::ResNetConfig;
use crate::layers::{ConvNorm, ConvShape};
use burn::module::Module;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, activation::relu};

/// A residual network for image classification, with torchvision's structure.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use deq_models::ResNetConfig;
///
/// // As many parameters as a given equilibrium model has, for images of 32 by 32.
/// let config = ResNetConfig::resnet18(10)
///     .with_small_images(true)
///     .with_parameters_near(40_000);
/// let device = Device::flex();
/// let logits = config.init(&device)?.forward(Tensor::ones([2, 3, 32, 32], &device));
/// assert_eq!(logits.dims(), [2, 10]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// - He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
#[derive(Module, Debug)]
pub struct ResNet {
    /// From the colours.
    pub stem: ConvNorm,
    /// Behind the stem; none for small images.
    pub pool: Option<MaxPool2d>,
    /// By stage.
    pub stages: Vec<Vec<ResNetBlock>>,
    /// From pooled channels to classes.
    pub classifier: Linear,
}

impl ResNet {
    pub(super) fn new(config: &ResNetConfig, device: &Device) -> Self {
        let (kernel, stride) = if config.small_images { (3, 1) } else { (7, 2) };
        let stem = ConvShape::new(3, config.width, kernel, initializer()).with_stride(stride);
        let pool = MaxPool2dConfig::new([3, 3])
            .with_strides([2, 2])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
        let mut input = config.width;
        let stages = config.stages.iter().enumerate().map(|(stage, &blocks)| {
            let width = config.width << stage;
            let block = |index| {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let block = ResNetBlock::new(config.kind, input, width, stride, device);
                input = width * config.kind.expansion();
                block
            };
            (0..blocks).map(block).collect()
        });
        Self {
            stem: ConvNorm::new(&stem, MOMENTUM, device),
            pool: (!config.small_images).then(|| pool.init()),
            stages: stages.collect(),
            classifier: LinearConfig::new(input, config.num_classes).init(device),
        }
    }

    /// Classifies images. In training (on an autodiff device) batch norms use the statistics of the
    /// batch.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`
    /// - output: logits `[batch, classes]`
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.stem.forward(images));
        let x = match &self.pool {
            Some(pool) => pool.forward(x),
            None => x,
        };
        let blocks = self.stages.iter().flatten();
        let x = blocks.fold(x, |x, block| block.forward(x));
        let [batch, channels, height, width] = x.dims();
        let pooled = x.reshape([batch, channels, height * width]).mean_dim(2);
        self.classifier.forward(pooled.reshape([batch, channels]))
    }
}
