//! Linear systems `u = A u + g`, as the backward pass of an equilibrium layer poses them with `A = J^T`.

mod bicgstab;
mod gmres;
mod neumann;

pub use bicgstab::{BiCgStab, BiCgStabConfig};
pub use gmres::{Gmres, GmresConfig};
pub use neumann::{Neumann, NeumannConfig};

use crate::config::SolverConfig;
use crate::error::InvalidConfig;
use crate::map::Iterate;
use crate::monitor::Monitor;
use crate::solution::Solution;
use crate::solver::{Precision, Solve, assert_same_shape};
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
    /// A step is one product with `A`, counted in [`SolveStats::nfe`](crate::SolveStats). The residual is `A u + g - u`, relative to
    /// `A u + g`, as for any other map, so that all solvers stop by the same rule. GMRES and BiCGStab know it from their recurrences, without a product;
    /// in exact arithmetic that is the residual, in floating point it is to the accuracy that the system's condition allows.
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

/// A general solver on `u -> A u + g`.
#[derive(Debug)]
struct Affine(Arc<dyn Solve>);

impl LinearSolve for Affine {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        let mut map = |u: Tensor<2>| a.apply(u) + g.clone();
        self.0.solve(&mut map, g.clone(), stop)
    }
}

/// The products, the tests and the present point that the methods of this folder share.
struct System<'a> {
    a: &'a mut dyn LinearMap,
    monitor: Monitor,
    precision: Precision,
}

impl<'a> System<'a> {
    /// Tests the start `u = g`, and returns the system, the start and its residual `A g`, if the solve goes on.
    fn start(
        a: &'a mut dyn LinearMap,
        g: Tensor<2>,
        stop: &StopRule,
    ) -> (Self, Option<(Tensor<2>, Tensor<2>)>) {
        let [batch, _] = g.dims();
        let mut system = Self {
            a,
            monitor: Monitor::new(stop.config(), batch, g.device()),
            precision: Precision::of(&g),
        };
        let u = system.precision.raise(g);
        let residual = system.apply(&u);
        let running = system.observe(&u, &residual);
        (system, running.then_some((u, residual)))
    }

    /// `A x`
    ///
    /// # Panics
    ///
    /// If the map changes the shape.
    fn apply(&mut self, x: &Tensor<2>) -> Tensor<2> {
        let image = self.a.apply(self.precision.lower(x.clone()));
        assert_same_shape(&image, x);
        self.precision.raise(image)
    }

    /// Tests the point `u` with the residual `A u + g - u`, for which one product was spent.
    fn observe(&mut self, u: &Tensor<2>, residual: &Tensor<2>) -> bool {
        let [batch, _] = u.dims();
        let at = Iterate::new(u.clone(), u.clone() + residual.clone());
        self.monitor.observe(&at, batch)
    }

    fn finish(self) -> Solution {
        self.precision.lower_solution(self.monitor.finish())
    }
}

/// `a / b` per sample, 0 where `b` is 0: a recurrence that has reached its end adds nothing more.
fn ratio(a: Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
    let zero = b.clone().equal_elem(0.0);
    (a / b.clone()).mask_fill(zero, 0.0)
}
