//! How branches of different resolution meet.

use super::config::MdeqConfig;
use super::ops::{Conv, Norm, NormedConv};
use burn::module::Module;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor};
use deq_core::{CellContext, TensorMap};
use deq_kernels::{NormJacobian, add_upsampled, sum_squares, upsample};

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
    /// What arrives by this way, added to what has arrived from other branches.
    ///
    /// # Shapes
    ///
    /// - to, output: that of the branch it goes to
    /// - x: that of the branch it comes from
    pub(crate) fn add_to(&self, to: Option<Tensor<4>>, x: Tensor<4>) -> Tensor<4> {
        let Some(((conv, norm), before)) = self.steps.split_last() else {
            return join(to, x, self.factor);
        };
        let relayed = before.iter();
        let x = relayed.fold(x, |x, (conv, norm)| norm.apply_relu(conv.apply(x)));
        let x = conv.apply(x);
        match to {
            Some(to) if self.factor == 1 => norm.add_to(to, x),
            to => join(to, norm.apply(x), self.factor),
        }
    }

    /// As [`add_to`](Self::add_to), and what differentiates it.
    pub(crate) fn linearize(
        &self,
        to: Option<Tensor<4>>,
        x: Tensor<4>,
    ) -> (Tensor<4>, PathJacobian) {
        let mut x = x;
        let mut steps = Vec::with_capacity(self.steps.len());
        for (index, (conv, norm)) in self.steps.iter().enumerate() {
            x = conv.apply(x);
            let (value, jacobian) = match index + 1 == self.steps.len() {
                true => norm.linearize(x),
                false => norm.linearize_relu(x),
            };
            x = value;
            steps.push((conv.clone(), jacobian));
        }
        let factor = self.factor;
        (join(to, x, factor), PathJacobian { steps, factor })
    }
}

/// Maps of a coarser branch, or of the same, added to what is there.
fn join(to: Option<Tensor<4>>, x: Tensor<4>, factor: usize) -> Tensor<4> {
    match to {
        Some(to) => add_upsampled(to, x, factor),
        None => upsample(x, factor),
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
    /// ReLUs are part of the norms before them.
    steps: Vec<(Conv, NormJacobian)>,
    factor: usize,
}

impl PathJacobian {
    /// How what arrives moves, added to what has arrived.
    pub(crate) fn add_tangent(&self, to: Option<Tensor<4>>, d: Tensor<4>) -> Tensor<4> {
        let steps = self.steps.iter();
        let d = steps.fold(d, |d, (conv, norm)| norm.tangent(conv.apply(d)));
        join(to, d, self.factor)
    }

    /// The transpose.
    pub(crate) fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        let steps = self.steps.iter().rev();
        let g = sum_squares(g, self.factor);
        steps.fold(g, |g, (conv, norm)| conv.carry(norm.carry(g)))
    }
}
