//! The one loop that drives every solver.

use crate::map::{FixedPointMap, Iterate};
use crate::monitor::Monitor;
use crate::solution::{Solution, Trace};
use crate::stop::StopRule;
use burn::tensor::Tensor;

/// An algorithm that proposes the next point from the present one and its image.
///
/// The solver is immutable configuration and the state a separate value. Evaluations, convergence tests, budgets and
/// traces belong to the loop in [`Solve::solve`], which every `FixedPointSolver` gets for free.
pub trait FixedPointSolver: std::fmt::Debug + Send + Sync {
    /// What the algorithm remembers between steps.
    type State;

    /// The name used in reports, in lower case.
    fn name(&self) -> &'static str;

    /// The state before the first step.
    fn init(&self, first: &Iterate) -> Self::State;

    /// Proposes the next point for every sample.
    ///
    /// Samples that have ended are held at their best iterate by the loop, which ignores the proposal for them; their rows
    /// then repeat, and the algorithm must not turn that into a panic.
    ///
    /// # Shapes
    ///
    /// - at: `[batch, dim]` each
    /// - output: `[batch, dim]`
    fn step(&self, at: &Iterate, state: &mut Self::State) -> Tensor<2>;
}

/// A whole solve, object-safe.
pub trait Solve: std::fmt::Debug + Send + Sync {
    /// The name used in reports, in lower case.
    fn name(&self) -> &'static str;

    /// Solves `z = f(z)` for every row of the batch, from `z0`.
    ///
    /// Every sample is its own problem: it ends by its own residual, is held at its answer from then on, and its answer does not
    /// depend on its batch mates. Failure to converge is reported per sample in [`SolveStats`](crate::SolveStats).
    ///
    /// # Shapes
    ///
    /// - z0: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If `f` returns a tensor of another shape than it was given.
    fn solve(&self, f: &mut dyn FixedPointMap, z0: Tensor<2>, stop: &StopRule) -> Solution;
}

impl<S: FixedPointSolver> Solve for S {
    fn name(&self) -> &'static str {
        FixedPointSolver::name(self)
    }

    fn solve(&self, f: &mut dyn FixedPointMap, z0: Tensor<2>, stop: &StopRule) -> Solution {
        let stop = stop.config();
        let mut at = evaluate(f, z0);
        let mut nfe = 1;
        let mut state = self.init(&at);
        let mut monitor = Monitor::new(stop, &at);

        let stats = loop {
            let last = nfe >= stop.max_steps;
            if last || nfe % stop.check_every == 0 {
                let (any_active, stats) = monitor.read(nfe);
                if last || !any_active {
                    break stats;
                }
            }
            let proposal = self.step(&at, &mut state);
            at = evaluate(f, monitor.freeze(proposal));
            monitor.observe(&at, nfe);
            nfe += 1;
        };

        let (best, trace) = monitor.finish();
        Solution {
            z: best.z,
            fz: best.fz,
            stats,
            trace: Trace::collect(trace),
        }
    }
}

fn evaluate(f: &mut dyn FixedPointMap, z: Tensor<2>) -> Iterate {
    let fz = f.call(z.clone());
    assert_eq!(
        fz.dims(),
        z.dims(),
        "the map must keep the shape [batch, dim] of the state"
    );
    Iterate { z, fz }
}
