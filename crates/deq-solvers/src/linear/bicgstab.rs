//! The stabilised biconjugate gradient method.

use super::{LinearMap, LinearSolve, LinearSystem, ratio};
use crate::error::InvalidConfig;
use crate::rows::{dot, largest, squares};
use crate::solution::Solution;
use crate::stop::StopRule;
use burn::config::Config;
use burn::tensor::Tensor;

/// Configuration of [`BiCgStab`], which has nothing to choose.
#[derive(Config, Debug, PartialEq)]
pub struct BiCgStabConfig {}

impl BiCgStabConfig {
    /// Returns the solver.
    ///
    /// # Errors
    ///
    /// None; for symmetry with the other configurations.
    pub fn build(&self) -> Result<BiCgStab, InvalidConfig> {
        Ok(BiCgStab)
    }
}

/// BiCGStab for `M u = g` with `M = I - A`, two products per round.
///
/// ```text
/// alpha = rho / (r^ . M p)        s = r - alpha M p        u <- u + alpha p        (tested)
/// omega = (M s . s) / |M s|^2     r = s - omega M s        u <- u + omega s        (tested)
/// beta  = (rho' / rho) (alpha / omega)                     p <- r + beta (p - omega M p)
/// ```
///
/// Use it when GMRES would need a long history: its memory does not grow. Its residual is not
/// monotone, and it can break down when `rho` vanishes; that sample then starts afresh from where
/// it is.
///
/// Cost per step: one product and about four vector updates. Memory: eight vectors.
///
/// # References
///
/// van der Vorst, "Bi-CGSTAB", SIAM J. Sci. Stat. Comput. 1992.
///
/// # Differences from the reference code
///
/// The half step is tested too, since it has cost a product; no reference code of this field has
/// the method.
#[derive(Clone, Debug)]
pub struct BiCgStab;

/// `rho` below this part of `|r^| |r|` says nothing about the direction any more.
const VANISHED: f64 = 1e-6;

impl LinearSolve for BiCgStab {
    fn name(&self) -> &'static str {
        "bicgstab"
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        LinearSystem::solve(a, g, stop, |system, u, residual| run(system, u, residual))
    }
}

fn run(system: &mut LinearSystem<'_>, mut u: Tensor<2>, mut residual: Tensor<2>) {
    // One factor of every inner product is divided by its size, so that none leaves the range of
    // the type.
    let mut shadow = residual.clone() / largest(&residual);
    let mut direction = residual.clone();
    loop {
        let rho = dot(&shadow, &residual);
        let product = direction.clone() - system.apply(&direction);
        let alpha = ratio(rho.clone(), &dot(&shadow, &product));
        u = u + direction.clone() * alpha.clone();
        let half = residual - product.clone() * alpha.clone();
        if !system.observe(&u, &half) {
            return;
        }
        let half_product = half.clone() - system.apply(&half);
        let scaled = half_product.clone() / largest(&half_product);
        let omega = ratio(dot(&scaled, &half), &dot(&scaled, &half_product));
        u = u + half.clone() * omega.clone();
        residual = half - half_product * omega.clone();
        if !system.observe(&u, &residual) {
            return;
        }
        let next_rho = dot(&shadow, &residual);
        let beta = ratio(next_rho.clone(), &rho) * ratio(alpha, &omega);
        let next = residual.clone() + (direction - product * omega.clone()) * beta;
        let size = largest(&residual);
        let scaled = residual.clone() / size.clone();
        let sizes = (squares(&shadow) * squares(&scaled)).sqrt() * size;
        let afresh = next_rho
            .abs()
            .lower_equal(sizes.mul_scalar(VANISHED))
            .bool_or(omega.equal_elem(0.0))
            .expand(residual.shape());
        direction = next.mask_where(afresh.clone(), residual.clone());
        shadow = shadow.mask_where(afresh, scaled);
    }
}
