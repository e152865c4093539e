//! What the layer returns.

use crate::cell::EquilibriumCell;
use crate::evaluation::Evaluation;
use crate::report::BackwardReport;
use crate::state::{State, StateLayout};
use deq_solvers::{SolveStats, Trace};

/// The output of a [`Deq`](crate::Deq) and how it was found.
#[derive(Clone, Debug)]
pub struct Equilibrium<S> {
    /// What the loss uses, differentiable in training: `f(z)` at the point below, the end of the
    /// phantom steps, or the end of an unroll or a reversible iteration. In training, NaN for
    /// samples of which `f` is not finite at the start, so that the loss shows them.
    pub output: S,
    /// The point `z` that was found, without autodiff: for the Jacobian penalty, memories, warm
    /// starts.
    pub z: S,
    /// `f` at `z`, for penalties there that can share what the layer does in its backward pass.
    /// `None` in evaluation, for maps in [16-bit floats](crate::DeqConfig::precision), and for
    /// strategies that record no evaluation at `z`, or several.
    pub evaluation: Option<Evaluation>,
    /// Evaluations of `f` in the solve, and those that the gradient records, in the forward or in
    /// the backward pass.
    pub nfe: usize,
    /// The forward solve; `None` after an unroll, which tests nothing. A reversible solve counts
    /// pairs as steps and tests the change of a whole pair, which is about `damping` times the
    /// residual.
    pub solve: Option<SolveStats>,
    /// Residuals of every step, if the stop rule asked for them; states are rows `[batch, dim]`, in
    /// a reversible solve pairs of rows, `[batch, 2 dim]`.
    pub trace: Option<Trace>,
    /// States on the way to the equilibrium, at the steps of
    /// [`StopConfig::keep`](deq_solvers::StopConfig::keep).
    pub corrections: Vec<Correction<S>>,
    /// What the backward pass did, filled in by `backward()`.
    pub backward: BackwardReport,
}

impl<S: State> Equilibrium<S> {
    /// The end of an unroll.
    pub(crate) fn unsolved(output: S, nfe: usize) -> Self {
        Self {
            z: output.without_autodiff(),
            output,
            evaluation: None,
            nfe,
            solve: None,
            trace: None,
            corrections: Vec::new(),
            backward: BackwardReport::default(),
        }
    }
}

/// A state on the way, for a fixed-point correction loss: a weighted loss on it teaches `f` to
/// approach the equilibrium in few steps (Bai et al., "Deep Equilibrium Optical Flow Estimation",
/// CVPR 2022).
#[derive(Clone, Debug)]
pub struct Correction<S> {
    /// The step, counted from 0 for the start.
    pub step: usize,
    /// Whether the solve went so far. If not, this is the equilibrium.
    pub reached: bool,
    /// `f` at the state of that step; in training recorded with its one-step gradient, which costs
    /// the memory of one evaluation.
    pub fz: S,
}

/// Applies `f` exactly `steps` times from `z0`, recording every application if anything is tracked.
///
/// The papers' pre-training mode, and with a fixed depth a weight-tied explicit network.
///
/// # Panics
///
/// If the cell changes the shape of the state.
pub fn unroll<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z0: C::State,
    steps: usize,
) -> Equilibrium<C::State> {
    let layout = StateLayout::of(&z0);
    let output = (0..steps).fold(z0, |z, _| {
        let fz = cell.forward(z, context);
        layout.check(&fz);
        fz
    });
    Equilibrium::unsolved(output, steps)
}
