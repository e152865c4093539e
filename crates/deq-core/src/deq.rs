//! The implicit layer.

use crate::cell::{EquilibriumCell, FrozenCell};
use crate::context::CellContext;
use crate::error::{DeqError, require};
use crate::gradient::GradientConfig;
use crate::gradient::adjoint::{Adjoint, At};
use crate::gradient::replay::{Replay, ReplayNames};
use crate::gradient::reversible::ReversiblePairs;
use crate::random;
use crate::report::BackwardReport;
use crate::tape::Inputs;
use burn::config::Config;
use burn::tensor::Tensor;
use deq_solvers::{
    Broyden, FixedPointSolver, InverseJacobian, KeptState, Solution, Solve, SolveStats,
    SolverConfig, StopConfig, StopRule, Trace,
};
use std::sync::Arc;

/// Configuration of a [`Deq`].
#[derive(Config, Debug, PartialEq)]
pub struct DeqConfig {
    /// The forward solver. Default Anderson, the forward solver of the original scripts.
    #[config(default = "SolverConfig::anderson()")]
    pub solver: SolverConfig,
    /// When the forward solve ends. Default: relative tolerance 1e-3 within 30 steps.
    ///
    /// The steps named in [`StopConfig::keep`] come back as [`Equilibrium::corrections`].
    #[config(default = "StopConfig::new()")]
    pub stop: StopConfig,
    /// The stop rule on plain devices, that is in evaluation. Default: the same as in training.
    #[config(default = "None")]
    pub eval_stop: Option<StopConfig>,
    /// How gradients cross the equilibrium. Default implicit.
    #[config(default = "GradientConfig::default()")]
    pub gradient: GradientConfig,
    /// In training, [`Deq::at_step`] draws the budget uniformly from `stop.max_steps` down to so many steps less, so that a model does not
    /// tune itself to one budget. Default 0; the original's WikiText-103 scripts use 2 with regularisation.
    #[config(default = 0)]
    pub budget_jitter: usize,
}

impl DeqConfig {
    /// Checks every value and returns the layer.
    ///
    /// # Errors
    ///
    /// [`DeqError`] naming the solve and the field that is wrong.
    pub fn build(&self) -> Result<Deq, DeqError> {
        let stop = self.stop.build().map_err(DeqError::Forward)?;
        let eval_stop = match &self.eval_stop {
            Some(eval) => eval.build().map_err(DeqError::Forward)?,
            None => stop.clone(),
        };
        require(
            self.budget_jitter < self.stop.max_steps,
            "budget_jitter",
            self.budget_jitter as f64,
            "below stop.max_steps",
        )?;
        let solver = self.solver.build().map_err(DeqError::Forward)?;
        Ok(Deq {
            solver_name: solver.name(),
            strategy: self.strategy(solver)?,
            stop,
            eval_stop,
            budget_jitter: self.budget_jitter,
        })
    }

    fn strategy(&self, solver: Arc<dyn Solve>) -> Result<Strategy, DeqError> {
        let wrong = |gradient, needs| DeqError::WrongSolver {
            gradient,
            needs,
            solver: solver.name(),
        };
        let at_equilibrium = |gradient| {
            Ok(Strategy::Solved {
                solver: Forward::Any(solver.clone()),
                gradient,
            })
        };
        match &self.gradient {
            GradientConfig::Implicit(config) => {
                at_equilibrium(AtEquilibrium::Adjoint(Adjoint::solved(config)?))
            }
            GradientConfig::Neumann(config) => {
                at_equilibrium(AtEquilibrium::Adjoint(Adjoint::series(config)?))
            }
            GradientConfig::OneStep => at_equilibrium(AtEquilibrium::OneStep),
            GradientConfig::Phantom(config) => {
                let names = ReplayNames {
                    steps: "phantom.steps",
                    stored_states: "phantom.stored_states",
                };
                let replay =
                    Replay::build(names, config.steps, config.damping, config.stored_states)?;
                at_equilibrium(AtEquilibrium::Phantom(replay))
            }
            GradientConfig::Shine(config) => match &self.solver {
                SolverConfig::Broyden(broyden) => Ok(Strategy::Solved {
                    solver: Forward::Shared(broyden.build().map_err(DeqError::Forward)?),
                    gradient: AtEquilibrium::Adjoint(Adjoint::shine(config)?),
                }),
                _ => Err(wrong("shine", "broyden")),
            },
            GradientConfig::Reversible(gradient) => {
                self.nothing_to_keep("reversible")?;
                match &self.solver {
                    SolverConfig::Reversible(config) => {
                        let iteration = config.build().map_err(DeqError::Forward)?;
                        Ok(Strategy::Reversible(ReversiblePairs::build(
                            gradient, iteration,
                        )?))
                    }
                    _ => Err(wrong("reversible", "reversible")),
                }
            }
            GradientConfig::Unrolled(config) => {
                self.nothing_to_keep("unrolled")?;
                let names = ReplayNames {
                    steps: "unrolled.steps",
                    stored_states: "unrolled.stored_states",
                };
                let replay = Replay::build(names, config.steps, 1.0, config.stored_states)?;
                Ok(Strategy::Unrolled(replay))
            }
        }
    }

    fn nothing_to_keep(&self, gradient: &'static str) -> Result<(), DeqError> {
        let asked = |stop: &StopConfig| !stop.keep.is_empty();
        match asked(&self.stop) || self.eval_stop.as_ref().is_some_and(asked) {
            true => Err(DeqError::NothingToKeep { gradient }),
            false => Ok(()),
        }
    }
}

/// A deep equilibrium layer: solves `z* = f(z*, context)` forward and differentiates it backward.
///
/// The layer holds no parameters; those belong to the [`EquilibriumCell`]. One `Deq` can serve several cells.
#[derive(Clone, Debug)]
pub struct Deq {
    solver_name: &'static str,
    stop: StopRule,
    eval_stop: StopRule,
    strategy: Strategy,
    budget_jitter: usize,
}

/// How the output comes about and what of it the tape records.
#[derive(Clone, Debug)]
enum Strategy {
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
enum Forward {
    Any(Arc<dyn Solve>),
    /// A solve whose inverse Jacobian the backward pass reuses.
    Shared(Broyden),
}

#[derive(Clone, Debug)]
enum AtEquilibrium {
    /// One recorded evaluation whose cotangent an adjoint rewrites.
    Adjoint(Adjoint),
    /// One recorded evaluation.
    OneStep,
    /// Some recorded evaluations.
    Phantom(Replay),
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
                // A start that is already the answer leaves no state: the first estimate of the inverse is then the last.
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
    /// In training, that is when `z0`, a parameter of the cell or a tensor of the context lives on an autodiff device, the solve itself records no
    /// tape; the gradient strategy is attached to its end. `loss.backward()` needs nothing else. On plain devices only the solve runs, under
    /// [`DeqConfig::eval_stop`].
    ///
    /// A good start saves steps: pass the [`z_star`](Equilibrium::z_star) of a similar problem, such as the last frame of a video, or zeros.
    /// The start is a constant: no gradient flows into `z0`, except through the unrolled and the reversible strategy.
    ///
    /// # Shapes
    ///
    /// - z0: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If the cell changes the shape of the state; in training, if this crate was built without the feature of
    /// the device's backend (`flex`, `cuda`, ...), since Burn finds custom operations per backend.
    pub fn forward<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z0: Tensor<2>,
    ) -> Equilibrium {
        let training = z0.is_autodiff()
            || cell.devices().iter().any(|device| device.is_autodiff())
            || context.is_autodiff();
        let layer = Layer {
            cell,
            context,
            training,
            stop: if training {
                &self.stop
            } else {
                &self.eval_stop
            },
        };
        match &self.strategy {
            Strategy::Unrolled(replay) => layer.unroll(*replay, z0),
            Strategy::Reversible(pairs) => layer.reversible(pairs, z0),
            Strategy::Solved { solver, gradient } => layer.solved(solver, gradient, z0),
        }
    }

    /// The layer with the budget of one training step, drawn as [`DeqConfig::budget_jitter`] says. The same seed and step give the same budget, so that a
    /// resumed run repeats it.
    #[must_use]
    pub fn at_step(&self, seed: u64, step: u64) -> Self {
        // Apart from other draws that depend on the same seed and step.
        const SALT: u64 = 0x6275_6467_6574;
        let choices = self.budget_jitter + 1;
        let less = (random::uniform(seed ^ SALT, step) * choices as f64) as usize;
        self.with_max_steps(self.stop.config().max_steps - less)
    }

    /// The layer with another budget for training solves, of at least one step.
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
    cell: &'a C,
    context: &'a C::Context,
    training: bool,
    stop: &'a StopRule,
}

impl<C: EquilibriumCell> Layer<'_, C> {
    fn solved(&self, solver: &Forward, gradient: &AtEquilibrium, z0: Tensor<2>) -> Equilibrium {
        let frozen = FrozenCell::new(self.cell, self.context);
        let (mut solution, inverse) = solver.solve(&frozen, z0.inner(), self.stop);
        let backward = BackwardReport::default();
        let z = solution.z.clone();
        let kept = std::mem::take(&mut solution.states);
        let mut tracked = 0;
        let mut corrections = Vec::with_capacity(kept.len());
        for state in kept {
            corrections.push(self.correction(state));
            tracked += usize::from(self.training);
        }
        let mut recorded = None;
        let output = match gradient {
            _ if !self.training => solution.fz,
            AtEquilibrium::Phantom(replay) => {
                tracked += replay.steps();
                replay.run(self.cell, self.context, z.clone(), &backward)
            }
            AtEquilibrium::OneStep => {
                tracked += 1;
                let image = self.cell.forward(z.clone(), self.context);
                recorded = Some(image.clone());
                image
            }
            AtEquilibrium::Adjoint(adjoint) => {
                tracked += 1;
                let image = self.cell.forward(z.clone(), self.context);
                recorded = Some(image.clone());
                match image.is_tracked() {
                    true => {
                        let z = z.clone();
                        let at = At { frozen, z, inverse };
                        adjoint.attach(image, at, backward.clone())
                    }
                    false => image,
                }
            }
        };
        Equilibrium {
            z: output,
            z_star: z,
            image: recorded,
            nfe: solution.stats.nfe + tracked,
            solve: Some(solution.stats),
            trace: solution.trace,
            corrections,
            backward,
        }
    }

    fn correction(&self, state: KeptState) -> Correction {
        Correction {
            step: state.step,
            reached: state.reached,
            z: match self.training {
                true => self.cell.forward(state.z, self.context),
                false => state.fz,
            },
        }
    }

    fn reversible(&self, pairs: &ReversiblePairs, z0: Tensor<2>) -> Equilibrium {
        let frozen = FrozenCell::new(self.cell, self.context);
        let solve = pairs.solve(frozen, z0.clone().inner(), self.stop);
        let backward = BackwardReport::default();
        let z_star = solve.z();
        let Solution { stats, trace, .. } = solve.solution.clone();
        let z = match self.training {
            true => {
                let inputs = Inputs::of(self.cell, self.context);
                pairs.attach(solve, &z0, inputs, backward.clone())
            }
            false => z_star.clone(),
        };
        Equilibrium {
            z,
            z_star,
            image: None,
            nfe: stats.nfe,
            solve: Some(stats),
            trace,
            corrections: Vec::new(),
            backward,
        }
    }

    fn unroll(&self, replay: Replay, z0: Tensor<2>) -> Equilibrium {
        let backward = BackwardReport::default();
        let z = replay.run(self.cell, self.context, z0, &backward);
        Equilibrium {
            backward,
            ..Equilibrium::unsolved(z, replay.steps())
        }
    }
}

/// Applies `f` exactly `steps` times from `z0`, recording every application if anything is tracked.
///
/// The papers' pre-training mode, and with a fixed depth a weight-tied explicit network.
///
/// # Shapes
///
/// - z0: `[batch, dim]`
pub fn unroll<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z0: Tensor<2>,
    steps: usize,
) -> Equilibrium {
    let z = (0..steps).fold(z0, |z, _| cell.forward(z, context));
    Equilibrium::unsolved(z, steps)
}

/// The output of a [`Deq`] and how it was found.
#[derive(Clone, Debug)]
pub struct Equilibrium {
    /// The output, `[batch, dim]`, differentiable in training: `f(z*)`, the end of the phantom steps, or the end of an unroll or a reversible iteration.
    pub z: Tensor<2>,
    /// The point `z*` itself, `[batch, dim]`, without autodiff: for the Jacobian penalty, memories, warm starts.
    pub z_star: Tensor<2>,
    /// `f(z*)` as it was recorded, before the gradient strategy: a function of parameters and context at the constant `z*`. For penalties that can use
    /// an evaluation which the layer makes anyway. `None` in evaluation and for strategies that record no evaluation at `z*`, or several.
    pub image: Option<Tensor<2>>,
    /// Evaluations of `f` in the forward pass, the tracked ones included.
    pub nfe: usize,
    /// The forward solve; `None` after an unroll, which tests nothing. A reversible solve counts pairs as steps and tests the change of a whole
    /// pair, which is about `damping` times the residual.
    pub solve: Option<SolveStats>,
    /// Residuals of every step, if the stop rule asked for them.
    pub trace: Option<Trace>,
    /// States on the way to the equilibrium, at the steps of [`StopConfig::keep`].
    pub corrections: Vec<Correction>,
    /// What the backward pass did, filled in by `backward()`.
    pub backward: BackwardReport,
}

impl Equilibrium {
    /// The end of an unroll.
    fn unsolved(z: Tensor<2>, nfe: usize) -> Self {
        Self {
            z_star: z.clone().inner(),
            z,
            image: None,
            nfe,
            solve: None,
            trace: None,
            corrections: Vec::new(),
            backward: BackwardReport::default(),
        }
    }
}

/// A state on the way, for a fixed-point correction loss: a weighted loss on it teaches `f` to approach the equilibrium in few steps
/// (Bai et al., "Deep Equilibrium Optical Flow Estimation", CVPR 2022).
#[derive(Clone, Debug)]
pub struct Correction {
    /// The step, counted from 0 for the start.
    pub step: usize,
    /// Whether the solve went so far. If not, this is the equilibrium.
    pub reached: bool,
    /// `f(z_step)`, `[batch, dim]`; in training recorded with its one-step gradient, which costs the memory of one evaluation.
    pub z: Tensor<2>,
}
