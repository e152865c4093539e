//! Anderson acceleration.

use crate::dense::{as_rows, identity, solve_general, solve_positive_definite};
use crate::error::{InvalidConfig, require, require_count};
use crate::history::{History, pad};
use crate::map::Iterate;
use crate::rows::{largest, squares};
use crate::solver::FixedPointSolver;
use burn::config::Config;
use burn::tensor::Tensor;
use deq_kernels::{AndersonStep, AndersonWindow};
use serde::{Deserialize, Serialize};

/// Which small problem [`Anderson`] solves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AndersonType {
    /// The multisecant form of Broyden's good method: the combination satisfies the secant
    /// conditions of the Jacobian.
    #[serde(rename = "type_i")]
    TypeI,
    /// The multisecant form of Broyden's bad method: the combination minimises the residual. The
    /// usual one.
    #[default]
    #[serde(rename = "type_ii")]
    TypeII,
}

/// What [`AndersonConfig::regularization`] is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ridge {
    /// The squared norms of the residuals, so that the iteration does not depend on the scale of
    /// the state.
    #[default]
    Relative,
    /// The units of the state squared, as in `locuslab/deq` and TorchDEQ. For comparisons with
    /// recorded runs.
    Absolute,
}

/// Configuration of [`Anderson`].
#[derive(Config, Debug, PartialEq)]
pub struct AndersonConfig {
    /// The number `m` of past points that are combined. Memory is `2 m batch dim` numbers. Default
    /// 6, as in the original code and TorchDEQ.
    #[config(default = 6)]
    pub history: usize,
    /// Tikhonov term on the Gram matrix of the residuals, relative to its diagonal, dimensionless.
    /// Default 1e-4, which bounds the condition number of the small system by `m / 1e-4`, safe in
    /// f32.
    #[config(default = 1e-4)]
    pub regularization: f64,
    /// Weight `beta` of `f(z)` against `z` in the combination, in (0, 1]. Default 1, as in the
    /// original code.
    #[config(default = 1.0)]
    pub mixing: f64,
    /// The small problem. Default type II.
    #[config(default = "AndersonType::TypeII")]
    pub kind: AndersonType,
    /// What `regularization` is relative to. Default the residuals.
    #[config(default = "Ridge::Relative")]
    pub ridge: Ridge,
    /// The largest sum of `|alpha_i|` that is trusted: errors of `f` reach the next point
    /// multiplied by it. Beyond it, for instance when residuals are parallel up to rounding, the
    /// sample takes a plain step and its window starts afresh. Type I has no such weights; there it
    /// limits what is added to the plain step, in units of the residual. Default 1e4.
    #[config(default = 1e4)]
    pub max_weight: f64,
}

impl AndersonConfig {
    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] naming the first field outside its range.
    pub fn build(&self) -> Result<Anderson, InvalidConfig> {
        require_count("anderson.history", self.history)?;
        // Every step solves a system of this size.
        require(
            self.history <= 1_000,
            "anderson.history",
            self.history as f64,
            "at most 1,000",
        )?;
        require(
            self.regularization.is_finite() && self.regularization > 0.0,
            "anderson.regularization",
            self.regularization,
            "a finite number above 0",
        )?;
        require(
            self.max_weight >= 1.0,
            "anderson.max_weight",
            self.max_weight,
            "at least 1, the sum of the weights",
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

/// Anderson acceleration, windowed, with one small problem per sample.
///
/// With the last `n <= m` points `z_i` and residuals `g_i = f(z_i) - z_i`, type II is
///
/// ```text
/// alpha = argmin |sum_i alpha_i g_i|^2 + regularization sum_i alpha_i^2 |g_i|^2    with sum_i alpha_i = 1
/// z    <- sum_i alpha_i (z_i + mixing g_i)
/// ```
///
/// with the minimiser `alpha ~ (G + regularization diag(G))^-1 1`, `G_ij = g_i . g_j`. Type I
/// takes, with the differences `dz_i`, `dg_i` of successive points and residuals and the present
/// `z`, `g`,
///
/// ```text
/// gamma = (dZ^T dG)^-1 dZ^T g
/// z    <- z + mixing g - sum_i gamma_i (dz_i + mixing dg_i)
/// ```
///
/// Type II is the first choice for DEQs: on linear maps it behaves like GMRES restarted in a
/// sliding window, it needs 1.2 to 17 times fewer evaluations than plain iteration on the
/// contractions of the test suite, and the cost of a step does not grow with their number. Type I
/// goes straighter where the residual is a poor measure of the error; its small system is not
/// symmetric and may be singular, so it costs twice the small operations and leans on its
/// safeguard. Prefer Broyden where the map expands strongly in some direction.
///
/// Cost per step: one evaluation of `f`, `m` inner products of length `dim` (type I: `3 m`), a
/// combination of `m` states (type I: `2 m`), and a solve of an `m x m` system on the device.
/// Memory: `2 m` states (type I: `2 m + 3`).
///
/// # References
///
/// - Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 1965.
/// - Fang and Saad, "Two classes of multisecant methods for nonlinear acceleration", Numer. Linear
///   Algebra Appl. 2009 (the types).
/// - Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 2011.
/// - Zhang, O'Donoghue, Boyd, "Globally convergent type-I Anderson acceleration", SIAM J. Optim.
///   2020 (why type I needs a safeguard).
///
/// # Differences from the reference code
///
/// - `locuslab/deq` and TorchDEQ add `regularization` as an absolute term. Once residuals are small
///   it dominates the Gram matrix and the method degenerates to averaging. Here it is relative to
///   the diagonal unless [`Ridge::Absolute`] is chosen.
/// - They evaluate `f` twice before the first test; here every evaluation is tested.
/// - The small system is solved by elimination on the scaled, regularised matrix, so the device
///   never waits for the host.
/// - They have no safeguard; `torch.linalg.solve` raises an error on a singular system.
#[derive(Clone, Debug)]
pub struct Anderson {
    config: AndersonConfig,
}

/// The window of [`Anderson`].
#[derive(Debug)]
pub struct AndersonState {
    /// Type II: residuals, each divided by its size. Type I: differences of residuals, divided by
    /// the size of the move.
    residuals: History,
    /// Type II: points with their mixed residual. Type I: differences of points, divided likewise.
    points: History,
    /// Inner products of residuals or of points with residuals as they are kept, `[batch, m, m]`.
    products: Tensor<3>,
    /// Type II: the sizes of the residuals, `[batch, m, 1]`.
    sizes: Tensor<3>,
    /// 1 for the slots that a sample may use, `[batch, m, 1]`.
    valid: Tensor<3>,
    /// The slot that the next entry overwrites.
    next: usize,
    /// Type I: the previous point, and the squared norms of the differences, `[batch, m, 1]` each.
    previous: Option<Iterate>,
    norms: Option<[Tensor<3>; 2]>,
}

impl FixedPointSolver for Anderson {
    type State = AndersonState;

    fn name(&self) -> &'static str {
        match self.config.kind {
            AndersonType::TypeI => "anderson type i",
            AndersonType::TypeII => "anderson",
        }
    }

    fn init(&self, first: &Iterate) -> Self::State {
        let [batch, _] = first.z().dims();
        let m = self.config.history;
        let options = (&first.z().device(), first.z().dtype());
        AndersonState {
            // Not a clone of one another, which the first write would have to copy.
            points: History::new(first.z(), m),
            residuals: History::new(first.z(), m),
            products: Tensor::zeros([batch, m, m], options),
            sizes: Tensor::ones([batch, m, 1], options),
            valid: Tensor::zeros([batch, m, 1], options),
            next: 0,
            previous: None,
            norms: None,
        }
    }

    fn step(&self, at: &Iterate, state: &mut Self::State) -> Tensor<2> {
        match self.config.kind {
            AndersonType::TypeI => self.step_type_i(at, state),
            AndersonType::TypeII => self.step_type_ii(at, state),
        }
    }
}

impl Anderson {
    /// `z + mixing g`
    fn mixed(&self, at: &Iterate) -> Tensor<2> {
        if self.config.mixing >= 1.0 {
            return at.fz().clone();
        }
        at.z().clone() + at.residual().clone().mul_scalar(self.config.mixing)
    }

    fn step_type_ii(&self, at: &Iterate, state: &mut AndersonState) -> Tensor<2> {
        let m = self.config.history;
        let slot = state.next;
        state.next = (slot + 1) % m;
        // Of z and f(z), the residual is differentiated if either is.
        if AndersonStep::is_supported(at.residual(), m) {
            return self.step_at_once(at, state, slot);
        }
        // Squares of residuals that are kept by their direction stay within the range of the type.
        let size = largest(at.residual());
        let direction = at.residual().clone() / size.clone();
        state.residuals.set(slot, direction.clone());
        state.points.set(slot, self.mixed(at));
        let row = pad(state.residuals.dot(&direction), m);
        drop(direction);
        state.write_products(slot, row.clone(), row);
        state.sizes = write(&state.sizes, slot, size);
        let plain = state.unit(slot);
        state.validate(&plain);

        let eye = identity(m, &state.products);
        // Scaled to a unit diagonal, the system does not notice that residuals shrink by orders of
        // magnitude. Slots that a sample must not use get a zero row and a zero right side.
        let squares = (state.products.clone() * eye.clone()).sum_dim(2);
        // The largest entry of a direction is 1.
        let inverse = squares.clamp_min(1.0).sqrt().recip() * state.valid.clone();
        let matrix = state.products.clone() * inverse.clone() * as_rows(inverse.clone());
        let inverse = inverse / state.sizes.clone();
        let ridge = match self.config.ridge {
            Ridge::Relative => eye.mul_scalar(self.config.regularization),
            // Never 0 on the diagonal of an unused slot, and a finite number for a residual of 0.
            Ridge::Absolute => {
                let inverse_squares = inverse.clone().clamp_max(1e18).square();
                eye * (inverse_squares.mul_scalar(self.config.regularization)
                    - state.valid.clone().sub_scalar(1.0))
            }
        };
        let scale = inverse.clone() / inverse.max_dim(1);
        let solution = solve_positive_definite(matrix + ridge, scale.clone()) * scale;
        let weights = solution.clone() / solution.sum_dim(1);
        let weights = state.safeguard(weights, &plain, self.config.max_weight);
        state
            .points
            .combine(&weights.narrow(1, 0, state.points.slots()))
    }

    /// The same by the kernel of the device.
    fn step_at_once(&self, at: &Iterate, state: &mut AndersonState, slot: usize) -> Tensor<2> {
        state.residuals.reserve(slot);
        state.points.reserve(slot);
        let none = || Tensor::empty([0, 0, 0], &at.z().device());
        let window = AndersonWindow {
            residuals: state.residuals.take(),
            points: state.points.take(),
            products: std::mem::replace(&mut state.products, none()),
            sizes: std::mem::replace(&mut state.sizes, none()),
            valid: std::mem::replace(&mut state.valid, none()),
        };
        let step = AndersonStep {
            z: at.z(),
            fz: at.fz(),
            residual: at.residual(),
            slot,
            used: state.points.len(),
            mixing: self.config.mixing,
            regularization: self.config.regularization,
            relative: self.config.ridge == Ridge::Relative,
            max_weight: self.config.max_weight,
        };
        let (window, next) = step.run(window);
        state.residuals.put(window.residuals);
        state.points.put(window.points);
        state.products = window.products;
        state.sizes = window.sizes;
        state.valid = window.valid;
        next
    }

    fn step_type_i(&self, at: &Iterate, state: &mut AndersonState) -> Tensor<2> {
        let m = self.config.history;
        let plain = self.mixed(at);
        let Some(previous) = state.previous.replace(at.clone()) else {
            return plain;
        };
        let slot = state.next;
        state.next = (slot + 1) % m;
        let dz = at.z().clone() - previous.z().clone();
        let dg = at.residual().clone() - previous.residual().clone();
        drop(previous);
        let length = largest(&dz);
        let (dz, dg) = (dz / length.clone(), dg / length);
        let mut norms = state
            .norms
            .take()
            .unwrap_or_else(|| [state.valid.zeros_like(), state.valid.zeros_like()]);
        for (norms, difference) in norms.iter_mut().zip([&dz, &dg]) {
            *norms = write(norms, slot, squares(difference));
        }
        state.points.set(slot, dz.clone());
        state.residuals.set(slot, dg.clone());
        let row = pad(state.residuals.dot(&dz), m);
        let column = pad(state.points.dot(&dg), m);
        drop((dz, dg));
        state.write_products(slot, row, column);
        state.validate(&state.unit(slot));
        let left = inverse_norms(&norms[0]) * state.valid.clone();
        let right = inverse_norms(&norms[1]) * state.valid.clone();
        state.norms = Some(norms);

        // -dZ^T dG has a positive definite symmetric part where f does not expand, so the ridge
        // goes with that sign.
        let eye = identity(m, &state.products);
        let matrix = state.products.clone().neg() * left.clone() * as_rows(right.clone());
        let unused = eye.clone() * (state.valid.clone().neg().add_scalar(1.0));
        let matrix = matrix + eye.mul_scalar(self.config.regularization) + unused;
        let rhs = pad(state.points.dot(at.residual()), m).neg() * left;
        let gamma = solve_general(matrix, rhs) * right;
        let gamma = gamma.narrow(1, 0, state.points.slots());
        let added = state.points.combine(&gamma)
            + state
                .residuals
                .combine(&gamma)
                .mul_scalar(self.config.mixing);
        // Differences have no common scale, so the move that they add is compared with the plain
        // one. False for a NaN.
        let limit = self.config.max_weight;
        let unit = largest(at.residual());
        let size = squares(&(added.clone() / unit.clone()));
        let bound = squares(&(at.residual().clone() / unit));
        let trusted = size.lower_equal(bound.mul_scalar(limit * limit));
        state.forget(trusted.clone().unsqueeze_dim::<3>(2));
        let trusted = trusted.expand(plain.shape());
        plain.clone().mask_where(trusted, plain - added)
    }
}

impl AndersonState {
    fn write_products(&mut self, slot: usize, row: Tensor<3>, column: Tensor<3>) {
        let [batch, m, _] = self.products.dims();
        self.products = self
            .products
            .clone()
            .slice_assign([0..batch, slot..slot + 1, 0..m], as_rows(row))
            .slice_assign([0..batch, 0..m, slot..slot + 1], column);
    }

    /// Lets every sample use the slot that `unit` chooses.
    fn validate(&mut self, unit: &Tensor<3>) {
        self.valid = self.valid.clone().max_pair(unit.clone());
    }

    /// The weights that choose the newest point alone.
    fn unit(&self, slot: usize) -> Tensor<3> {
        let [batch, _, _] = self.valid.dims();
        let one = Tensor::ones([batch, 1], (&self.valid.device(), self.valid.dtype()));
        write(&self.valid.zeros_like(), slot, one)
    }

    /// Replaces weights that cannot be trusted by the plain step, and empties the window of that
    /// sample.
    fn safeguard(&mut self, weights: Tensor<3>, plain: &Tensor<3>, limit: f64) -> Tensor<3> {
        // A comparison with NaN is false.
        let trusted = weights.clone().abs().sum_dim(1).lower_equal_elem(limit);
        let trusted = trusted.expand(weights.shape());
        self.valid = plain
            .clone()
            .mask_where(trusted.clone(), self.valid.clone());
        plain.clone().mask_where(trusted, weights)
    }

    /// Empties the windows of samples that are not `[batch, 1, 1]` trusted.
    fn forget(&mut self, trusted: Tensor<3, burn::tensor::Bool>) {
        let trusted = trusted.expand(self.valid.shape());
        self.valid = self
            .valid
            .zeros_like()
            .mask_where(trusted, self.valid.clone());
    }
}

/// `[batch, m, 1]` with `[batch, 1]` written into a slot.
fn write(slots: &Tensor<3>, slot: usize, column: Tensor<2>) -> Tensor<3> {
    let [batch, _, _] = slots.dims();
    slots.clone().slice_assign(
        [0..batch, slot..slot + 1, 0..1],
        column.unsqueeze_dim::<3>(2),
    )
}

/// `1 / sqrt(squares)`, bounded where a vector is 0.
fn inverse_norms(squares: &Tensor<3>) -> Tensor<3> {
    squares
        .clone()
        .clamp_min(f64::from(f32::MIN_POSITIVE))
        .sqrt()
        .recip()
}
