//! The explicit network that the DEQ-Transformer is compared with.

use super::cell::{DropoutRates, TransformerCell};
use super::embedding::TokenEmbedding;
use super::lm::DeqTransformerLmConfig;
use super::memory::LmMemory;
use super::softmax::OutputLayer;
use crate::error::{ModelError, require_memory};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use deq_core::EquilibriumCell;
use deq_core::dropout::DropoutMask;

/// Transformer-XL (Dai et al. 2019): a stack of layers with weights of their own, each attending to
/// its memory.
///
/// Made of the same parts as [`DeqTransformerLm`](super::DeqTransformerLm), so that the two differ
/// in nothing but the stack: a layer is a [`TransformerCell`] applied once, without input
/// injection, and the memory of a layer holds its past inputs. As in the DEQ, and unlike in Dai et
/// al., a segment's masks are drawn once for all positions.
#[derive(Module, Debug)]
pub struct TransformerXlLm {
    /// Vectors of tokens.
    pub embedding: TokenEmbedding,
    /// The layers, from the embedding upwards.
    pub layers: Vec<TransformerCell>,
    /// The output layer.
    pub output: OutputLayer,
    #[module(skip)]
    mem_len: usize,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    attention_dropout: f64,
}

/// What [`TransformerXlLm::forward`] returns.
#[derive(Clone, Debug)]
pub struct XlOutput {
    /// Hidden states for [`TransformerXlLm::nll`], `[batch, time, d_model]`.
    pub hidden: Tensor<3>,
    /// The memory for the next segment of the same streams: one tensor for each layer.
    pub memory: LmMemory,
}

impl DeqTransformerLmConfig {
    /// Makes the explicit network of `layers` layers with the widths, embedding, normalisation and
    /// dropout of this configuration.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn init_explicit(
        &self,
        layers: usize,
        device: &Device,
    ) -> Result<TransformerXlLm, ModelError> {
        self.validate()?;
        if layers == 0 {
            return Err(ModelError::OutOfRange {
                field: "layers",
                value: 0.0,
                requirement: "at least 1",
            });
        }
        require_memory(self.least_parameters(layers))?;
        let shape = self.cell_shape();
        let (clusters, ties) = (self.clusters(), self.ties());
        Ok(TransformerXlLm {
            embedding: TokenEmbedding::new(&clusters, self.init_std, device),
            layers: (0..layers)
                .map(|_| TransformerCell::new(&shape, device))
                .collect(),
            output: OutputLayer::new(clusters, ties, self.init_std, device),
            mem_len: self.mem_len,
            dropout: self.dropout,
            attention_dropout: self.attention_dropout,
        })
    }
}

impl TransformerXlLm {
    /// Reads a segment. In training (the model on an autodiff device) dropout is on.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, time]`
    ///
    /// # Panics
    ///
    /// If the memory comes from another batch size, width, or number of layers.
    pub fn forward(&self, tokens: Tensor<2, Int>, memory: &LmMemory) -> XlOutput {
        let device = self.embedding.tables[0].device();
        let training = device.is_autodiff();
        let rate = |rate: f64| if training { rate } else { 0.0 };
        let rates = DropoutRates {
            hidden: rate(self.dropout),
            attention: rate(self.attention_dropout),
        };
        let [batch, _] = tokens.dims();
        let past = memory.tensors();
        assert!(
            past.is_empty() || past.len() == self.layers.len(),
            "the memory is that of {} layers, but the model has {}",
            past.len(),
            self.layers.len()
        );
        let embedded = self.embedding.forward(tokens);
        let [_, _, d_model] = embedded.dims();
        let mask = || DropoutMask::draw([batch, 1, d_model], rates.hidden, &device);
        let mut hidden = mask().apply(embedded);
        let mut seen = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            seen.push(hidden.clone());
            let context = layer.plain_context(&hidden, past.get(index).cloned(), rates);
            hidden = layer.forward(hidden, &context);
        }
        XlOutput {
            memory: memory.extended(seen, self.mem_len),
            hidden: mask().apply(hidden),
        }
    }

    /// Negative log-likelihoods of the next tokens, in nats, row by row.
    ///
    /// # Shapes
    ///
    /// - hidden: `[batch, time, d_model]`
    /// - targets: `batch * time` token ids, row-major
    /// - output: `[batch * time]`
    ///
    /// # Panics
    ///
    /// If the number of targets differs from the number of positions, or a target lies outside the
    /// vocabulary.
    pub fn nll(&self, hidden: Tensor<3>, targets: &[i32]) -> Tensor<1> {
        self.output.nll_of(hidden, &self.embedding, targets)
    }

    /// Log-probabilities of every token at every position, `[batch * time, vocab_size]`.
    ///
    /// # Shapes
    ///
    /// - hidden: `[batch, time, d_model]`
    pub fn log_probs(&self, hidden: Tensor<3>) -> Tensor<2> {
        self.output.log_probs_of(hidden, &self.embedding)
    }
}
