//! What is done to every number of maps, on the CPU.

use super::{Host, numbers, own, primitive};
use crate::backend::pointwise::PointwiseBackend;
use crate::cpu::{pointwise, resample};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};

impl PointwiseBackend for Flex {
    fn pass_gate(d: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        let gate = Host::in_order(gate);
        let mut d = own(d);
        pointwise::pass_gate(numbers(&mut d), gate.values());
        d
    }

    fn add_upsampled(
        to: FloatTensor<Self>,
        x: FloatTensor<Self>,
        factor: usize,
    ) -> FloatTensor<Self> {
        let [_, _, height, width] = x.shape().dims();
        let x = Host::in_order(x);
        let mut to = own(to);
        resample::add_upsampled(numbers(&mut to), x.values(), [height, width], factor);
        to
    }

    fn sum_squares(x: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        let [batch, channels, height, width] = x.shape().dims();
        let [height, width] = [height, width].map(|side| side / factor);
        let x = Host::in_order(x);
        let sums = resample::sum_squares(x.values(), [height, width], factor);
        primitive(sums, [batch, channels, height, width])
    }
}
