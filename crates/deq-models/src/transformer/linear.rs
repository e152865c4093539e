//! A linear map with optional weight normalisation, evaluated once per solve.

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::normalization::{norm_except, weight_norm};
use deq_core::{CellContext, TensorMap};
use deq_kernels::Linear;

/// `y = x W + b` with `W = weight`, or `W = weight * gain / |weight|` with norms over the columns.
///
/// Weight normalisation (Salimans and Kingma 2016) separates the length of a column from its
/// direction; the original DEQ-Transformer uses it on every map inside `f` to keep the equilibrium
/// stable during training.
#[derive(Module, Debug)]
pub struct NormedLinear {
    /// The direction, or the weight itself, `[input, output]`.
    pub weight: Param<Tensor<2>>,
    /// The lengths of the columns, `[1, output]`, if the weight is normalised.
    pub gain: Option<Param<Tensor<2>>>,
    /// The bias, `[output]`.
    pub bias: Option<Param<Tensor<1>>>,
}

/// What a [`NormedLinear`] looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearShape {
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) bias: bool,
}

impl NormedLinear {
    /// Weights from N(0, std), gains equal to the norms they start with, zero biases.
    pub(crate) fn new(shape: LinearShape, normed: bool, std: f64, device: &Device) -> Self {
        let LinearShape {
            input,
            output,
            bias,
        } = shape;
        let normal = Distribution::Normal(0.0, std);
        let weight = Tensor::<2>::random([input, output], normal, device);
        let gain = normed.then(|| Param::from_tensor(norm_except(weight.clone(), 1)));
        Self {
            weight: Param::from_tensor(weight),
            gain,
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([output], device))),
        }
    }

    /// The weight and bias to use throughout one solve.
    pub(crate) fn effective(&self) -> Affine {
        let weight = self.weight.val();
        let weight = match &self.gain {
            Some(gain) => weight_norm(weight, gain.val(), 1),
            None => weight,
        };
        let bias = self.bias.as_ref();
        Affine::new(weight, bias.map(|bias| bias.val().unsqueeze()))
    }
}

/// An evaluated [`NormedLinear`].
#[derive(Clone, Debug)]
pub(crate) struct Affine(Linear);

impl Affine {
    fn new(weight: Tensor<2>, bias: Option<Tensor<2>>) -> Self {
        Self(Linear::new(weight, bias))
    }

    pub(crate) fn weight(&self) -> &Tensor<2> {
        self.0.weight()
    }

    /// # Shapes
    ///
    /// - x: `[batch, time, input]`
    /// - output: `[batch, time, output]`
    pub(crate) fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        self.0.apply(x)
    }

    /// The ReLU of the output.
    pub(crate) fn apply_relu(&self, x: Tensor<3>) -> Tensor<3> {
        self.0.apply_relu(x)
    }

    /// The output on top of `to`, which has its shape.
    pub(crate) fn add_to(&self, to: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        self.0.add_to(to, x)
    }

    /// The linear part alone: how the output moves with the input.
    pub(crate) fn tangent(&self, dx: Tensor<3>) -> Tensor<3> {
        Self::new(self.weight().clone(), None).apply(dx)
    }

    /// The transposed linear part, which carries cotangents from the output to the input.
    pub(crate) fn transposed(&self) -> Self {
        Self::new(self.weight().clone().transpose(), None)
    }

    /// The map that reads `columns` of the output only.
    pub(crate) fn columns(&self, columns: std::ops::Range<usize>) -> Self {
        let (start, size) = (columns.start, columns.len());
        let bias = self.0.bias().cloned();
        Self::new(
            self.weight().clone().narrow(1, start, size),
            bias.map(|bias| bias.narrow(1, start, size)),
        )
    }
}

impl CellContext for Affine {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        let weight = self.weight().map_tensors(map);
        Self::new(weight, self.0.bias().cloned().map_tensors(map))
    }
}
