//! Products inside the backward pass that also reach parameters and context.
//!
//! An ordinary layer leaves its evaluations on the tape. A strategy that undoes or repeats its
//! iteration has none there: it must multiply by the Jacobians with respect to everything that `f`
//! reads at points which exist only during the backward pass. [`attach`] is that one mechanism. The
//! output of the layer is tied to every tracked tensor that the cell reads; when its cotangent
//! arrives, a function supplies the cotangents of all of them at once, by nested graphs over a
//! [`TapedCell`].

use crate::cell::{EquilibriumCell, Flat, FrozenCell};
use crate::context::{CellContext, TensorMap};
use crate::hook::{self, CotangentMap};
use crate::state::StateLayout;
use burn::backend::DispatchTensor;
use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, GradientCheckpointingStrategy, Gradients, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// The tensors that a cell reads, parameters first, then the context, in a fixed order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// Of every float tensor, whether the outer tape records it.
    tracked: Vec<bool>,
    /// Those that it records.
    tensors: Vec<DispatchTensor>,
    strategy: Option<GradientCheckpointingStrategy>,
}

impl Inputs {
    pub(crate) fn of<C: EquilibriumCell>(cell: &C, context: &C::Context) -> Self {
        let mut inputs = Self::default();
        cell.visit(&mut inputs);
        let _ = context.map_tensors(&mut inputs);
        inputs
    }

    /// Of every float tensor in turn, whether the outer tape records it: what a backward pass may
    /// keep of the inputs.
    pub(crate) fn tracked(&self) -> Vec<bool> {
        self.tracked.clone()
    }

    fn push<const D: usize>(&mut self, tensor: Tensor<D>) {
        let tracked = tensor.is_tracked();
        self.tracked.push(tracked);
        if tracked {
            self.strategy = tensor.gradient_checkpointing_strategy();
            self.tensors.push(tensor.into_dispatch());
        }
    }
}

impl ModuleVisitor for Inputs {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.push(param.val());
    }
}

impl TensorMap for Inputs {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        self.push(tensor.clone());
        tensor.clone()
    }
}

/// A copy of a cell whose tracked inputs are leaves of nested graphs, apart from the outer tape.
pub(crate) struct TapedCell<C: EquilibriumCell> {
    cell: C,
    context: C::Context,
    cotangents: Cotangents,
    products: usize,
}

impl<C: EquilibriumCell> TapedCell<C> {
    pub(crate) fn new(frozen: &FrozenCell<C>, tracked: &[bool]) -> Self {
        let Flat { cell, context, .. } = frozen.flat();
        let mut lift = Lift(tracked.iter());
        Self {
            cell: cell.clone().map(&mut lift),
            context: context.map_tensors(&mut lift),
            cotangents: Cotangents {
                sums: tracked.iter().filter(|t| **t).map(|_| None).collect(),
                next: 0,
                grads: None,
            },
            products: 0,
        }
    }

    /// Evaluates `f(z)` and `J(z)^T u`, and adds `u^T df/dtheta (z)` to the sum of every tracked
    /// input `theta`.
    ///
    /// # Shapes
    ///
    /// - z, u: `[batch, dim]`
    pub(crate) fn pull(
        &mut self,
        layout: &StateLayout<C::State>,
        z: Tensor<2>,
        u: Tensor<2>,
    ) -> Pull {
        self.products += 1;
        let leaf = z.autodiff().require_grad();
        let (cell, context) = (&self.cell, &self.context);
        let recorded = Flat {
            cell,
            context,
            layout,
        }
        .call(leaf.clone());
        let fz = recorded.clone().inner();
        let zero = || leaf.clone().inner().zeros_like();
        if !recorded.is_tracked() {
            let product = zero();
            return Pull { fz, product };
        }
        let mut grads = (recorded * u.autodiff()).sum().backward();
        let product = leaf.grad_remove(&mut grads).unwrap_or_else(zero);
        self.collect(Some(grads));
        Pull { fz, product }
    }

    /// Products made so far.
    pub(crate) fn products(&self) -> usize {
        self.products
    }

    /// The sums for every tracked input, in the order of [`Inputs`].
    pub(crate) fn into_cotangents(mut self) -> Vec<DispatchTensor> {
        // Inputs that no product has reached get zeros, because a step of the outer tape may wait
        // for them.
        self.collect(None);
        self.cotangents.sums.into_iter().flatten().collect()
    }

    /// Adds the derivative of a number that `f` computes from the cell and its context.
    pub(crate) fn add(&mut self, f: impl FnOnce(&C, &C::Context) -> Tensor<1>) {
        let number = f(&self.cell, &self.context);
        if number.is_tracked() {
            self.collect(Some(number.backward()));
        }
    }

    /// Adds the gradients, or ends the sums if there are none to come.
    fn collect(&mut self, grads: Option<Gradients>) {
        self.cotangents.grads = grads;
        self.cotangents.next = 0;
        self.cell.visit(&mut self.cotangents);
        let _ = self.context.map_tensors(&mut self.cotangents);
    }
}

/// One product of a [`TapedCell`], `[batch, dim]` each.
pub(crate) struct Pull {
    /// `f(z)`
    pub(crate) fz: Tensor<2>,
    /// `J(z)^T u`
    pub(crate) product: Tensor<2>,
}

/// Makes leaves of the tensors that are tracked outside.
struct Lift<'a>(std::slice::Iter<'a, bool>);

impl Lift<'_> {
    fn lift<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        match self.0.next() {
            Some(true) => tensor.autodiff().require_grad(),
            _ => tensor,
        }
    }
}

impl ModuleMapper for Lift<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, self.lift(tensor), mapper)
    }
}

impl TensorMap for Lift<'_> {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        self.lift(tensor.clone())
    }

    fn keeps_values(&self) -> bool {
        true
    }
}

/// Adds the gradients of one nested graph to the sums, which are f32 for 16-bit inputs until the
/// end.
struct Cotangents {
    sums: Vec<Option<DispatchTensor>>,
    next: usize,
    grads: Option<Gradients>,
}

impl Cotangents {
    fn collect<const D: usize>(&mut self, leaf: &Tensor<D>) {
        if !leaf.is_tracked() {
            return;
        }
        let sum = &mut self.sums[self.next];
        self.next += 1;
        let Some(grads) = &mut self.grads else {
            let total = match sum.take() {
                Some(sum) => Tensor::<D>::from_dispatch(sum).cast(leaf.dtype()),
                None => leaf.clone().inner().zeros_like(),
            };
            *sum = Some(total.into_dispatch());
            return;
        };
        let Some(grad) = leaf.grad_remove(grads) else {
            return;
        };
        let grad = match grad.dtype() {
            DType::F16 | DType::BF16 => grad.cast(DType::F32),
            _ => grad,
        };
        let total = match sum.take() {
            Some(sum) => Tensor::<D>::from_dispatch(sum) + grad,
            None => grad,
        };
        *sum = Some(total.into_dispatch());
    }
}

impl ModuleVisitor for Cotangents {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.collect(&param.val());
    }
}

impl TensorMap for Cotangents {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        self.collect(tensor);
        tensor.clone()
    }
}

/// Cotangents of the start, if it was named, and of the tracked inputs.
pub(crate) struct Pulled {
    /// `[batch, dim]`
    pub(crate) start: Option<Tensor<2>>,
    /// In the order of [`Inputs`].
    pub(crate) inputs: Vec<DispatchTensor>,
}

/// Returns `value`, computed without a tape, as a function of `start` and `inputs` whose derivative
/// `vjp` supplies in the backward pass.
///
/// # Shapes
///
/// - value, the argument of `vjp`: the same
/// - start: `[batch, dim]`
pub(crate) fn attach<const D: usize>(
    value: Tensor<D>,
    start: Option<&Tensor<2>>,
    inputs: Inputs,
    vjp: impl Fn(Tensor<D>) -> Pulled + Send + Sync + 'static,
) -> Tensor<D> {
    let start = start.filter(|start| start.is_tracked());
    let start_tracked = start.is_some();
    let mut tensors = inputs.tensors;
    let mut strategy = inputs.strategy;
    if let Some(start) = start {
        strategy = start.gradient_checkpointing_strategy();
        tensors.push(start.clone().into_dispatch());
    }
    let value = value.inner();
    let Some(strategy) = strategy else {
        return value;
    };
    let pulled = Arc::new(Mutex::new(Vec::new()));
    let last = tensors.len() - 1;
    let carrier = hook::untracked(value, strategy);
    let vjp = Arc::new(move |cotangent: DispatchTensor| {
        let Pulled { start, mut inputs } = vjp(Tensor::from_dispatch(cotangent));
        if start_tracked {
            inputs.extend(start.map(Tensor::into_dispatch));
        }
        inputs.into_iter().map(Some).collect::<Vec<_>>()
    });
    let tied = tensors
        .into_iter()
        .enumerate()
        .fold(carrier, |carrier, (index, tensor)| {
            let (pulled, vjp) = (pulled.clone(), vjp.clone());
            let link = CotangentMap::new(move |cotangent| {
                let mut pulled = pulled.lock().unwrap_or_else(PoisonError::into_inner);
                // The backward pass meets the links in reverse order.
                if index == last {
                    *pulled = vjp(cotangent);
                }
                pulled[index].take().expect("one cotangent for every input")
            });
            hook::tie(carrier, tensor, link)
        });
    Tensor::from_dispatch(tied)
}
