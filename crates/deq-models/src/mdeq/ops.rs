//! The operations of the cell, evaluated once per solve, each with its derivative in both
//! directions.

use burn::module::{Module, Param};
use burn::nn::{GroupNorm, Initializer};
use burn::tensor::module::{conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Device, Distribution, Tensor, activation::relu};
use deq_core::normalization::{norm_except, weight_norm};
use deq_core::{CellContext, TensorMap};

/// A convolution without bias whose weight may be normalised.
///
/// `w = weight`, or `w = weight * gain / |weight|` with one length per output channel. Padding
/// keeps the size.
#[derive(Module, Debug)]
pub struct NormedConv {
    /// The direction, or the weight itself, `[output, input, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// The lengths, `[output, 1, 1, 1]`, if the weight is normalised.
    pub gain: Option<Param<Tensor<4>>>,
    #[module(skip)]
    stride: usize,
}

impl NormedConv {
    /// A normalised weight starts as PyTorch's convolutions do, uniform within `1/sqrt(fan in)`, a
    /// plain one from N(0, 0.01). So do the weights of the original: it draws plain weights anew,
    /// but not the directions of normalised ones.
    pub(crate) fn new(shape: [usize; 4], stride: usize, normed: bool, device: &Device) -> Self {
        let fan_in: usize = shape[1..].iter().product();
        let distribution = if normed {
            let bound = 1.0 / (fan_in as f64).sqrt();
            Distribution::Uniform(-bound, bound)
        } else {
            Distribution::Normal(0.0, INIT_STD)
        };
        let weight = Tensor::<4>::random(shape, distribution, device);
        let gain = normed.then(|| Param::from_tensor(norm_except(weight.clone(), 0)));
        Self {
            weight: Param::from_tensor(weight),
            gain,
            stride,
        }
    }

    /// The weight to use throughout one solve.
    pub(crate) fn effective(&self) -> Conv {
        let weight = self.weight.val();
        let weight = match &self.gain {
            Some(gain) => weight_norm(weight, gain.val(), 0),
            None => weight,
        };
        Conv::new(weight, self.stride)
    }
}

/// Standard deviation of plain initial weights (`init_weights` of the original).
const INIT_STD: f64 = 0.01;

/// The distribution of plain initial weights.
pub(crate) fn initial_weights() -> Initializer {
    Initializer::Normal {
        mean: 0.0,
        std: INIT_STD,
    }
}

/// An evaluated [`NormedConv`].
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    /// `[output, input, kernel, kernel]`, or `[input, output, kernel, kernel]` and turned by half a
    /// circle.
    weight: Tensor<4>,
    stride: usize,
    turned: bool,
}

impl Conv {
    fn new(weight: Tensor<4>, stride: usize) -> Self {
        let [output, input, kernel, _] = weight.dims();
        // Flex gathers the patches of the input before it multiplies, so that it is some three
        // times faster to spread products with a narrow output than to gather patches of a wide
        // input. A convolution of stride 1 is a transposed one with its weight turned.
        let turned = stride == 1 && kernel > 1 && output < input && on_flex(&weight.device());
        let weight = match turned {
            true => weight.flip([2, 3]).swap_dims(0, 1),
            false => weight,
        };
        Self {
            weight,
            stride,
            turned,
        }
    }

    /// Linear, hence its own derivative.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, input, height, width]`
    /// - output: `[batch, output, height / stride, width / stride]`
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        match self.turned {
            true => self.spread(x),
            false => self.gather(x),
        }
    }

    /// The transpose: cotangents from the output to the input, whose sides the stride must divide.
    ///
    /// # Shapes
    ///
    /// - g: that of the output
    /// - output: that of the input
    pub(crate) fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        match self.turned {
            true => self.gather(g),
            false => self.spread(g),
        }
    }

    fn gather(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([self.stride; 2], [self.padding(); 2], [1, 1], 1);
        conv2d(x, self.weight.clone(), None, options)
    }

    fn spread(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., kernel] = self.weight.dims();
        // (sides - 1) * stride - 2 * padding + kernel, which lacks this to sides * stride.
        let lacking = self.stride + 2 * self.padding() - kernel;
        let options = ConvTransposeOptions::new(
            [self.stride; 2],
            [self.padding(); 2],
            [lacking; 2],
            [1, 1],
            1,
        );
        conv_transpose2d(x, self.weight.clone(), None, options)
    }

    fn padding(&self) -> usize {
        self.weight.dims()[3] / 2
    }
}

#[cfg(feature = "flex")]
fn on_flex(device: &Device) -> bool {
    *device == Device::flex()
}

#[cfg(not(feature = "flex"))]
fn on_flex(_device: &Device) -> bool {
    false
}

impl CellContext for Conv {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            weight: self.weight.map_tensors(map),
            stride: self.stride,
            turned: self.turned,
        }
    }
}

/// A group norm with its parameters at hand.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    groups: usize,
    epsilon: f64,
    /// Scale and shift, `[1, channels, 1, 1]`.
    affine: Option<(Tensor<4>, Tensor<4>)>,
}

impl Norm {
    pub(crate) fn of(module: &GroupNorm) -> Self {
        let shape = [1, module.num_channels, 1, 1];
        let affine = module.gamma.as_ref().zip(module.beta.as_ref());
        Self {
            groups: module.num_groups,
            epsilon: module.epsilon,
            affine: affine
                .map(|(gamma, beta)| (gamma.val().reshape(shape), beta.val().reshape(shape))),
        }
    }

    /// # Shapes
    ///
    /// - x, output: `[batch, channels, height, width]`
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        self.linearize(x).0
    }

    /// The value, and what differentiates it.
    pub(crate) fn linearize(&self, x: Tensor<4>) -> (Tensor<4>, NormJacobian) {
        let shape = x.dims();
        let [batch, channels, height, width] = shape;
        let size = channels / self.groups * height * width;
        let x = x.reshape([batch, self.groups, size]);
        let centered = x.clone() - x.mean_dim(2);
        let variance = centered.clone().square().mean_dim(2);
        let inverse_deviation = variance.add_scalar(self.epsilon).sqrt().recip();
        let normed = centered * inverse_deviation.clone();
        let value = normed.clone().reshape(shape);
        let value = match &self.affine {
            Some((scale, shift)) => value * scale.clone() + shift.clone(),
            None => value,
        };
        let jacobian = NormJacobian {
            normed,
            inverse_deviation,
            scale: self.affine.as_ref().map(|(scale, _)| scale.clone()),
        };
        (value, jacobian)
    }
}

impl CellContext for Norm {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            groups: self.groups,
            epsilon: self.epsilon,
            affine: self.affine.map_tensors(map),
        }
    }
}

/// The Jacobian of a group norm at a point.
///
/// That of the normalisation, `(I - 11^T / n - x x^T / n) / deviation` per group with the
/// normalised `x`, is symmetric.
pub(crate) struct NormJacobian {
    /// `[batch, groups, size]`
    normed: Tensor<3>,
    /// `[batch, groups, 1]`
    inverse_deviation: Tensor<3>,
    scale: Option<Tensor<4>>,
}

impl NormJacobian {
    /// # Shapes
    ///
    /// - d, output: `[batch, channels, height, width]`
    pub(crate) fn tangent(&self, d: Tensor<4>) -> Tensor<4> {
        self.scaled(self.normalization(d))
    }

    /// The transpose.
    pub(crate) fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        self.normalization(self.scaled(g))
    }

    fn scaled(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.scale {
            Some(scale) => x * scale.clone(),
            None => x,
        }
    }

    fn normalization(&self, d: Tensor<4>) -> Tensor<4> {
        let shape = d.dims();
        let d = d.reshape(self.normed.dims());
        let along = (self.normed.clone() * d.clone()).mean_dim(2);
        let centered = d.clone() - d.mean_dim(2);
        let carried = (centered - self.normed.clone() * along) * self.inverse_deviation.clone();
        carried.reshape(shape)
    }
}

/// The derivative of a ReLU: 1 where it is on, 0 where it is off.
pub(crate) struct Gate(Tensor<4>);

impl Gate {
    /// The ReLU of `x` and its derivative there; off at 0, as in automatic differentiation.
    ///
    /// The derivative is a constant, since that of a ReLU does not change but at the kink. A
    /// product with it is some times faster than filling by a mask.
    pub(crate) fn at(x: Tensor<4>) -> (Tensor<4>, Self) {
        let on = x.clone().greater_elem(0.0).float();
        (relu(x), Self(on))
    }

    pub(crate) fn pass(&self, d: Tensor<4>) -> Tensor<4> {
        d * self.0.clone()
    }
}

/// Nearest upsampling: every pixel becomes a square with sides of `factor` pixels. Linear.
pub(crate) fn upsample(x: Tensor<4>, factor: usize) -> Tensor<4> {
    if factor == 1 {
        return x;
    }
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch * channels, height, 1, width, 1])
        .expand([batch * channels, height, factor, width, factor])
        .reshape([batch, channels, height * factor, width * factor])
}

/// The transpose of [`upsample`]: sums over the squares.
pub(crate) fn sum_squares(x: Tensor<4>, factor: usize) -> Tensor<4> {
    if factor == 1 {
        return x;
    }
    let [batch, channels, height, width] = x.dims();
    let (height, width) = (height / factor, width / factor);
    x.reshape([batch * channels, height, factor, width, factor])
        .sum_dim(4)
        .sum_dim(2)
        .reshape([batch, channels, height, width])
}
