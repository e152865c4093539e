//! The DEQ-Transformer language model.

mod attention;
mod cell;
mod embedding;
mod linear;
mod lm;
mod memory;
mod names;
mod size;
mod softmax;
mod xl;

pub use attention::Attention;
pub use cell::{DropoutRates, FeedForward, TransformerCell, TransformerContext};
pub use embedding::TokenEmbedding;
pub use linear::NormedLinear;
pub use lm::{DeqTransformerLm, DeqTransformerLmConfig, LmOutput};
pub use memory::LmMemory;
pub use softmax::OutputLayer;
pub use xl::{TransformerXlLm, XlOutput};
