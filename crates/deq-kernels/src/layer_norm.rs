//! Layer normalisation with its Jacobian.

#[cfg(feature = "flex")]
use crate::cpu::norm::{Direction, Rows, carry, normalize};
#[cfg(feature = "flex")]
use crate::flex::{Host, tensor};
use crate::half::half;
use burn::tensor::{DType, Tensor};

/// Every position brought to mean 0 and variance 1 over its channels (Ba et al. 2016), without
/// scale and shift, and what differentiates that.
///
/// `epsilon` is added to the variance. 16-bit floats are brought to f32 for it and back, since the
/// derivative of a small deviation leaves the range of f16.
///
/// # Shapes
///
/// - x, first output: `[batch, time, channels]`
pub fn layer_norm(x: Tensor<3>, epsilon: f64) -> (Tensor<3>, LayerNormJacobian) {
    if let Some(own) = half(&x) {
        let (normed, jacobian) = layer_norm(x.cast(DType::F32), epsilon);
        return (normed.cast(own), jacobian);
    }
    #[cfg(feature = "flex")]
    if let Some(values) = Host::of(&x) {
        let [batch, time, channels] = x.dims();
        let rows = rows(channels);
        let result = normalize(values.values(), rows, epsilon as f32, false, false);
        let normed = tensor(result.value, [batch, time, channels]);
        let jacobian = LayerNormJacobian {
            normed: normed.clone(),
            inverse_deviation: tensor(result.inverse_deviations, [batch, time, 1]),
        };
        return (normed, jacobian);
    }
    let centered = x.clone() - x.mean_dim(2);
    let variance = centered.clone().square().mean_dim(2);
    let inverse_deviation = variance.add_scalar(epsilon).sqrt().recip();
    let normed = centered * inverse_deviation.clone();
    let jacobian = LayerNormJacobian {
        normed: normed.clone(),
        inverse_deviation,
    };
    (normed, jacobian)
}

#[cfg(feature = "flex")]
fn rows(channels: usize) -> Rows<'static> {
    Rows {
        size: channels,
        plane: channels,
        scale: None,
        shift: None,
        cycle: 1,
    }
}

/// The Jacobian of a layer norm at a point, `(I - 11^T / d - n n^T / d) / deviation` per position
/// with the normalised `n`: symmetric.
#[derive(Clone, Debug)]
pub struct LayerNormJacobian {
    normed: Tensor<3>,
    /// `[batch, time, 1]`
    inverse_deviation: Tensor<3>,
}

impl LayerNormJacobian {
    /// Carries directions forward and cotangents backward.
    ///
    /// # Shapes
    ///
    /// - d, output: `[batch, time, channels]`
    pub fn apply(&self, d: Tensor<3>) -> Tensor<3> {
        if let Some(own) = half(&d) {
            return self.apply(d.cast(DType::F32)).cast(own);
        }
        #[cfg(feature = "flex")]
        if let (Some(values), Some(normed), Some(inverse)) = (
            Host::of(&d),
            Host::of(&self.normed),
            Host::of(&self.inverse_deviation),
        ) {
            let [.., channels] = d.dims();
            let (d_values, normed) = (values.values(), normed.values());
            let direction = Direction::Transposed;
            let out = carry(
                d_values,
                normed,
                inverse.values(),
                rows(channels),
                direction,
            );
            return tensor(out, d.dims());
        }
        let centered = d.clone() - d.mean_dim(2);
        let along = (self.normed.clone() * centered.clone()).mean_dim(2);
        (centered - self.normed.clone() * along) * self.inverse_deviation.clone()
    }
}
