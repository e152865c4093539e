//! The layer whose fixed point the model computes.

use super::attention::{Attention, AttentionContext, AttentionInputs};
use super::linear::{Affine, LinearShape, NormedLinear};
use burn::module::Module;
use burn::tensor::{Device, Tensor, activation::relu};
use deq_core::dropout::DropoutMask;
use deq_core::{CellContext, EquilibriumCell, Pullback, TensorMap};
use deq_kernels::{LayerNormJacobian, layer_norm};

/// One Transformer-XL layer with input injection, on states `[batch, time, d_model]`.
///
/// ```text
/// post-norm:  y = LN(z + attention(memory ++ z, injection))       f(z) = LN(y + ff(y))
/// pre-norm:   y = z + attention(LN(memory ++ z), injection)       f(z) = LN(y) + ff(LN(y))
/// ```
///
/// Layer norms have no parameters. The injection is added to queries, keys and values. In the
/// pre-norm variant the residual around the feed-forward layer starts from the normalised input, as
/// in the original code.
#[derive(Module, Debug)]
pub struct TransformerCell {
    /// Relative positional attention.
    pub attention: Attention,
    /// The position-wise feed-forward layer.
    pub feed_forward: FeedForward,
    #[module(skip)]
    pre_norm: bool,
    #[module(skip)]
    window: Option<usize>,
}

/// `x -> relu(x W1 + b1) W2 + b2` at every position.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// To the inner width.
    pub inner: NormedLinear,
    /// Back to the model width.
    pub outer: NormedLinear,
}

/// Rates of variational dropout inside the cell, one mask per solve.
#[derive(Clone, Copy, Debug, Default)]
pub struct DropoutRates {
    /// On embedded distances, outputs of attention, inner activations and outputs of the
    /// feed-forward layer; masks are shared by all positions.
    pub hidden: f64,
    /// On attention probabilities.
    pub attention: f64,
}

/// The constants of one solve of a [`TransformerCell`]: normalised weights, injection, keys and
/// values of the memory, positions, masks.
#[derive(Clone, Debug)]
pub struct TransformerContext {
    attention: AttentionContext,
    inner: Affine,
    outer: Affine,
    /// On the output of attention and of the feed-forward layer, `[batch, 1, d_model]`.
    dropout: [DropoutMask<3>; 2],
    /// On inner activations, `[batch, 1, d_inner]`.
    inner_dropout: DropoutMask<3>,
}

pub(crate) struct CellShape {
    pub(crate) d_model: usize,
    pub(crate) n_heads: usize,
    pub(crate) d_inner: usize,
    pub(crate) weight_norm: bool,
    pub(crate) pre_norm: bool,
    pub(crate) window: Option<usize>,
    pub(crate) init_std: f64,
}

impl TransformerCell {
    pub(crate) fn new(shape: &CellShape, device: &Device) -> Self {
        let linear = |input, output| {
            let layer = LinearShape {
                input,
                output,
                bias: true,
            };
            NormedLinear::new(layer, shape.weight_norm, shape.init_std, device)
        };
        Self {
            attention: Attention::new(
                shape.d_model,
                shape.n_heads,
                shape.weight_norm,
                shape.init_std,
                device,
            ),
            feed_forward: FeedForward {
                inner: linear(shape.d_model, shape.d_inner),
                outer: linear(shape.d_inner, shape.d_model),
            },
            pre_norm: shape.pre_norm,
            window: shape.window,
        }
    }

    /// Gathers what stays constant during one solve. Gradients flow through it to parameters and
    /// injection.
    ///
    /// # Shapes
    ///
    /// - injection: `[batch, memory + time, 3 d_model]`
    /// - memory: past equilibria, `[batch, memory, d_model]`
    ///
    /// # Panics
    ///
    /// If the memory is longer than the injection or has another batch size.
    pub fn context(
        &self,
        injection: Tensor<3>,
        memory: Option<Tensor<3>>,
        dropout: DropoutRates,
    ) -> TransformerContext {
        let [batch, keys, _] = injection.dims();
        let past = memory.as_ref().map_or(0, |memory| memory.dims()[1]);
        let device = injection.device();
        self.any_context(AttentionInputs {
            batch,
            time: keys - past,
            injection: Some(injection),
            memory,
            window: self.window,
            dropout,
            device: &device,
        })
    }

    /// The context of a layer that is applied once to `x`, `[batch, time, d_model]`, as in an
    /// explicit network: nothing is injected.
    pub(crate) fn plain_context(
        &self,
        x: &Tensor<3>,
        memory: Option<Tensor<3>>,
        dropout: DropoutRates,
    ) -> TransformerContext {
        let [batch, time, _] = x.dims();
        self.any_context(AttentionInputs {
            batch,
            time,
            injection: None,
            memory,
            window: self.window,
            dropout,
            device: &x.device(),
        })
    }

    fn any_context(&self, mut inputs: AttentionInputs<'_>) -> TransformerContext {
        let (batch, rate) = (inputs.batch, inputs.dropout.hidden);
        let device = inputs.device;
        if self.pre_norm {
            inputs.memory = inputs.memory.map(|z| layer_norm(z, EPSILON));
        }
        let attention = self.attention.context(inputs);
        let inner = self.feed_forward.inner.effective();
        let mask = |width| DropoutMask::draw([batch, 1, width], rate, device);
        let [d_model, _] = inner.weight().dims();
        TransformerContext {
            attention,
            dropout: [mask(d_model), mask(d_model)],
            inner_dropout: mask(inner.weight().dims()[1]),
            inner,
            outer: self.feed_forward.outer.effective(),
        }
    }
}

impl EquilibriumCell for TransformerCell {
    type State = Tensor<3>;
    type Context = TransformerContext;

    fn forward(&self, z: Tensor<3>, context: &TransformerContext) -> Tensor<3> {
        let [after_attention, after_feed_forward] = &context.dropout;

        let seen = if self.pre_norm {
            layer_norm(z.clone(), EPSILON)
        } else {
            z.clone()
        };
        let sum = context.attention.add_to(z, seen, after_attention);
        let y = layer_norm(sum, EPSILON);
        let inner = context
            .inner_dropout
            .apply(context.inner.apply_relu(y.clone()));
        let out = match after_feed_forward.factors() {
            Some(_) => y + after_feed_forward.apply(context.outer.apply(inner)),
            None => context.outer.add_to(y, inner),
        };
        if self.pre_norm {
            out
        } else {
            layer_norm(out, EPSILON)
        }
    }

    /// Carries cotangents back through every sublayer with the values of one evaluation, about half
    /// the work of automatic differentiation, which evaluates `f` anew for every product.
    fn pullback(&self, z: Tensor<3>, context: &TransformerContext) -> Option<Pullback<Tensor<3>>> {
        let [after_attention, after_feed_forward] = context.dropout.clone();
        let inner_dropout = context.inner_dropout.clone();

        let before = self.pre_norm.then(|| LayerNorm::at(z.clone()));
        let seen = before
            .as_ref()
            .map_or(z.clone(), |norm| norm.normed.clone());
        let (attended, attention) = context.attention.linearize(seen);
        let middle = LayerNorm::at(z + after_attention.apply(attended));
        let y = middle.normed.clone();
        let inner = context.inner.apply(y.clone());
        let off = inner.clone().lower_equal_elem(0.0);
        let after = (!self.pre_norm).then(|| {
            let fed = context.outer.apply(inner_dropout.apply(relu(inner)));
            LayerNorm::at(y + after_feed_forward.apply(fed))
        });
        let (to_inner, to_middle) = (context.outer.transposed(), context.inner.transposed());

        Some(Box::new(move |g: Tensor<3>| {
            let g = after.as_ref().map_or(g.clone(), |norm| norm.carry(g));
            let g_inner = to_inner.apply(after_feed_forward.apply(g.clone()));
            let g_inner = inner_dropout.apply(g_inner).mask_fill(off.clone(), 0.0);
            let g = middle.carry(g + to_middle.apply(g_inner));
            let g_seen = attention.carry(after_attention.apply(g.clone()));
            let g_seen = before
                .as_ref()
                .map_or(g_seen.clone(), |norm| norm.carry(g_seen));
            g + g_seen
        }))
    }

    /// Differentiates every sublayer forward. The kink of the ReLU is treated as automatic
    /// differentiation treats it.
    fn tangent(
        &self,
        z: Tensor<3>,
        dz: Tensor<3>,
        context: &TransformerContext,
    ) -> Option<(Tensor<3>, Tensor<3>)> {
        let [after_attention, after_feed_forward] = &context.dropout;

        let (seen, d_seen) = if self.pre_norm {
            let norm = LayerNorm::at(z.clone());
            (norm.normed.clone(), norm.carry(dz.clone()))
        } else {
            (z.clone(), dz.clone())
        };
        let (attended, d_attended) = context.attention.tangent(seen, d_seen);
        let middle = LayerNorm::at(z + after_attention.apply(attended));
        let dy = middle.carry(dz + after_attention.apply(d_attended));
        let y = middle.normed;
        let before = context.inner.apply(y.clone());
        let off = before.clone().lower_equal_elem(0.0);
        let d_inner = context.inner.tangent(dy.clone()).mask_fill(off, 0.0);
        let d_fed = context.outer.tangent(context.inner_dropout.apply(d_inner));
        let d_out = dy + after_feed_forward.apply(d_fed);
        let fed = context
            .outer
            .apply(context.inner_dropout.apply(relu(before)));
        let out = y + after_feed_forward.apply(fed);
        if self.pre_norm {
            return Some((out, d_out));
        }
        let norm = LayerNorm::at(out);
        let d_out = norm.carry(d_out);
        Some((norm.normed, d_out))
    }
}

impl CellContext for TransformerContext {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            attention: self.attention.map_tensors(map),
            inner: self.inner.map_tensors(map),
            outer: self.outer.map_tensors(map),
            dropout: self.dropout.map_tensors(map),
            inner_dropout: self.inner_dropout.map_tensors(map),
        }
    }
}

/// What layer norms add to the variance, as in PyTorch.
const EPSILON: f64 = 1e-5;

/// An evaluation of layer norm over channels without parameters.
struct LayerNorm {
    normed: Tensor<3>,
    jacobian: LayerNormJacobian,
}

impl LayerNorm {
    fn at(x: Tensor<3>) -> Self {
        let (normed, jacobian) = LayerNormJacobian::at(x, EPSILON);
        Self { normed, jacobian }
    }

    /// Multiplies by the Jacobian, which is symmetric: directions forward, cotangents backward.
    fn carry(&self, d: Tensor<3>) -> Tensor<3> {
        self.jacobian.apply(d)
    }
}
