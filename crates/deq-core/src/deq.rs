//! The implicit layer.

use crate::cell::{EquilibriumCell, Flat, FrozenCell};
use crate::context::CellContext;
use crate::equilibrium::{Correction, Equilibrium};
use crate::error::DeqError;
use crate::evaluation::{FrozenAt, LastEvaluation};
use crate::gradient::adjoint::Adjoint;
use crate::gradient::replay::Replay;
use crate::gradient::reversible::ReversiblePairs;
use crate::precision::{Lowered, Precision};
use crate::random;
use crate::report::BackwardReport;
use crate::state::StateLayout;
use crate::tape::Inputs;
use burn::tensor::{Bool, Tensor, TensorData};
use deq_solvers::{
    Broyden, FixedPointSolver, InverseJacobian, KeptState, LinearSolve, Solution, Solve,
    SolveStats, StopRule,
};
use std::sync::Arc;

/// A deep equilibrium layer: solves `z* = f(z*, context)` forward and differentiates it backward.
///
/// The layer holds no parameters; those belong to the [`EquilibriumCell`]. One `Deq` can serve
/// several cells.
#[derive(Clone, Debug)]
pub struct Deq {
    pub(crate) solver_name: &'static str,
    pub(crate) stop: StopRule,
    pub(crate) eval_stop: StopRule,
    pub(crate) strategy: Strategy,
    pub(crate) budget_jitter: usize,
    pub(crate) precision: Option<Precision>,
}

/// How the output comes about and what of it the tape records.
#[derive(Clone, Debug)]
pub(crate) enum Strategy {
    /// A solve without tape, then something at its end.
    Solved {
        solver: Forward,
        gradient: AtEquilibrium,
    },
    /// A solve that the backward pass undoes.
    Reversible(ReversiblePairs),
    /// No solve.
    Unrolled(Replay),
}

#[derive(Clone, Debug)]
pub(crate) enum Forward {
    Any(Arc<dyn Solve>),
    /// A solve whose inverse Jacobian the backward pass reuses.
    Shared(Broyden),
}

#[derive(Clone, Debug)]
pub(crate) enum AtEquilibrium {
    /// One recorded evaluation whose cotangent an adjoint rewrites.
    Adjoint(Adjoint),
    /// One recorded evaluation.
    OneStep,
    /// Some recorded evaluations.
    Phantom(Replay),
}

impl Strategy {
    /// The name of the gradient, as in a configuration.
    fn gradient(&self) -> &'static str {
        match self {
            Strategy::Solved { gradient, .. } => match gradient {
                AtEquilibrium::Adjoint(adjoint) => adjoint.name(),
                AtEquilibrium::OneStep => "one-step",
                AtEquilibrium::Phantom(_) => "phantom",
            },
            Strategy::Reversible(_) => "reversible",
            Strategy::Unrolled(_) => "unrolled",
        }
    }
}

impl AtEquilibrium {
    /// Evaluations that are recorded, on the tape or during the backward pass.
    fn recorded(&self) -> usize {
        match self {
            AtEquilibrium::Adjoint(_) | AtEquilibrium::OneStep => 1,
            AtEquilibrium::Phantom(replay) => replay.steps(),
        }
    }
}

impl Forward {
    fn solve<C: EquilibriumCell>(
        &self,
        frozen: &FrozenCell<C>,
        z0: Tensor<2>,
        stop: &StopRule,
    ) -> (Solution, Option<InverseJacobian>) {
        let mut map = |z: Tensor<2>| frozen.call(z);
        match self {
            Forward::Any(solver) => (solver.solve(&mut map, z0, stop), None),
            Forward::Shared(broyden) => {
                let (solution, state) = broyden.solve_with_state(&mut map, z0, stop);
                // A start that is already the answer leaves no state: the first estimate of the
                // inverse is then the last.
                let inverse = match state {
                    Some(state) => state.into_inverse(),
                    None => InverseJacobian::identity(&solution.z),
                };
                (solution, Some(inverse))
            }
        }
    }
}

impl Deq {
    /// Finds the equilibrium from `z0` and makes it differentiable.
    ///
    /// In training, that is when `z0`, a parameter of the cell or a tensor of the context lives on
    /// an autodiff device, the solve itself records no tape; the gradient strategy is attached to
    /// its end. `loss.backward()` needs nothing else. On plain devices only the solve runs, under
    /// [`DeqConfig::eval_stop`](crate::DeqConfig::eval_stop).
    ///
    /// With [`DeqConfig::precision`](crate::DeqConfig::precision), the cell is evaluated in 16-bit
    /// floats.
    ///
    /// A good start saves steps: pass the [`z`](Equilibrium::z) of a similar problem, such
    /// as the last frame of a video, or zeros. The start is a constant: no gradient flows into
    /// `z0`, except through the unrolled and the reversible strategy.
    ///
    /// # Panics
    ///
    /// If the cell changes the shape of the state, with the part that it changed; in training, if
    /// this crate was built without the feature of the device's backend (`flex`, `cuda`, ...),
    /// since Burn finds custom operations per backend.
    pub fn forward<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z0: C::State,
    ) -> Equilibrium<C::State> {
        let Some(precision) = self.precision else {
            return self.reach(cell, context, z0);
        };
        let (cell, context) = Lowered::new(cell, context, precision);
        let mut equilibrium = self.reach(&cell, &context, z0);
        // Of another map than the caller's.
        equilibrium.evaluation = None;
        equilibrium
    }

    fn reach<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z0: C::State,
    ) -> Equilibrium<C::State> {
        let training = z0.is_autodiff()
            || cell.devices().iter().any(|device| device.is_autodiff())
            || context.is_autodiff();
        let layer = Layer {
            f: Flat {
                cell,
                context,
                layout: &StateLayout::of(&z0),
            },
            training,
            stop: match training {
                true => &self.stop,
                false => &self.eval_stop,
            },
        };
        match &self.strategy {
            Strategy::Unrolled(replay) => layer.unroll(*replay, z0),
            Strategy::Reversible(pairs) => layer.reversible(pairs, z0),
            Strategy::Solved { solver, gradient } => layer.solved(solver, gradient, z0),
        }
    }

    /// The layer with a forward solver of one's own instead of
    /// [`DeqConfig::solver`](crate::DeqConfig::solver).
    ///
    /// # Errors
    ///
    /// [`DeqError::WrongSolver`] if the gradient reuses the solve of a solver of this library
    /// (SHINE Broyden's, reversible the reversible one's), [`DeqError::NoSolve`] if it is unrolled.
    pub fn with_solver(mut self, solver: Arc<dyn Solve>) -> Result<Self, DeqError> {
        let (name, gradient) = (solver.name(), self.strategy.gradient());
        let wrong = |needs| DeqError::WrongSolver {
            gradient,
            needs,
            solver: name,
        };
        match &mut self.strategy {
            Strategy::Solved {
                solver: forward @ Forward::Any(_),
                ..
            } => *forward = Forward::Any(solver),
            Strategy::Solved {
                solver: Forward::Shared(_),
                ..
            } => return Err(wrong("broyden")),
            Strategy::Reversible(_) => return Err(wrong("reversible")),
            Strategy::Unrolled(_) => {
                return Err(DeqError::NoSolve {
                    gradient,
                    solve: "forward",
                    solver: name,
                });
            }
        }
        self.solver_name = name;
        Ok(self)
    }

    /// The layer with a solver of one's own for the adjoint equation, instead of
    /// [`ImplicitConfig::solver`](crate::ImplicitConfig::solver). Its stop rule stays.
    ///
    /// # Errors
    ///
    /// [`DeqError::NoSolve`] if the gradient is neither implicit nor a refined SHINE, and so solves
    /// no adjoint equation.
    pub fn with_adjoint_solver(mut self, solver: Arc<dyn LinearSolve>) -> Result<Self, DeqError> {
        let unused = DeqError::NoSolve {
            gradient: self.strategy.gradient(),
            solve: "backward",
            solver: solver.name(),
        };
        let Strategy::Solved {
            gradient: AtEquilibrium::Adjoint(adjoint),
            ..
        } = &mut self.strategy
        else {
            return Err(unused);
        };
        *adjoint = adjoint.clone().with_solver(solver).ok_or(unused)?;
        Ok(self)
    }

    /// The layer with the budget of one training step, drawn as
    /// [`DeqConfig::budget_jitter`](crate::DeqConfig::budget_jitter) says. The same seed and step
    /// give the same budget, so that a resumed run repeats it.
    #[must_use]
    pub fn at_step(&self, seed: u64, step: u64) -> Self {
        // Apart from other draws that depend on the same seed and step.
        const SALT: u64 = 0x6275_6467_6574;
        let choices = self.budget_jitter + 1;
        let less = (random::uniform(seed ^ SALT, step) * choices as f64) as usize;
        self.with_max_steps(self.stop.config().max_steps.saturating_sub(less))
    }

    /// The layer with another budget for training solves, of at least one step. One beyond the
    /// history of Broyden's method impairs [SHINE](crate::ShineConfig).
    #[must_use]
    pub fn with_max_steps(&self, max_steps: usize) -> Self {
        let mut other = self.clone();
        other.stop = other.stop.with_max_steps(max_steps);
        other
    }

    /// The name of the forward solver.
    pub fn solver_name(&self) -> &'static str {
        self.solver_name
    }
}

/// One call of [`Deq::forward`].
struct Layer<'a, C: EquilibriumCell> {
    f: Flat<'a, C>,
    training: bool,
    stop: &'a StopRule,
}

impl<C: EquilibriumCell> Layer<'_, C> {
    fn solved(
        &self,
        solver: &Forward,
        gradient: &AtEquilibrium,
        z0: C::State,
    ) -> Equilibrium<C::State> {
        let layout = self.f.layout;
        let frozen = self.f.freeze();
        let start = layout.flatten(z0.without_autodiff());
        let (mut solution, inverse) = solver.solve(&frozen, start, self.stop);
        let kept = std::mem::take(&mut solution.states);
        let corrections: Vec<_> = kept.into_iter().map(|kept| self.correction(kept)).collect();
        let backward = BackwardReport::default();
        let z = layout.unflatten(solution.z.clone());
        let (fz, rows) = (solution.fz, solution.z);
        let (output, evaluation) = match gradient {
            _ if !self.training => (fz, None),
            AtEquilibrium::Phantom(replay) => (replay.run(&self.f, rows, &backward), None),
            AtEquilibrium::OneStep => {
                let (output, evaluation) =
                    LastEvaluation::attach(&self.f, frozen, [fz, rows], |_, g| g);
                (output, Some(evaluation))
            }
            AtEquilibrium::Adjoint(adjoint) => {
                let (adjoint, report) = (adjoint.clone(), backward.clone());
                let rewrite = move |point: &FrozenAt<C>, g| {
                    let (u, pass) = adjoint.answer(point, inverse.as_ref(), g);
                    report.record(pass);
                    u
                };
                let (output, evaluation) =
                    LastEvaluation::attach(&self.f, frozen, [fz, rows], rewrite);
                (output, Some(evaluation))
            }
        };
        let tracked = match self.training {
            true => corrections.len() + gradient.recorded(),
            false => 0,
        };
        let output = self.unspoiled(output, &solution.stats);
        Equilibrium {
            output: layout.unflatten(output),
            z,
            evaluation,
            nfe: solution.stats.nfe + tracked,
            solve: Some(solution.stats),
            trace: solution.trace,
            corrections,
            backward,
        }
    }

    /// The output of a training step with NaN for samples of which `f` spoils the start. The solver
    /// answers with the start, which is finite, but the gradients are not, and a loss must show it.
    fn unspoiled(&self, output: Tensor<2>, stats: &SolveStats) -> Tensor<2> {
        let residuals = stats.abs_residual.iter();
        let spoiled: Vec<bool> = residuals.map(|&residual| residual >= f64::MAX).collect();
        if !self.training || !spoiled.contains(&true) {
            return output;
        }
        let rows = TensorData::new(spoiled, [stats.abs_residual.len(), 1]);
        let rows = Tensor::<2, Bool>::from_data(rows, &output.device().inner());
        let rows = rows.expand(output.shape());
        output.mask_fill(rows, f32::NAN)
    }

    fn correction(&self, state: KeptState) -> Correction<C::State> {
        let layout = self.f.layout;
        Correction {
            step: state.step,
            reached: state.reached,
            fz: match self.training {
                true => (self.f.cell).forward(layout.unflatten(state.z), self.f.context),
                false => layout.unflatten(state.fz),
            },
        }
    }

    fn reversible(&self, pairs: &ReversiblePairs, z0: C::State) -> Equilibrium<C::State> {
        let layout = self.f.layout;
        let z0 = layout.flatten(z0);
        let solve = pairs.solve(
            self.f.freeze(),
            z0.clone().inner(),
            self.stop,
            self.training,
        );
        let backward = BackwardReport::default();
        let z = layout.unflatten(solve.z());
        let Solution { stats, trace, .. } = solve.solution.clone();
        let output = match self.training {
            true => {
                let inputs = Inputs::of(self.f.cell, self.f.context);
                let output = pairs.attach(solve, &z0, inputs, backward.clone());
                layout.unflatten(self.unspoiled(output, &stats))
            }
            false => z.clone(),
        };
        Equilibrium {
            output,
            z,
            evaluation: None,
            nfe: stats.nfe,
            solve: Some(stats),
            trace,
            corrections: Vec::new(),
            backward,
        }
    }

    fn unroll(&self, replay: Replay, z0: C::State) -> Equilibrium<C::State> {
        let layout = self.f.layout;
        let backward = BackwardReport::default();
        let output = replay.run(&self.f, layout.flatten(z0), &backward);
        Equilibrium {
            backward,
            ..Equilibrium::unsolved(layout.unflatten(output), replay.steps())
        }
    }
}
