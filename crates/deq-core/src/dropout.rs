//! Variational dropout: one mask for a whole solve.
//!
//! A mask that is drawn anew in every evaluation makes every evaluation another function, which has
//! no fixed point. Draw it once, put it in the cell's [context](crate::CellContext), and the
//! forward solve, the backward solve and the Jacobian penalty all see the same function.

use crate::context::{CellContext, TensorMap};
use crate::random;
use burn::tensor::{Device, Distribution, Tensor};

/// A dropout mask held through one solve.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use deq_core::dropout::DropoutMask;
///
/// let device = Device::flex();
/// // One decision per sample and channel, shared by all 64 positions.
/// let mask = DropoutMask::draw([8, 1, 32], 0.1, &device);
/// assert_eq!(mask.apply(Tensor::<3>::ones([8, 64, 32], &device)).dims(), [8, 64, 32]);
/// ```
#[derive(Clone, Debug)]
pub struct DropoutMask<const D: usize>(Option<Tensor<D>>);

impl<const D: usize> DropoutMask<D> {
    /// Draws `1 / (1 - rate)` with probability `1 - rate`, else 0, from the device's generator.
    /// Rate 0 draws nothing.
    ///
    /// # Shapes
    ///
    /// - shape: that of the tensors it multiplies, samples first; size 1 on other axes along which
    ///   the decision is shared
    ///
    /// # Panics
    ///
    /// If `rate` is not in `[0, 1)`, or in a [divided](random::DividedDraws) batch the first axis
    /// is not that of the samples.
    pub fn draw(shape: [usize; D], rate: f64, device: &Device) -> Self {
        Self::drawn(rate, device, |kept, device| {
            random::for_samples(shape, kept, device)
        })
    }

    /// [`draw`](Self::draw) with decisions that all samples share.
    ///
    /// # Shapes
    ///
    /// - shape: that of the tensors it multiplies; size 1 on axes along which the decision is
    ///   shared
    ///
    /// # Panics
    ///
    /// If `rate` is not in `[0, 1)`.
    pub fn draw_for_all(shape: [usize; D], rate: f64, device: &Device) -> Self {
        Self::drawn(rate, device, |kept, device| {
            random::for_all(shape, kept, device)
        })
    }

    fn drawn(
        rate: f64,
        device: &Device,
        draw: impl FnOnce(Distribution, &Device) -> Tensor<D>,
    ) -> Self {
        assert!(
            (0.0..1.0).contains(&rate),
            "the dropout rate is {rate}, but must be at least 0 and below 1"
        );
        if rate <= 0.0 {
            return Self::none();
        }
        // A constant of the graph, hence on the plain device.
        let device = device.clone().inner();
        let kept = draw(Distribution::Bernoulli(1.0 - rate), &device);
        Self(Some(kept.mul_scalar(1.0 / (1.0 - rate))))
    }

    /// Drops nothing: evaluation.
    pub fn none() -> Self {
        Self(None)
    }

    /// What it multiplies by, if it drops anything.
    pub fn factors(&self) -> Option<&Tensor<D>> {
        self.0.as_ref()
    }

    /// Multiplies by the mask.
    ///
    /// # Shapes
    ///
    /// - x, output: a shape to which the mask's broadcasts
    pub fn apply(&self, x: Tensor<D>) -> Tensor<D> {
        match &self.0 {
            Some(mask) => {
                let mask = mask.clone().cast(x.dtype());
                x * mask
            }
            None => x,
        }
    }
}

impl<const D: usize> CellContext for DropoutMask<D> {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self(self.0.map_tensors(map))
    }
}
