//! Configuration of the gradient strategies.

use burn::config::Config;
use deq_solvers::{LinearSolverConfig, SolverConfig, StopConfig};

/// The gradient strategy of a [`Deq`](crate::Deq), orthogonal to its solver except where it reuses
/// what the solver did.
///
/// With `z* = f(z*, x)` and a loss `l`, the exact gradient with respect to anything that `f` reads
/// is
///
/// ```text
/// dl/dx = u^T df/dx (z*, x)     where    u = J^T u + dl/dz,   J = df/dz (z*, x)
/// ```
///
/// by the implicit function theorem (Bai, Kolter, Koltun 2019, Theorem 1). The guide
/// [`gradients`](crate::gradients) says which one to choose and what each costs.
#[derive(Config, Debug, PartialEq)]
pub enum GradientConfig {
    /// Solve for `u`. Exact up to the tolerance of the backward solve; constant memory.
    Implicit(ImplicitConfig),
    /// Take `u = dl/dz`, that is, differentiate one evaluation of `f` at `z*` ("Jacobian-free",
    /// Fung et al. 2021, arXiv 2103.12803). One backward pass of `f`, a descent direction where `f`
    /// contracts; not the gradient.
    OneStep,
    /// Take the first terms of `u = g + J^T g + (J^T)^2 g + ...`, of each sample up to the smallest
    /// of them. Tends to the exact gradient like `|J|^terms`, where the series converges.
    Neumann(NeumannGradientConfig),
    /// Differentiate a few damped steps of plain iteration from `z*`. Tends to the exact gradient
    /// as the steps grow.
    Phantom(PhantomConfig),
    /// Take `u` from the inverse Jacobian that the forward Broyden solve has built. No product at
    /// all, unless refined. Needs [`SolverConfig::Broyden`].
    Shine(ShineConfig),
    /// Undo the iteration of the forward solve step by step and differentiate each: the exact
    /// gradient of what was computed, converged or not, in constant memory. Needs
    /// [`SolverConfig::Reversible`].
    Reversible(ReversibleGradientConfig),
    /// Apply `f` a fixed number of times from the start and differentiate through all of it. Memory
    /// grows with the number of steps, unless states are recomputed. This is also the papers'
    /// pre-training mode and a weight-tied explicit network.
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
    /// The solver of the adjoint equation. Default Anderson, which on this linear equation behaves
    /// like GMRES restarted smoothly and keeps twelve states.
    #[config(default = "SolverConfig::anderson().into()")]
    pub solver: LinearSolverConfig,
    /// When the backward solve ends; a step is one vector-Jacobian product. Default: relative
    /// tolerance 1e-4, the backward tolerance of Bai et al. 2021, Table 4, within 30 steps.
    #[config(default = "StopConfig::new().with_rel_tol(1e-4)")]
    pub stop: StopConfig,
}

/// The length of [`GradientConfig::Neumann`].
#[derive(Config, Debug, PartialEq)]
pub struct NeumannGradientConfig {
    /// Products with `J^T` at most; 0 would be the one-step gradient. The sum of a sample ends with
    /// its smallest term, as one does with series that may diverge, so that terms that grow do not
    /// spoil it. Default 5, as many as the steps of [`PhantomConfig`].
    #[config(default = 5)]
    pub terms: usize,
}

/// The steps of [`GradientConfig::Phantom`].
///
/// ```text
/// z <- (1 - damping) z + damping f(z)        steps times, from z*, recorded
/// ```
///
/// Geng et al., "On Training Implicit Models", NeurIPS 2021, arXiv 2111.05177 ("unrolling-based
/// phantom gradient").
#[derive(Config, Debug, PartialEq)]
pub struct PhantomConfig {
    /// Recorded steps. Default 5: on the recorded tanh layer the gradient of the weights is then
    /// off by 0.1 % undamped, and by 8 % with a damping of 0.5.
    #[config(default = 5)]
    pub steps: usize,
    /// Weight of `f(z)`, in (0, 1]. Smaller values condition the gradient at the price of its
    /// accuracy. Default 0.5, the lower end of what TorchDEQ's documentation advises for MDEQ.
    #[config(default = 0.5)]
    pub damping: f64,
    /// Keep only so many states and compute the others again, as [`UnrolledConfig::stored_states`]
    /// does. Default: all on the tape.
    #[config(default = "None")]
    pub stored_states: Option<usize>,
}

/// The way back of [`GradientConfig::Reversible`].
///
/// Two products per pair of steps. Undoing a step divides by `1 - damping`, which multiplies
/// rounding errors; a few pairs stored on the way bound how far they can grow, and
/// [`BackwardPass::reversal_error`](crate::BackwardPass) says how far they did.
///
/// The budget of the forward solve counts evaluations, two for each pair; an odd one is not used
/// up, and even a budget of 1 makes a pair.
///
/// A sample that fails does not reach the gradients of the others, unless it fails in its first
/// pair: then there is no point at which its `f` is known to be finite, and the gradients of
/// parameters may be NaN.
///
/// McCallum et al., "Reversible Deep Equilibrium Models", arXiv 2509.12917, whose code stores none.
#[derive(Config, Debug, PartialEq)]
pub struct ReversibleGradientConfig {
    /// Pairs of states to store in training, the start included, at equal distances along the
    /// solve. Default 8: the way back from one to the last is then two pairs at most in a solve of
    /// 32 evaluations, which with the solver's default damping of 0.8 multiplies rounding by about
    /// `5^4`.
    #[config(default = 8)]
    pub stored_pairs: usize,
}

/// How far [`GradientConfig::Shine`] trusts the forward solve.
///
/// The [`history`](deq_solvers::BroydenConfig::history) of the forward solver must be at least the
/// budget of its solves in training: a full one is emptied for all samples at once, and those that
/// have ended learn nothing afterwards.
///
/// Ramzi et al., "SHINE: SHaring the INverse Estimate from the forward pass for bi-level
/// optimization and implicit models", ICLR 2022, arXiv 2106.00553.
#[derive(Config, Debug, PartialEq)]
pub struct ShineConfig {
    /// A sample whose estimate is longer than so many times the cotangent falls back to the
    /// one-step gradient. Default 3: on the test suite it keeps every estimate that is closer to
    /// the adjoint than the cotangent is, and refuses the one that is not. With 1.3 it refuses some
    /// of the good ones there.
    #[config(default = 3.0)]
    pub max_growth: f64,
    /// A backward solve ("refine" in the paper) that starts at the estimate and is preconditioned
    /// by it: with `P` for the shared inverse, it solves `P (I - J^T) u = P g`. Where the forward
    /// solve was thorough, this takes a fraction of the products. Its residuals are those of the
    /// preconditioned system, that is, estimates of the error in `u`. Default none.
    #[config(default = "None")]
    pub refine: Option<ImplicitConfig>,
}

/// The depth of [`GradientConfig::Unrolled`].
#[derive(Config, Debug, PartialEq)]
pub struct UnrolledConfig {
    /// How many times `f` is applied.
    pub steps: usize,
    /// Store only so many states, the start included, and compute the others again in the backward
    /// pass, in the order that needs fewest evaluations (Griewank and Walther, "Revolve", ACM TOMS
    /// 2000). Memory then does not grow with `steps`. Default: every step on the tape.
    #[config(default = "None")]
    pub stored_states: Option<usize>,
}
