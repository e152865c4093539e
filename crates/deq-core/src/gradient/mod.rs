//! Gradient strategies: what turns an equilibrium without a tape into a differentiable tensor.

pub(crate) mod adjoint;
pub(crate) mod config;
pub(crate) mod replay;
pub(crate) mod reversible;

pub use config::{
    GradientConfig, ImplicitConfig, NeumannGradientConfig, PhantomConfig, ReversibleGradientConfig,
    ShineConfig, UnrolledConfig,
};
