//! Products inside the backward pass that also reach parameters and context.
//!
//! An explicit layer leaves its evaluations on the tape. An equilibrium has none there, and a
//! strategy that undoes or repeats its iteration must multiply by the Jacobians with respect to
//! everything that `f` reads at points which exist only then. [`attach`] is that one mechanism. The
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
    tracked: Tracked,
    /// Those that the outer tape records.
    tensors: Vec<DispatchTensor>,
}

/// What a backward pass may keep of the inputs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracked {
    /// Of every float tensor in turn, whether the outer tape records it.
    flags: Vec<bool>,
    /// Of those that it records, whether something was computed to make it. A step of the tape then
    /// waits for its cotangent.
    computed: Vec<bool>,
    strategy: Option<GradientCheckpointingStrategy>,
}

impl Tracked {
    /// Every float tensor of a cell and its context.
    pub(crate) fn all<C: EquilibriumCell>(frozen: &FrozenCell<C>) -> Self {
        let Flat { cell, context, .. } = frozen.flat();
        let count = Inputs::of(cell, context).tracked.flags.len();
        Self {
            flags: vec![true; count],
            computed: vec![true; count],
            strategy: None,
        }
    }

    /// Whether there is one.
    pub(crate) fn any(&self) -> bool {
        self.strategy.is_some()
    }
}

impl Inputs {
    pub(crate) fn of<C: EquilibriumCell>(cell: &C, context: &C::Context) -> Self {
        let mut inputs = Self::default();
        cell.visit(&mut inputs);
        let _ = context.map_tensors(&mut inputs);
        inputs
    }

    pub(crate) fn tracked(&self) -> Tracked {
        self.tracked.clone()
    }

    fn push<const D: usize>(&mut self, tensor: Tensor<D>) {
        let tracked = tensor.is_tracked();
        self.tracked.flags.push(tracked);
        if tracked {
            self.tracked.computed.push(!tensor.is_require_grad());
            self.tracked.strategy = tensor.gradient_checkpointing_strategy();
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
    strategy: Option<GradientCheckpointingStrategy>,
    products: usize,
}

impl<C: EquilibriumCell> TapedCell<C> {
    pub(crate) fn new(frozen: &FrozenCell<C>, tracked: &Tracked) -> Self {
        let Flat { cell, context, .. } = frozen.flat();
        let mut lift = Lift {
            flags: tracked.flags.iter(),
            strategy: tracked.strategy,
        };
        Self {
            cell: cell.clone().map(&mut lift),
            context: context.map_tensors(&mut lift),
            cotangents: Cotangents {
                sums: tracked.computed.iter().map(|_| None).collect(),
                computed: tracked.computed.clone(),
                next: 0,
                grads: None,
            },
            strategy: tracked.strategy,
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
        let leaf = leaf(z, self.strategy);
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
        let mut grads = (recorded * u).sum().backward();
        let product = leaf.grad_remove(&mut grads).unwrap_or_else(zero);
        self.collect(Some(grads));
        Pull { fz, product }
    }

    /// Products made so far.
    pub(crate) fn products(&self) -> usize {
        self.products
    }

    /// The sums for every tracked input, in the order of [`Inputs`]; none for a leaf that no
    /// product has reached.
    pub(crate) fn into_cotangents(mut self) -> Vec<Option<DispatchTensor>> {
        self.collect(None);
        self.cotangents.sums
    }

    /// Adds the derivative of a number that `f` computes from the cell and its context.
    pub(crate) fn add(&mut self, f: impl FnOnce(&C, &C::Context) -> Tensor<1>) {
        let number = f(&self.cell, &self.context);
        if number.is_tracked() {
            self.collect(Some(number.backward()));
        }
    }

    /// How far the sums are from those of a copy, relative to the size of the latter, over all
    /// inputs.
    pub(crate) fn distance(mut self, other: Self) -> f64 {
        let (cell, context) = (self.cell.clone(), self.context.clone());
        self.collect(None);
        let mut squares = Squares {
            own: self.cotangents.sums.into_iter(),
            other: other.into_cotangents().into_iter(),
            difference: 0.0,
            size: 0.0,
        };
        cell.visit(&mut squares);
        let _ = context.map_tensors(&mut squares);
        (squares.difference / squares.size.max(f64::MIN_POSITIVE)).sqrt()
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

/// A leaf of a nested graph that checkpoints as the outer one.
fn leaf<const D: usize>(
    tensor: Tensor<D>,
    strategy: Option<GradientCheckpointingStrategy>,
) -> Tensor<D> {
    let tensor = tensor.autodiff();
    let tensor = match strategy {
        Some(strategy) => tensor.with_gradient_checkpointing_strategy(strategy),
        None => tensor,
    };
    tensor.require_grad()
}

/// Makes leaves of the tensors that are tracked outside.
struct Lift<'a> {
    flags: std::slice::Iter<'a, bool>,
    strategy: Option<GradientCheckpointingStrategy>,
}

impl Lift<'_> {
    fn lift<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
        match self.flags.next() {
            Some(true) => leaf(tensor, self.strategy),
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
    /// As in [`Tracked`].
    computed: Vec<bool>,
    next: usize,
    grads: Option<Gradients>,
}

impl Cotangents {
    fn collect<const D: usize>(&mut self, leaf: &Tensor<D>) {
        if !leaf.is_tracked() {
            return;
        }
        let computed = self.computed[self.next];
        let sum = &mut self.sums[self.next];
        self.next += 1;
        let Some(grads) = &mut self.grads else {
            let total = match sum.take() {
                Some(sum) => Some(Tensor::<D>::from_dispatch(sum).cast(leaf.dtype())),
                None => computed.then(|| leaf.clone().inner().zeros_like()),
            };
            *sum = total.map(Tensor::into_dispatch);
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

/// Sums up over the sums of two copies of a cell, both of which have one for every input.
struct Squares {
    own: std::vec::IntoIter<Option<DispatchTensor>>,
    other: std::vec::IntoIter<Option<DispatchTensor>>,
    difference: f64,
    size: f64,
}

impl Squares {
    fn add<const D: usize>(&mut self) {
        let (Some(Some(own)), Some(Some(other))) = (self.own.next(), self.other.next()) else {
            return;
        };
        let [own, other] = [own, other].map(Tensor::<D>::from_dispatch);
        let square = |x: Tensor<D>| x.square().sum().into_scalar::<f64>();
        self.size += square(other.clone());
        self.difference += square(own - other);
    }
}

impl ModuleVisitor for Squares {
    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        self.add::<D>();
    }
}

impl TensorMap for Squares {
    fn float<const D: usize>(&mut self, tensor: &Tensor<D>) -> Tensor<D> {
        self.add::<D>();
        tensor.clone()
    }
}

/// Cotangents of the start, if it was named, and of the tracked inputs.
pub(crate) struct Pulled {
    /// `[batch, dim]`
    pub(crate) start: Option<Tensor<2>>,
    /// In the order of [`Inputs`].
    pub(crate) inputs: Vec<Option<DispatchTensor>>,
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
    let mut strategy = inputs.tracked.strategy;
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
            inputs.push(start.map(Tensor::into_dispatch));
        }
        inputs
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
                pulled[index].take()
            });
            hook::tie(carrier, tensor, link)
        });
    Tensor::from_dispatch(tied)
}
