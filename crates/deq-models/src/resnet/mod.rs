//! Explicit residual networks, the baselines of the papers on deep equilibrium models for images.

mod block;
mod config;
mod names;
mod network;

pub use block::ResNetBlock;
pub use config::{ResNetBlockKind, ResNetConfig};
pub use network::ResNet;
