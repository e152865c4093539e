//! Linear maps of positions, with what follows them.

#[cfg(feature = "flex")]
use crate::{
    cpu::linear::{Finish, PackedColumns, linear},
    flex::{Host, tensor},
};
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
#[cfg(feature = "flex")]
use std::sync::{Arc, OnceLock};

/// `y = x W + b` at every position, with a weight that stays the same for many inputs.
///
/// On the CPU backend the weight is arranged once, and bias, ReLU and residual are added while a
/// tile of the product is in registers.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<2>>,
    #[cfg(feature = "flex")]
    packed: Arc<OnceLock<Option<PackedColumns>>>,
}

impl Linear {
    /// # Shapes
    ///
    /// - weight: `[input, output]`
    /// - bias: `[1, output]`
    ///
    /// # Panics
    ///
    /// If the bias has another shape.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<2>>) -> Self {
        let [_, output] = weight.dims();
        if let Some(bias) = &bias {
            assert_eq!(bias.dims(), [1, output], "the shape of the bias");
        }
        Self {
            weight,
            bias,
            #[cfg(feature = "flex")]
            packed: Arc::default(),
        }
    }

    /// `[input, output]`.
    pub fn weight(&self) -> &Tensor<2> {
        &self.weight
    }

    /// `[1, output]`.
    pub fn bias(&self) -> Option<&Tensor<2>> {
        self.bias.as_ref()
    }

    /// `x W + b`
    ///
    /// # Shapes
    ///
    /// - x: `[batch, time, input]`
    /// - output: `[batch, time, output]`
    ///
    /// # Panics
    ///
    /// If the channels of `x` are not those that the weight reads.
    pub fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        self.assert_channels(&x);
        #[cfg(feature = "flex")]
        if let Some(y) = self.on_flex(&x, None, false) {
            return y;
        }
        self.generic(x)
    }

    /// `relu(x W + b)`
    ///
    /// Shapes and panics as of [`apply`](Self::apply).
    pub fn apply_relu(&self, x: Tensor<3>) -> Tensor<3> {
        self.assert_channels(&x);
        #[cfg(feature = "flex")]
        if let Some(y) = self.on_flex(&x, None, true) {
            return y;
        }
        relu(self.generic(x))
    }

    /// `to + x W + b`
    ///
    /// Shapes and panics as of [`apply`](Self::apply); `to` has the shape of the output.
    pub fn add_to(&self, to: Tensor<3>, x: Tensor<3>) -> Tensor<3> {
        self.assert_channels(&x);
        let ([batch, time, _], [_, output]) = (x.dims(), self.weight.dims());
        assert_eq!(
            to.dims(),
            [batch, time, output],
            "what a product is added to has its shape"
        );
        #[cfg(feature = "flex")]
        if let Some(y) = Host::of(&to).and_then(|to| self.on_flex(&x, Some(to), false)) {
            return y;
        }
        to + self.generic(x)
    }

    #[track_caller]
    fn assert_channels(&self, x: &Tensor<3>) {
        let ([_, _, channels], [input, _]) = (x.dims(), self.weight.dims());
        assert_eq!(
            channels, input,
            "the positions have {channels} channels, but the weight reads {input}"
        );
    }

    fn generic(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, time, input] = x.dims();
        let [_, output] = self.weight.dims();
        let y = x.reshape([batch * time, input]).matmul(self.weight.clone());
        let y = match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        };
        y.reshape([batch, time, output])
    }

    #[cfg(feature = "flex")]
    fn on_flex(&self, x: &Tensor<3>, add: Option<Host>, relu: bool) -> Option<Tensor<3>> {
        let [batch, time, _] = x.dims();
        let [input, output] = self.weight.dims();
        let x = Host::of(x)?;
        let bias = match &self.bias {
            Some(bias) => Some(Host::of(bias)?),
            None => None,
        };
        let packed = self.packed.get_or_init(|| {
            let weight = Host::of(&self.weight)?;
            Some(PackedColumns::new(
                weight.values(),
                [input, output],
                [output, 1],
            ))
        });
        let finish = Finish {
            bias: bias.as_ref().map(Host::values),
            add: add.as_ref().map(Host::values),
            relu,
        };
        let y = linear(x.values(), packed.as_ref()?, finish);
        Some(tensor(y, [batch, time, output]))
    }
}
