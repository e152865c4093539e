//! What a user writes: the map whose fixed point is the layer's output.

use crate::context::CellContext;
use burn::module::Module;
use burn::tensor::Tensor;

/// One layer `f(z, context)` whose fixed point `z* = f(z*, context)` is the output of a [`Deq`](crate::Deq).
///
/// The state is flattened to `[batch, dim]`; [`StateLayout`](crate::StateLayout) maps tensors of other
/// shapes to and from it. The context carries everything else that `f` reads and that stays
/// constant during a solve: the injected input, memories, dropout masks, normalised weights.
///
/// `forward` must be a pure function of `z`, the parameters and the context. It is called many times per
/// solve, again for each vector-Jacobian product of the backward solve and for the Jacobian penalty, and all of
/// these must see the same function. Randomness and batch statistics therefore belong in the context.
///
/// Rows of the batch must not influence one another: the solvers treat every row as a problem of its own.
pub trait EquilibriumCell: Module + Sync + 'static {
    /// What `f` reads besides `z`.
    type Context: CellContext;

    /// Evaluates `f`.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, dim]`
    /// - output: `[batch, dim]`
    fn forward(&self, z: Tensor<2>, context: &Self::Context) -> Tensor<2>;

    /// Linearises `f` at `z` by hand, if the cell knows how.
    ///
    /// The returned closure maps a cotangent `u` to `J(z)^T u` (both `[batch, dim]`). It may keep the activations
    /// of one evaluation and so saves the fresh forward pass that automatic differentiation needs for
    /// every product (Burn keeps no graph after `backward`). The default, `None`, differentiates
    /// [`forward`](Self::forward) automatically. [`check::pullback_error`](crate::check::pullback_error) compares the two.
    fn pullback(&self, _z: &Tensor<2>, _context: &Self::Context) -> Option<Pullback> {
        None
    }
}

/// A hand-written vector-Jacobian product at a fixed point of linearisation: `u -> J^T u`.
pub type Pullback = Box<dyn Fn(Tensor<2>) -> Tensor<2> + Send + Sync>;

/// A cell that multiplies directions by its Jacobian by hand.
///
/// The Jacobian penalty needs it for an exact gradient where `f` has kinks (ReLU, max pooling). [`check`](crate::check) compares it with automatic
/// differentiation.
pub trait TangentCell: EquilibriumCell {
    /// `J(z) d`, computed by tensor operations that record the parameters and the context.
    ///
    /// Where `f` applies an activation `a` to `g(z)`, the tangent is `a'(g(z)) * (tangent of g)`; at a ReLU the factor is a
    /// mask, through which no gradient flows.
    ///
    /// # Shapes
    ///
    /// - z, direction, output: `[batch, dim]`
    fn tangent(&self, z: Tensor<2>, direction: Tensor<2>, context: &Self::Context) -> Tensor<2>;
}

/// A cell and its context detached from every tape: the map that solvers iterate and that products differentiate.
pub struct FrozenCell<C: EquilibriumCell> {
    pub(crate) cell: C,
    pub(crate) context: C::Context,
}

impl<C: EquilibriumCell> FrozenCell<C> {
    /// Detaches `cell` and `context`. The values are shared, not copied.
    pub fn new(cell: &C, context: &C::Context) -> Self {
        Self {
            cell: cell.valid(),
            context: context.without_autodiff(),
        }
    }

    /// Evaluates `f(z)` without recording a tape.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, dim]`, on the plain device
    /// - output: `[batch, dim]`
    pub fn call(&self, z: Tensor<2>) -> Tensor<2> {
        self.cell.forward(z.inner(), &self.context)
    }

    /// Linearises `f` at `z`: the result multiplies cotangents by `J(z)^T`.
    ///
    /// Uses the cell's own [`pullback`](EquilibriumCell::pullback) when it has one. Otherwise every product costs one
    /// forward and one backward pass of `f`.
    ///
    /// # Shapes
    ///
    /// - z: `[batch, dim]`; the products map `[batch, dim]` to `[batch, dim]`
    pub fn linearize(&self, z: Tensor<2>) -> impl Fn(Tensor<2>) -> Tensor<2> + '_ {
        let z = z.inner();
        let pullback = self.cell.pullback(&z, &self.context);
        move |cotangent: Tensor<2>| match &pullback {
            Some(product) => product(cotangent.inner()),
            None => self.vjp(z.clone(), cotangent),
        }
    }

    /// The vector-Jacobian product `J(z)^T u` by automatic differentiation.
    ///
    /// # Shapes
    ///
    /// - z, cotangent, output: `[batch, dim]`
    pub fn vjp(&self, z: Tensor<2>, cotangent: Tensor<2>) -> Tensor<2> {
        let leaf = z.inner().autodiff().require_grad();
        let image = self.cell.forward(leaf.clone(), &self.context);
        if !image.is_tracked() {
            // f does not read z at all, so its Jacobian is zero.
            return leaf.inner().zeros_like();
        }
        let mut grads = (image * cotangent.inner().autodiff()).sum().backward();
        leaf.grad_remove(&mut grads)
            .unwrap_or_else(|| leaf.inner().zeros_like())
    }
}

impl<C: EquilibriumCell> Clone for FrozenCell<C> {
    fn clone(&self) -> Self {
        Self {
            cell: self.cell.clone(),
            context: self.context.clone(),
        }
    }
}
