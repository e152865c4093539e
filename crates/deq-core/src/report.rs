//! What a backward pass did.

use deq_solvers::SolveStats;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts and outcomes of one backward pass through an equilibrium.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BackwardPass {
    /// Evaluations of `f` outside any tape, to repeat iterates that were not stored.
    pub evaluations: usize,
    /// Vector-Jacobian products with the whole batch. By automatic differentiation each is an
    /// evaluation of `f` and a backward pass through it.
    pub products: usize,
    /// The solve of the adjoint equation, where there was one; an evaluation is one product.
    /// Anything but converged means that the gradient is inexact: it then comes from the best
    /// iterate, which is finite.
    pub solve: Option<SolveStats>,
    /// Of every sample, whether SHINE's estimate was refused and the one-step cotangent taken
    /// instead. Empty for other strategies.
    pub refused: Vec<bool>,
    /// Of every sample, the largest distance between a stored pair of a reversible iteration and
    /// the one that was computed backward, relative to the norm of the answer: the size of the
    /// rounding errors in the points at which the gradient was taken. Empty for other strategies.
    pub reversal_error: Vec<f64>,
}

/// The [`BackwardPass`] of an equilibrium, which exists once `loss.backward()` has run.
///
/// Reading it costs nothing: the pass has put its numbers on the host already.
#[derive(Clone, Debug, Default)]
pub struct BackwardReport(Arc<Mutex<Option<BackwardPass>>>);

impl BackwardReport {
    pub(crate) fn record(&self, pass: BackwardPass) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(pass);
    }

    /// The last backward pass. `None` before `backward()`, and for the one-step gradient and
    /// phantom and unrolled ones without stored states, of which there is nothing to tell.
    pub fn get(&self) -> Option<BackwardPass> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The last solve of the adjoint equation.
    pub fn solve(&self) -> Option<SolveStats> {
        self.get().and_then(|pass| pass.solve)
    }
}
