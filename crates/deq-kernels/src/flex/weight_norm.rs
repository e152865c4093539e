//! Weights as length times direction, on the CPU.

use super::{Host, primitive};
#[cfg(feature = "autodiff")]
use super::{numbers, own};
use crate::backend::weight_norm::WeightNormBackend;
use crate::cpu::weight_norm;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};

impl WeightNormBackend for Flex {
    fn weight_norm(
        direction: FloatTensor<Self>,
        gain: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = direction.shape();
        let [direction, gain] = [direction, gain].map(Host::in_order);
        let [weight, lengths] =
            weight_norm::weight_norm(direction.values(), gain.values(), shape[2]);
        let slices = shape[1];
        (primitive(weight, shape), primitive(lengths, [1, slices, 1]))
    }

    #[cfg(feature = "autodiff")]
    fn carry_weight_norm(
        direction: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        lengths: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [_, slices, size] = direction.shape().dims();
        let [direction, gain, lengths] = [direction, gain, lengths].map(Host::in_order);
        let mut g = own(g);
        let to_gain = weight_norm::carry(
            numbers(&mut g),
            direction.values(),
            gain.values(),
            lengths.values(),
            size,
        );
        (g, primitive(to_gain, [1, slices, 1]))
    }
}
