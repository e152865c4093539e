//! Tokens in, likelihoods out, an equilibrium in between.

use super::cell::{CellShape, DropoutRates, TransformerCell, TransformerContext};
use super::memory::LmMemory;
use super::softmax::OutputLayer;
use crate::error::ModelError;
use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};
use deq_core::dropout::DropoutMask;
use deq_core::{Deq, Equilibrium, unroll};

/// Configuration of [`DeqTransformerLm`].
#[derive(Config, Debug, PartialEq)]
pub struct DeqTransformerLmConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the model. The paper's WikiText-103 model has 700.
    pub d_model: usize,
    /// Attention heads, which must divide `d_model`.
    pub n_heads: usize,
    /// Width inside the feed-forward layer. The original widens it to 48,000 to match the parameters of an 18-layer model.
    pub d_inner: usize,
    /// Past positions that attention sees besides the segment. Default 64, of the order of a segment, as the
    /// original's 150 to its segments of 150.
    #[config(default = 64)]
    pub mem_len: usize,
    /// Positions that a query sees at most; none for all. Default none.
    #[config(default = "None")]
    pub local_size: Option<usize>,
    /// Layer norm before the sublayers instead of after. Default after, the original's base model; the plain pre-norm model diverges
    /// (Bai et al. 2021, Table 5).
    #[config(default = false)]
    pub pre_norm: bool,
    /// Weight normalisation inside the cell. Default on, as in all of the original's scripts.
    #[config(default = true)]
    pub weight_norm: bool,
    /// Rate of variational dropout on embeddings, outputs and inside the cell. Default 0; the original uses 0.05 to 0.06 on 103M tokens.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// Rate of dropout on attention probabilities. Default 0, as the original's base model.
    #[config(default = 0.0)]
    pub attention_dropout: f64,
    /// Cluster borders of the adaptive softmax, for a vocabulary sorted by frequency. Default none: a plain softmax.
    #[config(default = "Vec::new()")]
    pub cutoffs: Vec<usize>,
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
        ] {
            range(size >= 1, field, size as f64, "at least 1")?;
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
        Ok(())
    }

    /// Makes the model with random weights on `device`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn init(&self, device: &Device) -> Result<DeqTransformerLm, ModelError> {
        self.validate()?;
        let shape = CellShape {
            d_model: self.d_model,
            n_heads: self.n_heads,
            d_inner: self.d_inner,
            weight_norm: self.weight_norm,
            pre_norm: self.pre_norm,
            window: self.local_size,
            init_std: self.init_std,
        };
        let normal = Distribution::Normal(0.0, self.init_std);
        let random = |rows| Tensor::random([rows, self.d_model], normal, device);
        let mut injection = LinearConfig::new(self.d_model, 3 * self.d_model).init(device);
        injection.weight = Param::from_tensor(Tensor::random(
            [self.d_model, 3 * self.d_model],
            normal,
            device,
        ));
        Ok(DeqTransformerLm {
            embedding: Param::from_tensor(random(self.vocab_size)),
            injection,
            cell: TransformerCell::new(&shape, device),
            output: OutputLayer::new(
                self.vocab_size,
                self.d_model,
                &self.cutoffs,
                self.init_std,
                device,
            ),
            mem_len: self.mem_len,
            dropout: self.dropout,
            attention_dropout: self.attention_dropout,
        })
    }
}

/// The DEQ-Transformer language model: tied embeddings around the equilibrium of one [`TransformerCell`].
///
/// # References
///
/// - Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019, Section 4.
/// - Bai, Koltun, Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", ICML 2021.
///
/// # Differences from the reference code
///
/// - States are `[batch, time, d_model]`, channels last, instead of channels first.
/// - Keys and values of the memory, embedded distances and normalised weights are computed once per solve, not at every evaluation of `f`.
/// - Attention scores stay in the tensor's own precision; the original rounds them to f32 when it masks.
#[derive(Module, Debug)]
pub struct DeqTransformerLm {
    /// Input embedding and output weight, `[vocab_size, d_model]`.
    pub embedding: Param<Tensor<2>>,
    /// From the embedding to what is added to queries, keys and values.
    pub injection: Linear,
    /// The layer whose fixed point is computed.
    pub cell: TransformerCell,
    /// The output layer, which shares the embedding.
    pub output: OutputLayer,
    #[module(skip)]
    mem_len: usize,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    attention_dropout: f64,
}

/// How deep the model is.
#[derive(Clone, Copy, Debug)]
pub enum Depth<'a> {
    /// Infinitely: the equilibrium found by a layer.
    Equilibrium(&'a Deq),
    /// This many applications of the cell: pre-training, or a weight-tied explicit network.
    Unrolled(usize),
}

/// What [`DeqTransformerLm::forward`] returns.
#[derive(Clone, Debug)]
pub struct LmOutput {
    /// Hidden states for [`DeqTransformerLm::nll`], `[batch, time, d_model]`.
    pub hidden: Tensor<3>,
    /// The equilibrium and how it was found.
    pub equilibrium: Equilibrium,
    /// The context of the solve, tracked in training: what the Jacobian penalty differentiates.
    pub context: TransformerContext,
    /// The memory for the next segment of the same streams.
    pub memory: LmMemory,
}

impl DeqTransformerLm {
    /// Reads a segment.
    ///
    /// In training (on an autodiff device) variational dropout is on, its masks drawn once for the whole solve.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, time]`
    ///
    /// # Panics
    ///
    /// If the memory comes from another batch size or width.
    pub fn forward(&self, tokens: Tensor<2, Int>, memory: &LmMemory, depth: Depth<'_>) -> LmOutput {
        let embedding = self.embedding.val();
        let device = embedding.device();
        let training = device.is_autodiff();
        let rate = if training { self.dropout } else { 0.0 };
        let [batch, time] = tokens.dims();
        let [_, d_model] = embedding.dims();
        let mask = || DropoutMask::draw([batch, 1, d_model], rate, &device);

        let embedded = embedding
            .select(0, tokens.reshape([batch * time]))
            .reshape([batch, time, d_model])
            .mul_scalar((d_model as f64).sqrt());
        let injection = self.injection.forward(mask().apply(embedded));
        let (past_z, all_injections) = match memory.state() {
            Some((z, past)) => (
                Some(z.clone()),
                Tensor::cat(vec![past.clone(), injection.clone()], 1),
            ),
            None => (None, injection.clone()),
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

        let z0 = Tensor::zeros([batch, time * d_model], &device);
        let equilibrium = match depth {
            Depth::Equilibrium(deq) => deq.forward(&self.cell, &context, z0),
            Depth::Unrolled(steps) => unroll(&self.cell, &context, z0, steps),
        };
        let z = equilibrium.z.clone().reshape([batch, time, d_model]);
        LmOutput {
            memory: memory.extended(z.clone(), injection, self.mem_len),
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
    /// If the number of targets differs from the number of positions, or a target lies outside the vocabulary.
    pub fn nll(&self, hidden: Tensor<3>, targets: &[i32]) -> Tensor<1> {
        let [batch, time, d_model] = hidden.dims();
        assert_eq!(
            targets.len(),
            batch * time,
            "one target per position is needed"
        );
        let hidden = hidden.reshape([batch * time, d_model]);
        self.output.nll(hidden, self.embedding.val(), targets)
    }

    /// Log-probabilities of every token at every position, `[batch * time, vocab_size]`.
    ///
    /// # Shapes
    ///
    /// - hidden: `[batch, time, d_model]`
    pub fn log_probs(&self, hidden: Tensor<3>) -> Tensor<2> {
        let [batch, time, d_model] = hidden.dims();
        let hidden = hidden.reshape([batch * time, d_model]);
        self.output.log_probs(hidden, self.embedding.val())
    }
}
