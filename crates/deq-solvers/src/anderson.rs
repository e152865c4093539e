//! Anderson acceleration.

use crate::dense::solve_positive_definite;
use crate::error::{InvalidConfig, require};
use crate::map::Iterate;
use crate::solver::FixedPointSolver;
use burn::config::Config;
use burn::tensor::Tensor;

/// Configuration of [`Anderson`].
#[derive(Config, Debug, PartialEq)]
pub struct AndersonConfig {
    /// The number `m` of past points that are combined. Memory is `2 m batch dim` numbers. Default 6, as in the original code
    /// and TorchDEQ.
    #[config(default = 6)]
    pub history: usize,
    /// Tikhonov term on the Gram matrix of the residuals, relative to its diagonal, dimensionless. Default 1e-4,
    /// which bounds the condition number of the small system by `m / 1e-4`, safe in f32.
    #[config(default = 1e-4)]
    pub regularization: f64,
    /// Weight `beta` of the images against the points in the combination, in (0, 1]. Default 1, as in the original code.
    #[config(default = 1.0)]
    pub mixing: f64,
}

impl AndersonConfig {
    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] naming the first field outside its range.
    pub fn build(&self) -> Result<Anderson, InvalidConfig> {
        require(
            self.history >= 1,
            "anderson.history",
            self.history as f64,
            "at least 1",
        )?;
        require(
            self.regularization.is_finite() && self.regularization > 0.0,
            "anderson.regularization",
            self.regularization,
            "a finite number above 0",
        )?;
        require(
            self.mixing > 0.0 && self.mixing <= 1.0,
            "anderson.mixing",
            self.mixing,
            "above 0 and at most 1",
        )?;
        Ok(Anderson {
            config: self.clone(),
        })
    }
}

/// Anderson acceleration (type II, windowed), one small least-squares problem per sample.
///
/// With the last `n <= m` points `z_i` and residuals `g_i = f(z_i) - z_i`:
///
/// ```text
/// alpha = argmin |sum_i alpha_i g_i|^2 + regularization sum_i alpha_i^2 |g_i|^2    with sum_i alpha_i = 1
/// z    <- sum_i alpha_i (z_i + mixing g_i)
/// ```
///
/// The minimiser is `alpha ~ (G + regularization diag(G))^-1 1` with the Gram matrix `G_ij = g_i . g_j`.
///
/// The first choice for DEQs: on linear maps it behaves like GMRES restarted in a sliding window, it needs two to five times fewer
/// evaluations than plain iteration near a spectral radius of 1, and its cost does not grow with the number of steps. Prefer
/// Broyden where the map expands strongly in some direction.
///
/// Cost per step: one evaluation of `f`, `n` inner products of length `dim`, a combination of `2 n` states, and a
/// solve of an `n x n` system on the device. Memory: `2 m` states.
///
/// # References
///
/// - Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 1965.
/// - Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 2011.
///
/// # Differences from the reference code
///
/// - `locuslab/deq` and TorchDEQ add `regularization` as an absolute term. Once residuals are small it dominates the Gram matrix and
///   the method degenerates to averaging. Here it is relative to the diagonal, so the iteration does not depend on the scale of the state.
/// - They evaluate `f` twice before the first test; here every evaluation is tested.
/// - The small system is solved by elimination without pivoting on the scaled, regularised matrix, which is
///   positive definite, so the device never waits for the host.
#[derive(Clone, Debug)]
pub struct Anderson {
    config: AndersonConfig,
}

/// The window of [`Anderson`].
#[derive(Debug)]
pub struct AndersonState {
    /// Points, `[batch, n, dim]`.
    points: Tensor<3>,
    /// Residuals, `[batch, n, dim]`.
    residuals: Tensor<3>,
    /// Inner products of the residuals, `[batch, n, n]`.
    gram: Tensor<3>,
    /// The slot that the next point overwrites once the window is full.
    next: usize,
}

impl FixedPointSolver for Anderson {
    type State = Option<AndersonState>;

    fn name(&self) -> &'static str {
        "anderson"
    }

    fn init(&self, _first: &Iterate) -> Self::State {
        None
    }

    fn step(&self, at: &Iterate, state: &mut Self::State) -> Tensor<2> {
        let window = match state.take() {
            None => AndersonState::first(at),
            Some(window) => window.push(at, self.config.history),
        };
        let weights = window.weights(self.config.regularization);
        // [batch, 1, n] x [batch, n, dim]
        let weights = weights.swap_dims(1, 2);
        let point = weights.clone().matmul(window.points.clone());
        let residual = weights.matmul(window.residuals.clone());
        *state = Some(window);
        let next = point + residual.mul_scalar(self.config.mixing);
        next.squeeze_dim::<2>(1)
    }
}

impl AndersonState {
    fn first(at: &Iterate) -> Self {
        let residuals: Tensor<3> = at.residual().unsqueeze_dim(1);
        Self {
            points: at.z.clone().unsqueeze_dim(1),
            gram: residuals.clone().square().sum_dim(2),
            residuals,
            next: 0,
        }
    }

    fn push(mut self, at: &Iterate, history: usize) -> Self {
        let point: Tensor<3> = at.z.clone().unsqueeze_dim(1);
        let residual: Tensor<3> = at.residual().unsqueeze_dim(1);
        let [batch, n, _] = self.residuals.dims();
        if n < history {
            self.points = Tensor::cat(vec![self.points, point], 1);
            self.residuals = Tensor::cat(vec![self.residuals, residual.clone()], 1);
            let products = self.residuals.clone().matmul(residual.swap_dims(1, 2)); // [batch, n + 1, 1]
            let row = products.clone().narrow(1, 0, n).swap_dims(1, 2);
            let above = Tensor::cat(vec![self.gram, row], 1);
            self.gram = Tensor::cat(vec![above, products], 2);
            // A window of one slot starts over at 0 as well.
            self.next = 0;
        } else {
            let slot = self.next;
            self.points = self.points.slice_assign([0..batch, slot..slot + 1], point);
            self.residuals = self
                .residuals
                .slice_assign([0..batch, slot..slot + 1], residual.clone());
            let products = self.residuals.clone().matmul(residual.swap_dims(1, 2));
            self.gram = self
                .gram
                .slice_assign([0..batch, 0..n, slot..slot + 1], products.clone())
                .slice_assign([0..batch, slot..slot + 1], products.swap_dims(1, 2));
            self.next = (slot + 1) % n;
        }
        self
    }

    /// The weights `alpha`, `[batch, n, 1]`, which sum to 1.
    fn weights(&self, regularization: f64) -> Tensor<3> {
        let [_, n, _] = self.gram.dims();
        let eye = Tensor::<2>::eye(n, &self.gram.device())
            .cast(self.gram.dtype())
            .unsqueeze::<3>();
        // Scaled to a unit diagonal, the system does not notice that residuals shrink by orders of magnitude.
        // The bound keeps a residual of exactly 0 from dividing by 0.
        let norms = (self.gram.clone() * eye.clone())
            .sum_dim(2)
            .clamp_min(f64::from(f32::MIN_POSITIVE))
            .sqrt();
        let inverse = norms.clone().recip();
        let matrix = self.gram.clone() * inverse.clone() * inverse.clone().swap_dims(1, 2)
            + eye.mul_scalar(regularization);
        let scale = inverse * norms.min_dim(1);
        let solution = solve_positive_definite(matrix, scale.clone()) * scale;
        let total = solution.clone().sum_dim(1);
        solution / total
    }
}
