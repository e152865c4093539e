//! The derivative of a ReLU.

#[cfg(feature = "_kernel")]
use crate::backend::{pointwise::PointwiseBackend, takes};
#[cfg(feature = "_kernel")]
use burn::backend::Dispatch;
use burn::tensor::{Tensor, activation::relu};

/// The derivative of a ReLU at a point: 1 where it is on, 0 where it is off, and at its kink, as in
/// automatic differentiation.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The value of the ReLU, which exists anyhow: above 0 where it is on.
    value: Tensor<4>,
}

impl Gate {
    /// The ReLU of `x` and its derivative there.
    ///
    /// # Shapes
    ///
    /// - x, first output: any
    pub fn at(x: Tensor<4>) -> (Tensor<4>, Self) {
        let value = relu(x);
        (value.clone(), Self { value })
    }

    /// That of a ReLU by its value.
    #[cfg(feature = "_kernel")]
    pub(crate) fn of_value(value: Tensor<4>) -> Self {
        Self { value }
    }

    /// Numbers that are above 0 where the ReLU is on, and 0 where it is off.
    #[cfg(feature = "_kernel")]
    pub(crate) fn constant(&self) -> Tensor<4> {
        match self.value.is_autodiff() {
            true => self.value.clone().inner(),
            false => self.value.clone(),
        }
    }

    /// The product with the derivative, which is its own transpose.
    ///
    /// # Shapes
    ///
    /// - d, output: those of `x`
    ///
    /// # Panics
    ///
    /// If they are not.
    pub fn pass(&self, d: Tensor<4>) -> Tensor<4> {
        let shape = self.value.dims();
        assert_eq!(d.dims(), shape, "the shape of the maps at a ReLU");
        #[cfg(feature = "_kernel")]
        {
            let gate = self.constant();
            if takes(&[&d, &gate]) {
                let [d, gate] = [d, gate].map(Tensor::into_dispatch);
                return Tensor::from_dispatch(Dispatch::pass_gate(d, gate));
            }
        }
        // Not by a product, which would make NaN of infinity.
        d.mask_fill(self.value.clone().greater_elem(0.0).bool_not(), 0.0)
    }
}
