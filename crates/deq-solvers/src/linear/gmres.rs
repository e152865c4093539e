//! GMRES with restarts.

use super::{LinearMap, LinearSolve, LinearSystem, ratio};
use crate::error::{InvalidConfig, require_count};
use crate::history::{History, pad};
use crate::rows::{largest, squares};
use crate::solution::Solution;
use crate::stop::StopRule;
use burn::config::Config;
use burn::tensor::{DType, Tensor};
use deq_kernels::product;

/// Configuration of [`Gmres`].
#[derive(Config, Debug, PartialEq)]
pub struct GmresConfig {
    /// Products between restarts. Memory is about `2 restart batch dim` numbers, allocated as they
    /// are needed. Default 20, above the steps that a backward solve of a regularised model takes,
    /// so that none happens.
    #[config(default = 20)]
    pub restart: usize,
}

impl GmresConfig {
    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] if `restart` is 0.
    pub fn build(&self) -> Result<Gmres, InvalidConfig> {
        require_count("gmres.restart", self.restart)?;
        Ok(Gmres {
            restart: self.restart,
        })
    }
}

/// GMRES(restart) for `M u = g` with `M = I - A`: the smallest residual over the space spanned by
/// `r, M r, M^2 r, ...`, one system per sample.
///
/// ```text
/// w = M v_k       h = V^T w, w <- w - V h (twice)       v_{k+1} = w / |w|
/// R_k = G_k ... G_1 [h; |w|]        p_k = (v_k - sum_{j<k} R_jk p_j) / R_kk
/// u <- u + c_k t_k p_k              r <- s_k^2 r - s_k c_k t_k v_{k+1}          t_{k+1} = -s_k t_k
/// ```
///
/// with Givens rotations `G_k = [[c_k, s_k], [-s_k, c_k]]` that make the Hessenberg matrix
/// triangular. The directions `p_k` give the iterate and its residual at every step, without a
/// triangular solve and without a product.
///
/// The best choice for the adjoint equation when products are dear: no method that uses as many
/// products has a smaller residual, and the residual never grows. Prefer BiCGStab when memory is
/// tight, Anderson when the map is not linear.
///
/// Cost per step `k` since the restart: one product, about `5 k` inner products or updates of
/// length `dim`. Memory: `2 restart + 4` vectors; while it grows, half as much again.
///
/// # References
///
/// - Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 1986.
/// - Saad, "Iterative Methods for Sparse Linear Systems", 2nd ed., section 6.5.
///
/// # Differences from the reference code
///
/// Textbook codes form the iterate at the end of a cycle; here every step has one, so that each
/// sample can end at its own. Restarts use the residual of the recurrence instead of spending a
/// product on it.
#[derive(Clone, Debug)]
pub struct Gmres {
    restart: usize,
}

/// What one cycle has built, per sample.
struct Cycle {
    /// Orthonormal `v_k`.
    basis: History,
    /// `p_k`.
    directions: History,
    /// The product of all rotations so far, `[batch, k + 1, k + 1]`.
    rotations: Tensor<3>,
    /// The part of the right side not yet used, `[batch, 1]`; its absolute value is the residual
    /// norm.
    rest: Tensor<2>,
    newest: Tensor<2>,
}

impl Cycle {
    fn new(residual: &Tensor<2>, restart: usize) -> Self {
        let norm = squares(residual);
        let mut cycle = Self {
            basis: History::new(residual, restart + 1),
            directions: History::new(residual, restart),
            rotations: norm.clone().unsqueeze_dim(2),
            newest: residual.clone(),
            rest: norm,
        };
        cycle.begin(residual);
        cycle
    }

    /// Starts a space from the residual, in the memory of the last one.
    fn begin(&mut self, residual: &Tensor<2>) {
        let size = largest(residual);
        let scaled = residual.clone() / size.clone();
        let norm = squares(&scaled).sqrt();
        self.newest = scaled * ratio(norm.ones_like(), &norm);
        self.basis.clear();
        self.directions.clear();
        self.basis.set(0, self.newest.clone());
        self.rotations = norm.ones_like().unsqueeze_dim(2);
        self.rest = norm * size;
    }

    /// Takes `w = M v_k` and returns the changes of the iterate and the new residual.
    fn step(&mut self, w: Tensor<2>, residual: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let k = self.basis.len();
        let size = squares(&w).sqrt();
        // Once more, since one pass of Gram-Schmidt loses orthogonality where w nearly lies in the
        // space.
        let first = self.basis.dot(&w);
        let w = w - self.basis.combine(&first);
        let second = self.basis.dot(&w);
        let w = w - self.basis.combine(&second);
        let coefficients = (first + second).narrow(1, 0, k);
        let below = squares(&w).sqrt();
        // What is left of a vector that lay in the space is rounding, not a direction.
        let exhausted = below.clone().lower_equal(size.mul_scalar(epsilon(&w)));
        let below = below.mask_fill(exhausted, 0.0);
        let next = w * ratio(below.ones_like(), &below);

        let rotated = product(self.rotations.clone(), coefficients); // [batch, k, 1]
        let diagonal: Tensor<2> = rotated.clone().narrow(1, k - 1, 1).squeeze_dim(2);
        let radius = (diagonal.clone().square() + below.clone().square()).sqrt();
        let cos = ratio(diagonal, &radius);
        let sin = ratio(below, &radius);

        let mut direction = self.newest.clone();
        if k > 1 {
            let above = pad(rotated.narrow(1, 0, k - 1), self.directions.slots());
            direction = direction - self.directions.combine(&above);
        }
        let direction = direction * ratio(radius.ones_like(), &radius);
        let change = direction.clone() * (cos.clone() * self.rest.clone());
        // A singular matrix that has used up its space: the residual stays, and so does the
        // iterate.
        let stuck = radius.equal_elem(0.0);
        let sin = sin.mask_fill(stuck, 1.0);
        let along = sin.clone() * cos.clone() * self.rest.clone();
        let residual = residual * sin.clone().square() - next.clone() * along;

        self.rotate(&cos, &sin);
        self.rest = (self.rest.clone() * sin).neg();
        self.directions.set(k - 1, direction);
        self.basis.set(k, next.clone());
        self.newest = next;
        (change, residual)
    }

    /// Appends the rotation of rows `k - 1` and `k`.
    fn rotate(&mut self, cos: &Tensor<2>, sin: &Tensor<2>) {
        let [batch, k, _] = self.rotations.dims();
        let cos: Tensor<3> = cos.clone().unsqueeze_dim(2);
        let sin: Tensor<3> = sin.clone().unsqueeze_dim(2);
        let last = self.rotations.clone().narrow(1, k - 1, 1); // [batch, 1, k]
        let zeros = Tensor::zeros([batch, k, 1], (&last.device(), last.dtype()));
        let upper = Tensor::cat(vec![last.clone() * cos.clone(), sin.clone()], 2);
        let lower = Tensor::cat(vec![(last * sin).neg(), cos], 2);
        let old = Tensor::cat(vec![self.rotations.clone(), zeros], 2).narrow(1, 0, k);
        let mut rows = Vec::with_capacity(3);
        if k > 1 {
            rows.push(old.narrow(1, 0, k - 1));
        }
        rows.extend([upper, lower]);
        self.rotations = Tensor::cat(rows, 1);
    }
}

/// The rounding unit of the type of `x`, times a small factor.
fn epsilon(x: &Tensor<2>) -> f64 {
    match x.dtype() {
        DType::F64 => 1e-14,
        _ => 1e-6,
    }
}

impl LinearSolve for Gmres {
    fn name(&self) -> &'static str {
        "gmres"
    }

    fn solve(&self, a: &mut dyn LinearMap, g: Tensor<2>, stop: &StopRule) -> Solution {
        LinearSystem::solve(a, g, stop, |system, mut u, mut residual| {
            let mut cycle = Cycle::new(&residual, self.restart);
            loop {
                if cycle.directions.len() == self.restart {
                    cycle.begin(&residual);
                }
                let w = cycle.newest.clone() - system.apply(&cycle.newest);
                let (change, next) = cycle.step(w, residual);
                u = u + change;
                residual = next;
                if !system.observe(&u, &residual) {
                    return;
                }
            }
        })
    }
}
