//! The layer whose fixed point the model computes.

use super::block::{BlockContext, BlockJacobian, ResidualBlock};
use super::config::MdeqConfig;
use super::fusion::{ConvGroupNorm, FusionPath, PathContext, PathJacobian};
use super::ops::{Conv, Norm};
use burn::module::Module;
use burn::tensor::{Device, Tensor, activation::relu};
use deq_core::dropout::DropoutMask;
use deq_core::{CellContext, EquilibriumCell, Pullback, TensorMap};
use deq_kernels::{Gate, NormJacobian};

/// Feature maps of several resolutions that reach equilibrium together: a residual block on every
/// branch, then a fusion of all branches into each.
///
/// ```text
/// y_i = block_i(z_i, injection_i)                                 the injection is zero but for the finest branch
/// f(z)_i = norm(conv1x1(relu(sum_j path_ji(y_j))))                path_ii is the identity
/// ```
///
/// The state is a map `[batch, channels, height, width]` per branch, finest first.
#[derive(Module, Debug)]
pub struct MdeqCell {
    /// One per resolution, finest first.
    pub branches: Vec<Branch>,
    /// By the branch they go to, then the one they come from.
    pub fusion: Vec<FusionTarget>,
    #[module(skip)]
    channels: Vec<usize>,
}

/// The residual blocks of one resolution.
#[derive(Module, Debug)]
pub struct Branch {
    /// One after the other; the first receives the injection.
    pub blocks: Vec<ResidualBlock>,
}

/// All ways into one branch.
#[derive(Module, Debug)]
pub struct FusionTarget {
    /// By the branch they come from.
    pub paths: Vec<FusionPath>,
    /// Behind the sum and its ReLU.
    pub post: ConvGroupNorm,
}

impl MdeqCell {
    pub(crate) fn new(config: &MdeqConfig, device: &Device) -> Self {
        let count = config.channels.len();
        let branch = |&channels| Branch {
            blocks: (0..config.blocks)
                .map(|_| ResidualBlock::new(config, channels, device))
                .collect(),
        };
        let target = |to| FusionTarget {
            paths: (0..count)
                .map(|from| FusionPath::new(config, from, to, device))
                .collect(),
            post: ConvGroupNorm::after_fusion(config, config.channels[to], device),
        };
        Self {
            branches: config.channels.iter().map(branch).collect(),
            fusion: (0..count).map(target).collect(),
            channels: config.channels.clone(),
        }
    }

    /// Gathers what stays constant during one solve. Gradients flow through it to parameters and
    /// injection.
    ///
    /// # Shapes
    ///
    /// - injection: of the finest branch, `[batch, channels, height, width]`; the sides fix those
    ///   of all branches, each half of the one before
    ///
    /// # Panics
    ///
    /// If `dropout` is not in `[0, 1)`.
    pub fn context(&self, injection: Tensor<4>, dropout: f64) -> MdeqContext {
        let [batch, ..] = injection.dims();
        let device = injection.device();
        let mut injection = Some(injection);
        let mut branches = Vec::with_capacity(self.branches.len());
        for (branch, &channels) in self.branches.iter().zip(&self.channels) {
            let mut injection = injection.take();
            let blocks = branch.blocks.iter().map(|block| {
                let mask = DropoutMask::draw([batch, channels, 1, 1], dropout, &device);
                block.context(injection.take(), mask)
            });
            branches.push(blocks.collect());
        }
        MdeqContext {
            branches,
            fusion: self.fusion.iter().map(TargetContext::of).collect(),
        }
    }

    /// The start of a solve: zeros in every branch.
    ///
    /// # Shapes
    ///
    /// - injection: as for [`context`](Self::context)
    ///
    /// # Panics
    ///
    /// If the sides cannot be halved for every branch.
    pub fn zeros(&self, injection: &Tensor<4>) -> Vec<Tensor<4>> {
        let [batch, _, height, width] = injection.dims();
        let factor = 1 << (self.channels.len() - 1);
        assert!(
            height * width > 0 && height.is_multiple_of(factor) && width.is_multiple_of(factor),
            "the finest branch is {height} by {width}, but its sides must be multiples of \
                 {factor}, above 0, for {} branches",
            self.channels.len()
        );
        let branches = self.channels.iter().enumerate();
        branches
            .map(|(level, &channels)| {
                let shape = [batch, channels, height >> level, width >> level];
                Tensor::zeros(shape, &injection.device())
            })
            .collect()
    }
}

/// The constants of one solve of an [`MdeqCell`]: normalised weights, injection, dropout masks.
#[derive(Clone, Debug)]
pub struct MdeqContext {
    branches: Vec<Vec<BlockContext>>,
    fusion: Vec<TargetContext>,
}

impl MdeqContext {
    /// The value, and what differentiates it.
    fn linearize(&self, z: Vec<Tensor<4>>) -> (Vec<Tensor<4>>, CellJacobian) {
        let mut maps = Vec::with_capacity(self.branches.len());
        let mut branches = Vec::with_capacity(self.branches.len());
        for (blocks, mut map) in self.branches.iter().zip(z) {
            let mut jacobians = Vec::with_capacity(blocks.len());
            for block in blocks {
                let (value, jacobian) = block.linearize(map);
                map = value;
                jacobians.push(jacobian);
            }
            maps.push(map);
            branches.push(jacobians);
        }
        let targets = self.fusion.iter().map(|target| target.linearize(&maps));
        let (fz, fusion) = targets.unzip();
        (fz, CellJacobian { branches, fusion })
    }
}

impl CellContext for MdeqContext {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            branches: self.branches.map_tensors(map),
            fusion: self.fusion.map_tensors(map),
        }
    }
}

impl EquilibriumCell for MdeqCell {
    type State = Vec<Tensor<4>>;
    type Context = MdeqContext;

    fn forward(&self, z: Vec<Tensor<4>>, context: &MdeqContext) -> Vec<Tensor<4>> {
        let maps: Vec<Tensor<4>> = context
            .branches
            .iter()
            .zip(z)
            .map(|(blocks, map)| blocks.iter().fold(map, |map, block| block.apply(map)))
            .collect();
        let targets = context.fusion.iter();
        targets.map(|target| target.apply(&maps)).collect()
    }

    /// Carries cotangents back with the values of one evaluation.
    fn pullback(
        &self,
        z: Vec<Tensor<4>>,
        context: &MdeqContext,
    ) -> Option<Pullback<Vec<Tensor<4>>>> {
        let (_, jacobian) = context.linearize(z);
        Some(Box::new(move |cotangent| jacobian.carry(cotangent)))
    }

    /// Differentiates every operation forward. Kinks of ReLUs are treated as automatic
    /// differentiation treats them.
    fn tangent(
        &self,
        z: Vec<Tensor<4>>,
        direction: Vec<Tensor<4>>,
        context: &MdeqContext,
    ) -> Option<(Vec<Tensor<4>>, Vec<Tensor<4>>)> {
        let (fz, jacobian) = context.linearize(z);
        Some((fz, jacobian.tangent(direction)))
    }
}

/// The Jacobian of the cell at a point.
struct CellJacobian {
    branches: Vec<Vec<BlockJacobian>>,
    fusion: Vec<TargetJacobian>,
}

impl CellJacobian {
    fn tangent(&self, direction: Vec<Tensor<4>>) -> Vec<Tensor<4>> {
        let maps: Vec<Tensor<4>> = self
            .branches
            .iter()
            .zip(direction)
            .map(|(blocks, d)| blocks.iter().fold(d, |d, block| block.tangent(d)))
            .collect();
        let targets = self.fusion.iter();
        targets.map(|target| target.tangent(&maps)).collect()
    }

    fn carry(&self, cotangents: Vec<Tensor<4>>) -> Vec<Tensor<4>> {
        // By the branch they come from: the sum over all targets.
        let sums = self
            .fusion
            .iter()
            .zip(cotangents)
            .map(|(target, g)| target.carry(g))
            .reduce(|sums, parts| sums.into_iter().zip(parts).map(|(a, b)| a + b).collect())
            .unwrap_or_default();
        let maps = self.branches.iter().zip(sums);
        maps.map(|(blocks, g)| blocks.iter().rev().fold(g, |g, block| block.carry(g)))
            .collect()
    }
}

/// An evaluated [`FusionTarget`].
#[derive(Clone, Debug)]
struct TargetContext {
    paths: Vec<PathContext>,
    conv: Conv,
    norm: Norm,
}

impl TargetContext {
    fn of(target: &FusionTarget) -> Self {
        let (conv, norm) = target.post.effective();
        Self {
            paths: target.paths.iter().map(FusionPath::context).collect(),
            conv,
            norm,
        }
    }

    /// # Shapes
    ///
    /// - maps: those of all branches
    /// - output: that of the target
    fn apply(&self, maps: &[Tensor<4>]) -> Tensor<4> {
        let mut sum = None;
        for (path, map) in self.paths.iter().zip(maps) {
            sum = Some(path.add_to(sum, map.clone()));
        }
        self.norm.apply(self.conv.apply(relu(joined(sum))))
    }

    /// The value, and what differentiates it.
    fn linearize(&self, maps: &[Tensor<4>]) -> (Tensor<4>, TargetJacobian) {
        let mut sum = None;
        let mut paths = Vec::with_capacity(self.paths.len());
        for (path, map) in self.paths.iter().zip(maps) {
            let (value, jacobian) = path.linearize(sum, map.clone());
            sum = Some(value);
            paths.push(jacobian);
        }
        let (sum, gate) = Gate::at(joined(sum));
        let (value, norm) = self.norm.linearize(self.conv.apply(sum));
        let jacobian = TargetJacobian {
            paths,
            gate,
            norm,
            conv: self.conv.clone(),
        };
        (value, jacobian)
    }
}

impl CellContext for TargetContext {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            paths: self.paths.map_tensors(map),
            conv: self.conv.map_tensors(map),
            norm: self.norm.map_tensors(map),
        }
    }
}

/// The Jacobian of a [`TargetContext`] at a point.
struct TargetJacobian {
    paths: Vec<PathJacobian>,
    gate: Gate,
    conv: Conv,
    norm: NormJacobian,
}

impl TargetJacobian {
    fn tangent(&self, maps: &[Tensor<4>]) -> Tensor<4> {
        let mut sum = None;
        for (path, d) in self.paths.iter().zip(maps) {
            sum = Some(path.add_tangent(sum, d.clone()));
        }
        self.norm
            .tangent(self.conv.apply(self.gate.pass(joined(sum))))
    }

    /// The cotangents of all branches.
    fn carry(&self, g: Tensor<4>) -> Vec<Tensor<4>> {
        let g = self.gate.pass(self.conv.carry(self.norm.carry(g)));
        let paths = self.paths.iter();
        paths.map(|path| path.carry(g.clone())).collect()
    }
}

fn joined(sum: Option<Tensor<4>>) -> Tensor<4> {
    sum.expect("a fusion joins at least two branches")
}
