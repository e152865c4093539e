//! The only file that knows Burn's autodiff internals: identities whose backward pass rewrites the cotangent or passes one to a second tensor.

#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "cuda",
        feature = "rocm"
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
use burn::tensor::Tensor;
use std::sync::Arc;

type Rewrite = dyn Fn(DispatchTensor) -> DispatchTensor + Send + Sync;

/// The cotangent's rewrite, erased so that it can be the state of a backward step.
#[derive(Clone)]
pub(crate) struct CotangentMap(Arc<Rewrite>);

impl CotangentMap {
    pub(crate) fn new(
        map: impl Fn(DispatchTensor) -> DispatchTensor + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(map))
    }
}

impl std::fmt::Debug for CotangentMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CotangentMap")
    }
}

impl CotangentMap {
    fn apply<B: Backend>(&self, grad: FloatTensor<B>) -> FloatTensor<B>
    where
        DispatchTensor: DispatchKindConversion<B>,
    {
        let grad =
            <DispatchTensor as DispatchKindConversion<B>>::from_backend(BackendTensor::Float(grad));
        <DispatchTensor as DispatchKindConversion<B>>::try_into_backend((self.0)(grad))
            .expect("the cotangent stays on its backend")
            .float()
    }
}

// `Cube` stands for every CubeCL runtime: CUDA, ROCm, Metal, Vulkan, WebGPU.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "cuda",
        feature = "rocm"
    ))
)]
pub(crate) trait HookBackend: Backend {
    /// The identity forward; backward, the cotangent passes through `map`.
    fn cotangent_hook(tensor: FloatTensor<Self>, map: CotangentMap) -> FloatTensor<Self>;

    /// `carrier` forward; backward, the cotangent goes on to the carrier, and `map(cotangent)` to `tensor`, whatever its shape.
    fn cotangent_tie(
        carrier: FloatTensor<Self>,
        tensor: FloatTensor<Self>,
        map: CotangentMap,
    ) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
impl HookBackend for burn::backend::Flex {
    fn cotangent_hook(tensor: FloatTensor<Self>, _map: CotangentMap) -> FloatTensor<Self> {
        tensor
    }

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
    feature = "rocm"
))]
impl HookBackend for burn::backend::Cube {
    fn cotangent_hook(tensor: FloatTensor<Self>, _map: CotangentMap) -> FloatTensor<Self> {
        tensor
    }

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
    fn cotangent_hook(tensor: FloatTensor<Self>, map: CotangentMap) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Hook;

        impl<B: Backend> Backward<B, 1> for Hook
        where
            DispatchTensor: DispatchKindConversion<B>,
        {
            type State = CotangentMap;

            fn backward(
                self,
                ops: Ops<CotangentMap, 1>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [parent] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                if let Some(node) = parent {
                    grads.register::<B>(node.id, ops.state.apply::<B>(grad));
                }
            }
        }

        let (primitive, guard) = tensor.into_parts();
        match Hook.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(map, primitive),
            OpsKind::UnTracked(prep) => prep.finish(primitive),
        }
    }

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
                if let Some(node) = tensor {
                    grads.register::<B>(node.id, ops.state.apply::<B>(grad.clone()));
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

/// Returns `tensor` unchanged; in the backward pass its cotangent is replaced by `rewrite(cotangent)`.
///
/// `rewrite` may run backward passes of its own on graphs that share no tracked tensor with the outer one. Sharing
/// one deadlocks: the outer graph is locked while its steps run, and the lock is not reentrant.
///
/// # Shapes
///
/// `rewrite` maps the shape of `tensor` to itself and receives a tensor without autodiff.
pub(crate) fn rewrite_cotangent<const D: usize>(
    tensor: Tensor<D>,
    rewrite: impl Fn(Tensor<D>) -> Tensor<D> + Send + Sync + 'static,
) -> Tensor<D> {
    let map =
        CotangentMap::new(move |grad| rewrite(Tensor::<D>::from_dispatch(grad)).into_dispatch());
    Tensor::from_dispatch(Dispatch::cotangent_hook(tensor.into_dispatch(), map))
}

/// Returns `carrier` as a function of `tensor` too, which receives `cotangent(cotangent of the result)` in the backward pass.
///
/// What is said of nested backward passes at [`rewrite_cotangent`] holds here.
pub(crate) fn tie(
    carrier: DispatchTensor,
    tensor: DispatchTensor,
    cotangent: CotangentMap,
) -> DispatchTensor {
    Dispatch::cotangent_tie(carrier, tensor, cotangent)
}
