//! The derivative of a ReLU.

use crate::device::on_host;
#[cfg(feature = "_gpu")]
use crate::gpu::{self, pointwise::PointwiseBackend};
#[cfg(feature = "_gpu")]
use burn::backend::Dispatch;
use burn::tensor::{Tensor, activation::relu};

/// The derivative of a ReLU at a point: 1 where it is on, 0 where it is off, and at its kink, as in
/// automatic differentiation.
#[derive(Clone, Debug)]
pub struct Gate {
    /// On the CPU the derivative, since a product with it is some times faster than filling by a
    /// mask. Elsewhere the value, which exists anyhow, and from which one kernel takes both.
    map: Tensor<4>,
}

impl Gate {
    /// The ReLU of `x` and its derivative there.
    ///
    /// # Shapes
    ///
    /// - x, first output: any
    pub fn at(x: Tensor<4>) -> (Tensor<4>, Self) {
        if on_host(&x.device()) {
            let map = derivative(x.clone());
            return (relu(x), Self { map });
        }
        let value = relu(x);
        (value.clone(), Self { map: value })
    }

    /// That of a ReLU on a GPU by its value.
    #[cfg(feature = "_gpu")]
    pub(crate) fn of_value(value: Tensor<4>) -> Self {
        Self { map: value }
    }

    /// Numbers that are above 0 where the ReLU is on, and 0 where it is off.
    #[cfg(feature = "_gpu")]
    pub(crate) fn constant(&self) -> Tensor<4> {
        match self.map.is_autodiff() {
            true => self.map.clone().inner(),
            false => self.map.clone(),
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
        assert_eq!(d.dims(), self.map.dims(), "the shape of the maps at a ReLU");
        if on_host(&self.map.device()) {
            return d * self.map.clone();
        }
        #[cfg(feature = "_gpu")]
        {
            let gate = self.constant();
            if gpu::takes_tracked(&[&d, &gate]) {
                let [d, gate] = [d, gate].map(Tensor::into_dispatch);
                return Tensor::from_dispatch(Dispatch::pass_gate(d, gate));
            }
        }
        d * derivative(self.map.clone())
    }
}

fn derivative(x: Tensor<4>) -> Tensor<4> {
    let own = x.dtype();
    x.greater_elem(0.0).float().cast(own)
}
