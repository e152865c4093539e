//! Tokens in, likelihoods out, an equilibrium in between.

use super::cell::{CellShape, DropoutRates, TransformerCell, TransformerContext};
use super::embedding::{Clusters, TokenEmbedding};
use super::memory::LmMemory;
use super::softmax::{OutputLayer, Ties};
use crate::error::{ModelError, require_memory};
use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};
use deq_core::dropout::DropoutMask;
use deq_core::{Depth, Equilibrium};

/// Configuration of [`DeqTransformerLm`].
#[derive(Config, Debug, PartialEq)]
pub struct DeqTransformerLmConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the model. The paper's WikiText-103 model has 700.
    pub d_model: usize,
    /// Attention heads, which must divide `d_model`.
    pub n_heads: usize,
    /// Width inside the feed-forward layer. The original widens it to 48,000 to match the
    /// parameters of an 18-layer model.
    pub d_inner: usize,
    /// Past positions that attention sees besides the segment. Default 64, of the order of a
    /// segment, as the original's 150 to its segments of 150.
    #[config(default = 64)]
    pub mem_len: usize,
    /// Positions that a query sees at most; none for all. Default none.
    #[config(default = "None")]
    pub local_size: Option<usize>,
    /// Layer norm before the sublayers instead of after. Default after, the original's base model;
    /// the plain pre-norm model diverges (Bai et al. 2021, Table 5).
    #[config(default = false)]
    pub pre_norm: bool,
    /// Weight normalisation inside the cell. Default on, as in all of the original's scripts.
    #[config(default = true)]
    pub weight_norm: bool,
    /// Rate of variational dropout on embeddings, outputs and inside the cell. Default 0; the
    /// original uses 0.05 to 0.06 on 103M tokens.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// Rate of dropout on attention probabilities. Default 0, as the original's base model.
    #[config(default = 0.0)]
    pub attention_dropout: f64,
    /// Cluster borders of the adaptive softmax, for a vocabulary sorted by frequency. Default none:
    /// a plain softmax. The original's for WikiText-103 are 20,000, 40,000 and 200,000.
    #[config(default = "Vec::new()")]
    pub cutoffs: Vec<usize>,
    /// The factor by which the vectors of each further cluster are narrower. Default 1: one table
    /// for all tokens. The original uses 4 on WikiText-103.
    #[config(default = 1)]
    pub div_val: usize,
    /// Width of the vectors of frequent tokens; none for `d_model`, the default, as in all of the
    /// original's scripts.
    #[config(default = "None")]
    pub d_embed: Option<usize>,
    /// Whether the output layer shares the tables of the embedding. Default yes, as the original.
    #[config(default = true)]
    pub tie_weights: bool,
    /// Whether it shares the projections too, of all clusters but the most frequent one. Default
    /// yes, as the original. Without projections it means nothing.
    #[config(default = true)]
    pub tie_projections: bool,
    /// Standard deviation of initial weights. Default 0.05 (Bai, Kolter, Koltun 2019, Appendix).
    #[config(default = 0.05)]
    pub init_std: f64,
}

impl DeqTransformerLmConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelError> {
        let range = |valid, field, value: f64, requirement| match valid {
            true => Ok(()),
            false => Err(ModelError::OutOfRange {
                field,
                value,
                requirement,
            }),
        };
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("d_inner", self.d_inner),
            ("local_size", self.local_size.unwrap_or(1)),
            ("d_embed", self.d_embed.unwrap_or(1)),
        ] {
            range(size >= 1, field, size as f64, "at least 1")?;
            // No more can be counted in the products of two.
            range(size <= u32::MAX as usize, field, size as f64, "below 2^32")?;
        }
        for (field, rate) in [
            ("dropout", self.dropout),
            ("attention_dropout", self.attention_dropout),
        ] {
            range(
                (0.0..1.0).contains(&rate),
                field,
                rate,
                "at least 0 and below 1",
            )?;
        }
        range(
            self.init_std.is_finite() && self.init_std > 0.0,
            "init_std",
            self.init_std,
            "a finite number above 0",
        )?;
        if !self.d_model.is_multiple_of(self.n_heads) {
            return Err(ModelError::HeadsDoNotDivide {
                d_model: self.d_model,
                n_heads: self.n_heads,
            });
        }
        let bounds: Vec<usize> = [0]
            .into_iter()
            .chain(self.cutoffs.iter().copied())
            .chain([self.vocab_size])
            .collect();
        if bounds.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(ModelError::Cutoffs {
                cutoffs: self.cutoffs.clone(),
                vocab_size: self.vocab_size,
            });
        }
        let narrowest = self
            .div_val
            .checked_pow(self.cutoffs.len() as u32)
            .map_or(0, |factor| self.embed_width() / factor.max(1));
        range(
            self.div_val >= 1 && narrowest >= 1,
            "div_val",
            self.div_val as f64,
            "at least 1, and leave vectors of the rarest tokens at least 1 wide",
        )
    }

    fn embed_width(&self) -> usize {
        self.d_embed.unwrap_or(self.d_model)
    }

    pub(super) fn cell_shape(&self) -> CellShape {
        CellShape {
            d_model: self.d_model,
            n_heads: self.n_heads,
            d_inner: self.d_inner,
            weight_norm: self.weight_norm,
            pre_norm: self.pre_norm,
            window: self.local_size,
            init_std: self.init_std,
        }
    }

    /// The parameters of a model of so many layers, without injection, biases, gains and
    /// projections.
    pub(super) fn least_parameters(&self, layers: usize) -> usize {
        let tables = self.clusters().tables().into_iter();
        let tables = tables.map(|(rows, width)| rows.saturating_mul(width));
        let layer = self
            .d_model
            .saturating_mul(5 * self.d_model + 2 * self.d_inner);
        tables.fold(layer.saturating_mul(layers), usize::saturating_add)
    }

    pub(super) fn ties(&self) -> Ties {
        Ties {
            tables: self.tie_weights,
            projections: self.tie_projections,
        }
    }

    pub(super) fn clusters(&self) -> Clusters {
        let bounds = self.cutoffs.iter().copied().chain([self.vocab_size]);
        Clusters {
            bounds: bounds.collect(),
            d_embed: self.embed_width(),
            d_model: self.d_model,
            div_val: self.div_val,
        }
    }

    /// Makes the model with random weights on `device`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn init(&self, device: &Device) -> Result<DeqTransformerLm, ModelError> {
        self.validate()?;
        require_memory(self.least_parameters(1))?;
        let normal = Distribution::Normal(0.0, self.init_std);
        let (clusters, ties) = (self.clusters(), self.ties());
        let mut injection = LinearConfig::new(self.d_model, 3 * self.d_model).init(device);
        injection.weight = Param::from_tensor(Tensor::random(
            [self.d_model, 3 * self.d_model],
            normal,
            device,
        ));
        Ok(DeqTransformerLm {
            embedding: TokenEmbedding::new(&clusters, self.init_std, device),
            injection,
            cell: TransformerCell::new(&self.cell_shape(), device),
            output: OutputLayer::new(clusters, ties, self.init_std, device),
            mem_len: self.mem_len,
            dropout: self.dropout,
            attention_dropout: self.attention_dropout,
        })
    }
}

/// The DEQ-Transformer language model: tied embeddings around the equilibrium of one
/// [`TransformerCell`].
///
/// # References
///
/// - Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019, Section 4.
/// - Bai, Koltun, Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", ICML 2021.
///
/// # Differences from the reference code
///
/// - States are `[batch, time, d_model]`, channels last, instead of channels first.
/// - Keys and values of the memory, embedded distances and normalised weights are computed once per
///   solve, not at every evaluation of `f`.
/// - Attention scores stay in the tensor's own precision; the original rounds them to f32 when it
///   masks.
/// - The mask on outputs drops channels at all positions, as on every other place. The original's
///   drops whole positions there: it keeps to the order of axes of its embeddings, while its
///   outputs have time last.
/// - A projection shared by embedding and output is one parameter, whose gradient is the sum of
///   both uses. In the original two parameters share its storage, and Adam moves it twice a step,
///   once for either gradient.
/// - Every weight starts from N(0, `init_std`). The original's scripts do so too, but for the maps
///   inside the cell when their weights are normalised: what they overwrite there is computed anew
///   from PyTorch's uniform initial values.
#[derive(Module, Debug)]
pub struct DeqTransformerLm {
    /// Vectors of tokens, which are the weight of the output layer too if `tie_weights` says so.
    pub embedding: TokenEmbedding,
    /// From the embedding to what is added to queries, keys and values.
    pub injection: Linear,
    /// The layer whose fixed point is computed.
    pub cell: TransformerCell,
    /// The output layer.
    pub output: OutputLayer,
    #[module(skip)]
    mem_len: usize,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    attention_dropout: f64,
}

/// What [`DeqTransformerLm::forward`] returns.
#[derive(Clone, Debug)]
pub struct LmOutput {
    /// Hidden states for [`DeqTransformerLm::nll`], `[batch, time, d_model]`.
    pub hidden: Tensor<3>,
    /// The equilibrium, `[batch, time, d_model]`, and how it was found.
    pub equilibrium: Equilibrium<Tensor<3>>,
    /// The context of the solve, tracked in training: what the Jacobian penalty differentiates.
    pub context: TransformerContext,
    /// The memory for the next segment of the same streams.
    pub memory: LmMemory,
}

impl DeqTransformerLm {
    /// Reads a segment.
    ///
    /// In training (on an autodiff device) variational dropout is on, its masks drawn once for the
    /// whole solve.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, time]`
    ///
    /// # Panics
    ///
    /// If the memory comes from another batch size or width.
    pub fn forward(&self, tokens: Tensor<2, Int>, memory: &LmMemory, depth: Depth<'_>) -> LmOutput {
        self.forward_from(tokens, memory, depth, None)
    }

    /// Reads a segment, with a state to start the solve from, such as the equilibrium of the
    /// position before; none for zeros, as the original.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, time]`
    /// - start: `[batch, time, d_model]`
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), and if the start has another shape.
    pub fn forward_from(
        &self,
        tokens: Tensor<2, Int>,
        memory: &LmMemory,
        depth: Depth<'_>,
        start: Option<Tensor<3>>,
    ) -> LmOutput {
        let device = self.injection.weight.device();
        let training = device.is_autodiff();
        let rate = if training { self.dropout } else { 0.0 };
        let [batch, time] = tokens.dims();
        let [d_model, _] = self.injection.weight.dims();
        let mask = || DropoutMask::draw([batch, 1, d_model], rate, &device);

        let embedded = mask().apply(self.embedding.forward(tokens));
        let injection = self.injection.forward(embedded);
        let (past_z, all_injections) = match memory.tensors() {
            [z, past] => (
                Some(z.clone()),
                Tensor::cat(vec![past.clone(), injection.clone()], 1),
            ),
            past => {
                assert!(
                    past.is_empty(),
                    "the memory is not that of a DEQ: it holds {} tensors, not equilibria and injections",
                    past.len()
                );
                (None, injection.clone())
            }
        };
        let dropout = DropoutRates {
            hidden: rate,
            attention: if training {
                self.attention_dropout
            } else {
                0.0
            },
        };
        let context = self.cell.context(all_injections, past_z, dropout);

        let z0 = start.unwrap_or_else(|| Tensor::zeros([batch, time, d_model], &device));
        assert_eq!(
            z0.dims(),
            [batch, time, d_model],
            "the start of the solve has a state for each token"
        );
        let equilibrium = depth.reach(&self.cell, &context, z0);
        let z = equilibrium.output.clone();
        LmOutput {
            memory: memory.extended(vec![z.clone(), injection], self.mem_len),
            hidden: mask().apply(z),
            equilibrium,
            context,
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
