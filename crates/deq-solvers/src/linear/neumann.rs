//! The Neumann series.

use super::{LinearMap, LinearSolve, LinearSystem};
use crate::error::InvalidConfig;
use crate::solution::Solution;
use crate::stop::StopRule;
use burn::config::Config;
use burn::tensor::Tensor;

/// Configuration of [`Neumann`], which has nothing to choose:
/// [`StopConfig::max_steps`](crate::StopConfig) is the number of terms.
#[derive(Config, Debug, PartialEq)]
pub struct NeumannConfig {}

impl NeumannConfig {
    /// Returns the solver.
    ///
    /// # Errors
    ///
    /// None; for symmetry with the other configurations.
    pub fn build(&self) -> Result<Neumann, InvalidConfig> {
        Ok(Neumann)
    }
}

/// The sum of a geometric series.
///
/// ```text
/// (I - A)^-1 g = g + A g + A^2 g + ...
/// ```
///
/// After `k` products the sum is what plain iteration of `u -> A u + g` reaches from `g`. Use it
/// for a gradient of fixed, small cost (a truncated series), or where the spectral radius of `A` is
/// far below 1. It diverges when that is above 1.
///
/// Cost per step: one product. Memory: three vectors.
///
/// # References
///
/// Geng et al., "On Training Implicit Models", NeurIPS 2021, arXiv 2111.05177 (as a gradient
/// estimate, "Neumann phantom gradient").
///
/// # Differences from the reference code
///
/// The residual of every partial sum, which is the next term, is tested.
#[derive(Clone, Debug)]
pub struct Neumann;

impl LinearSolve for Neumann {
    fn name(&self) -> &'static str {
        "neumann"
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        LinearSystem::solve(a, g, stop, |system, mut sum, mut term| {
            loop {
                sum = sum + term.clone();
                term = system.apply(&term);
                if !system.observe(&sum, &term) {
                    return;
                }
            }
        })
    }
}
