//! The reversible iteration of RevDEQ.

use crate::error::{InvalidConfig, require};
use crate::map::{FixedPointMap, Iterate};
use crate::solver::FixedPointSolver;
use burn::config::Config;
use burn::tensor::Tensor;

/// Configuration of [`Reversible`].
#[derive(Config, Debug, PartialEq)]
pub struct ReversibleConfig {
    /// Weight of `f(z)` against the state, in (0, 1). Going back divides by `1 - damping`, which
    /// multiplies rounding errors at every step, so values near 1 are fast forward and inaccurate
    /// backward. Default 0.8, that of the method's code.
    #[config(default = 0.8)]
    pub damping: f64,
}

impl ReversibleConfig {
    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] if `damping` is outside (0, 1).
    pub fn build(&self) -> Result<Reversible, InvalidConfig> {
        require(
            self.damping > 0.0 && self.damping < 1.0,
            "reversible.damping",
            self.damping,
            "above 0 and below 1",
        )?;
        Ok(Reversible {
            damping: self.damping,
        })
    }
}

/// Two coupled damped iterations, each step of which can be undone exactly, up to rounding.
///
/// ```text
/// forward      y <- (1 - damping) y + damping f(z)
///              z <- (1 - damping) z + damping f(y)
/// backward     z <- (z - damping f(y)) / (1 - damping)
///              y <- (y - damping f(z)) / (1 - damping)
/// ```
///
/// Use it when the gradient of the iteration itself is wanted in constant memory: all iterates can
/// be computed back from the last two. As a solver it is damped plain iteration, with its range of
/// convergence; where only the equilibrium matters, Anderson needs fewer evaluations.
///
/// Cost per step: one evaluation of `f`; a pair takes two. Memory: two states.
///
/// # References
///
/// McCallum et al., "Reversible Deep Equilibrium Models", arXiv 2509.12917.
///
/// # Differences from the reference code
///
/// Every half step is tested; the method's code tests pairs.
#[derive(Clone, Debug)]
pub struct Reversible {
    damping: f64,
}

/// The two coupled states of [`Reversible`], `[batch, dim]` each.
#[derive(Clone, Debug)]
pub struct ReversiblePair {
    /// The state that is updated first.
    pub y: Tensor<2>,
    /// The state that is updated second.
    pub z: Tensor<2>,
}

impl Reversible {
    /// The weight of `f(z)` against the state.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// `(1 - damping) state + damping fz`
    fn mix(&self, state: &Tensor<2>, fz: &Tensor<2>) -> Tensor<2> {
        state.clone().mul_scalar(1.0 - self.damping) + fz.clone().mul_scalar(self.damping)
    }

    fn unmix(&self, mixed: &Tensor<2>, fz: &Tensor<2>) -> Tensor<2> {
        (mixed.clone() - fz.clone().mul_scalar(self.damping)).mul_scalar(1.0 / (1.0 - self.damping))
    }

    /// One pair of steps; two evaluations.
    pub fn forward(&self, f: &mut dyn FixedPointMap, pair: &ReversiblePair) -> ReversiblePair {
        let y = self.mix(&pair.y, &f.call(pair.z.clone()));
        let z = self.mix(&pair.z, &f.call(y.clone()));
        ReversiblePair { y, z }
    }

    /// Undoes [`forward`](Self::forward); two evaluations, at the same points.
    pub fn backward(&self, f: &mut dyn FixedPointMap, pair: &ReversiblePair) -> ReversiblePair {
        let z = self.unmix(&pair.z, &f.call(pair.y.clone()));
        let y = self.unmix(&pair.y, &f.call(z.clone()));
        ReversiblePair { y, z }
    }
}

/// Where [`Reversible`] is within a pair of steps.
#[derive(Clone, Debug)]
pub struct ReversibleState {
    /// The state that the present point is not.
    other: Tensor<2>,
}

impl FixedPointSolver for Reversible {
    type State = ReversibleState;

    fn name(&self) -> &'static str {
        "reversible"
    }

    fn init(&self, first: &Iterate) -> Self::State {
        ReversibleState {
            other: first.z().clone(),
        }
    }

    fn step(&self, at: &Iterate, state: &mut Self::State) -> Tensor<2> {
        // At z this moves y, at y it moves z: each state moves by `f` of the other.
        let next = self.mix(&state.other, at.fz());
        state.other = at.z().clone();
        next
    }
}
