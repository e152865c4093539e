//! Strategies that rewrite the cotangent before it enters one recorded evaluation at the
//! equilibrium.

use super::config::{ImplicitConfig, NeumannGradientConfig, ShineConfig};
use super::row_lengths;
use crate::cell::EquilibriumCell;
use crate::error::{DeqError, require, require_count};
use crate::evaluation::FrozenAt;
use crate::report::BackwardPass;
use burn::tensor::{Bool, DType, Tensor};
use deq_solvers::{
    InverseJacobian, LinearSolve, LinearSolverConfig, Solution, StopConfig, StopRule,
};
use std::sync::Arc;

/// How the adjoint `u = J^T u + g` is answered.
#[derive(Clone, Debug)]
pub(crate) enum Adjoint {
    Solved(AdjointSolve),
    Series(AdjointSolve),
    Shine {
        max_growth: f64,
        refine: Option<AdjointSolve>,
    },
}

/// A solver of the adjoint equation with its stop rule.
#[derive(Clone, Debug)]
pub(crate) struct AdjointSolve {
    solver: Arc<dyn LinearSolve>,
    stop: StopRule,
}

impl AdjointSolve {
    fn build(config: &ImplicitConfig) -> Result<Self, DeqError> {
        Ok(Self {
            solver: config.solver.build().map_err(DeqError::Backward)?,
            stop: config.stop.build().map_err(DeqError::Backward)?,
        })
    }
}

impl Adjoint {
    /// The name of the strategy, as in a configuration.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Adjoint::Solved(_) => "implicit",
            Adjoint::Series(_) => "neumann",
            Adjoint::Shine { .. } => "shine",
        }
    }

    /// The same with another solver, if it calls one.
    pub(crate) fn with_solver(mut self, solver: Arc<dyn LinearSolve>) -> Option<Self> {
        match &mut self {
            Adjoint::Solved(with)
            | Adjoint::Shine {
                refine: Some(with), ..
            } => with.solver = solver,
            Adjoint::Series(_) | Adjoint::Shine { refine: None, .. } => return None,
        }
        Some(self)
    }

    pub(crate) fn solved(config: &ImplicitConfig) -> Result<Self, DeqError> {
        Ok(Self::Solved(AdjointSolve::build(config)?))
    }

    pub(crate) fn series(config: &NeumannGradientConfig) -> Result<Self, DeqError> {
        let NeumannGradientConfig { terms } = *config;
        require_count("neumann.terms", terms)?;
        // The length alone ends the series. One read at its end tells how far it got, but until
        // then all terms are held.
        let stop = StopConfig::new()
            .with_max_steps(terms)
            .with_check_every((terms <= 8).then_some(terms))
            .with_rel_tol(0.0)
            .with_abs_tol(f64::MIN_POSITIVE);
        Ok(Self::Series(AdjointSolve::build(&ImplicitConfig {
            solver: LinearSolverConfig::neumann(),
            stop,
        })?))
    }

    pub(crate) fn shine(config: &ShineConfig) -> Result<Self, DeqError> {
        let ShineConfig { max_growth, refine } = config;
        require(
            *max_growth > 0.0,
            "shine.max_growth",
            *max_growth,
            "above 0",
        )?;
        Ok(Self::Shine {
            max_growth: *max_growth,
            refine: refine.as_ref().map(AdjointSolve::build).transpose()?,
        })
    }

    /// The answer to the cotangent `g`, `[batch, dim]` both; `inverse` is what a Broyden solve has
    /// learnt on its way to the point.
    pub(crate) fn answer<C: EquilibriumCell>(
        &self,
        at: &FrozenAt<C>,
        inverse: Option<&InverseJacobian>,
        g: Tensor<2>,
    ) -> (Tensor<2>, BackwardPass) {
        let mut product = |u: Tensor<2>| at.vjp(u);
        match self {
            // From the cotangent on, every iterate is at least the one-step gradient.
            Adjoint::Solved(with) => {
                let solution = with.solver.solve(&mut product, g, &with.stop);
                (solution.z.clone(), solved(solution))
            }
            Adjoint::Series(with) => {
                let solution = with.solver.solve(&mut product, g, &with.stop);
                // The last term is paid for: it is the residual of the sum before it.
                (solution.fz.clone(), solved(solution))
            }
            Adjoint::Shine { max_growth, refine } => {
                let inverse = inverse.expect("built with a Broyden solver");
                let (shared, estimate) = Shared::new(inverse, g, *max_growth);
                let (u, mut pass) = match refine {
                    Some(with) => {
                        let mut preconditioned = |u: Tensor<2>| {
                            let residual = u.clone() - product(u.clone());
                            u - shared.apply(residual)
                        };
                        let solution = with.solver.solve(&mut preconditioned, estimate, &with.stop);
                        (solution.z.clone(), solved(solution))
                    }
                    None => (estimate, BackwardPass::default()),
                };
                pass.refused = shared.refused_rows();
                (u, pass)
            }
        }
    }
}

fn solved(solution: Solution) -> BackwardPass {
    BackwardPass {
        products: solution.stats.nfe,
        solve: Some(solution.stats),
        ..BackwardPass::default()
    }
}

/// `-B^T`, which approximates `(I - J^T)^-1` since `B` approximates the inverse of `J - I`; the
/// identity for samples where it is not trusted.
struct Shared<'a> {
    inverse: &'a InverseJacobian,
    /// `[batch, 1]`
    refused: Tensor<2, Bool>,
}

impl<'a> Shared<'a> {
    /// Judges the inverse by what it makes of `g`, and returns that too.
    fn new(inverse: &'a InverseJacobian, g: Tensor<2>, max_growth: f64) -> (Self, Tensor<2>) {
        let estimate = estimate(inverse, g.clone());
        // Asked this way round, a NaN is refused.
        let accepted = row_lengths(estimate.clone())
            .lower_equal(row_lengths(g.clone()).mul_scalar(max_growth));
        let shared = Self {
            inverse,
            refused: accepted.bool_not(),
        };
        let estimate = shared.choose(estimate, g);
        (shared, estimate)
    }

    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        self.choose(estimate(self.inverse, x.clone()), x)
    }

    fn choose(&self, trusted: Tensor<2>, plain: Tensor<2>) -> Tensor<2> {
        let refused = self.refused.clone().expand(plain.shape());
        trusted.mask_where(refused, plain)
    }

    fn refused_rows(&self) -> Vec<bool> {
        self.refused.to_data().iter::<bool>().collect()
    }
}

/// `-B^T x`; solvers keep the factors in f32 for 16-bit maps.
fn estimate(inverse: &InverseJacobian, x: Tensor<2>) -> Tensor<2> {
    match x.dtype() {
        DType::F64 | DType::F32 => inverse.apply_transposed(&x).neg(),
        own => inverse
            .apply_transposed(&x.cast(DType::F32))
            .neg()
            .cast(own),
    }
}
