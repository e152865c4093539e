//! One evaluation of `f` that several terms of a loss differentiate.

use crate::cell::{EquilibriumCell, Flat, FrozenCell, Pullback};
use crate::context::CellContext;
use crate::hook::{self, CotangentMap};
use crate::state::StateLayout;
use crate::tape::{Inputs, Pulled, TapedCell, Tracked, attach};
use burn::tensor::Tensor;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A map of rows near a point `z` that is held fixed, as terms of a loss see it.
///
/// What it computes is recorded where parameters or context are tracked.
pub trait MapAt {
    /// The point, `[batch, dim]`, on the plain device.
    fn z(&self) -> Tensor<2>;

    /// `f` at another point.
    ///
    /// # Shapes
    ///
    /// - z, output: `[batch, dim]`
    fn call(&self, z: Tensor<2>) -> Tensor<2>;

    /// `J(z) d` by the cell's own [tangent](EquilibriumCell::tangent), if it has one.
    ///
    /// # Shapes
    ///
    /// - direction, output: `[batch, dim]`
    fn tangent(&self, direction: Tensor<2>) -> Option<Tensor<2>>;
}

/// A cell and its context as a [`MapAt`], on whatever device they live.
pub struct CellAt<'a, C: EquilibriumCell> {
    f: Flat<'a, C>,
    z: Tensor<2>,
    /// `f(z)`, once a tangent has evaluated it.
    fz: RefCell<Option<Tensor<2>>>,
}

impl<'a, C: EquilibriumCell> CellAt<'a, C> {
    /// At the rows `z`, `[batch, dim]`, whose states have that layout.
    pub fn new(
        cell: &'a C,
        context: &'a C::Context,
        layout: &'a StateLayout<C::State>,
        z: Tensor<2>,
    ) -> Self {
        let f = Flat {
            cell,
            context,
            layout,
        };
        Self {
            f,
            z: z.inner(),
            fz: RefCell::new(None),
        }
    }

    /// The same for terms whose gradients are recorded in the backward pass; it shares nothing.
    pub fn evaluation(&self) -> Evaluation {
        Evaluation(Arc::new(Alone {
            point: FrozenAt::new(self.f.freeze(), self.z()),
            inputs: Inputs::of(self.f.cell, self.f.context),
        }))
    }

    /// `f(z)`, by no further evaluation if there was a tangent.
    pub(crate) fn value(&self) -> Tensor<2> {
        let known = self.fz.take();
        known.unwrap_or_else(|| self.f.call(self.z()))
    }
}

impl<C: EquilibriumCell> MapAt for CellAt<'_, C> {
    fn z(&self) -> Tensor<2> {
        self.z.clone()
    }

    fn call(&self, z: Tensor<2>) -> Tensor<2> {
        self.f.call(z)
    }

    fn tangent(&self, direction: Tensor<2>) -> Option<Tensor<2>> {
        let Flat {
            cell,
            context,
            layout,
        } = self.f;
        let [z, along] = [self.z(), direction].map(|rows| layout.unflatten(rows));
        let (fz, tangent) = cell.tangent(z, along, context)?;
        *self.fz.borrow_mut() = Some(layout.flatten(fz));
        Some(layout.flatten(tangent))
    }
}

/// A number per sample, `[batch]`, computed from a map near a point.
type Term = Box<dyn Fn(&dyn MapAt) -> Tensor<1> + Send + Sync>;

/// `f` at a point, for terms of a loss that depend on its parameters and context there, such as
/// penalties: products with its Jacobian, and gradients that are recorded in the backward pass and
/// not before.
///
/// That of an [`Equilibrium`](crate::Equilibrium::evaluation) shares its evaluations with the
/// layer: products that of the adjoint solve, gradients the one that the layer records. Layer and
/// terms must then be differentiated in one backward pass.
#[derive(Clone)]
pub struct Evaluation(Arc<dyn Evaluated>);

impl std::fmt::Debug for Evaluation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Evaluation")
    }
}

impl Evaluation {
    /// Of any state, which shares nothing.
    pub fn at<C: EquilibriumCell>(cell: &C, context: &C::Context, z: &C::State) -> Self {
        let layout = StateLayout::of(z);
        let rows = layout.flatten(z.without_autodiff());
        CellAt::new(cell, context, &layout, rows).evaluation()
    }

    /// The point, `[batch, dim]`, on the plain device.
    pub fn z(&self) -> Tensor<2> {
        self.0.z()
    }

    /// `J(z)^T u` without a tape.
    ///
    /// # Shapes
    ///
    /// - cotangent `u`, output: `[batch, dim]`
    pub fn vjp(&self, cotangent: Tensor<2>) -> Tensor<2> {
        self.0.vjp(cotangent)
    }

    /// Returns `value` with the derivative of `term` by parameters and context, which is evaluated
    /// during the backward pass and not before.
    ///
    /// What `term` records exists only then, when most of the outer tape is gone already, so that
    /// the peak of memory is that of the larger of the two instead of their sum. `term` has the
    /// parameters and the context from the map it is given. Other tensors that it uses are
    /// constants, and must be on no tape: a backward pass would wait for itself.
    ///
    /// # Shapes
    ///
    /// - value, output of `term`: `[batch]`
    pub fn recorded(
        &self,
        value: Tensor<1>,
        term: impl Fn(&dyn MapAt) -> Tensor<1> + Send + Sync + 'static,
    ) -> Tensor<1> {
        self.0.recorded(value, Box::new(term))
    }
}

trait Evaluated: Send + Sync {
    fn z(&self) -> Tensor<2>;
    fn vjp(&self, cotangent: Tensor<2>) -> Tensor<2>;
    fn recorded(&self, value: Tensor<1>, term: Term) -> Tensor<1>;
}

/// A frozen cell at a point, linearised when products are first asked for.
pub(crate) struct FrozenAt<C: EquilibriumCell> {
    frozen: FrozenCell<C>,
    /// `[batch, dim]`
    z: Tensor<2>,
    /// `None` for a cell without a product of its own.
    linear: OnceLock<Option<Pullback<C::State>>>,
}

impl<C: EquilibriumCell> FrozenAt<C> {
    fn new(frozen: FrozenCell<C>, z: Tensor<2>) -> Self {
        Self {
            frozen,
            z,
            linear: OnceLock::new(),
        }
    }

    /// `J(z)^T u`, `[batch, dim]` both.
    pub(crate) fn vjp(&self, cotangent: Tensor<2>) -> Tensor<2> {
        let linear = match self.linear.get() {
            Some(linear) => linear,
            None => {
                // Nothing waits while it is made: a thread that waits for parts of this work may
                // be given other work, which waits for this.
                let linear = self.frozen.pullback(self.z.clone());
                self.linear.get_or_init(|| linear)
            }
        };
        self.frozen.product(linear, &self.z, cotangent)
    }

    /// The same without what was kept for products, and of evaluations only what the context shares
    /// with [recorded ones](crate::TensorMap::keeps_values).
    fn fresh(&self) -> Self {
        Self::new(self.frozen.flat().freeze(), self.z.clone())
    }
}

/// The cotangents that a number, computed from a recorded copy of the cell, gives to the tracked
/// inputs.
fn pull<C: EquilibriumCell>(
    frozen: &FrozenCell<C>,
    z: &Tensor<2>,
    tracked: &Tracked,
    number: impl FnOnce(&CellAt<C>) -> Tensor<1>,
) -> Pulled {
    let mut taped = TapedCell::new(frozen, tracked);
    let layout = frozen.layout();
    taped.add(|cell, context| number(&CellAt::new(cell, context, layout, z.clone())));
    Pulled {
        start: None,
        inputs: taped.into_cotangents(),
    }
}

/// A point whose terms are on the tape by themselves.
struct Alone<C: EquilibriumCell> {
    point: FrozenAt<C>,
    inputs: Inputs,
}

impl<C: EquilibriumCell> Evaluated for Alone<C> {
    fn z(&self) -> Tensor<2> {
        self.point.z.clone()
    }

    fn vjp(&self, cotangent: Tensor<2>) -> Tensor<2> {
        self.point.vjp(cotangent)
    }

    fn recorded(&self, value: Tensor<1>, term: Term) -> Tensor<1> {
        let FrozenAt { frozen, z, .. } = self.point.fresh();
        let tracked = self.inputs.tracked();
        attach(value, None, self.inputs.clone(), move |cotangent| {
            pull(&frozen, &z, &tracked, |at| weighted(term(at), cotangent))
        })
    }
}

/// The end of a layer, whose backward pass records one evaluation for its output and all terms.
pub(crate) struct LastEvaluation<C: EquilibriumCell> {
    point: Mutex<Arc<FrozenAt<C>>>,
    /// The terms that take part in a backward pass, each with its cotangent.
    terms: Mutex<Vec<(Arc<Term>, Tensor<1>)>>,
}

impl<C: EquilibriumCell> LastEvaluation<C> {
    /// Returns `fz`, the value of `f` at the rows `z`, as a function of parameters and context,
    /// with `rewrite` applied to its cotangent, and what terms may share. `frozen` is `f` as the
    /// solve has used it.
    ///
    /// # Shapes
    ///
    /// - fz, z: `[batch, dim]`, on the plain device
    /// - output: `[batch, dim]`, on the plain device too if nothing is tracked
    pub(crate) fn attach(
        f: &Flat<C>,
        frozen: FrozenCell<C>,
        [fz, z]: [Tensor<2>; 2],
        rewrite: impl Fn(&FrozenAt<C>, Tensor<2>) -> Tensor<2> + Send + Sync + 'static,
    ) -> (Tensor<2>, Evaluation) {
        let own = Arc::new(Self {
            point: Mutex::new(Arc::new(FrozenAt::new(frozen, z))),
            terms: Mutex::default(),
        });
        let inputs = Inputs::of(f.cell, f.context);
        let tracked = inputs.tracked();
        let last = own.clone();
        let output = attach(fz, None, inputs, move |cotangent| {
            let cotangent = rewrite(&last.point(), cotangent);
            last.pull(&tracked, cotangent)
        });
        let evaluation = Evaluation(Arc::new(OfLayer {
            last: own,
            output: output.clone(),
        }));
        (output, evaluation)
    }

    fn point(&self) -> Arc<FrozenAt<C>> {
        let point = self.point.lock().unwrap_or_else(PoisonError::into_inner);
        point.clone()
    }

    fn terms(&self) -> MutexGuard<'_, Vec<(Arc<Term>, Tensor<1>)>> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pull(&self, tracked: &Tracked, cotangent: Tensor<2>) -> Pulled {
        let terms = std::mem::take(&mut *self.terms());
        let point = Arc::new(self.point().fresh());
        *self.point.lock().unwrap_or_else(PoisonError::into_inner) = point.clone();
        let FrozenAt { frozen, z, .. } = &*point;
        pull(frozen, z, tracked, |at| {
            let terms: Vec<Tensor<1>> = terms
                .into_iter()
                .map(|(term, cotangent)| weighted(term(at), cotangent))
                .collect();
            let own = (at.value() * cotangent).sum();
            terms.into_iter().fold(own, |sum, term| sum + term)
        })
    }
}

/// Sums up to a number whose derivative is that of `term` along `cotangent`, both `[batch]`.
fn weighted(term: Tensor<1>, cotangent: Tensor<1>) -> Tensor<1> {
    (term * cotangent).sum()
}

struct OfLayer<C: EquilibriumCell> {
    last: Arc<LastEvaluation<C>>,
    output: Tensor<2>,
}

impl<C: EquilibriumCell> Evaluated for OfLayer<C> {
    fn z(&self) -> Tensor<2> {
        self.last.point().z.clone()
    }

    fn vjp(&self, cotangent: Tensor<2>) -> Tensor<2> {
        self.last.point().vjp(cotangent)
    }

    /// The output's step comes after those of whatever is computed from it, so that a term which is
    /// tied to the output, by a cotangent of zeros, is known when the step is taken.
    fn recorded(&self, value: Tensor<1>, term: Term) -> Tensor<1> {
        let Some(strategy) = self.output.gradient_checkpointing_strategy() else {
            return value.inner();
        };
        let (last, term) = (self.last.clone(), Arc::new(term));
        let map = CotangentMap::new(move |cotangent| {
            let cotangent = Tensor::from_dispatch(cotangent);
            last.terms().push((term.clone(), cotangent));
            Some(last.point().z.zeros_like().into_dispatch())
        });
        let carrier = hook::untracked(value.inner(), strategy);
        Tensor::from_dispatch(hook::tie(carrier, self.output.clone().into_dispatch(), map))
    }
}
