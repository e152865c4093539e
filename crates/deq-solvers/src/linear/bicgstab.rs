//! The stabilised biconjugate gradient method.

use super::{LinearMap, LinearSolve, System, ratio};
use crate::error::InvalidConfig;
use crate::rows::dot;
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
/// alpha = rho / (r^ . M p)         s = r - alpha M p              u <- u + alpha p          (tested)
/// omega = (M s . s) / |M s|^2      r = s - omega M s              u <- u + omega s          (tested)
/// beta  = (rho' / rho) (alpha / omega)                            p <- r + beta (p - omega M p)
/// ```
///
/// Use it when GMRES would need a long history: its memory does not grow. Its residual is not monotone, and it can break down when
/// `rho` vanishes; that sample then starts afresh from where it is.
///
/// Cost per step: one product and about four vector updates. Memory: six vectors.
///
/// # References
///
/// van der Vorst, "Bi-CGSTAB", SIAM J. Sci. Stat. Comput. 1992.
///
/// # Differences from the reference code
///
/// The half step is tested too, since it has cost a product; no reference code of this field has the method.
#[derive(Clone, Debug)]
pub struct BiCgStab;

/// `rho` below this part of `|r^| |r|` says nothing about the direction any more.
const VANISHED: f64 = 1e-6;

impl LinearSolve for BiCgStab {
    fn name(&self) -> &'static str {
        "bicgstab"
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        let (mut system, start) = System::start(a, g, stop);
        let Some((mut u, mut residual)) = start else {
            return system.finish();
        };
        let mut shadow = residual.clone();
        let mut direction = residual.clone();
        loop {
            let rho = dot(&shadow, &residual);
            let image = direction.clone() - system.apply(&direction);
            let alpha = ratio(rho.clone(), &dot(&shadow, &image));
            u = u + direction.clone() * alpha.clone();
            let half = residual - image.clone() * alpha.clone();
            if !system.observe(&u, &half) {
                break;
            }
            let half_image = half.clone() - system.apply(&half);
            let omega = ratio(dot(&half_image, &half), &dot(&half_image, &half_image));
            u = u + half.clone() * omega.clone();
            residual = half - half_image * omega.clone();
            if !system.observe(&u, &residual) {
                break;
            }
            let next_rho = dot(&shadow, &residual);
            let beta = ratio(next_rho.clone(), &rho) * ratio(alpha, &omega);
            let next = residual.clone() + (direction - image * omega.clone()) * beta;
            let sizes = (dot(&shadow, &shadow) * dot(&residual, &residual)).sqrt();
            let afresh = next_rho
                .abs()
                .lower_equal(sizes.mul_scalar(VANISHED))
                .bool_or(omega.equal_elem(0.0))
                .expand(residual.shape());
            direction = next.mask_where(afresh.clone(), residual.clone());
            shadow = shadow.mask_where(afresh, residual.clone());
        }
        system.finish()
    }
}
