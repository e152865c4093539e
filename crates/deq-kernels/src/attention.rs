//! Relative positional attention (Transformer-XL, Dai et al. 2019) without the scores in memory.

use burn::tensor::Tensor;

/// What attention reads besides queries, keys and values of the segment.
///
/// For query `i` and key `j` of one head, with `r` the embedded distance:
///
/// ```text
/// score_ij = mask_ij
///     + ((q_i + content_bias) . k_j + (q_i + position_bias) . r_(i-j)) / sqrt(d_head)
/// output_i = sum_j softmax(score_i)_j dropout_ij v_j
/// ```
#[derive(Clone, Debug)]
pub struct RelativeAttention {
    /// Added to queries before they meet keys, `[heads, d_head]`.
    pub content_bias: Tensor<2>,
    /// Added to queries before they meet distances, `[heads, d_head]`.
    pub position_bias: Tensor<2>,
    /// Keys, then values of the memory, `[batch, memory, 2 heads d_head]`.
    pub memory: Option<Tensor<3>>,
    /// Embedded distances `keys - 1, ..., 0`, `[1, keys, heads d_head]`.
    pub distances: Tensor<3>,
    /// 0 where a query sees a key, a large negative number where it does not; never where the key
    /// is at its own position. All keys in the future are hidden. `[1, 1, time, keys]`.
    pub mask: Tensor<4>,
    /// Multiplies the probabilities, `[batch, heads, time, keys]`.
    pub dropout: Option<Tensor<4>>,
}

/// A point at which cotangents are carried back.
#[derive(Clone, Debug)]
pub struct AttentionPoint {
    #[cfg_attr(
        not(feature = "flex"),
        expect(dead_code, reason = "read by the kernel alone")
    )]
    attention: RelativeAttention,
    #[cfg_attr(
        not(feature = "flex"),
        expect(dead_code, reason = "read by the kernel alone")
    )]
    qkv: Tensor<3>,
    #[cfg_attr(
        not(feature = "flex"),
        expect(dead_code, reason = "read by the kernel alone")
    )]
    probabilities: Tensor<4>,
}

impl RelativeAttention {
    /// The output, where there is a kernel for it: on the CPU backend, for f32 that nothing
    /// differentiates.
    ///
    /// # Shapes
    ///
    /// - qkv: queries, keys and values of the segment, `[batch, time, 3 heads d_head]`
    /// - output: `[batch, time, heads d_head]`
    pub fn attend(&self, qkv: &Tensor<3>) -> Option<Tensor<3>> {
        #[cfg(feature = "flex")]
        return on_flex::attend(self, qkv, false).map(|(mixed, _)| mixed);
        #[cfg(not(feature = "flex"))]
        {
            let _ = qkv;
            None
        }
    }

    /// As [`attend`](Self::attend), and what carries cotangents back from there.
    pub fn linearize(&self, qkv: &Tensor<3>) -> Option<(Tensor<3>, AttentionPoint)> {
        #[cfg(feature = "flex")]
        {
            let (mixed, probabilities) = on_flex::attend(self, qkv, true)?;
            let point = AttentionPoint {
                attention: self.clone(),
                qkv: qkv.clone(),
                probabilities: probabilities?,
            };
            Some((mixed, point))
        }
        #[cfg(not(feature = "flex"))]
        {
            let _ = qkv;
            None
        }
    }
}

impl AttentionPoint {
    /// The cotangent of queries, keys and values of the segment.
    ///
    /// # Shapes
    ///
    /// - g: `[batch, time, heads d_head]`
    /// - output: `[batch, time, 3 heads d_head]`
    ///
    /// # Panics
    ///
    /// If the cotangent is not of the type and on the device of the point.
    pub fn carry(&self, g: &Tensor<3>) -> Tensor<3> {
        #[cfg(feature = "flex")]
        return on_flex::carry(self, g);
        #[cfg(not(feature = "flex"))]
        {
            let _ = g;
            unreachable!("without a kernel there is no point")
        }
    }
}

#[cfg(feature = "flex")]
mod on_flex {
    use super::{AttentionPoint, RelativeAttention};
    use crate::cpu::attention::{self, Constants};
    use crate::flex::{Host, tensor};
    use burn::tensor::Tensor;

    /// The numbers of all constants.
    struct Hosts {
        content_bias: Host,
        position_bias: Host,
        memory: Option<Host>,
        distances: Host,
        mask: Host,
        dropout: Option<Host>,
        /// `[heads, d_head, time, keys]`
        dims: [usize; 4],
    }

    impl Hosts {
        fn of(attention: &RelativeAttention) -> Option<Self> {
            let [heads, d_head] = attention.content_bias.dims();
            let [_, _, time, keys] = attention.mask.dims();
            Some(Self {
                content_bias: Host::of(&attention.content_bias)?,
                position_bias: Host::of(&attention.position_bias)?,
                memory: maybe(attention.memory.as_ref())?,
                distances: Host::of(&attention.distances)?,
                mask: Host::of(&attention.mask)?,
                dropout: maybe(attention.dropout.as_ref())?,
                dims: [heads, d_head, time, keys],
            })
        }

        fn constants(&self) -> Constants<'_> {
            let [heads, d_head, time, keys] = self.dims;
            Constants {
                heads,
                d_head,
                time,
                keys,
                content_bias: self.content_bias.values(),
                position_bias: self.position_bias.values(),
                memory: self.memory.as_ref().map_or(&[], Host::values),
                distances: self.distances.values(),
                mask: self.mask.values(),
                dropout: self.dropout.as_ref().map_or(&[], Host::values),
            }
        }
    }

    /// `None` if there is a tensor that cannot be read.
    fn maybe<const D: usize>(tensor: Option<&Tensor<D>>) -> Option<Option<Host>> {
        match tensor {
            Some(tensor) => Host::of(tensor).map(Some),
            None => Some(None),
        }
    }

    pub(super) fn attend(
        attention: &RelativeAttention,
        qkv: &Tensor<3>,
        keep: bool,
    ) -> Option<(Tensor<3>, Option<Tensor<4>>)> {
        let [batch, time, width] = qkv.dims();
        let qkv = Host::of(qkv)?;
        let hosts = Hosts::of(attention)?;
        let [heads, _, _, keys] = hosts.dims;
        let (mixed, probabilities) = attention::attend(qkv.values(), hosts.constants(), keep);
        let probabilities = keep.then(|| tensor(probabilities, [batch, heads, time, keys]));
        Some((tensor(mixed, [batch, time, width / 3]), probabilities))
    }

    pub(super) fn carry(point: &AttentionPoint, g: &Tensor<3>) -> Tensor<3> {
        let [batch, time, width] = g.dims();
        let read = || {
            Some((
                Host::of(g)?,
                Host::of(&point.qkv)?,
                Host::of(&point.probabilities)?,
                Hosts::of(&point.attention)?,
            ))
        };
        let (g, qkv, probabilities, hosts) =
            read().expect("a cotangent is of the type and on the device of its point");
        let constants = hosts.constants();
        let out = attention::carry(g.values(), qkv.values(), probabilities.values(), constants);
        tensor(out, [batch, time, 3 * width])
    }
}
