//! Configuration of the layer.

use crate::deq::{AtEquilibrium, Deq, Forward, Strategy};
use crate::error::{DeqError, require};
use crate::gradient::GradientConfig;
use crate::gradient::adjoint::Adjoint;
use crate::gradient::replay::{Replay, ReplayNames};
use crate::gradient::reversible::ReversiblePairs;
use crate::precision::Precision;
use burn::config::Config;
use deq_solvers::{Solve, SolverConfig, StopConfig};
use std::sync::Arc;

/// Configuration of a [`Deq`].
#[derive(Config, Debug, PartialEq)]
pub struct DeqConfig {
    /// The forward solver. Default Anderson, the forward solver of the original scripts.
    #[config(default = "SolverConfig::anderson()")]
    pub solver: SolverConfig,
    /// When the forward solve ends. Default: relative tolerance 1e-3 within 30 steps.
    ///
    /// The steps named in [`StopConfig::keep`] come back as
    /// [`Equilibrium::corrections`](crate::Equilibrium::corrections).
    #[config(default = "StopConfig::new()")]
    pub stop: StopConfig,
    /// The stop rule on plain devices, that is in evaluation. Default: the same as in training.
    #[config(default = "None")]
    pub eval_stop: Option<StopConfig>,
    /// How gradients cross the equilibrium. Default implicit.
    #[config(default = "GradientConfig::default()")]
    pub gradient: GradientConfig,
    /// In training, [`Deq::at_step`] draws the budget uniformly between `stop.max_steps -
    /// budget_jitter` and `stop.max_steps`, so that a model does not tune itself to one budget.
    /// Default 0; the original's WikiText-103 scripts use 2 with regularisation.
    #[config(default = 0)]
    pub budget_jitter: usize,
    /// A 16-bit type in which [`Deq::forward`] evaluates the cell, in training and in evaluation.
    /// Parameters and context are rounded once per call, the state and its cotangents on their way
    /// into the cell; what the solvers compute, the output and all gradients have the type of the
    /// state and of the parameters. A relative tolerance below the type's
    /// [`rounding`](Precision::rounding) cannot be counted on. Default: none, the cell is evaluated
    /// in the type of its own parameters.
    #[config(default = "None")]
    pub precision: Option<Precision>,
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
            precision: self.precision,
        })
    }

    /// The most steps that a training solve reports, see
    /// [`SolveStats::steps`](deq_solvers::SolveStats::steps): a reversible solve counts pairs of
    /// evaluations.
    pub fn longest_solve(&self) -> usize {
        match self.gradient {
            GradientConfig::Reversible(_) => (self.stop.max_steps / 2).max(1),
            _ => self.stop.max_steps,
        }
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
                SolverConfig::Broyden(broyden) => {
                    require(
                        broyden.history >= self.stop.max_steps,
                        "broyden.history",
                        broyden.history as f64,
                        "at least stop.max_steps, since shine reads what a full history forgets",
                    )?;
                    Ok(Strategy::Solved {
                        solver: Forward::Shared(broyden.build().map_err(DeqError::Forward)?),
                        gradient: AtEquilibrium::Adjoint(Adjoint::shine(config)?),
                    })
                }
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
