//! Operations that equilibrium models spend their time in, on Burn tensors.
//!
//! Every operation is written once in Burn's own, which run on every device and are differentiated
//! as they are. Where a backend's are slow it has a kernel beside them, which is taken for tensors
//! of f32 that nothing differentiates, as those of a solve are; `convolve`, `cross_entropy`, norms
//! and what else stands between convolutions have them for their derivatives too. The kernels for
//! the CPU ([`Flex`](https://docs.rs/burn-flex)) come with the feature `flex`. Those for GPUs, of
//! the steps of solvers and of what stands between convolutions and products of matrices, come with
//! the features of GPUs; all of those for tracked tensors with `autodiff`.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use deq_kernels::{Convolution, GroupNorm};
//!
//! let device = Device::flex();
//! let normal = Distribution::Normal(0.0, 0.1);
//! let conv = Convolution::new(Tensor::random([16, 8, 3, 3], normal, &device), 1);
//! let norm = GroupNorm { groups: 4, epsilon: 1e-5, affine: None };
//! let maps = norm.apply_relu(conv.apply(Tensor::zeros([2, 8, 32, 32], &device)));
//! assert_eq!(maps.dims(), [2, 16, 32, 32]);
//! ```
//!
//! Most users take these through `deq-core` and `deq-models`.
//!
//! # Features
//!
//! - `autodiff`: the operations with derivatives of their own, `convolve`, `Convolution` and
//!   `cross_entropy`, and the kernels for tracked tensors.
//! - `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm`, `cpu`, `remote` pass through to Burn and
//!   say which backends are known here; none by default. `flex` brings SIMD and threads, those of
//!   GPUs and `cpu` fusion, tuning and a place on disk for compiled kernels, see [`keep_kernels`].

mod attention;
#[cfg(feature = "_kernel")]
mod backend;
#[cfg(feature = "autodiff")]
mod convolution;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "autodiff")]
mod cross_entropy;
mod device;
#[cfg(feature = "flex")]
mod flex;
mod gate;
#[cfg(feature = "_gpu")]
mod gpu;
mod group_norm;
mod half;
mod layer_norm;
mod linear;
mod pointwise;
mod pool;
mod relative_softmax;
mod resample;
mod solver;
mod weight_norm;

pub use attention::{AttentionPoint, RelativeAttention};
#[cfg(feature = "autodiff")]
pub use convolution::{Convolution, convolve};
#[cfg(feature = "autodiff")]
pub use cross_entropy::cross_entropy;
pub use device::{keep_kernels, on_host};
pub use gate::Gate;
pub use group_norm::{GroupNorm, NormJacobian};
pub use layer_norm::{LayerNormJacobian, layer_norm};
pub use linear::Linear;
pub use pointwise::tanh;
pub use pool::in_pool;
pub use relative_softmax::{relative_shift, relative_softmax, relative_unshift};
pub use resample::{add_upsampled, resize_bilinear, sum_squares, upsample};
pub use solver::{
    AndersonStep, AndersonWindow, BroydenStep, combine, dots, product, residual, row_squares,
};
pub use weight_norm::{norm_except, weight_norm};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
