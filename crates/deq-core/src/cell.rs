//! What a user writes: the map whose fixed point is the layer's output.

use crate::context::CellContext;
use crate::state::{State, StateLayout};
use burn::module::{Module, ModuleDisplay};
use burn::tensor::{DType, Tensor};

/// One layer `f(z, context)` whose fixed point `z* = f(z*, context)` is the output of a
/// [`Deq`](crate::Deq).
///
/// The state is what the layer computes: a tensor of any shape, or several, see [`State`]. The
/// context carries everything else that `f` reads and that stays constant during a solve: the
/// injected input, memories, dropout masks, normalised weights.
///
/// `forward` must be a pure function of `z`, the parameters and the context. It is called many
/// times per solve, again for each vector-Jacobian product of the backward solve and for the
/// Jacobian penalty, and all of these must see the same function. Randomness and batch statistics
/// therefore belong in the context. Gradients reach the parameters and what the context's
/// [`map_tensors`](CellContext::map_tensors) lists, and nothing else: weights that are computed
/// from others belong in the context too, not in a field of the cell.
///
/// Rows of the batch must not influence one another: the solvers treat every row as a problem of
/// its own.
pub trait EquilibriumCell: Module + ModuleDisplay + Sync + 'static {
    /// What reaches equilibrium.
    type State: State;

    /// What `f` reads besides `z`.
    type Context: CellContext;

    /// Evaluates `f`.
    ///
    /// # Shapes
    ///
    /// - z, output: the same shapes
    fn forward(&self, z: Self::State, context: &Self::Context) -> Self::State;

    /// Linearises `f` at `z` by hand, if the cell knows how.
    ///
    /// The returned closure maps a cotangent `u` to `J(z)^T u`. It may keep the activations of one
    /// evaluation and so saves the fresh forward pass that automatic differentiation needs for
    /// every product (Burn keeps no graph after `backward`). The default, `None`, differentiates
    /// [`forward`](Self::forward) automatically.
    /// [`check::pullback_error`](crate::check::pullback_error) compares the two.
    ///
    /// # Shapes
    ///
    /// - z, cotangent, product: the same shapes
    fn pullback(&self, _z: Self::State, _context: &Self::Context) -> Option<Pullback<Self::State>> {
        None
    }

    /// `f(z)` and `J(z) d` from one evaluation, by tensor operations that record the parameters and
    /// the context, if the cell knows how: a Jacobian-vector product in forward mode.
    ///
    /// On penalised steps the penalty takes its gradient of the second and the layer its own of the
    /// first, which must be recorded as `forward` records it. The default, `None`, leaves it to
    /// differences, which are no good in f32 where `f` has kinks (ReLU, max pooling). A cell has a
    /// tangent for every input or for none.
    /// [`check::tangent_error`](crate::check::tangent_error) compares it with `forward` and with
    /// automatic differentiation.
    ///
    /// Where `f` applies an activation `a` to `g(z)`, the tangent is `a'(g(z)) * (tangent of g)`;
    /// at a ReLU the factor is a mask, through which no gradient flows.
    ///
    /// # Shapes
    ///
    /// - z, direction, both outputs: the same shapes
    fn tangent(
        &self,
        _z: Self::State,
        _direction: Self::State,
        _context: &Self::Context,
    ) -> Option<(Self::State, Self::State)> {
        None
    }

    /// The type in which `f` computes on states of type `state`. Default: the same.
    ///
    /// Read by whoever takes differences of close points, such as the penalty of a cell without a
    /// tangent: rounding in a coarser type would be all that is left of them.
    fn compute_dtype(&self, state: DType) -> DType {
        state
    }
}

/// A hand-written vector-Jacobian product at a fixed point of linearisation: `u -> J^T u`.
pub type Pullback<S> = Box<dyn Fn(S) -> S + Send + Sync>;

/// A cell and its context detached from every tape, as a map of rows: what solvers iterate and
/// products differentiate.
pub struct FrozenCell<C: EquilibriumCell> {
    cell: C,
    context: C::Context,
    layout: StateLayout<C::State>,
}

impl<C: EquilibriumCell> FrozenCell<C> {
    /// Detaches `cell` and `context`, whose values are shared, not copied. Of `z` only the shapes
    /// are read.
    ///
    /// # Panics
    ///
    /// As [`StateLayout::of`].
    pub fn new(cell: &C, context: &C::Context, z: &C::State) -> Self {
        Flat {
            cell,
            context,
            layout: &StateLayout::of(z),
        }
        .freeze()
    }

    /// How states lie in the rows.
    pub fn layout(&self) -> &StateLayout<C::State> {
        &self.layout
    }

    /// Evaluates `f(z)` without recording a tape.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, dim]`, on the plain device
    /// - output: `[batch, dim]`
    pub fn call(&self, z: Tensor<2>) -> Tensor<2> {
        self.flat().call(z.inner())
    }

    /// Linearises `f` at `z`: the result multiplies cotangents by `J(z)^T`.
    ///
    /// Uses the cell's own [`pullback`](EquilibriumCell::pullback) when it has one. Otherwise every
    /// product costs one forward and one backward pass of `f`.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, dim]`; the products map `[batch, dim]` to `[batch, dim]`
    pub fn linearize(&self, z: Tensor<2>) -> impl Fn(Tensor<2>) -> Tensor<2> + '_ {
        let z = z.inner();
        let pullback = self.pullback(z.clone());
        move |cotangent: Tensor<2>| self.product(&pullback, &z, cotangent)
    }

    /// `J(z)^T u` by the cell's own product at `z`, or else automatically.
    pub(crate) fn product(
        &self,
        pullback: &Option<Pullback<C::State>>,
        z: &Tensor<2>,
        cotangent: Tensor<2>,
    ) -> Tensor<2> {
        match pullback {
            Some(product) => self.layout.apply(cotangent.inner(), product),
            None => self.vjp(z.clone(), cotangent),
        }
    }

    /// The cell's own product at `z`, `[batch, dim]`.
    pub(crate) fn pullback(&self, z: Tensor<2>) -> Option<Pullback<C::State>> {
        self.cell.pullback(self.layout.unflatten(z), &self.context)
    }

    /// The vector-Jacobian product `J(z)^T u` by automatic differentiation.
    ///
    /// # Shapes
    ///
    /// - z, cotangent, output: `[batch, dim]`
    pub fn vjp(&self, z: Tensor<2>, cotangent: Tensor<2>) -> Tensor<2> {
        let leaf = z.inner().autodiff().require_grad();
        let fz = self.flat().call(leaf.clone());
        if !fz.is_tracked() {
            // f does not read z at all, so its Jacobian is zero.
            return leaf.inner().zeros_like();
        }
        let mut grads = (fz * cotangent.inner().autodiff()).sum().backward();
        leaf.grad_remove(&mut grads)
            .unwrap_or_else(|| leaf.inner().zeros_like())
    }

    /// The same map, to be evaluated on any device.
    pub(crate) fn flat(&self) -> Flat<'_, C> {
        Flat {
            cell: &self.cell,
            context: &self.context,
            layout: &self.layout,
        }
    }
}

impl<C: EquilibriumCell> Clone for FrozenCell<C> {
    fn clone(&self) -> Self {
        Self {
            cell: self.cell.clone(),
            context: self.context.clone(),
            layout: self.layout.clone(),
        }
    }
}

/// A cell and its context as they are, as a map of rows.
pub(crate) struct Flat<'a, C: EquilibriumCell> {
    pub(crate) cell: &'a C,
    pub(crate) context: &'a C::Context,
    pub(crate) layout: &'a StateLayout<C::State>,
}

impl<C: EquilibriumCell> Flat<'_, C> {
    /// `f(z)`, recorded if anything is tracked; `[batch, dim]` both.
    pub(crate) fn call(&self, z: Tensor<2>) -> Tensor<2> {
        self.layout.apply(z, |z| self.cell.forward(z, self.context))
    }

    /// A copy without autodiff.
    pub(crate) fn freeze(&self) -> FrozenCell<C> {
        FrozenCell {
            cell: self.cell.valid(),
            context: self.context.without_autodiff(),
            layout: self.layout.clone(),
        }
    }
}
