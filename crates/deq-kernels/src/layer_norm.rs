//! Layer normalisation with its Jacobian.

use crate::group_norm::{GroupNorm, NormJacobian};
use burn::tensor::Tensor;

/// Every position brought to mean 0 and variance 1 over its channels (Ba et al. 2016), without
/// scale and shift: a group norm of one group, of maps of one pixel.
///
/// `epsilon` is added to the variance. 16-bit floats are brought to f32 for it and back, since the
/// derivative of a small deviation leaves the range of f16.
///
/// # Shapes
///
/// - x, output: `[batch, time, channels]`
pub fn layer_norm(x: Tensor<3>, epsilon: f64) -> Tensor<3> {
    let shape = x.dims();
    norm(epsilon).apply(pixels(x)).reshape(shape)
}

fn norm(epsilon: f64) -> GroupNorm {
    GroupNorm {
        groups: 1,
        epsilon,
        affine: None,
    }
}

/// A sample for every position.
fn pixels(x: Tensor<3>) -> Tensor<4> {
    let [batch, time, channels] = x.dims();
    x.reshape([batch * time, channels, 1, 1])
}

/// The Jacobian of a layer norm at a point, `(I - 11^T / d - n n^T / d) / deviation` per position
/// with the normalised `n`: symmetric.
#[derive(Clone, Debug)]
pub struct LayerNormJacobian(NormJacobian);

impl LayerNormJacobian {
    /// [`layer_norm`], and what differentiates it.
    ///
    /// # Shapes
    ///
    /// - x, first output: `[batch, time, channels]`
    pub fn at(x: Tensor<3>, epsilon: f64) -> (Tensor<3>, Self) {
        let shape = x.dims();
        let (normed, jacobian) = norm(epsilon).linearize(pixels(x));
        (normed.reshape(shape), Self(jacobian))
    }

    /// Carries directions forward and cotangents backward.
    ///
    /// # Shapes
    ///
    /// - d, output: `[batch, time, channels]`
    pub fn apply(&self, d: Tensor<3>) -> Tensor<3> {
        let shape = d.dims();
        self.0.tangent(pixels(d)).reshape(shape)
    }
}
