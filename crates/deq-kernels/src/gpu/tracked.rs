//! The softmax of tracked scores, with its kernel for the cotangents.

use super::attention::{AttentionBackend, SoftmaxBackend};
use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;

impl<B, C> SoftmaxBackend for Autodiff<B, C>
where
    B: SoftmaxBackend + AttentionBackend,
    C: CheckpointStrategy,
{
    fn relative_softmax(
        by_content: FloatTensor<Self>,
        by_distance: FloatTensor<Self>,
        mask: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Softmax;

        impl<B: AttentionBackend> Backward<B, 2> for Softmax {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [by_content, by_distance] = ops.parents;
                let g = grads.consume::<B>(&ops.node);
                let (of_scores, of_distances) = B::carry_softmax(ops.state, g);
                if let Some(node) = by_content {
                    grads.register::<B>(node.id, of_scores);
                }
                if let Some(node) = by_distance {
                    grads.register::<B>(node.id, of_distances);
                }
            }
        }

        let (by_content, to_content) = by_content.into_parts();
        let (by_distance, to_distance) = by_distance.into_parts();
        let (mask, _) = mask.into_parts();
        let probabilities = B::relative_softmax(by_content, by_distance, mask);
        let prep = Softmax.prepare::<C>([to_content, to_distance]);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(probabilities.clone(), probabilities),
            OpsKind::UnTracked(prep) => prep.finish(probabilities),
        }
    }
}
