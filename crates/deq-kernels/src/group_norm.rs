//! Group normalisation with its Jacobian in both directions.

#[cfg(feature = "flex")]
use crate::cpu::norm::{Direction, Rows, carry, normalize};
#[cfg(feature = "flex")]
use crate::flex::{Host, tensor};
use crate::half::half;
use burn::tensor::activation::relu;
use burn::tensor::{DType, Tensor};

/// A group norm (Wu and He 2018): every group of channels of every sample is brought to mean 0 and
/// variance 1, then every channel is scaled and shifted.
///
/// 16-bit floats are brought to f32 for it and back, since the derivative of a small deviation
/// leaves the range of f16.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// The channels of one group follow one another.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// Scale and shift, `[1, channels, 1, 1]`.
    pub affine: Option<(Tensor<4>, Tensor<4>)>,
}

impl GroupNorm {
    /// # Shapes
    ///
    /// - x, output: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the groups do not divide the channels.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        if let Some(own) = half(&x) {
            return self.wide().apply(x.cast(DType::F32)).cast(own);
        }
        #[cfg(feature = "flex")]
        if let Some((value, _)) = self.on_flex(&x, false, false) {
            return value;
        }
        self.generic(x).0
    }

    /// The ReLU of the normalised maps.
    ///
    /// # Shapes
    ///
    /// - x, output: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the groups do not divide the channels.
    pub fn apply_relu(&self, x: Tensor<4>) -> Tensor<4> {
        if let Some(own) = half(&x) {
            return self.wide().apply_relu(x.cast(DType::F32)).cast(own);
        }
        #[cfg(feature = "flex")]
        if let Some((value, _)) = self.on_flex(&x, true, false) {
            return value;
        }
        relu(self.generic(x).0)
    }

    /// The value, and what differentiates it.
    ///
    /// # Shapes
    ///
    /// - x, output: `[batch, channels, height, width]`
    ///
    /// # Panics
    ///
    /// If the groups do not divide the channels.
    pub fn linearize(&self, x: Tensor<4>) -> (Tensor<4>, NormJacobian) {
        if let Some(own) = half(&x) {
            let (value, jacobian) = self.wide().linearize(x.cast(DType::F32));
            return (value.cast(own), jacobian);
        }
        #[cfg(feature = "flex")]
        if let Some((value, Some(jacobian))) = self.on_flex(&x, false, true) {
            return (value, jacobian);
        }
        self.generic(x)
    }

    /// The same for f32.
    fn wide(&self) -> Self {
        let wide = |x: &Tensor<4>| x.clone().cast(DType::F32);
        let affine = self.affine.as_ref();
        Self {
            affine: affine.map(|(scale, shift)| (wide(scale), wide(shift))),
            ..self.clone()
        }
    }

    /// The numbers of a group, of maps of that shape.
    fn size(&self, [_, channels, height, width]: [usize; 4]) -> usize {
        let groups = self.groups;
        assert!(
            groups > 0 && channels.is_multiple_of(groups),
            "{groups} groups do not divide {channels} channels"
        );
        channels / groups * height * width
    }

    /// In Burn's operations, which every backend has and which are differentiated as they are.
    fn generic(&self, x: Tensor<4>) -> (Tensor<4>, NormJacobian) {
        let shape = x.dims();
        let [batch, ..] = shape;
        let size = self.size(shape);
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

    #[cfg(feature = "flex")]
    fn on_flex(
        &self,
        x: &Tensor<4>,
        relu: bool,
        keep: bool,
    ) -> Option<(Tensor<4>, Option<NormJacobian>)> {
        let shape = x.dims();
        let [batch, _, height, width] = shape;
        let values = Host::of(x)?;
        let affine = match &self.affine {
            Some((scale, shift)) => Some((Host::of(scale)?, Host::of(shift)?)),
            None => None,
        };
        let affine = affine.as_ref();
        let size = self.size(shape);
        let rows = Rows {
            size,
            plane: height * width,
            scale: affine.map(|(scale, _)| scale.values()),
            shift: affine.map(|(_, shift)| shift.values()),
            cycle: self.groups,
        };
        // Without scale and shift, the value is what is kept.
        let apart = keep && affine.is_some();
        let result = normalize(values.values(), rows, self.epsilon as f32, relu, apart);
        let value = tensor(result.value, shape);
        let jacobian = keep.then(|| NormJacobian {
            normed: match apart {
                true => tensor(result.normed, [batch, self.groups, size]),
                false => value.clone().reshape([batch, self.groups, size]),
            },
            inverse_deviation: tensor(result.inverse_deviations, [batch, self.groups, 1]),
            scale: self.affine.as_ref().map(|(scale, _)| scale.clone()),
        });
        Some((value, jacobian))
    }
}

/// The Jacobian of a group norm at a point.
///
/// That of the normalisation, `(I - 11^T / n - x x^T / n) / deviation` per group with the
/// normalised `x`, is symmetric.
#[derive(Clone, Debug)]
pub struct NormJacobian {
    /// `[batch, groups, size]`
    normed: Tensor<3>,
    /// `[batch, groups, 1]`
    inverse_deviation: Tensor<3>,
    scale: Option<Tensor<4>>,
}

impl NormJacobian {
    /// How the value moves when the maps move by `d`.
    ///
    /// # Shapes
    ///
    /// - d, output: `[batch, channels, height, width]`
    pub fn tangent(&self, d: Tensor<4>) -> Tensor<4> {
        if let Some(own) = half(&d) {
            return self.tangent(d.cast(DType::F32)).cast(own);
        }
        #[cfg(feature = "flex")]
        if let Some(out) = self.on_flex(&d, Direction::Forward) {
            return out;
        }
        self.scaled(self.normalization(d))
    }

    /// The transpose: cotangents from the value to the maps.
    ///
    /// # Shapes
    ///
    /// - g, output: `[batch, channels, height, width]`
    pub fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        if let Some(own) = half(&g) {
            return self.carry(g.cast(DType::F32)).cast(own);
        }
        #[cfg(feature = "flex")]
        if let Some(out) = self.on_flex(&g, Direction::Transposed) {
            return out;
        }
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

    #[cfg(feature = "flex")]
    fn on_flex(&self, d: &Tensor<4>, direction: Direction) -> Option<Tensor<4>> {
        let shape = d.dims();
        let [_, groups, size] = self.normed.dims();
        let [d, normed, inverse] = [
            Host::of(d)?,
            Host::of(&self.normed)?,
            Host::of(&self.inverse_deviation)?,
        ];
        let scale = match &self.scale {
            Some(scale) => Some(Host::of(scale)?),
            None => None,
        };
        let rows = Rows {
            size,
            plane: shape[2] * shape[3],
            scale: scale.as_ref().map(Host::values),
            shift: None,
            cycle: groups,
        };
        let out = carry(
            d.values(),
            normed.values(),
            inverse.values(),
            rows,
            direction,
        );
        Some(tensor(out, shape))
    }
}
