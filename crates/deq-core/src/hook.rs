//! The only file that knows Burn's autodiff internals: an identity whose backward pass hands a
//! second tensor a cotangent of our making.

#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "cuda",
        feature = "rocm",
        feature = "cpu",
        feature = "remote"
    )),
    allow(
        unused_variables,
        reason = "without a backend the generated dispatcher has nothing to pass on"
    )
)]

use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{
    Backend, BackendTensor, Dispatch, DispatchKindConversion, DispatchTensor, backend_extension,
    tensor::FloatTensor,
};
use burn::tensor::{GradientCheckpointingStrategy, Tensor};
use std::sync::Arc;

type Rewrite = dyn Fn(DispatchTensor) -> Option<DispatchTensor> + Send + Sync;

/// A function of the cotangent, erased so that it can be the state of a backward step.
#[derive(Clone)]
pub(crate) struct CotangentMap(Arc<Rewrite>);

impl CotangentMap {
    pub(crate) fn new(
        map: impl Fn(DispatchTensor) -> Option<DispatchTensor> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(map))
    }

    fn apply<B: Backend>(&self, grad: FloatTensor<B>) -> Option<FloatTensor<B>>
    where
        DispatchTensor: DispatchKindConversion<B>,
    {
        let grad =
            <DispatchTensor as DispatchKindConversion<B>>::from_backend(BackendTensor::Float(grad));
        let mapped = (self.0)(grad)?;
        let mapped = <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(mapped);
        Some(mapped.expect("the cotangent stays on its backend").float())
    }
}

impl std::fmt::Debug for CotangentMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CotangentMap")
    }
}

// `Cube` stands for every CubeCL runtime: CUDA, ROCm, Metal, Vulkan, WebGPU, CPU.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "cuda",
        feature = "rocm",
        feature = "cpu"
    )),
    Remote: cfg(feature = "remote")
)]
pub(crate) trait HookBackend: Backend {
    /// `carrier` forward; backward, the cotangent goes on to the carrier, and `map(cotangent)` to
    /// `tensor`, whatever its shape. Only a leaf may be left without one.
    fn cotangent_tie(
        carrier: FloatTensor<Self>,
        tensor: FloatTensor<Self>,
        map: CotangentMap,
    ) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
impl HookBackend for burn::backend::Flex {
    fn cotangent_tie(
        carrier: FloatTensor<Self>,
        _tensor: FloatTensor<Self>,
        _map: CotangentMap,
    ) -> FloatTensor<Self> {
        carrier
    }
}

#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "cuda",
    feature = "rocm",
    feature = "cpu"
))]
impl HookBackend for burn::backend::Cube {
    fn cotangent_tie(
        carrier: FloatTensor<Self>,
        _tensor: FloatTensor<Self>,
        _map: CotangentMap,
    ) -> FloatTensor<Self> {
        carrier
    }
}

// The tape is the client's: a worker only sees what the steps compute.
#[cfg(feature = "remote")]
impl HookBackend for burn::backend::Remote {
    fn cotangent_tie(
        carrier: FloatTensor<Self>,
        _tensor: FloatTensor<Self>,
        _map: CotangentMap,
    ) -> FloatTensor<Self> {
        carrier
    }
}

impl<B: Backend + HookBackend, C: CheckpointStrategy> HookBackend for Autodiff<B, C>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    fn cotangent_tie(
        carrier: FloatTensor<Self>,
        tensor: FloatTensor<Self>,
        map: CotangentMap,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Tie;

        impl<B: Backend> Backward<B, 2> for Tie
        where
            DispatchTensor: DispatchKindConversion<B>,
        {
            type State = CotangentMap;

            fn backward(
                self,
                ops: Ops<CotangentMap, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [carrier, tensor] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                if let Some(node) = tensor
                    && let Some(mapped) = ops.state.apply::<B>(grad.clone())
                {
                    grads.register::<B>(node.id, mapped);
                }
                if let Some(node) = carrier {
                    grads.register::<B>(node.id, grad);
                }
            }
        }

        let (primitive, carrier) = carrier.into_parts();
        let (_, tensor) = tensor.into_parts();
        match Tie
            .prepare::<C>([carrier, tensor])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(map, primitive),
            OpsKind::UnTracked(prep) => prep.finish(primitive),
        }
    }
}

/// Returns `tensor` unchanged; in the backward pass its cotangent is replaced by
/// `rewrite(cotangent)`.
///
/// `rewrite` may run backward passes of its own on graphs that share no tracked tensor with the
/// outer one. Sharing one deadlocks: the outer graph is locked while its steps run, and the lock is
/// not reentrant.
///
/// # Shapes
///
/// `rewrite` maps the shape of `tensor` to itself and receives a tensor without autodiff.
pub(crate) fn rewrite_cotangent<const D: usize>(
    tensor: Tensor<D>,
    rewrite: impl Fn(Tensor<D>) -> Tensor<D> + Send + Sync + 'static,
) -> Tensor<D> {
    let Some(strategy) = tensor.gradient_checkpointing_strategy() else {
        return tensor;
    };
    let map =
        CotangentMap::new(move |g| Some(rewrite(Tensor::<D>::from_dispatch(g)).into_dispatch()));
    let value = untracked(tensor.clone().inner(), strategy);
    Tensor::from_dispatch(tie(value, tensor.into_dispatch(), map))
}

/// A constant that can be combined with tensors of that checkpointing strategy.
pub(crate) fn untracked<const D: usize>(
    value: Tensor<D>,
    strategy: GradientCheckpointingStrategy,
) -> DispatchTensor {
    value
        .autodiff()
        .with_gradient_checkpointing_strategy(strategy)
        .into_dispatch()
}

/// Returns `carrier` as a function of `tensor` too, which receives `cotangent(cotangent of the
/// result)` in the backward pass.
///
/// What is said of nested backward passes at [`rewrite_cotangent`] holds here.
pub(crate) fn tie(
    carrier: DispatchTensor,
    tensor: DispatchTensor,
    cotangent: CotangentMap,
) -> DispatchTensor {
    Dispatch::cotangent_tie(carrier, tensor, cotangent)
}
