//! What all methods that know their residual by a recurrence share.

use super::LinearMap;
use crate::map::Iterate;
use crate::monitor::Monitor;
use crate::solution::Solution;
use crate::solver::{Precision, assert_same_shape};
use crate::stop::StopRule;
use burn::tensor::Tensor;

/// A system `u = A u + g` while it is being solved by a recurrence that knows the residual
/// `A u + g - u` of its points without an evaluation there, as Krylov methods do.
///
/// It counts products, tests residuals, and keeps the best point of every sample. A residual from a
/// recurrence is an estimate: in floating point it goes on falling where the true one has stopped.
/// So once all samples have ended, one product more checks those that have converged by it, and
/// those that have not in truth go on from there.
///
/// ```
/// use burn::tensor::Tensor;
/// use deq_solvers::{LinearMap, LinearSolve, LinearSystem, Solution, StopRule};
///
/// /// Richardson's iteration `u <- u + weight r`, whose residual is `r - weight (r - A r)`.
/// #[derive(Debug)]
/// struct Richardson {
///     weight: f64,
/// }
///
/// impl LinearSolve for Richardson {
///     fn name(&self) -> &'static str {
///         "richardson"
///     }
///
///     fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
///         LinearSystem::solve(a, g, stop, |system, mut u, mut residual| {
///             loop {
///                 u = u + residual.clone() * self.weight;
///                 let change = residual.clone() - system.apply(&residual);
///                 residual = residual - change * self.weight;
///                 if !system.observe(&u, &residual) {
///                     return;
///                 }
///             }
///         })
///     }
/// }
///
/// // It takes the place of any other: u = -2 u + g, where the Neumann series diverges.
/// let solver: std::sync::Arc<dyn LinearSolve> = std::sync::Arc::new(Richardson { weight: 0.3 });
/// let g = Tensor::<2>::ones([4, 3], &burn::tensor::Device::flex());
/// let stop = deq_solvers::StopConfig::new().with_rel_tol(1e-5).build()?;
/// let solution = solver.solve(&mut |u: Tensor<2>| u * -2.0, g, &stop).into_result()?;
/// let u: Vec<f32> = solution.z.into_data().iter::<f32>().collect();
/// assert!(u.iter().all(|u| (u - 1.0 / 3.0).abs() < 1e-5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LinearSystem<'a> {
    a: &'a mut dyn LinearMap,
    g: Tensor<2>,
    monitor: Monitor,
    precision: Precision,
}

impl<'a> LinearSystem<'a> {
    /// Solves the system from `u = g`.
    ///
    /// `recurrence` is given the system, a point `u` and its true residual `A u + g - u`. It makes
    /// steps, [observes](Self::observe) each, and returns when that says so. It is called again, to
    /// begin anew from another point, for samples whose true residual turns out not to have
    /// converged.
    ///
    /// # Shapes
    ///
    /// All `[batch, dim]`. Vectors of 16-bit types are f32 within the recurrence.
    ///
    /// # Panics
    ///
    /// If the map changes the shape.
    pub fn solve(
        a: &'a mut dyn LinearMap,
        g: Tensor<2>,
        stop: &StopRule,
        mut recurrence: impl FnMut(&mut Self, Tensor<2>, Tensor<2>),
    ) -> Solution {
        let precision = Precision::of(&g);
        let mut system = Self {
            a,
            monitor: Monitor::new(stop, &g),
            precision,
            g: precision.raise(g),
        };
        let u = system.g.clone();
        let residual = system.apply(&u);
        let mut open = system.observe(&u, &residual).then_some((u, residual));
        while let Some((u, residual)) = open {
            recurrence(&mut system, u, residual);
            open = system.check();
        }
        system.precision.lower_solution(system.monitor.finish())
    }

    /// `A x`, one product.
    ///
    /// # Shapes
    ///
    /// `[batch, dim]`, in and out.
    ///
    /// # Panics
    ///
    /// If the map changes the shape.
    pub fn apply(&mut self, x: &Tensor<2>) -> Tensor<2> {
        let product = self.a.apply(self.precision.lower(x.clone()));
        assert_same_shape(&product, x);
        self.precision.raise(product)
    }

    /// Tests the point `u` with the residual `A u + g - u`, for which one product was spent, and
    /// returns whether the solve goes on.
    ///
    /// # Shapes
    ///
    /// `[batch, dim]` each.
    pub fn observe(&mut self, u: &Tensor<2>, residual: &Tensor<2>) -> bool {
        let [batch, _] = u.dims();
        let at = Iterate::with_residual(u.clone(), residual.clone());
        let open = self.monitor.observe(&at, batch);
        // Nobody follows a linear solve step by step.
        drop(self.monitor.take_reports());
        open
    }

    /// The answers with their true residuals, if some have not converged in truth.
    fn check(&mut self) -> Option<(Tensor<2>, Tensor<2>)> {
        let Self {
            a,
            g,
            monitor,
            precision,
        } = self;
        let at = monitor.check(|u| {
            let product = a.apply(precision.lower(u.clone()));
            precision.raise(product) + g.clone()
        })?;
        Some((at.z().clone(), at.residual().clone()))
    }
}
