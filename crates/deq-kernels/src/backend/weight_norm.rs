//! Weights as length times direction.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "_gpu"),
    Fusion: cfg(feature = "_gpu")
)]
pub(crate) trait WeightNormBackend: Backend {
    /// `direction * gain / |direction|` and the lengths `[1, slices, 1]`, of slices along the
    /// middle axis of `[outer, slices, inner]`. On the CPU there is one outer part.
    #[fusion(meta = |direction, gain| (direction.clone(), gain.clone()))]
    fn weight_norm(
        direction: FloatTensor<Self>,
        gain: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The cotangents of direction and gain.
    #[cfg(feature = "autodiff")]
    #[fusion(meta = |direction, gain, _, _| (direction.clone(), gain.clone()))]
    fn carry_weight_norm(
        direction: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        lengths: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
