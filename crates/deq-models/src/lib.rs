#![cfg_attr(docsrs, feature(doc_cfg))]

//! Deep equilibrium models on Burn.
//!
//! [`DeqTransformerLm`] is the DEQ-Transformer of Bai, Kolter and Koltun (NeurIPS 2019): one
//! Transformer-XL layer whose output is its own input, applied to the equilibrium, with a memory of
//! past equilibria. The layer itself is [`TransformerCell`], usable with any
//! [`Deq`](deq_core::Deq). [`TransformerXlLm`] is the explicit network that it is compared with,
//! made of the same parts.
//!
//! [`MdeqClassifier`] and [`MdeqSegmenter`] are the multiscale models for images of Bai, Koltun and
//! Kolter (NeurIPS 2020), around an [`MdeqCell`]; their configurations name the original's.
//! [`ResNet`] is the explicit network that they are compared with.
//!
//! [`checkpoint`] reads the files of the original programs and writes files that they read.
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use deq_core::DeqConfig;
//! use deq_models::{Depth, DeqTransformerLmConfig, LmMemory};
//!
//! let device = Device::flex().autodiff();
//! let model = DeqTransformerLmConfig::new(50, 16, 2, 32).init(&device)?;
//! let deq = DeqConfig::new().build()?;
//!
//! let tokens = Tensor::<2, Int>::from_data([[3, 1, 4, 1], [5, 9, 2, 6]], &device);
//! let targets = [1, 4, 1, 5, 9, 2, 6, 5];
//! let out = model.forward(tokens, &LmMemory::empty(), Depth::Equilibrium(&deq));
//! let loss = model.nll(out.hidden, &targets).mean();
//! let grads = loss.backward();
//! assert!(model.cell.attention.qkv.weight.val().grad(&grads).is_some());
//! // Feed `out.memory` with the next segment of the same two streams.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The book's page on this crate is
//! [Introduction](https://github.com/deq-rs/deq/blob/main/docs/src/introduction.md).
//!
//! # Feature flags
//!
//! No backend is selected by default. `flex`, `wgpu`, `vulkan`, `metal`, `cuda`, `rocm` and `cpu`
//! bring Burn's backend and the kernels for it, `remote` Burn's.

pub mod checkpoint;
mod error;
mod layers;
mod mdeq;
mod memory;
mod resnet;
mod transformer;

pub use deq_core::Depth;
pub use deq_kernels::resize_bilinear;
pub use error::{ModelError, require_memory};
pub use layers::{ConvNorm, PlainBatchNorm};
pub use mdeq::{
    Bottleneck, Branch, ClassificationHead, ConvGroupNorm, FusionPath, FusionTarget, Mdeq,
    MdeqCell, MdeqClassifier, MdeqClassifierConfig, MdeqConfig, MdeqContext, MdeqOutput,
    MdeqSegmenter, MdeqSegmenterConfig, MdeqStem, NormedConv, ResidualBlock, SegmentationHead,
};
pub use memory::StepNumbers;
pub use resnet::{ResNet, ResNetBlock, ResNetBlockKind, ResNetConfig};
pub use transformer::{
    Attention, DeqTransformerLm, DeqTransformerLmConfig, DropoutRates, FeedForward, LmMemory,
    LmOutput, NormedLinear, OutputLayer, TokenEmbedding, TransformerCell, TransformerContext,
    TransformerXlLm, XlOutput,
};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctest;
