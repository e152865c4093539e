//! Gradient strategies: what turns an equilibrium without a tape into a differentiable tensor.

pub(crate) mod adjoint;
pub(crate) mod config;
pub(crate) mod replay;
pub(crate) mod reversible;

use burn::tensor::{DType, Tensor};

pub use config::{
    GradientConfig, ImplicitConfig, NeumannGradientConfig, PhantomConfig, ReversibleGradientConfig,
    ShineConfig, UnrolledConfig,
};

/// The Euclidean norm of every row, `[batch, 1]`; of rows in 16 bits in f32, since f16 cannot hold
/// the squares of many numbers of order 1, nor those of small ones.
fn row_lengths(x: Tensor<2>) -> Tensor<2> {
    let x = match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    };
    x.square().sum_dim(1).sqrt()
}
