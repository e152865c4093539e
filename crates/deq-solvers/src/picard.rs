//! Damped plain iteration.

use crate::error::{InvalidConfig, require};
use crate::map::Iterate;
use crate::solver::FixedPointSolver;
use burn::config::Config;
use burn::tensor::Tensor;

/// Configuration of [`Picard`].
#[derive(Config, Debug, PartialEq)]
pub struct PicardConfig {
    /// Weight of `f(z)` against `z`, in (0, 1]. Default 1, plain iteration, which contracts fastest
    /// where it contracts at all in all directions; smaller values help when eigenvalues of the
    /// Jacobian lie near or below -1.
    #[config(default = 1.0)]
    pub damping: f64,
}

impl PicardConfig {
    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] if `damping` is outside (0, 1].
    pub fn build(&self) -> Result<Picard, InvalidConfig> {
        require(
            self.damping > 0.0 && self.damping <= 1.0,
            "picard.damping",
            self.damping,
            "above 0 and at most 1",
        )?;
        Ok(Picard {
            damping: self.damping,
        })
    }
}

/// Damped plain (Picard, Krasnoselskii-Mann) iteration.
///
/// ```text
/// z <- z + damping (f(z) - z)
/// ```
///
/// Use it as the baseline, and where `f` contracts strongly: it has no history and cannot go wrong
/// numerically. It diverges as soon as the spectral radius of `(1 - damping) I + damping J` exceeds
/// 1; Anderson and Broyden often still converge there.
///
/// Cost per step: one evaluation of `f`. Memory: one state.
///
/// # References
///
/// Krasnoselskii, "Two remarks on the method of successive approximations", 1955.
///
/// # Differences from the reference code
///
/// The convergence test sees `f(z) - z`, not the damped step, so damping does not loosen the
/// tolerance (TorchDEQ's `fixed_point_iter` tests the damped step).
#[derive(Clone, Debug)]
pub struct Picard {
    damping: f64,
}

impl FixedPointSolver for Picard {
    type State = ();

    fn name(&self) -> &'static str {
        "picard"
    }

    fn init(&self, _first: &Iterate) {}

    fn step(&self, at: &Iterate, (): &mut ()) -> Tensor<2> {
        if self.damping >= 1.0 {
            return at.fz().clone();
        }
        at.z().clone() + at.residual().clone().mul_scalar(self.damping)
    }
}
