//! What stands between convolutions, recorded, with its kernels for the cotangents.

use super::norm::{
    Carried, CarryRules, Moved, NormBackend, NormGradientsBackend, NormRules, Normed,
};
use super::pointwise::PointwiseBackend;
use super::weight_norm::WeightNormBackend;
use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, backend_extension};
use burn::tensor::Shape;

#[backend_extension(Autodiff, Flex: cfg(feature = "flex"), Cube: cfg(feature = "_gpu"))]
pub(crate) trait TrackedBackend: Backend {
    /// The value of [`NormBackend::normalize`].
    fn tracked_norm(
        #[extension_type] parts: Normed<Self>,
        groups: usize,
        epsilon: f32,
        rules: NormRules,
    ) -> FloatTensor<Self>;

    /// The first output of [`NormGradientsBackend::norm_tangent`]; the gate is a constant.
    fn tracked_norm_tangent(
        #[extension_type] parts: Moved<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> FloatTensor<Self>;

    /// The weight of [`WeightNormBackend::weight_norm`].
    fn tracked_weight_norm(
        direction: FloatTensor<Self>,
        gain: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// Where nothing is tracked there is nothing to record.
macro_rules! plain {
    ($backend:ty) => {
        impl TrackedBackend for $backend {
            fn tracked_norm(
                parts: Normed<Self>,
                groups: usize,
                epsilon: f32,
                rules: NormRules,
            ) -> FloatTensor<Self> {
                Self::normalize(parts, groups, epsilon, rules).0
            }

            fn tracked_norm_tangent(
                parts: Moved<Self>,
                groups: usize,
                epsilon: f32,
                rules: CarryRules,
            ) -> FloatTensor<Self> {
                Self::norm_tangent(parts, groups, epsilon, rules).0
            }

            fn tracked_weight_norm(
                direction: FloatTensor<Self>,
                gain: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                Self::weight_norm(direction, gain).0
            }
        }
    };
}

#[cfg(feature = "flex")]
plain!(burn::backend::Flex);
#[cfg(feature = "_gpu")]
plain!(burn::backend::Cube);

impl<B, C> TrackedBackend for Autodiff<B, C>
where
    B: NormBackend + NormGradientsBackend + PointwiseBackend + WeightNormBackend,
    C: CheckpointStrategy,
{
    fn tracked_norm(
        parts: Normed<Self>,
        groups: usize,
        epsilon: f32,
        rules: NormRules,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Norm;

        #[derive(Clone, Debug)]
        struct Point<B: Backend> {
            normed: FloatTensor<B>,
            inverse_deviation: FloatTensor<B>,
            scale: FloatTensor<B>,
            /// Above 0 where the ReLU is on, if there is one.
            gate: FloatTensor<B>,
            rules: NormRules,
        }

        impl<B: NormBackend + NormGradientsBackend + PointwiseBackend> Backward<B, 5> for Norm {
            type State = Point<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 5>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [x, before, after, scale, shift] = ops.parents;
                let (g, at) = (grads.consume::<B>(&ops.node), ops.state);
                let rules = at.rules;
                if scale.is_some() || shift.is_some() {
                    let (normed, gate) = (at.normed.clone(), at.gate.clone());
                    let (to_scale, to_shift) =
                        B::affine_gradients(g.clone(), normed, gate, rules.relu);
                    if let Some(node) = scale {
                        grads.register::<B>(node.id, to_scale);
                    }
                    if let Some(node) = shift {
                        grads.register::<B>(node.id, to_shift);
                    }
                }
                if let Some(node) = after {
                    let g = match rules.relu {
                        true => B::pass_gate(g.clone(), at.gate.clone()),
                        false => g.clone(),
                    };
                    grads.register::<B>(node.id, g);
                }
                if x.is_none() && before.is_none() {
                    return;
                }
                let parts = Carried {
                    d: g,
                    normed: at.normed,
                    inverse_deviation: at.inverse_deviation,
                    scale: at.scale,
                    gate: at.gate,
                };
                let carry = CarryRules {
                    transposed: true,
                    affine: rules.affine,
                    gated: rules.relu,
                };
                let g = B::carry_norm(parts, carry);
                for node in [x, before].into_iter().flatten() {
                    grads.register::<B>(node.id, g.clone());
                }
            }
        }

        let (x, to_x) = parts.x.into_parts();
        let (before, to_before) = parts.before.into_parts();
        let (after, to_after) = parts.after.into_parts();
        let (scale, to_scale) = parts.scale.into_parts();
        let (shift, to_shift) = parts.shift.into_parts();
        // Not what stands in its place, so that the kernel may write there.
        let kept_scale = rules.affine.then(|| scale.clone());
        let parts = Normed {
            x,
            before,
            after,
            scale,
            shift,
        };
        let (value, normed, inverse_deviation) = B::normalize(parts, groups, epsilon, rules);
        let prep = Norm
            .prepare::<C>([to_x, to_before, to_after, to_scale, to_shift])
            .compute_bound()
            .stateful();
        match prep {
            OpsKind::Tracked(prep) => {
                let normed = if rules.apart { normed } else { value.clone() };
                // In place of what there is not, nothing that would be kept for it alone.
                let gate = rules.relu.then(|| value.clone());
                let point = Point {
                    gate: gate.unwrap_or_else(|| normed.clone()),
                    scale: kept_scale.unwrap_or_else(|| normed.clone()),
                    normed,
                    inverse_deviation,
                    rules,
                };
                prep.finish(point, value)
            }
            OpsKind::UnTracked(prep) => prep.finish(value),
        }
    }

    fn tracked_norm_tangent(
        parts: Moved<Self>,
        groups: usize,
        epsilon: f32,
        rules: CarryRules,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Tangent;

        #[derive(Clone, Debug)]
        struct Point<B: Backend> {
            x: FloatTensor<B>,
            d: FloatTensor<B>,
            scale: FloatTensor<B>,
            gate: FloatTensor<B>,
            /// The product before it is scaled and gated.
            apart: FloatTensor<B>,
            groups: usize,
            epsilon: f32,
            rules: CarryRules,
        }

        impl<B: NormGradientsBackend> Backward<B, 3> for Tangent {
            type State = Point<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [x, d, scale] = ops.parents;
                let (h, at) = (grads.consume::<B>(&ops.node), ops.state);
                if let Some(node) = scale {
                    let (gate, gated) = (at.gate.clone(), at.rules.gated);
                    let (to_scale, _) = B::affine_gradients(h.clone(), at.apart, gate, gated);
                    grads.register::<B>(node.id, to_scale);
                }
                if x.is_none() && d.is_none() {
                    return;
                }
                let parts = Moved {
                    x: at.x,
                    d: at.d,
                    scale: at.scale,
                    gate: at.gate,
                };
                let (to_x, to_d) = B::carry_norm_tangent(parts, h, at.groups, at.epsilon, at.rules);
                for (node, g) in [(x, to_x), (d, to_d)] {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, g);
                    }
                }
            }
        }

        let (x, to_x) = parts.x.into_parts();
        let (d, to_d) = parts.d.into_parts();
        let (scale, to_scale) = parts.scale.into_parts();
        let (gate, _) = parts.gate.into_parts();
        let parts = Moved {
            x: x.clone(),
            d: d.clone(),
            scale: scale.clone(),
            gate: gate.clone(),
        };
        let (out, apart) = B::norm_tangent(parts, groups, epsilon, rules);
        let prep = Tangent.prepare::<C>([to_x, to_d, to_scale]);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                // Read for the scale's cotangent alone.
                let apart = if rules.affine { apart } else { out.clone() };
                let point = Point {
                    x,
                    d,
                    scale,
                    gate,
                    apart,
                    groups,
                    epsilon,
                    rules,
                };
                prep.finish(point, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn tracked_weight_norm(
        direction: FloatTensor<Self>,
        gain: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct WeightNorm;

        impl<B: WeightNormBackend> Backward<B, 2> for WeightNorm {
            type State = [FloatTensor<B>; 3];

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [direction, gain] = ops.parents;
                let [at_direction, at_gain, lengths] = ops.state;
                let g = grads.consume::<B>(&ops.node);
                let (to_direction, to_gain) =
                    B::carry_weight_norm(at_direction, at_gain, lengths, g);
                for (node, g) in [(direction, to_direction), (gain, to_gain)] {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, g);
                    }
                }
            }
        }

        let (direction, to_direction) = direction.into_parts();
        let (gain, to_gain) = gain.into_parts();
        let (weight, lengths) = B::weight_norm(direction.clone(), gain.clone());
        let prep = WeightNorm.prepare::<C>([to_direction, to_gain]);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([direction, gain, lengths], weight),
            OpsKind::UnTracked(prep) => prep.finish(weight),
        }
    }
}

impl<B: PointwiseBackend, C: CheckpointStrategy> PointwiseBackend for Autodiff<B, C> {
    fn pass_gate(d: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gate;

        impl<B: PointwiseBackend> Backward<B, 1> for Gate {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [d] = ops.parents;
                let g = grads.consume::<B>(&ops.node);
                if let Some(node) = d {
                    grads.register::<B>(node.id, B::pass_gate(g, ops.state));
                }
            }
        }

        let (d, to_d) = d.into_parts();
        let (gate, _) = gate.into_parts();
        let out = B::pass_gate(d, gate.clone());
        match Gate.prepare::<C>([to_d]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(gate, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn add_upsampled(
        to: FloatTensor<Self>,
        x: FloatTensor<Self>,
        factor: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Upsampling;

        impl<B: PointwiseBackend> Backward<B, 2> for Upsampling {
            type State = usize;

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [to, x] = ops.parents;
                let g = grads.consume::<B>(&ops.node);
                if let Some(node) = x {
                    grads.register::<B>(node.id, B::sum_squares(g.clone(), ops.state));
                }
                if let Some(node) = to {
                    grads.register::<B>(node.id, g);
                }
            }
        }

        let (to, to_to) = to.into_parts();
        let (x, to_x) = x.into_parts();
        let out = B::add_upsampled(to, x, factor);
        let prep = Upsampling.prepare::<C>([to_to, to_x]);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(factor, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn sum_squares(x: FloatTensor<Self>, factor: usize) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Squares;

        impl<B: PointwiseBackend> Backward<B, 1> for Squares {
            type State = (Shape, usize);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [x] = ops.parents;
                let (shape, factor) = ops.state;
                let g = grads.consume::<B>(&ops.node);
                if let Some(node) = x {
                    let zeros = B::float_zeros(shape, &g.device(), g.dtype().into());
                    grads.register::<B>(node.id, B::add_upsampled(zeros, g, factor));
                }
            }
        }

        let (x, to_x) = x.into_parts();
        let shape = x.shape();
        let out = B::sum_squares(x, factor);
        match Squares.prepare::<C>([to_x]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((shape, factor), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
