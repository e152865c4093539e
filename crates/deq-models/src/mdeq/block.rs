//! The residual block of one branch.

use super::config::MdeqConfig;
use super::ops::{Conv, Norm, NormedConv};
use burn::module::Module;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::tensor::{Device, Tensor};
use deq_core::dropout::DropoutMask;
use deq_core::{CellContext, TensorMap};
use deq_kernels::{Gate, NormJacobian};

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
        let h = self.dropout.apply(self.conv2.apply(wide));
        let sum = self.norm2.apply_residual(h, self.injection.clone(), x);
        self.norm3.apply(sum)
    }

    /// The value, and what differentiates it.
    pub(crate) fn linearize(&self, x: Tensor<4>) -> (Tensor<4>, BlockJacobian) {
        let (wide, norm1) = self.norm1.linearize_relu(self.conv1.apply(x.clone()));
        let h = self.dropout.apply(self.conv2.apply(wide));
        let injection = self.injection.clone();
        let (sum, norm2, gate) = self.norm2.linearize_residual(h, injection, x);
        let (y, norm3) = self.norm3.linearize(sum);
        let jacobian = BlockJacobian {
            block: self.clone(),
            norm1,
            norm2,
            gate,
            norm3,
        };
        (y, jacobian)
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
    /// With the ReLU behind it.
    norm1: NormJacobian,
    norm2: NormJacobian,
    /// Of the ReLU behind the residual.
    gate: Gate,
    norm3: NormJacobian,
}

impl BlockJacobian {
    /// # Shapes
    ///
    /// - d, output: `[batch, channels, height, width]`
    pub(crate) fn tangent(&self, d: Tensor<4>) -> Tensor<4> {
        let wide = self.norm1.tangent(self.block.conv1.apply(d.clone()));
        let h = self.block.conv2.apply(wide);
        let h = self.norm2.tangent(self.block.dropout.apply(h));
        self.norm3.tangent(self.gate.pass(h + d))
    }

    /// The transpose.
    pub(crate) fn carry(&self, g: Tensor<4>) -> Tensor<4> {
        let g = self.gate.pass(self.norm3.carry(g));
        let h = self.block.dropout.apply(self.norm2.carry(g.clone()));
        let wide = self.block.conv2.carry(h);
        g + self.block.conv1.carry(self.norm1.carry(wide))
    }
}
