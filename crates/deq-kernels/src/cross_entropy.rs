//! Negative log-likelihoods of a softmax, differentiable.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};

/// `-log softmax(scores_i)[columns_i]` for every row, in nats.
///
/// On the CPU backend the probabilities are never kept: the backward pass makes them anew from the
/// scores.
///
/// # Shapes
///
/// - scores: `[rows, columns]`
/// - columns: one per row
/// - output: `[rows]`
///
/// # Panics
///
/// If there is not one column per row, or one that is none.
pub fn cross_entropy(scores: Tensor<2>, columns: &[i32]) -> Tensor<1> {
    let [rows, count] = scores.dims();
    assert_eq!(columns.len(), rows, "one column per row is needed");
    for &column in columns {
        assert!(
            usize::try_from(column).is_ok_and(|column| column < count),
            "column {column} of {count}"
        );
    }
    #[cfg(feature = "flex")]
    if on_flex::takes(&scores) {
        return on_flex::cross_entropy(scores, columns);
    }
    let columns = TensorData::new(columns.to_vec(), [rows, 1]);
    let columns = Tensor::<2, Int>::from_data(columns, &scores.device());
    let picked = log_softmax(scores, 1).gather(1, columns);
    picked.squeeze_dim::<1>(1).neg()
}

#[cfg(feature = "flex")]
mod on_flex {
    use crate::cpu::softmax;
    use crate::flex::{Host, primitive};
    use burn::backend::autodiff::{
        Autodiff,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    };
    use burn::backend::{
        Backend, Dispatch, Flex, TensorMetadata, backend_extension, tensor::FloatTensor,
    };
    use burn::tensor::{DType, Tensor};
    use std::sync::Arc;

    pub(super) fn takes(scores: &Tensor<2>) -> bool {
        scores.dtype() == DType::F32 && crate::device::on_host(&scores.device())
    }

    pub(super) fn cross_entropy(scores: Tensor<2>, columns: &[i32]) -> Tensor<1> {
        let columns = Columns(columns.iter().map(|&column| column as usize).collect());
        Tensor::from_dispatch(Dispatch::picked_nll(scores.into_dispatch(), columns))
    }

    /// The column of every row.
    #[derive(Clone, Debug)]
    pub(crate) struct Columns(Arc<[usize]>);

    #[backend_extension(Autodiff, Flex)]
    pub(crate) trait CrossEntropyBackend: Backend {
        fn picked_nll(scores: FloatTensor<Self>, columns: Columns) -> FloatTensor<Self>;
    }

    trait CrossEntropyGradient: Backend {
        fn to_scores(
            scores: FloatTensor<Self>,
            columns: Columns,
            g: FloatTensor<Self>,
        ) -> FloatTensor<Self>;
    }

    impl CrossEntropyBackend for Flex {
        fn picked_nll(scores: FloatTensor<Self>, columns: Columns) -> FloatTensor<Self> {
            let scores = Host::in_order(scores);
            let nll = softmax::cross_entropy(scores.values(), &columns.0);
            let rows = nll.len();
            primitive(nll, [rows])
        }
    }

    impl CrossEntropyGradient for Flex {
        fn to_scores(
            scores: FloatTensor<Self>,
            columns: Columns,
            g: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let shape = scores.shape();
            let [scores, g] = [scores, g].map(Host::in_order);
            let out = softmax::cross_entropy_gradient(scores.values(), &columns.0, g.values());
            primitive(out, shape)
        }
    }

    impl<B: CrossEntropyBackend + CrossEntropyGradient, C: CheckpointStrategy> CrossEntropyBackend
        for Autodiff<B, C>
    {
        fn picked_nll(scores: FloatTensor<Self>, columns: Columns) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct CrossEntropy;

            impl<B: CrossEntropyGradient> Backward<B, 1> for CrossEntropy {
                type State = (FloatTensor<B>, Columns);

                fn backward(
                    self,
                    ops: Ops<Self::State, 1>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let [to_scores] = ops.parents;
                    let (scores, columns) = ops.state;
                    let g = grads.consume::<B>(&ops.node);
                    if let Some(node) = to_scores {
                        grads.register::<B>(node.id, B::to_scores(scores, columns, g));
                    }
                }
            }

            let (scores, to_scores) = scores.into_parts();
            let out = B::picked_nll(scores.clone(), columns.clone());
            match CrossEntropy
                .prepare::<C>([to_scores])
                .compute_bound()
                .stateful()
            {
                OpsKind::Tracked(prep) => prep.finish((scores, columns), out),
                OpsKind::UnTracked(prep) => prep.finish(out),
            }
        }
    }
}
