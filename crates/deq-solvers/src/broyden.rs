//! Broyden's good method with low-rank factors.

use crate::error::{InvalidConfig, require};
use crate::map::Iterate;
use crate::solver::FixedPointSolver;
use burn::config::Config;
use burn::tensor::Tensor;

/// Configuration of [`Broyden`].
#[derive(Config, Debug, PartialEq)]
pub struct BroydenConfig {
    /// The most rank-one terms kept. Memory is `2 history batch dim` numbers. When they are used up, the approximation starts afresh
    /// from -I, which keeps every secant condition that it claims. Default 30, the default budget of steps: no restart
    /// happens within it.
    #[config(default = 30)]
    pub history: usize,
}

impl BroydenConfig {
    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] if `history` is 0.
    pub fn build(&self) -> Result<Broyden, InvalidConfig> {
        require(
            self.history >= 1,
            "broyden.history",
            self.history as f64,
            "at least 1",
        )?;
        Ok(Broyden {
            history: self.history,
        })
    }
}

/// Broyden's good method for `g(z) = f(z) - z = 0`, one approximation of the inverse Jacobian per sample.
///
/// ```text
/// z  <- z - B g(z)                        B = -I + sum_i u_i v_i^T
/// v   = B^T dz
/// u   = (dz - B dg) / (v . dg)
/// ```
///
/// Use it where plain iteration and Anderson fail because the map expands in some direction: B learns the
/// Jacobian along the directions visited. Its factors after a forward solve also approximate the inverse Jacobian that
/// the backward solve needs. Prefer Anderson when memory is tight.
///
/// Cost per step with `k` terms: one evaluation of `f`, about `6 k` inner products or updates of length `dim`. Memory:
/// `2 k` states.
///
/// # References
///
/// - Broyden, "A class of methods for solving nonlinear simultaneous equations", Math. Comp. 1965.
/// - Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019, Appendix A.
///
/// # Differences from the reference code
///
/// - An update whose denominator `v . dg` vanishes beside `|v| |dg|` is skipped for that sample; `locuslab/deq` divides and sets NaN to 0.
/// - When `history` is full, the approximation restarts. TorchDEQ overwrites the oldest term in place, after which the newer
///   terms no longer satisfy their secant conditions.
/// - The evaluation of the start counts as a step and can be the best iterate.
#[derive(Clone, Debug)]
pub struct Broyden {
    history: usize,
}

/// The previous point and the low-rank factors of [`Broyden`].
#[derive(Debug)]
pub struct BroydenState {
    z: Tensor<2>,
    residual: Tensor<2>,
    inverse: InverseJacobian,
}

/// `B = -I + U^T V` with the rows of U and V stored per sample, `[batch, k, dim]`.
#[derive(Debug, Default)]
struct InverseJacobian {
    factors: Option<(Tensor<3>, Tensor<3>)>,
}

impl InverseJacobian {
    fn rank(&self) -> usize {
        self.factors.as_ref().map_or(0, |(u, _)| u.dims()[1])
    }

    /// `B x`
    fn apply(&self, x: &Tensor<2>) -> Tensor<2> {
        match &self.factors {
            None => x.clone().neg(),
            Some((u, v)) => low_rank(u, v, x) - x.clone(),
        }
    }

    /// `B^T x`
    fn apply_transposed(&self, x: &Tensor<2>) -> Tensor<2> {
        match &self.factors {
            None => x.clone().neg(),
            Some((u, v)) => low_rank(v, u, x) - x.clone(),
        }
    }

    fn update(&mut self, dz: &Tensor<2>, dg: &Tensor<2>) {
        let v = self.apply_transposed(dz);
        let numerator = dz.clone() - self.apply(dg);
        let denominator = dot(&v, dg);
        let size = (dot(&v, &v) * dot(dg, dg)).sqrt();
        let epsilon = f64::from(f32::EPSILON);
        // Written so that a NaN anywhere also counts as vanishing.
        let usable = denominator
            .clone()
            .abs()
            .greater(size.mul_scalar(epsilon))
            .bool_and(denominator.clone().is_finite());
        let u = numerator / denominator;
        let usable = usable.expand(u.shape());
        let u: Tensor<3> = u
            .zeros_like()
            .mask_where(usable.clone(), u)
            .unsqueeze_dim(1);
        let v: Tensor<3> = v.zeros_like().mask_where(usable, v).unsqueeze_dim(1);
        self.factors = Some(match self.factors.take() {
            None => (u, v),
            Some((us, vs)) => (Tensor::cat(vec![us, u], 1), Tensor::cat(vec![vs, v], 1)),
        });
    }
}

/// `sum_i left_i (right_i . x)` for every sample.
fn low_rank(left: &Tensor<3>, right: &Tensor<3>, x: &Tensor<2>) -> Tensor<2> {
    let column: Tensor<3> = x.clone().unsqueeze_dim(2);
    let weights = right.clone().matmul(column); // [batch, k, 1]
    weights
        .swap_dims(1, 2)
        .matmul(left.clone())
        .squeeze_dim::<2>(1)
}

/// Inner products per sample, `[batch, 1]`.
fn dot(a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
    (a.clone() * b.clone()).sum_dim(1)
}

impl FixedPointSolver for Broyden {
    type State = Option<BroydenState>;

    fn name(&self) -> &'static str {
        "broyden"
    }

    fn init(&self, _first: &Iterate) -> Self::State {
        None
    }

    fn step(&self, at: &Iterate, state: &mut Self::State) -> Tensor<2> {
        let residual = at.residual();
        let inverse = match state.take() {
            None => InverseJacobian::default(),
            Some(previous) => {
                let mut inverse = previous.inverse;
                if inverse.rank() >= self.history {
                    inverse = InverseJacobian::default();
                }
                let dz = at.z.clone() - previous.z;
                let dg = residual.clone() - previous.residual;
                inverse.update(&dz, &dg);
                inverse
            }
        };
        let next = at.z.clone() - inverse.apply(&residual);
        *state = Some(BroydenState {
            z: at.z.clone(),
            residual,
            inverse,
        });
        next
    }
}
