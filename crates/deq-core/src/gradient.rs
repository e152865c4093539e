//! How gradients cross the equilibrium.

use burn::config::Config;
use deq_solvers::{SolverConfig, StopConfig};

/// The gradient strategy of a [`Deq`](crate::Deq), orthogonal to its solver.
///
/// With `z* = f(z*, x)` and a loss `l`, the exact gradient with respect to anything that `f` reads is
///
/// ```text
/// dl/dx = u^T df/dx (z*, x)     where    u = J^T u + dl/dz,   J = df/dz (z*, x)
/// ```
///
/// by the implicit function theorem (Bai, Kolter, Koltun 2019, Theorem 1).
#[derive(Config, Debug, PartialEq)]
pub enum GradientConfig {
    /// Solve for `u`. Exact up to the tolerance of the backward solve; constant memory.
    Implicit(ImplicitConfig),
    /// Take `u = dl/dz`, that is, differentiate one evaluation of `f` at `z*` ("Jacobian-free", Fung et al. 2021,
    /// arXiv 2103.12803). One backward pass of `f`, a descent direction where `f` contracts; not the gradient.
    OneStep,
    /// Apply `f` a fixed number of times from the start and differentiate through all of it. Memory grows with
    /// the number of steps. This is also the papers' pre-training mode and a weight-tied explicit network.
    Unrolled(UnrolledConfig),
}

impl Default for GradientConfig {
    fn default() -> Self {
        GradientConfig::Implicit(ImplicitConfig::new())
    }
}

/// The backward solve of [`GradientConfig::Implicit`].
#[derive(Config, Debug, PartialEq)]
pub struct ImplicitConfig {
    /// The solver of the adjoint equation. Default Anderson, which on this linear equation behaves like GMRES.
    #[config(default = "SolverConfig::anderson()")]
    pub solver: SolverConfig,
    /// When the backward solve ends; a step is one vector-Jacobian product. Default: relative tolerance 1e-4, the backward
    /// tolerance of Bai et al. 2021, Table 4, within 30 steps.
    #[config(default = "StopConfig::new().with_rel_tol(1e-4)")]
    pub stop: StopConfig,
}

/// The depth of [`GradientConfig::Unrolled`].
#[derive(Config, Debug, PartialEq)]
pub struct UnrolledConfig {
    /// How many times `f` is applied.
    pub steps: usize,
}
