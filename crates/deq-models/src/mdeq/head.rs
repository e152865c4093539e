//! From the equilibrium to classes.

use super::config::{MdeqClassifierConfig, MdeqSegmenterConfig};
use super::ops::initial_weights;
use crate::layers::{ConvNorm, ConvShape, PlainBatchNorm, apply};
use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation::relu};
use deq_kernels::resize_bilinear;

/// Channels that a bottleneck puts out over those inside.
pub(super) const EXPANSION: usize = 4;

/// Classes of whole images: every branch is widened by a bottleneck, finer branches are added to
/// coarser ones, the coarsest is pooled.
#[derive(Module, Debug)]
pub struct ClassificationHead {
    /// One per branch, finest first.
    pub branches: Vec<Bottleneck>,
    /// From each branch to the next coarser one: 3x3, halving.
    pub merges: Vec<ConvNorm>,
    /// 1x1, before the pooling.
    pub last: ConvNorm,
    /// From pooled channels to classes.
    pub classifier: Linear,
}

impl ClassificationHead {
    pub(crate) fn new(config: &MdeqClassifierConfig, device: &Device) -> Self {
        let momentum = config.batch_norm_momentum;
        let head = &config.head_channels;
        let conv = |input, output, kernel| {
            ConvShape::new(input, output, kernel, initial_weights()).with_bias()
        };
        let merge = |pair: &[usize]| {
            let shape = conv(pair[0] * EXPANSION, pair[1] * EXPANSION, 3).with_stride(2);
            ConvNorm::new(&shape, momentum, device)
        };
        let coarsest = head[head.len() - 1] * EXPANSION;
        let last = conv(coarsest, config.final_channels, 1);
        let branches = config.backbone.channels.iter().zip(head);
        Self {
            branches: branches
                .map(|(&input, &inner)| Bottleneck::new(input, inner, momentum, device))
                .collect(),
            merges: head.windows(2).map(merge).collect(),
            last: ConvNorm::new(&last, momentum, device),
            classifier: LinearConfig::new(config.final_channels, config.num_classes).init(device),
        }
    }

    /// # Shapes
    ///
    /// - maps: one per branch, finest first, `[batch, channels, height, width]`
    /// - output: logits, `[batch, classes]`
    pub fn forward(&self, maps: Vec<Tensor<4>>) -> Tensor<2> {
        let mut wide = self
            .branches
            .iter()
            .zip(maps)
            .map(|(b, map)| b.forward(map));
        let finest = wide.next();
        let sum = self
            .merges
            .iter()
            .zip(wide)
            .fold(finest, |sum, (merge, own)| {
                sum.map(|sum| own + relu(merge.forward(sum)))
            });
        let sum = sum.unwrap_or_else(|| panic!("the head needs one map per branch"));
        let x = relu(self.last.forward(sum));
        let [batch, channels, height, width] = x.dims();
        let pooled = x.reshape([batch, channels, height * width]).mean_dim(2);
        self.classifier.forward(pooled.reshape([batch, channels]))
    }
}

/// 1x1, 3x3, 1x1 with batch norms without scale and shift, around a residual.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// 1x1, to the inner channels.
    pub conv1: Conv2d,
    /// Behind `conv1`.
    pub norm1: PlainBatchNorm,
    /// 3x3.
    pub conv2: Conv2d,
    /// Behind `conv2`.
    pub norm2: PlainBatchNorm,
    /// 1x1, to four times the inner channels.
    pub conv3: Conv2d,
    /// Behind `conv3`.
    pub norm3: PlainBatchNorm,
    /// 1x1 on the residual, where the channels differ.
    pub shortcut: Option<ConvNorm>,
}

impl Bottleneck {
    fn new(input: usize, inner: usize, momentum: f64, device: &Device) -> Self {
        let output = inner * EXPANSION;
        let conv = |input, output, kernel| ConvShape::new(input, output, kernel, initial_weights());
        let norm = |channels| PlainBatchNorm::new(channels, momentum, device);
        Self {
            conv1: conv(input, inner, 1).init(device),
            norm1: norm(inner),
            conv2: conv(inner, inner, 3).init(device),
            norm2: norm(inner),
            conv3: conv(inner, output, 1).init(device),
            norm3: norm(output),
            shortcut: (input != output)
                .then(|| ConvNorm::new(&conv(input, output, 1), momentum, device)),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = relu(self.norm1.forward(apply(&self.conv1, x.clone())));
        let y = relu(self.norm2.forward(apply(&self.conv2, y)));
        let y = self.norm3.forward(apply(&self.conv3, y));
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        relu(y + residual)
    }
}

/// Classes of pixels: all branches at the finest resolution, two convolutions.
#[derive(Module, Debug)]
pub struct SegmentationHead {
    /// 1x1, over the channels of all branches.
    pub mix: ConvNorm,
    /// To the classes.
    pub output: Conv2d,
}

impl SegmentationHead {
    pub(crate) fn new(config: &MdeqSegmenterConfig, device: &Device) -> Self {
        let channels = config.backbone.channels.iter().sum();
        let conv = |output, kernel| {
            ConvShape::new(channels, output, kernel, initial_weights()).with_bias()
        };
        Self {
            mix: ConvNorm::new(&conv(channels, 1), config.batch_norm_momentum, device),
            output: conv(config.num_classes, config.final_kernel).init(device),
        }
    }

    /// # Shapes
    ///
    /// - maps: one per branch, finest first, `[batch, channels, height, width]`
    /// - output: logits, `[batch, classes, height, width]` of the finest branch
    pub fn forward(&self, maps: Vec<Tensor<4>>) -> Tensor<4> {
        let mut size = None;
        let maps = maps.into_iter().map(|map| {
            let [_, _, height, width] = map.dims();
            let finest = *size.get_or_insert([height, width]);
            resize_bilinear(map, finest)
        });
        let x = Tensor::cat(maps.collect(), 1);
        apply(&self.output, relu(self.mix.forward(x)))
    }
}
