//! The residual block of one branch.

use super::config::MdeqConfig;
use super::ops::{Conv, Gate, Norm, NormedConv};
use burn::module::Module;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor, activation::relu};
use deq_core::dropout::DropoutMask;
use deq_core::{CellContext, TensorMap};
use deq_kernels::NormJacobian;

/// Two convolutions with injection between them, around a residual:
///
/// ```text
/// h = conv2(relu(norm1(conv1(x))))        conv1 widens, conv2 narrows
/// y = norm3(relu(norm2(dropout(h) + injection) + x))
/// ```
#[derive(Module, Debug)]
pub struct ResidualBlock {
    /// 3x3, to `expansion` times the channels.
    pub conv1: NormedConv,
    /// Over the wide channels.
    pub norm1: GroupNorm,
    /// 3x3, back.
    pub conv2: NormedConv,
    /// After the injection.
    pub norm2: GroupNorm,
    /// After the residual.
    pub norm3: GroupNorm,
}

impl ResidualBlock {
    pub(crate) fn new(config: &MdeqConfig, channels: usize, device: &Device) -> Self {
        let wide = channels * config.expansion;
        let conv =
            |output, input| NormedConv::new([output, input, 3, 3], 1, config.weight_norm, device);
        let norm = |channels| {
            GroupNormConfig::new(config.groups, channels)
                .with_affine(config.block_affine)
                .init(device)
        };
        Self {
            conv1: conv(wide, channels),
            norm1: norm(wide),
            conv2: conv(channels, wide),
            norm2: norm(channels),
            norm3: norm(channels),
        }
    }

    /// What stays constant during a solve.
    ///
    /// # Shapes
    ///
    /// - injection: that of the branch
    pub(crate) fn context(
        &self,
        injection: Option<Tensor<4>>,
        dropout: DropoutMask<4>,
    ) -> BlockContext {
        BlockContext {
            conv1: self.conv1.effective(),
            norm1: Norm::of(&self.norm1),
            conv2: self.conv2.effective(),
            norm2: Norm::of(&self.norm2),
            norm3: Norm::of(&self.norm3),
            injection,
            dropout,
        }
    }
}

/// An evaluated [`ResidualBlock`].
#[derive(Clone, Debug)]
pub(crate) struct BlockContext {
    conv1: Conv,
    norm1: Norm,
    conv2: Conv,
    norm2: Norm,
    norm3: Norm,
    injection: Option<Tensor<4>>,
    dropout: DropoutMask<4>,
}

impl BlockContext {
    /// # Shapes
    ///
    /// - x, output: `[batch, channels, height, width]`
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let wide = self.norm1.apply_relu(self.conv1.apply(x.clone()));
        let h = self.injected(self.conv2.apply(wide));
        self.norm3.apply(relu(self.norm2.apply(h) + x))
    }

    /// The value, and what differentiates it.
    pub(crate) fn linearize(&self, x: Tensor<4>) -> (Tensor<4>, BlockJacobian) {
        let (wide, norm1) = self.norm1.linearize(self.conv1.apply(x.clone()));
        let (wide, gate1) = Gate::at(wide);
        let (h, norm2) = self.norm2.linearize(self.injected(self.conv2.apply(wide)));
        let (y, gate2) = Gate::at(h + x);
        let (y, norm3) = self.norm3.linearize(y);
        let jacobian = BlockJacobian {
            block: self.clone(),
            norm1,
            gate1,
            norm2,
            gate2,
            norm3,
        };
        (y, jacobian)
    }

    fn injected(&self, h: Tensor<4>) -> Tensor<4> {
        let h = self.dropout.apply(h);
        match &self.injection {
            Some(injection) => h + injection.clone(),
            None => h,
        }
    }
}

impl CellContext for BlockContext {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            conv1: self.conv1.map_tensors(map),
            norm1: self.norm1.map_tensors(map),
            conv2: self.conv2.map_tensors(map),
            norm2: self.norm2.map_tensors(map),
            norm3: self.norm3.map_tensors(map),
            injection: self.injection.map_tensors(map),
            dropout: self.dropout.map_tensors(map),
        }
    }
}

/// The Jacobian of a [`BlockContext`] at a point.
pub(crate) struct BlockJacobian {
    block: BlockContext,
    norm1: NormJacobian,
    gate1: Gate,
    norm2: NormJacobian,
    gate2: Gate,
    norm3: NormJacobian,
}

impl BlockJacobian {
    /// # Shapes
    ///
    /// - d, output: `[batch, channels, height, width]`
    pub(crate) fn tangent(&self, d: Tensor<4>) -> Tensor<4> {
        let wide = self.norm1.tangent(self.block.conv1.apply(d.clone()));
        let h = self.block.conv2.apply(self.gate1.pass(wide));
        let h = self.norm2.tangent(self.block.dropout.apply(h));
        self.norm3.tangent(self.gate2.pass(h + d))
    }

    /// The transpose.
    pub(crate) fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        let g = self.gate2.pass(self.norm3.carry(g));
        let h = self.block.dropout.apply(self.norm2.carry(g.clone()));
        let wide = self.gate1.pass(self.block.conv2.carry(h));
        g + self.block.conv1.carry(self.norm1.carry(wide))
    }
}
