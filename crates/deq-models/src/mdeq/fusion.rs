//! How branches of different resolution meet.

use super::config::MdeqConfig;
use super::ops::{Conv, Gate, Norm, NormedConv, sum_squares, upsample};
use burn::module::Module;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor, activation::relu};
use deq_core::{CellContext, TensorMap};
use deq_kernels::NormJacobian;

/// A convolution followed by group normalisation.
#[derive(Module, Debug)]
pub struct ConvGroupNorm {
    /// The convolution.
    pub conv: NormedConv,
    /// Over its output.
    pub norm: GroupNorm,
}

impl ConvGroupNorm {
    /// The step behind the sum of the branches: 1x1, half the groups.
    pub(crate) fn after_fusion(config: &MdeqConfig, channels: usize, device: &Device) -> Self {
        let shape = [channels, channels, 1, 1];
        Self {
            conv: NormedConv::new(shape, 1, config.weight_norm, device),
            norm: GroupNormConfig::new(config.groups / 2, channels)
                .with_affine(config.post_fusion_affine)
                .init(device),
        }
    }

    pub(crate) fn effective(&self) -> (Conv, Norm) {
        (self.conv.effective(), Norm::of(&self.norm))
    }
}

/// The way from one branch to another.
///
/// To a coarser branch: a strided 3x3 convolution and a group norm for every halving, ReLU between
/// them; all keep the channels but the last. To a finer one: a 1x1 convolution, a group norm,
/// nearest upsampling. To itself: nothing.
#[derive(Module, Debug)]
pub struct FusionPath {
    /// The convolutions on the way.
    pub steps: Vec<ConvGroupNorm>,
    #[module(skip)]
    factor: usize,
}

impl FusionPath {
    pub(crate) fn new(config: &MdeqConfig, from: usize, to: usize, device: &Device) -> Self {
        let (input, output) = (config.channels[from], config.channels[to]);
        let step = |output, kernel, stride| ConvGroupNorm {
            conv: NormedConv::new([output, input, kernel, kernel], stride, false, device),
            norm: GroupNormConfig::new(config.groups, output)
                .with_affine(config.fusion_affine)
                .init(device),
        };
        let steps = if from > to {
            vec![step(output, 1, 1)]
        } else {
            (from + 1..=to)
                .map(|level| step(if level == to { output } else { input }, 3, 2))
                .collect()
        };
        Self {
            steps,
            factor: 1 << from.saturating_sub(to),
        }
    }

    pub(crate) fn context(&self) -> PathContext {
        PathContext {
            steps: self.steps.iter().map(ConvGroupNorm::effective).collect(),
            factor: self.factor,
        }
    }
}

/// An evaluated [`FusionPath`].
#[derive(Clone, Debug)]
pub(crate) struct PathContext {
    steps: Vec<(Conv, Norm)>,
    factor: usize,
}

impl PathContext {
    /// # Shapes
    ///
    /// - x: that of the branch it comes from
    /// - output: that of the branch it goes to
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = x;
        for (index, (conv, norm)) in self.steps.iter().enumerate() {
            if index > 0 {
                x = relu(x);
            }
            x = norm.apply(conv.apply(x));
        }
        upsample(x, self.factor)
    }

    /// The value, and what differentiates it.
    pub(crate) fn linearize(&self, x: Tensor<4>) -> (Tensor<4>, PathJacobian) {
        let mut x = x;
        let mut steps = Vec::with_capacity(self.steps.len());
        for (index, (conv, norm)) in self.steps.iter().enumerate() {
            let gate = (index > 0).then(|| Gate::at(x.clone()));
            let (seen, gate) = match gate {
                Some((seen, gate)) => (seen, Some(gate)),
                None => (x, None),
            };
            let (value, norm) = norm.linearize(conv.apply(seen));
            x = value;
            steps.push((gate, conv.clone(), norm));
        }
        let factor = self.factor;
        (upsample(x, factor), PathJacobian { steps, factor })
    }
}

impl CellContext for PathContext {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            steps: self.steps.map_tensors(map),
            factor: self.factor,
        }
    }
}

/// The Jacobian of a [`PathContext`] at a point.
pub(crate) struct PathJacobian {
    steps: Vec<(Option<Gate>, Conv, NormJacobian)>,
    factor: usize,
}

impl PathJacobian {
    pub(crate) fn tangent(&self, d: Tensor<4>) -> Tensor<4> {
        let d = self.steps.iter().fold(d, |d, (gate, conv, norm)| {
            let d = gate.as_ref().map_or(d.clone(), |gate| gate.pass(d));
            norm.tangent(conv.apply(d))
        });
        upsample(d, self.factor)
    }

    /// The transpose.
    pub(crate) fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        let g = sum_squares(g, self.factor);
        self.steps.iter().rev().fold(g, |g, (gate, conv, norm)| {
            let g = conv.carry(norm.carry(g));
            gate.as_ref().map_or(g.clone(), |gate| gate.pass(g))
        })
    }
}
