//! Linear systems `u = A u + g`, as the backward pass of an equilibrium layer poses them with
//! `A = J^T`.

mod bicgstab;
mod gmres;
mod neumann;
mod system;

pub use bicgstab::{BiCgStab, BiCgStabConfig};
pub use gmres::{Gmres, GmresConfig};
pub use neumann::{Neumann, NeumannConfig};
pub use system::LinearSystem;

use crate::config::SolverConfig;
use crate::error::InvalidConfig;
use crate::solution::Solution;
use crate::solver::Solve;
use crate::stop::StopRule;
use burn::config::Config;
use burn::tensor::Tensor;
use std::sync::Arc;

/// A linear map on a batch of vectors, every row by a matrix of its own.
///
/// Implemented for every `FnMut(Tensor<2>) -> Tensor<2>`.
pub trait LinearMap {
    /// `A u`
    ///
    /// # Shapes
    ///
    /// - u: `[batch, dim]`
    /// - output: `[batch, dim]`; row `i` may depend on row `i` of `u` only
    fn apply(&mut self, u: Tensor<2>) -> Tensor<2>;
}

impl<F: FnMut(Tensor<2>) -> Tensor<2>> LinearMap for F {
    fn apply(&mut self, u: Tensor<2>) -> Tensor<2> {
        self(u)
    }
}

/// A solver of `u = A u + g`, object-safe.
pub trait LinearSolve: std::fmt::Debug + Send + Sync {
    /// The name used in reports, in lower case.
    fn name(&self) -> &'static str;

    /// Solves `u = A u + g` for every row, starting from `u = g`.
    ///
    /// A step is one product with `A`, counted in [`SolveStats::nfe`](crate::SolveStats). The
    /// residual is `A u + g - u`, relative to `A u + g`, as for any other map, so that all solvers
    /// stop by the same rule.
    ///
    /// GMRES, BiCGStab and the Neumann series know it from their recurrences. That is an estimate,
    /// and at tight tolerances floating point makes it too small. So when samples have converged by
    /// it, one product more checks their answers, whose residuals are then the true ones. A sample
    /// that fails goes on from there, within [`StopConfig::max_steps`](crate::StopConfig) steps of
    /// its own, until its true residual converges too or no longer halves from one check to the
    /// next, which is [`Stalled`](crate::SolveStatus::Stalled). The product of a check is a step,
    /// but may be one beyond the budget. The residual of a sample that has not converged remains an
    /// estimate.
    ///
    /// # Shapes
    ///
    /// - g: `[batch, dim]`
    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution;
}

/// Any of the solvers of linear systems, for configuration files.
#[derive(Config, Debug, PartialEq)]
pub enum LinearSolverConfig {
    /// A solver of general fixed points, applied to `u -> A u + g`.
    FixedPoint(SolverConfig),
    /// GMRES with restarts.
    Gmres(GmresConfig),
    /// The stabilised biconjugate gradient method.
    BiCgStab(BiCgStabConfig),
    /// The Neumann series.
    Neumann(NeumannConfig),
}

impl LinearSolverConfig {
    /// GMRES with its defaults.
    pub fn gmres() -> Self {
        LinearSolverConfig::Gmres(GmresConfig::new())
    }

    /// BiCGStab.
    pub fn bicgstab() -> Self {
        LinearSolverConfig::BiCgStab(BiCgStabConfig::new())
    }

    /// The Neumann series.
    pub fn neumann() -> Self {
        LinearSolverConfig::Neumann(NeumannConfig::new())
    }

    /// Checks the values and returns the solver.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] naming the first field outside its range.
    pub fn build(&self) -> Result<Arc<dyn LinearSolve>, InvalidConfig> {
        Ok(match self {
            LinearSolverConfig::FixedPoint(config) => Arc::new(Affine(config.build()?)),
            LinearSolverConfig::Gmres(config) => Arc::new(config.build()?),
            LinearSolverConfig::BiCgStab(config) => Arc::new(config.build()?),
            LinearSolverConfig::Neumann(config) => Arc::new(config.build()?),
        })
    }
}

impl From<SolverConfig> for LinearSolverConfig {
    fn from(config: SolverConfig) -> Self {
        LinearSolverConfig::FixedPoint(config)
    }
}

/// Any solver of general fixed points as a solver of linear systems, on the map `u -> A u + g`.
#[derive(Clone, Debug)]
pub struct Affine(pub Arc<dyn Solve>);

impl LinearSolve for Affine {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        let mut map = |u: Tensor<2>| a.apply(u) + g.clone();
        self.0.solve(&mut map, g.clone(), stop)
    }
}

/// `a / b` per sample, 0 where `b` is 0: a recurrence that has reached its end adds nothing more.
fn ratio(a: Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
    let zero = b.clone().equal_elem(0.0);
    (a / b.clone()).mask_fill(zero, 0.0)
}
