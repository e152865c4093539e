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
pub struct AttentionPoint(Point);

#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "few are held, each beside maps of far more numbers"
)]
enum Point {
    #[cfg(feature = "flex")]
    Flex(on_flex::Point),
    #[cfg(feature = "_gpu")]
    Gpu(on_gpu::Point),
}

impl RelativeAttention {
    /// The output, where there are kernels for it: for f32 that nothing differentiates, on the CPU
    /// backend in one pass, and on a GPU between the products of matrices.
    ///
    /// # Shapes
    ///
    /// - qkv: queries, keys and values of the segment, `[batch, time, 3 heads d_head]`
    /// - output: `[batch, time, heads d_head]`
    ///
    /// # Panics
    ///
    /// If the shapes do not fit together.
    pub fn attend(&self, qkv: &Tensor<3>) -> Option<Tensor<3>> {
        self.assert_shapes(qkv);
        #[cfg(feature = "_gpu")]
        if let Some((mixed, _)) = on_gpu::attend(self, qkv) {
            return Some(mixed);
        }
        #[cfg(feature = "flex")]
        if let Some((mixed, _)) = on_flex::attend(self, qkv, false) {
            return Some(mixed);
        }
        None
    }

    /// The output, and how it moves when queries, keys and values of the segment move by `d`; where
    /// there is a kernel for that, on a GPU.
    ///
    /// # Shapes
    ///
    /// - qkv, d: `[batch, time, 3 heads d_head]`
    /// - outputs: `[batch, time, heads d_head]`
    ///
    /// # Panics
    ///
    /// If the shapes do not fit together.
    pub fn tangent(&self, qkv: &Tensor<3>, d: &Tensor<3>) -> Option<(Tensor<3>, Tensor<3>)> {
        self.assert_shapes(qkv);
        assert_eq!(
            d.dims(),
            qkv.dims(),
            "a direction has the shape of its point"
        );
        #[cfg(feature = "_gpu")]
        return on_gpu::tangent(self, qkv, d);
        #[cfg(not(feature = "_gpu"))]
        None
    }

    /// As [`attend`](Self::attend), and what carries cotangents back from there.
    pub fn linearize(&self, qkv: &Tensor<3>) -> Option<(Tensor<3>, AttentionPoint)> {
        self.assert_shapes(qkv);
        #[cfg(feature = "_gpu")]
        if let Some((mixed, point)) = on_gpu::attend(self, qkv) {
            return Some((mixed, AttentionPoint(Point::Gpu(point))));
        }
        #[cfg(feature = "flex")]
        if let Some((mixed, probabilities)) = on_flex::attend(self, qkv, true) {
            let point = on_flex::Point {
                attention: self.clone(),
                qkv: qkv.clone(),
                probabilities: probabilities?,
            };
            return Some((mixed, AttentionPoint(Point::Flex(point))));
        }
        None
    }

    #[track_caller]
    fn assert_shapes(&self, qkv: &Tensor<3>) {
        let [batch, time, _] = qkv.dims();
        let [heads, d_head] = self.content_bias.dims();
        let [_, _, _, keys] = self.mask.dims();
        let width = heads * d_head;
        assert_eq!(
            qkv.dims(),
            [batch, time, 3 * width],
            "queries, keys and values of {heads} heads of {d_head}"
        );
        assert_eq!(
            self.position_bias.dims(),
            [heads, d_head],
            "the biases are of one shape"
        );
        assert_eq!(
            self.mask.dims(),
            [1, 1, time, keys],
            "a mask for {time} positions"
        );
        let past = self.memory.as_ref().map_or(0, |memory| {
            let [_, past, _] = memory.dims();
            assert_eq!(
                memory.dims(),
                [batch, past, 2 * width],
                "keys and values of the memory, for the batch of the segment"
            );
            past
        });
        assert_eq!(
            keys,
            past + time,
            "keys that the mask knows, and those of memory and segment"
        );
        assert_eq!(
            self.distances.dims(),
            [1, keys, width],
            "an embedded distance for each key"
        );
        if let Some(dropout) = &self.dropout {
            assert_eq!(
                dropout.dims(),
                [batch, heads, time, keys],
                "a factor for each probability"
            );
        }
    }
}

#[cfg_attr(
    not(any(feature = "flex", feature = "_gpu")),
    expect(unused_variables, reason = "read by kernels alone")
)]
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
        match self.0 {
            #[cfg(feature = "flex")]
            Point::Flex(ref point) => on_flex::carry(point, g),
            #[cfg(feature = "_gpu")]
            Point::Gpu(ref point) => point.carry(g),
        }
    }
}

#[cfg(feature = "flex")]
mod on_flex {
    use super::RelativeAttention;
    use crate::cpu::attention::{self, Constants};
    use crate::flex::{Host, tensor};
    use burn::tensor::Tensor;

    #[derive(Clone, Debug)]
    pub(super) struct Point {
        pub(super) attention: RelativeAttention,
        pub(super) qkv: Tensor<3>,
        /// `[batch, heads, time, keys]`
        pub(super) probabilities: Tensor<4>,
    }

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

    pub(super) fn carry(point: &Point, g: &Tensor<3>) -> Tensor<3> {
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

#[cfg(feature = "_gpu")]
mod on_gpu {
    use super::RelativeAttention;
    use crate::gpu::attention::{AttentionBackend, ByHead, Merged, ScoreTangents, SoftmaxBackend};
    use crate::gpu::{MOST_NUMBERS, takes};
    use burn::backend::Dispatch;
    use burn::tensor::Tensor;

    /// An evaluation, by head.
    #[derive(Clone, Debug)]
    pub(super) struct Point {
        /// Queries with the content bias, scaled, `[batch, heads, time, d_head]`.
        content: Tensor<4>,
        /// `[batch, heads, keys, d_head]`
        key: Tensor<4>,
        /// `[batch, heads, keys, d_head]`
        value: Tensor<4>,
        /// `[1, heads, keys, d_head]`
        distances: Tensor<4>,
        /// Before dropout, `[batch, heads, time, keys]`.
        probabilities: Tensor<4>,
        dropout: Option<Tensor<4>>,
    }

    pub(super) fn attend(
        attention: &RelativeAttention,
        qkv: &Tensor<3>,
    ) -> Option<(Tensor<3>, Point)> {
        if !is_taken(attention, qkv) {
            return None;
        }
        let [heads, _] = attention.content_bias.dims();
        let parts = Parts {
            qkv,
            memory: attention.memory.as_ref(),
            biases: [&attention.content_bias, &attention.position_bias],
        };
        let [content, position, key, value] = parts.split();
        let distances = by_head(attention.distances.clone(), heads);
        let by_content = content.clone().matmul(key.clone().swap_dims(2, 3));
        let by_distance = position.matmul(distances.clone().swap_dims(2, 3));
        let probabilities = Tensor::from_dispatch(Dispatch::relative_softmax(
            by_content.into_dispatch(),
            by_distance.into_dispatch(),
            attention.mask.clone().into_dispatch(),
        ));
        let point = Point {
            content,
            key,
            value,
            distances,
            probabilities,
            dropout: attention.dropout.clone(),
        };
        let weights = point.dropped(point.probabilities.clone());
        Some((merge(weights.matmul(point.value.clone())), point))
    }

    pub(super) fn tangent(
        attention: &RelativeAttention,
        qkv: &Tensor<3>,
        d: &Tensor<3>,
    ) -> Option<(Tensor<3>, Tensor<3>)> {
        if !takes(d) {
            return None;
        }
        let (mixed, point) = attend(attention, qkv)?;
        Some((mixed, point.tangent(d)))
    }

    /// Whether all of it is on a GPU, untracked f32, and 32 bits count its numbers.
    fn is_taken(attention: &RelativeAttention, qkv: &Tensor<3>) -> bool {
        let [batch, time, width] = qkv.dims();
        let [heads, _] = attention.content_bias.dims();
        let [.., keys] = attention.mask.dims();
        let memory = attention.memory.as_ref().unwrap_or(qkv);
        let dropout = attention.dropout.as_ref().unwrap_or(&attention.mask);
        [&attention.mask, dropout].into_iter().all(takes)
            && [qkv, memory, &attention.distances].into_iter().all(takes)
            && takes(&attention.content_bias)
            && takes(&attention.position_bias)
            && batch * keys * width.max(heads * time) <= MOST_NUMBERS
    }

    impl Point {
        /// # Shapes
        ///
        /// - g: `[batch, time, heads d_head]`
        /// - output: `[batch, time, 3 heads d_head]`
        pub(super) fn carry(&self, g: &Tensor<3>) -> Tensor<3> {
            let [_, heads, time, _] = self.content.dims();
            let [.., keys] = self.probabilities.dims();
            let g = by_head(g.clone(), heads);
            let value = self.own_weights().swap_dims(2, 3).matmul(g.clone());
            let g = self.dropped(g.matmul(self.value.clone().swap_dims(2, 3)));
            let probabilities = self.probabilities.clone().into_dispatch();
            let (scores, of_distances) = Dispatch::carry_softmax(probabilities, g.into_dispatch());
            let [scores, of_distances] = [scores, of_distances].map(Tensor::<4>::from_dispatch);
            let own = scores.clone().narrow(3, keys - time, time);
            let key = own.swap_dims(2, 3).matmul(self.content.clone());
            let content = scores.matmul(self.key.clone());
            let position = of_distances.matmul(self.distances.clone());
            let g = ByHead {
                content: content.into_dispatch(),
                position: position.into_dispatch(),
                key: key.into_dispatch(),
                value: value.into_dispatch(),
            };
            Tensor::from_dispatch(Dispatch::merge_heads(g, self.scale()))
        }

        /// # Shapes
        ///
        /// - d: `[batch, time, 3 heads d_head]`
        /// - output: `[batch, time, heads d_head]`
        pub(super) fn tangent(&self, d: &Tensor<3>) -> Tensor<3> {
            let [_, heads, _, width] = self.content.dims();
            let nothing = Tensor::zeros([heads, width], &d.device());
            let parts = Parts {
                qkv: d,
                memory: None,
                biases: [&nothing, &nothing],
            };
            let [query, _, key, value] = parts.split();
            let by_content = query.clone().matmul(self.key.clone().swap_dims(2, 3));
            let by_distance = query.matmul(self.distances.clone().swap_dims(2, 3));
            let by_key = self.content.clone().matmul(key.swap_dims(2, 3));
            let scores = ScoreTangents {
                by_content: by_content.into_dispatch(),
                by_distance: by_distance.into_dispatch(),
                by_key: by_key.into_dispatch(),
            };
            let probabilities = self.probabilities.clone().into_dispatch();
            let moved = Tensor::from_dispatch(Dispatch::softmax_tangent(probabilities, scores));
            let mixed = self.dropped(moved).matmul(self.value.clone());
            merge(mixed + self.own_weights().matmul(value))
        }

        fn dropped(&self, probabilities: Tensor<4>) -> Tensor<4> {
            match &self.dropout {
                Some(factors) => probabilities * factors.clone(),
                None => probabilities,
            }
        }

        /// What the segment's own values are mixed by, `[batch, heads, time, time]`.
        fn own_weights(&self) -> Tensor<4> {
            let [_, _, time, keys] = self.probabilities.dims();
            let weights = self.dropped(self.probabilities.clone());
            weights.narrow(3, keys - time, time)
        }

        fn scale(&self) -> f32 {
            let [.., width] = self.content.dims();
            scale(width)
        }
    }

    /// What queries, keys and values are made of.
    struct Parts<'a> {
        qkv: &'a Tensor<3>,
        memory: Option<&'a Tensor<3>>,
        /// For queries that meet keys, and for those that meet distances.
        biases: [&'a Tensor<2>; 2],
    }

    impl Parts<'_> {
        /// Queries with either bias, scaled, keys and values.
        fn split(self) -> [Tensor<4>; 4] {
            let past = self.memory.map_or(0, |memory| memory.dims()[1]);
            let [_, width] = self.biases[0].dims();
            let [content_bias, position_bias] =
                self.biases.map(|bias| bias.clone().into_dispatch());
            let parts = Merged {
                qkv: self.qkv.clone().into_dispatch(),
                memory: self.memory.unwrap_or(self.qkv).clone().into_dispatch(),
                content_bias,
                position_bias,
            };
            let heads = Dispatch::split_heads(parts, past, scale(width));
            [heads.content, heads.position, heads.key, heads.value].map(Tensor::from_dispatch)
        }
    }

    /// Of scores.
    fn scale(width: usize) -> f32 {
        1.0 / (width as f32).sqrt()
    }

    /// `[batch, time, heads d_head]` to `[batch, heads, time, d_head]`.
    fn by_head(x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, time, width] = x.dims();
        x.reshape([batch, time, heads, width / heads])
            .swap_dims(1, 2)
    }

    /// Back.
    fn merge(x: Tensor<4>) -> Tensor<3> {
        let [batch, heads, time, width] = x.dims();
        x.swap_dims(1, 2).reshape([batch, time, heads * width])
    }
}
