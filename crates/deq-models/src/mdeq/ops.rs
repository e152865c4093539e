//! The operations of the cell, evaluated once per solve, each with its derivative in both
//! directions.

use burn::module::{Module, Param};
use burn::nn::{GroupNorm, Initializer};
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::normalization::{norm_except, weight_norm};
use deq_core::{CellContext, TensorMap};
use deq_kernels::{self as kernels, Convolution};
use std::ops::Deref;

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
        Conv(Convolution::new(weight, self.stride))
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
pub(crate) struct Conv(Convolution);

impl Conv {
    /// Linear, hence its own derivative.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, input, height, width]`
    /// - output: `[batch, output, height / stride, width / stride]`
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        self.0.apply(x)
    }

    /// The transpose: cotangents from the output to the input, whose sides the stride must divide.
    ///
    /// # Shapes
    ///
    /// - g: that of the output
    /// - output: that of the input
    pub(crate) fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        self.0.carry(g)
    }
}

impl CellContext for Conv {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        let weight = self.0.weight().map_tensors(map);
        Self(match map.keeps_values() {
            true => self.0.with_same_weight(weight),
            false => Convolution::new(weight, self.0.stride()),
        })
    }
}

/// A group norm with its parameters at hand.
#[derive(Clone, Debug)]
pub(crate) struct Norm(kernels::GroupNorm);

impl Norm {
    pub(crate) fn of(module: &GroupNorm) -> Self {
        let shape = [1, module.num_channels, 1, 1];
        let affine = module.gamma.as_ref().zip(module.beta.as_ref());
        Self(kernels::GroupNorm {
            groups: module.num_groups,
            epsilon: module.epsilon,
            affine: affine
                .map(|(gamma, beta)| (gamma.val().reshape(shape), beta.val().reshape(shape))),
        })
    }
}

impl Deref for Norm {
    type Target = kernels::GroupNorm;

    fn deref(&self) -> &kernels::GroupNorm {
        &self.0
    }
}

impl CellContext for Norm {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self(kernels::GroupNorm {
            groups: self.0.groups,
            epsilon: self.0.epsilon,
            affine: self.0.affine.map_tensors(map),
        })
    }
}
