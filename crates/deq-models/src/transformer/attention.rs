//! Relative positional attention over memory and segment (Transformer-XL, Dai et al. 2019).

use super::cell::DropoutRates;
use super::linear::{Affine, LinearShape, NormedLinear};
use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::dropout::DropoutMask;
use deq_core::{CellContext, TensorMap};
use deq_kernels::{
    AttentionPoint, RelativeAttention, relative_shift, relative_softmax, relative_unshift,
};

/// Multi-head attention with relative positions.
///
/// For query position `i` and key position `j` of one head, with `r` the embedded distance:
///
/// ```text
/// score_ij = ((q_i + content_bias) . k_j + (q_i + position_bias) . r_(i-j)) / sqrt(d_head)
/// ```
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys and values of one position, `[d_model, 3 d_model]`.
    pub qkv: NormedLinear,
    /// Embedded distances to keys, `[d_model, d_model]`.
    pub position: NormedLinear,
    /// From the heads back to the model width, with a bias.
    pub output: NormedLinear,
    /// Added to queries before they meet keys, `[n_heads, d_head]` (`r_w_bias` in the original).
    pub content_bias: Param<Tensor<2>>,
    /// Added to queries before they meet distances, `[n_heads, d_head]` (`r_r_bias` in the
    /// original).
    pub position_bias: Param<Tensor<2>>,
}

/// Everything of an [`Attention`] that does not depend on the segment's state.
#[derive(Clone, Debug)]
pub(crate) struct AttentionContext {
    qkv: Affine,
    output: Affine,
    /// `[n_heads, d_head]`
    content_bias: Tensor<2>,
    /// `[n_heads, d_head]`
    position_bias: Tensor<2>,
    /// Injection of the segment, `[batch, time, 3 d_model]`, if there is one.
    injection: Option<Tensor<3>>,
    /// Keys and values of the memory, `[batch, memory, 2 d_model]`.
    memory: Option<Tensor<3>>,
    /// Embedded distances of all key positions, `[1, keys, d_model]`.
    distances: Tensor<3>,
    /// 0 where a query sees a key, -1e9 where it does not, `[1, 1, time, keys]`.
    mask: Tensor<4>,
    /// On attention probabilities, `[batch, heads, time, keys]`.
    dropout: DropoutMask<4>,
}

/// What [`Attention::context`] reads besides the parameters.
pub(crate) struct AttentionInputs<'a> {
    pub(crate) batch: usize,
    /// Positions of the segment.
    pub(crate) time: usize,
    /// Injections of memory and segment, `[batch, memory + time, 3 d_model]`; none in an explicit
    /// layer.
    pub(crate) injection: Option<Tensor<3>>,
    /// Normalised if the cell is pre-norm, `[batch, memory, d_model]`.
    pub(crate) memory: Option<Tensor<3>>,
    pub(crate) window: Option<usize>,
    pub(crate) dropout: DropoutRates,
    pub(crate) device: &'a Device,
}

impl Attention {
    pub(crate) fn new(
        d_model: usize,
        n_heads: usize,
        normed: bool,
        std: f64,
        device: &Device,
    ) -> Self {
        let linear = |output, bias| {
            let shape = LinearShape {
                input: d_model,
                output,
                bias,
            };
            NormedLinear::new(shape, normed, std, device)
        };
        let bias = || {
            let normal = Distribution::Normal(0.0, std);
            Param::from_tensor(Tensor::random([n_heads, d_model / n_heads], normal, device))
        };
        Self {
            qkv: linear(3 * d_model, false),
            position: linear(d_model, false),
            output: linear(d_model, true),
            content_bias: bias(),
            position_bias: bias(),
        }
    }

    pub(crate) fn context(&self, inputs: AttentionInputs<'_>) -> AttentionContext {
        let [n_heads, d_head] = self.content_bias.val().dims();
        let d_model = n_heads * d_head;
        let (batch, time) = (inputs.batch, inputs.time);
        let past = inputs.memory.as_ref().map_or(0, |memory| memory.dims()[1]);
        let keys = past + time;

        let qkv = self.qkv.effective();
        let memory = inputs.memory.map(|memory| {
            let kv = qkv.columns(d_model..3 * d_model);
            match &inputs.injection {
                Some(injection) => {
                    let injection = injection.clone().narrow(1, 0, past);
                    kv.add_to(injection.narrow(2, d_model, 2 * d_model), memory)
                }
                None => kv.apply(memory),
            }
        });
        let positions = position_embedding(keys, d_model, inputs.device);
        let mask = DropoutMask::draw_for_all([1, 1, d_model], inputs.dropout.hidden, inputs.device);
        let positions = mask.apply(positions);
        let distances = self.position.effective().apply(positions);
        AttentionContext {
            qkv,
            output: self.output.effective(),
            content_bias: self.content_bias.val(),
            position_bias: self.position_bias.val(),
            injection: inputs
                .injection
                .map(|injection| injection.narrow(1, past, time)),
            memory,
            distances,
            mask: causal_mask(time, past, inputs.window, inputs.device),
            dropout: DropoutMask::draw(
                [batch, n_heads, time, keys],
                inputs.dropout.attention,
                inputs.device,
            ),
        }
    }
}

impl AttentionContext {
    /// `residual + attention(z)`
    ///
    /// # Shapes
    ///
    /// - residual, z, output: `[batch, time, d_model]`
    pub(crate) fn add_to(
        &self,
        residual: Tensor<3>,
        z: Tensor<3>,
        after: &DropoutMask<3>,
    ) -> Tensor<3> {
        let qkv = self.queries_keys_values(z);
        let mixed = match self.kernel().attend(&qkv) {
            Some(mixed) => mixed,
            None => self.evaluate_at(qkv).mixed,
        };
        match after.factors() {
            Some(_) => residual + after.apply(self.output.apply(mixed)),
            None => self.output.add_to(residual, mixed),
        }
    }

    fn queries_keys_values(&self, z: Tensor<3>) -> Tensor<3> {
        match &self.injection {
            Some(injection) => self.qkv.add_to(injection.clone(), z),
            None => self.qkv.apply(z),
        }
    }

    fn kernel(&self) -> RelativeAttention {
        RelativeAttention {
            content_bias: self.content_bias.clone(),
            position_bias: self.position_bias.clone(),
            memory: self.memory.clone(),
            distances: self.distances.clone(),
            mask: self.mask.clone(),
            dropout: self.dropout.factors().cloned(),
        }
    }

    /// In Burn's operations.
    fn evaluate_at(&self, qkv: Tensor<3>) -> AttentionValues {
        let [n_heads, d_head] = self.content_bias.dims();
        let d_model = n_heads * d_head;
        let [query, mut key, mut value] = self.split(qkv);
        if let Some(memory) = &self.memory {
            let [past_key, past_value] =
                [0, d_model].map(|start| heads(memory.clone().narrow(2, start, d_model), n_heads));
            key = Tensor::cat(vec![past_key, key], 2);
            value = Tensor::cat(vec![past_value, value], 2);
        }
        // Scaling the queries is cheaper than scaling the scores.
        let [content, position] = [&self.content_bias, &self.position_bias].map(|bias| {
            let bias = bias.clone().reshape([1, n_heads, 1, d_head]);
            (query.clone() + bias).mul_scalar(self.scale())
        });
        let by_content = content.clone().matmul(key.clone().swap_dims(2, 3));
        let by_distance = position.matmul(self.distances_by_head());
        let probabilities = relative_softmax(by_content, by_distance, &self.mask);
        let weights = self.dropout.apply(probabilities.clone());
        AttentionValues {
            mixed: merge(weights.matmul(value.clone())),
            content,
            key,
            value,
            probabilities,
        }
    }

    /// The value, and how it moves when the input moves by `dz`; the memory stays.
    ///
    /// # Shapes
    ///
    /// - z, dz, outputs: `[batch, time, d_model]`
    pub(crate) fn tangent(&self, z: Tensor<3>, dz: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let (qkv, d_qkv) = (self.queries_keys_values(z), self.qkv.tangent(dz));
        if let Some((mixed, d_mixed)) = self.kernel().tangent(&qkv, &d_qkv) {
            return (self.output.apply(mixed), self.output.tangent(d_mixed));
        }
        let values = self.evaluate_at(qkv);
        let d_mixed = self.mixed_tangent(&values, d_qkv);
        (self.output(&values), self.output.tangent(d_mixed))
    }

    /// In Burn's operations.
    fn mixed_tangent(&self, at: &AttentionValues, d_qkv: Tensor<3>) -> Tensor<3> {
        let time = d_qkv.dims()[1];
        let [d_query, d_key, d_value] = self.split(d_qkv);
        let d_query = d_query.mul_scalar(self.scale());
        let probabilities = at.probabilities.clone();
        let [.., keys] = probabilities.dims();
        let past = keys - time;

        let by_key = at.content.clone().matmul(d_key.swap_dims(2, 3));
        let by_key = if past > 0 {
            let still = probabilities.clone().narrow(3, 0, past).zeros_like();
            Tensor::cat(vec![still, by_key], 3)
        } else {
            by_key
        };
        let d_scores = d_query.clone().matmul(at.key.clone().swap_dims(2, 3))
            + relative_shift(d_query.matmul(self.distances_by_head()))
            + by_key;
        // d softmax = p (ds - p . ds)
        let along = (probabilities.clone() * d_scores.clone()).sum_dim(3);
        let d_weights = self
            .dropout
            .apply(probabilities.clone() * (d_scores - along));
        let weights = self.dropout.apply(probabilities).narrow(3, past, time);
        merge(d_weights.matmul(at.value.clone()) + weights.matmul(d_value))
    }

    /// Evaluates at `z` and keeps what carries cotangents back.
    ///
    /// # Shapes
    ///
    /// - z, first output: `[batch, time, d_model]`
    pub(crate) fn linearize(&self, z: Tensor<3>) -> (Tensor<3>, AttentionPullback) {
        let time = self.time();
        let qkv = self.queries_keys_values(z);
        let to_mixed = self.output.transposed();
        let to_input = self.qkv.transposed();
        if let Some((mixed, point)) = self.kernel().linearize(&qkv) {
            let pullback = AttentionPullback {
                to_mixed,
                to_input,
                inner: MixingPullback::Kernel(Box::new(point)),
            };
            return (self.output.apply(mixed), pullback);
        }
        let values = self.evaluate_at(qkv);
        let output = self.output(&values);
        let [.., keys] = values.probabilities.dims();
        let weights = self.dropout.apply(values.probabilities.clone());
        let inner = MixingPullback::Generic(Box::new(GenericPullback {
            weights: weights.narrow(3, keys - time, time).swap_dims(2, 3),
            distances: self.distances_by_head().swap_dims(2, 3),
            dropout: self.dropout.clone(),
            scale: self.scale(),
            values: values.value.swap_dims(2, 3),
            keys: values.key,
            content: values.content,
            probabilities: values.probabilities,
        }));
        let pullback = AttentionPullback {
            to_mixed,
            to_input,
            inner,
        };
        (output, pullback)
    }

    /// Back to the model width.
    fn output(&self, values: &AttentionValues) -> Tensor<3> {
        self.output.apply(values.mixed.clone())
    }

    /// `[1, heads, d_head, keys]`
    fn distances_by_head(&self) -> Tensor<4> {
        let [n_heads, _] = self.content_bias.dims();
        heads(self.distances.clone(), n_heads).swap_dims(2, 3)
    }

    /// Queries, keys and values by head, from their columns.
    fn split(&self, qkv: Tensor<3>) -> [Tensor<4>; 3] {
        let [n_heads, d_head] = self.content_bias.dims();
        let d_model = n_heads * d_head;
        [0, 1, 2].map(|part| heads(qkv.clone().narrow(2, part * d_model, d_model), n_heads))
    }

    fn scale(&self) -> f64 {
        let [_, d_head] = self.content_bias.dims();
        1.0 / (d_head as f64).sqrt()
    }

    pub(crate) fn time(&self) -> usize {
        self.mask.dims()[2]
    }
}

impl CellContext for AttentionContext {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            qkv: self.qkv.map_tensors(map),
            output: self.output.map_tensors(map),
            content_bias: self.content_bias.map_tensors(map),
            position_bias: self.position_bias.map_tensors(map),
            injection: self.injection.map_tensors(map),
            memory: self.memory.map_tensors(map),
            distances: self.distances.map_tensors(map),
            mask: self.mask.map_tensors(map),
            dropout: self.dropout.map_tensors(map),
        }
    }
}

/// An evaluation of attention with the intermediate values that its tangent needs.
struct AttentionValues {
    /// Values mixed by the weights, `[batch, time, d_model]`.
    mixed: Tensor<3>,
    /// Scaled queries with the content bias, `[batch, heads, time, d_head]`.
    content: Tensor<4>,
    /// `[batch, heads, keys, d_head]`
    key: Tensor<4>,
    /// `[batch, heads, keys, d_head]`
    value: Tensor<4>,
    /// Before dropout, `[batch, heads, time, keys]`.
    probabilities: Tensor<4>,
}

/// What carries cotangents of an [`Attention`] back from a point.
pub(crate) struct AttentionPullback {
    to_mixed: Affine,
    to_input: Affine,
    inner: MixingPullback,
}

/// From the mixed values to queries, keys and values.
enum MixingPullback {
    Kernel(Box<AttentionPoint>),
    Generic(Box<GenericPullback>),
}

impl AttentionPullback {
    /// # Shapes
    ///
    /// - cotangent, output: `[batch, time, d_model]`
    pub(crate) fn carry(&self, cotangent: Tensor<3>) -> Tensor<3> {
        let g_mixed = self.to_mixed.apply(cotangent);
        self.to_input.apply(match &self.inner {
            MixingPullback::Kernel(point) => point.carry(&g_mixed),
            MixingPullback::Generic(generic) => generic.carry(g_mixed),
        })
    }
}

/// The values of one evaluation, arranged for products with the transposed Jacobian.
struct GenericPullback {
    /// With dropout, the segment's keys only, `[batch, heads, time (keys), time]`.
    weights: Tensor<4>,
    /// `[1, heads, keys, d_head]`
    distances: Tensor<4>,
    dropout: DropoutMask<4>,
    scale: f64,
    /// `[batch, heads, d_head, keys]`
    values: Tensor<4>,
    /// `[batch, heads, keys, d_head]`
    keys: Tensor<4>,
    /// `[batch, heads, time, d_head]`
    content: Tensor<4>,
    /// `[batch, heads, time, keys]`
    probabilities: Tensor<4>,
}

impl GenericPullback {
    /// # Shapes
    ///
    /// - g_mixed: `[batch, time, d_model]`
    /// - output: `[batch, time, 3 d_model]`
    fn carry(&self, g_mixed: Tensor<3>) -> Tensor<3> {
        let [_, n_heads, time, _] = self.content.dims();
        let [.., keys] = self.probabilities.dims();
        let g_mixed = heads(g_mixed, n_heads);
        let g_value = self.weights.clone().matmul(g_mixed.clone());
        let g_weights = self.dropout.apply(g_mixed.matmul(self.values.clone()));
        // The Jacobian of the softmax is symmetric.
        let along = (self.probabilities.clone() * g_weights.clone()).sum_dim(3);
        let g_scores = self.probabilities.clone() * (g_weights - along);
        let g_key = g_scores
            .clone()
            .narrow(3, keys - time, time)
            .swap_dims(2, 3)
            .matmul(self.content.clone());
        let g_content = g_scores.clone().matmul(self.keys.clone());
        let g_position = relative_unshift(g_scores).matmul(self.distances.clone());
        let g_query = (g_content + g_position).mul_scalar(self.scale);
        Tensor::cat(vec![merge(g_query), merge(g_key), merge(g_value)], 2)
    }
}

/// `[batch, heads, time, d_head]` to `[batch, time, heads * d_head]`.
fn merge(x: Tensor<4>) -> Tensor<3> {
    let [batch, n_heads, time, d_head] = x.dims();
    x.swap_dims(1, 2).reshape([batch, time, n_heads * d_head])
}

/// `[batch, time, heads * d_head]` to `[batch, heads, time, d_head]`.
fn heads(x: Tensor<3>, n_heads: usize) -> Tensor<4> {
    let [batch, time, width] = x.dims();
    x.reshape([batch, time, n_heads, width / n_heads])
        .swap_dims(1, 2)
}

/// Sines, then cosines, of the distances `keys - 1, ..., 0`, `[1, keys, d_model]`.
fn position_embedding(keys: usize, d_model: usize, device: &Device) -> Tensor<3> {
    let device = device.clone().inner();
    let half = d_model.div_ceil(2);
    let values: Vec<f64> = (0..keys)
        .rev()
        .flat_map(|distance| {
            (0..2 * half).map(move |channel| {
                let exponent = 2.0 * (channel % half) as f64 / d_model as f64;
                let angle = distance as f64 / 10_000_f64.powf(exponent);
                if channel < half {
                    angle.sin()
                } else {
                    angle.cos()
                }
            })
        })
        .collect();
    let data = burn::tensor::TensorData::new(values, [1, keys, 2 * half]);
    Tensor::<3>::from_data(data, &device).narrow(2, 0, d_model)
}

/// Key `j` is hidden from query `i` if it lies in the future, `j > i + past`, or behind the window,
/// `j <= i + past - window`.
fn causal_mask(time: usize, past: usize, window: Option<usize>, device: &Device) -> Tensor<4> {
    let device = device.clone().inner();
    let values: Vec<f64> = (0..time)
        .flat_map(|i| {
            (0..past + time).map(move |j| {
                let behind = window.is_some_and(|window| j + window <= i + past);
                if j > i + past || behind { -1e9 } else { 0.0 }
            })
        })
        .collect();
    let data = burn::tensor::TensorData::new(values, [1, 1, time, past + time]);
    Tensor::from_data(data, &device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_shows_the_past_within_the_window() {
        let device = Device::flex();
        let (time, past) = (3, 2);
        for (window, expected) in [
            (None, ["11100", "11110", "11111"]),
            (Some(2), ["01100", "00110", "00011"]),
            (Some(1), ["00100", "00010", "00001"]),
        ] {
            let mask = causal_mask(time, past, window, &device).into_data();
            let seen: String = mask
                .iter::<f32>()
                .map(|value| if value < 0.0 { '0' } else { '1' })
                .collect();
            assert_eq!(seen, expected.concat(), "window {window:?}");
        }
    }
}
