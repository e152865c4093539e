//! The implicit layer.

use crate::cell::{EquilibriumCell, FrozenCell};
use crate::error::DeqError;
use crate::gradient::{GradientConfig, ImplicitConfig};
use crate::hook::rewrite_cotangent;
use burn::config::Config;
use burn::tensor::Tensor;
use deq_solvers::{Solve, SolveStats, SolverConfig, StopConfig, StopRule, Trace};
use std::sync::{Arc, Mutex, PoisonError};

/// Configuration of a [`Deq`].
#[derive(Config, Debug, PartialEq)]
pub struct DeqConfig {
    /// The forward solver. Default Anderson, the forward solver of the original scripts.
    #[config(default = "SolverConfig::anderson()")]
    pub solver: SolverConfig,
    /// When the forward solve ends. Default: relative tolerance 1e-3 within 30 steps.
    #[config(default = "StopConfig::new()")]
    pub stop: StopConfig,
    /// The stop rule on plain devices, that is in evaluation. Default: the same as in training.
    #[config(default = "None")]
    pub eval_stop: Option<StopConfig>,
    /// How gradients cross the equilibrium. Default implicit.
    #[config(default = "GradientConfig::default()")]
    pub gradient: GradientConfig,
}

impl DeqConfig {
    /// Checks every value and returns the layer.
    ///
    /// # Errors
    ///
    /// [`DeqError`] naming the solve and the field that is wrong.
    pub fn build(&self) -> Result<Deq, DeqError> {
        let gradient = match &self.gradient {
            GradientConfig::Implicit(implicit) => Gradient::Implicit(Adjoint::build(implicit)?),
            GradientConfig::OneStep => Gradient::OneStep,
            GradientConfig::Unrolled(unrolled) => match unrolled.steps {
                0 => return Err(DeqError::NoUnrolledSteps),
                steps => Gradient::Unrolled(steps),
            },
        };
        let stop = self.stop.build().map_err(DeqError::Forward)?;
        let eval_stop = match &self.eval_stop {
            Some(eval) => eval.build().map_err(DeqError::Forward)?,
            None => stop.clone(),
        };
        Ok(Deq {
            solver: self.solver.build().map_err(DeqError::Forward)?,
            stop,
            eval_stop,
            gradient,
        })
    }
}

/// A deep equilibrium layer: solves `z* = f(z*, context)` forward and differentiates it backward.
///
/// The layer holds no parameters; those belong to the [`EquilibriumCell`]. One `Deq` can serve several cells.
#[derive(Clone, Debug)]
pub struct Deq {
    solver: Arc<dyn Solve>,
    stop: StopRule,
    eval_stop: StopRule,
    gradient: Gradient,
}

#[derive(Clone, Debug)]
enum Gradient {
    Implicit(Adjoint),
    OneStep,
    Unrolled(usize),
}

/// The backward solve.
#[derive(Clone, Debug)]
struct Adjoint {
    solver: Arc<dyn Solve>,
    stop: StopRule,
}

impl Adjoint {
    fn build(config: &ImplicitConfig) -> Result<Self, DeqError> {
        Ok(Self {
            solver: config.solver.build().map_err(DeqError::Backward)?,
            stop: config.stop.build().map_err(DeqError::Backward)?,
        })
    }

    /// Attaches the solve of `u = J(z)^T u + g` to the backward pass of `image = f(z)`.
    fn attach<C: EquilibriumCell>(
        self,
        image: Tensor<2>,
        frozen: FrozenCell<C>,
        z: Tensor<2>,
        report: BackwardReport,
    ) -> Tensor<2> {
        rewrite_cotangent(image, move |cotangent: Tensor<2>| {
            let product = frozen.linearize(z.clone());
            let mut map = |u: Tensor<2>| product(u) + cotangent.clone();
            // Starting from the cotangent, every iterate is at least the one-step gradient.
            let solution = self.solver.solve(&mut map, cotangent.clone(), &self.stop);
            report.record(solution.stats);
            solution.z
        })
    }
}

impl Deq {
    /// Finds the equilibrium from `z0` and makes it differentiable.
    ///
    /// In training, that is when `z0` or a parameter of the cell lives on an autodiff device, the solve itself records no
    /// tape. Then `f` is evaluated once more at `z*`, tracked, and the gradient strategy is attached to that evaluation:
    /// `loss.backward()` needs nothing else. On plain devices only the solve runs, under
    /// [`DeqConfig::eval_stop`].
    ///
    /// The start is a constant: no gradient flows into `z0`, except through an unroll.
    ///
    /// # Shapes
    ///
    /// - z0: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If the cell changes the shape of the state; with an implicit gradient, if this crate was built without the feature of
    /// the device's backend (`flex`, `cuda`, ...), since Burn finds custom operations per backend.
    pub fn forward<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z0: Tensor<2>,
    ) -> Equilibrium {
        if let Gradient::Unrolled(steps) = self.gradient {
            return unroll(cell, context, z0, steps);
        }
        let training = z0.is_autodiff() || cell.devices().iter().any(|device| device.is_autodiff());
        let stop = if training {
            &self.stop
        } else {
            &self.eval_stop
        };
        let frozen = FrozenCell::new(cell, context);
        let mut map = |z: Tensor<2>| frozen.call(z);
        let solution = self.solver.solve(&mut map, z0.inner(), stop);

        let backward = BackwardReport::default();
        let z_star = solution.z;
        let (z, tracked_evaluations) = if training {
            let image = cell.forward(z_star.clone(), context);
            let z = match &self.gradient {
                Gradient::Implicit(adjoint) if image.is_tracked() => {
                    let adjoint = adjoint.clone();
                    adjoint.attach(image, frozen, z_star.clone(), backward.clone())
                }
                _ => image,
            };
            (z, 1)
        } else {
            (solution.fz, 0)
        };
        Equilibrium {
            z,
            z_star,
            nfe: solution.stats.nfe + tracked_evaluations,
            solve: Some(solution.stats),
            trace: solution.trace,
            backward,
        }
    }

    /// The name of the forward solver.
    pub fn solver_name(&self) -> &'static str {
        self.solver.name()
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
    let mut z = z0;
    for _ in 0..steps {
        z = cell.forward(z, context);
    }
    Equilibrium {
        z_star: z.clone().inner(),
        z,
        nfe: steps,
        solve: None,
        trace: None,
        backward: BackwardReport::default(),
    }
}

/// The output of a [`Deq`] and how it was found.
#[derive(Clone, Debug)]
pub struct Equilibrium {
    /// The output `f(z*)`, `[batch, dim]`, differentiable in training.
    pub z: Tensor<2>,
    /// The point `z*` itself, `[batch, dim]`, without autodiff: for the Jacobian penalty, memories, warm starts.
    pub z_star: Tensor<2>,
    /// Evaluations of `f` in the forward pass, the tracked one included.
    pub nfe: usize,
    /// The forward solve; `None` after an unroll, which tests nothing.
    pub solve: Option<SolveStats>,
    /// Residuals of every step, if the stop rule asked for them.
    pub trace: Option<Trace>,
    /// The backward solve, filled in by `backward()`.
    pub backward: BackwardReport,
}

/// Statistics of a backward solve, which exist only once `loss.backward()` has run.
#[derive(Clone, Debug, Default)]
pub struct BackwardReport(Arc<Mutex<Option<SolveStats>>>);

impl BackwardReport {
    fn record(&self, stats: SolveStats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
    }

    /// The statistics of the last backward solve through this equilibrium. An evaluation is one vector-Jacobian product.
    ///
    /// `None` before `backward()`, and for strategies without a backward solve.
    pub fn get(&self) -> Option<SolveStats> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
