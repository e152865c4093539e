//! Convolutions with batch normalisation, as stems, heads and explicit networks use them.

use crate::checkpoint::{Layout, OriginalTensor, Source};
use burn::module::{Flag, Module, Param, RunningState};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Initializer, PaddingConfig2d};
use burn::tensor::module::{batch_norm, batch_norm_train};
use burn::tensor::{Device, Tensor};
use deq_kernels::convolve;

/// What a convolution looks like. Padding keeps the size, but for the stride.
#[derive(Clone, Debug)]
pub(crate) struct ConvShape {
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) bias: bool,
    pub(crate) initializer: Initializer,
}

impl ConvShape {
    pub(crate) fn new(input: usize, output: usize, kernel: usize, std: Initializer) -> Self {
        Self {
            input,
            output,
            kernel,
            stride: 1,
            bias: false,
            initializer: std,
        }
    }

    pub(crate) fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    pub(crate) fn with_bias(self) -> Self {
        Self { bias: true, ..self }
    }

    pub(crate) fn init(&self, device: &Device) -> Conv2d {
        let (kernel, pad) = (self.kernel, self.kernel / 2);
        Conv2dConfig::new([self.input, self.output], [kernel, kernel])
            .with_stride([self.stride, self.stride])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone())
            .init(device)
    }
}

/// A convolution followed by batch normalisation.
#[derive(Module, Debug)]
pub struct ConvNorm {
    /// The convolution.
    pub conv: Conv2d,
    /// Batch statistics on an autodiff device, running statistics elsewhere.
    pub norm: BatchNorm,
}

impl ConvNorm {
    pub(crate) fn new(shape: &ConvShape, momentum: f64, device: &Device) -> Self {
        Self {
            conv: shape.init(device),
            norm: BatchNormConfig::new(shape.output)
                .with_momentum(momentum)
                .init(device),
        }
    }

    /// # Shapes
    ///
    /// - x: `[batch, input channels, height, width]`
    /// - output: `[batch, output channels, height, width]`, divided by the stride and rounded up
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward(apply(&self.conv, x))
    }
}

/// A convolution made by [`ConvShape::init`].
pub(crate) fn apply(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    let y = convolve(x, conv.weight.val(), conv.stride[0]);
    match &conv.bias {
        Some(bias) => {
            let bias = bias.val();
            let [channels] = bias.dims();
            y + bias.reshape([1, channels, 1, 1])
        }
        None => y,
    }
}

/// Batch normalisation without scale and shift, which Burn's [`BatchNorm`] always has.
///
/// As there, batch statistics on an autodiff device, unless frozen; running statistics elsewhere.
#[derive(Module, Debug)]
pub struct PlainBatchNorm {
    /// `[channels]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// `[channels]`.
    pub running_var: RunningState<Tensor<1>>,
    /// Whether batch statistics are used in training.
    pub training: Param<Flag>,
    momentum: f64,
    epsilon: f64,
}

impl PlainBatchNorm {
    pub(crate) fn new(channels: usize, momentum: f64, device: &Device) -> Self {
        Self {
            running_mean: RunningState::new(Tensor::zeros([channels], device)),
            running_var: RunningState::new(Tensor::ones([channels], device)),
            training: Param::from_bool(true),
            momentum,
            epsilon: 1e-5,
        }
    }

    /// # Shapes
    ///
    /// - x, output: `[batch, channels, height, width]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let device = x.device();
        let [_, channels, ..] = x.dims();
        let one = Tensor::ones([channels], &device);
        let zero = Tensor::zeros([channels], &device);
        if !(device.is_autodiff() && self.training.is_enabled()) {
            let mean = self.running_mean.value().to_device(&device);
            let variance = self.running_var.value().to_device(&device);
            return batch_norm(x, one, zero, mean, variance, self.epsilon);
        }
        let result = batch_norm_train(x, one, zero, self.epsilon);
        for (running, new) in [
            (&self.running_mean, result.mean),
            (&self.running_var, result.variance),
        ] {
            let old = running.value_sync().to_device(&device);
            let next = old.mul_scalar(1.0 - self.momentum) + new.mul_scalar(self.momentum);
            running.update(next.detach());
        }
        result.output
    }
}

/// Names of PyTorch's tensors, collected layer by layer.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) all: Vec<OriginalTensor>,
}

impl Names {
    /// A tensor that lies here as it does there.
    pub(crate) fn same(&mut self, name: String, path: String) {
        self.all
            .push(OriginalTensor::parameter(name, path, Layout::Same));
    }

    pub(crate) fn conv(&mut self, conv: &Conv2d, name: &str, path: &str) {
        self.same(format!("{name}.weight"), format!("{path}.weight"));
        if conv.bias.is_some() {
            self.same(format!("{name}.bias"), format!("{path}.bias"));
        }
    }

    pub(crate) fn linear(&mut self, name: &str, path: &str) {
        let layout = Layout::Matrix { trailing: 0 };
        let (weight, ours) = (format!("{name}.weight"), format!("{path}.weight"));
        self.all
            .push(OriginalTensor::parameter(weight, ours, layout));
        self.same(format!("{name}.bias"), format!("{path}.bias"));
    }

    /// A batch norm with scale and shift.
    pub(crate) fn batch_norm(&mut self, name: &str, path: &str) {
        self.same(format!("{name}.weight"), format!("{path}.gamma"));
        self.same(format!("{name}.bias"), format!("{path}.beta"));
        self.running_statistics(name, path);
    }

    pub(crate) fn running_statistics(&mut self, name: &str, path: &str) {
        for statistic in ["running_mean", "running_var"] {
            self.same(format!("{name}.{statistic}"), format!("{path}.{statistic}"));
        }
        // PyTorch counts batches for an average that none of these models uses.
        self.all.push(OriginalTensor {
            name: format!("{name}.num_batches_tracked"),
            source: Source::Constant(vec![0.0]),
        });
    }

    /// The names of the convolution and of the norm, then the path of both.
    pub(crate) fn conv_norm(&mut self, layer: &ConvNorm, names: [&str; 2], path: &str) {
        let [conv, norm] = names;
        self.conv(&layer.conv, conv, &format!("{path}.conv"));
        self.batch_norm(norm, &format!("{path}.norm"));
    }
}
