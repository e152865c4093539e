//! The two estimators of the penalty.

use crate::config::{Estimator, JacobianPenalty, Probe};
use crate::difference::{CentralDifference, finite_rows, keep_rows, relative_step};
use crate::error::InvalidPenalty;
use burn::tensor::{Bool, Distribution, Tensor, assert_shape};
use deq_core::{EquilibriumCell, FrozenCell, TangentCell};

/// One estimate of the penalty and what it cost.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub struct Penalty {
    /// The estimate of `|J|_F^2 / (batch * dim)`, `[1]`, not yet weighted. Its gradient reaches the cell's parameters and
    /// whatever the context was computed from.
    pub value: Tensor<1>,
    /// Which samples contribute, `[batch]`: those for which the state, `J^T v` and `f` near the state are finite. The
    /// others count as zero in `value`.
    pub finite: Tensor<1, Bool>,
    /// Tracked evaluations of `f`, or of its tangent, on the whole batch.
    pub nfe: usize,
    /// Vector-Jacobian products with the whole batch.
    pub products: usize,
}

/// The contribution of one probe: per sample, without the common divisor.
struct Contribution {
    /// `|J^T v|^2` or `|J v|^2`, `[batch, 1]`, tracked.
    value: Tensor<2>,
    /// `[batch, 1]`.
    finite: Tensor<2, Bool>,
}

impl JacobianPenalty {
    /// Estimates the penalty at an equilibrium with freshly drawn probes, by differences.
    ///
    /// ```text
    /// cotangent   w = J^T v                                  exact product, held fixed
    ///             value     |w|^2
    ///             gradient  d/dtheta  v^T (f(z + h w) - f(z - h w)) / h     which tends to 2 v^T (dJ/dtheta) w
    ///
    /// tangent     value     |(f(z + h v) - f(z - h v)) / (2 h)|^2            and its gradient
    /// ```
    ///
    /// The step `h` is chosen per sample: `h * max|w| = eps^(1/3) * max(mean|z|, 0.01)`, with `eps` the machine epsilon of the
    /// state's type. A central difference errs by a multiple of `h^2` (truncation) plus one of `eps / h` (rounding), and
    /// the cube root balances the two: for smooth cells the relative error of the gradient is near 3e-11 in f64 and 3e-5 in
    /// f32. The state's size enters because `f` at an equilibrium is as large, and bends over distances as long, as `z` itself;
    /// the largest entry of the direction enters rather than its norm, so that no coordinate moves far.
    ///
    /// **Do not use it in f32 for a cell with kinks** (ReLU). A unit that crosses its kink within the step adds a term of
    /// order `1 / h` to the gradients before it, so that larger and smaller steps are noisy alike: in a two-layer
    /// ReLU cell those gradients were off by several times their size, with 1 sample as with 4096. The term
    /// is not an artefact: it is a sample of how the parameters move units across their kinks, which a double backward
    /// pass leaves out, but its variance is too large to train with. [`estimate_exact`](Self::estimate_exact) is free of it.
    ///
    /// The equilibrium is a constant here: no gradient flows through it to the solve that found it, as in the
    /// reference code. Probes come from the generator of the state's device.
    ///
    /// Memory: the tape of `2 * vectors` evaluations of `f`. Where only the value is wanted, as in validation, pass
    /// `cell.valid()` and an untracked context: nothing is recorded then. (Burn keeps a tape that is never
    /// differentiated until a later backward pass frees it.)
    ///
    /// # Shapes
    ///
    /// - z_star: `[batch, dim]`, tracked or not
    ///
    /// # Returns
    ///
    /// The unweighted penalty: multiply it by [`weight_at`](Self::weight_at) and add it to the loss.
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::UnsupportedDType`] if the state is in neither f32 nor f64.
    pub fn estimate<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z_star: Tensor<2>,
    ) -> Result<Penalty, InvalidPenalty> {
        relative_step(z_star.dtype())?;
        let probes = self.draw(&z_star);
        self.estimate_with_probes(cell, context, z_star, &probes)
    }

    /// [`estimate`](Self::estimate) with given probes, whose number replaces
    /// [`vectors`](crate::JacobianPenaltyConfig::vectors).
    ///
    /// With the `dim` probes `sqrt(dim) * e_i` (on every row) the value is `|J|_F^2 / (batch * dim)` exactly, and its gradient
    /// that of the exact norm.
    ///
    /// # Shapes
    ///
    /// - z_star and each probe: `[batch, dim]`
    ///
    /// # Errors
    ///
    /// As [`estimate`](Self::estimate); [`InvalidPenalty::NoProbes`] if `probes` is empty.
    ///
    /// # Panics
    ///
    /// If a probe has another shape than the state.
    pub fn estimate_with_probes<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z_star: Tensor<2>,
        probes: &[Tensor<2>],
    ) -> Result<Penalty, InvalidPenalty> {
        let relative = relative_step(z_star.dtype())?;
        let frozen = FrozenCell::new(cell, context);
        let mut penalty = self.assemble(&frozen, z_star, probes, |z, direction| {
            difference(
                cell,
                context,
                CentralDifference::new(z, direction, relative),
            )
        })?;
        penalty.nfe = 2 * probes.len();
        Ok(penalty)
    }

    /// Estimates the penalty at an equilibrium with freshly drawn probes, by the cell's own tangent.
    ///
    /// ```text
    /// cotangent   value |w|^2,  w = J^T v held fixed;  gradient  d/dtheta  2 v^T J w
    /// tangent     value |J v|^2                        and its gradient
    /// ```
    ///
    /// Values and gradients are those of a double backward pass, up to rounding. Any floating-point type will do.
    ///
    /// # Shapes
    ///
    /// - z_star: `[batch, dim]`, tracked or not
    ///
    /// # Returns
    ///
    /// The unweighted penalty. Each tangent counts as one evaluation of `f`.
    ///
    /// # Errors
    ///
    /// None with settings made by [`build`](crate::JacobianPenaltyConfig::build).
    pub fn estimate_exact<C: TangentCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z_star: Tensor<2>,
    ) -> Result<Penalty, InvalidPenalty> {
        let probes = self.draw(&z_star);
        self.estimate_exact_with_probes(cell, context, z_star, &probes)
    }

    /// [`estimate_exact`](Self::estimate_exact) with given probes, whose number replaces
    /// [`vectors`](crate::JacobianPenaltyConfig::vectors).
    ///
    /// # Shapes
    ///
    /// - z_star and each probe: `[batch, dim]`
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::NoProbes`] if `probes` is empty.
    ///
    /// # Panics
    ///
    /// If a probe has another shape than the state.
    pub fn estimate_exact_with_probes<C: TangentCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z_star: Tensor<2>,
        probes: &[Tensor<2>],
    ) -> Result<Penalty, InvalidPenalty> {
        let frozen = FrozenCell::new(cell, context);
        self.assemble(&frozen, z_star, probes, |z, direction| {
            cell.tangent(z.clone(), direction.clone(), context)
        })
    }

    /// The penalty with `derivative` for `(z, d) -> J(z) d`, tracked.
    fn assemble<C: EquilibriumCell>(
        &self,
        frozen: &FrozenCell<C>,
        z_star: Tensor<2>,
        probes: &[Tensor<2>],
        derivative: impl Fn(&Tensor<2>, &Tensor<2>) -> Tensor<2>,
    ) -> Result<Penalty, InvalidPenalty> {
        // The state stays on the plain device, where it is a constant to every tape and fits any checkpointing strategy.
        let z = z_star.inner();
        let [batch, dim] = z.dims();
        let mut finite = finite_rows(&z);
        // A cell must not see a row that would poison the gradients of the shared parameters.
        let z = keep_rows(z, &finite);

        let product = match self.config.estimator {
            Estimator::Cotangent => Some(frozen.linearize(z.clone())),
            Estimator::Tangent => None,
        };
        let mut values = Vec::with_capacity(probes.len());
        for probe in probes {
            assert_shape!(probe, [batch, dim]);
            let probe = probe.clone().inner();
            let drawn = finite_rows(&probe);
            let probe = keep_rows(probe, &drawn);
            let contribution = match &product {
                Some(product) => {
                    let image = product(probe.clone());
                    cotangent(probe, image, |image| derivative(&z, image))
                }
                None => tangent(derivative(&z, &probe)),
            };
            finite = finite.bool_and(drawn).bool_and(contribution.finite);
            values.push(contribution.value);
        }
        // A factor, not a divisor: Burn's derivative of a division by a number rounds the number to f32.
        let share = 1.0 / (probes.len() * batch * dim) as f64;
        let value = values
            .into_iter()
            .map(|value| (keep_rows(value, &finite) * share).sum())
            .reduce(|sum, value| sum + value)
            .ok_or(InvalidPenalty::NoProbes)?;
        Ok(Penalty {
            value,
            finite: finite.squeeze_dim(1),
            nfe: probes.len(),
            products: product.map_or(0, |_| probes.len()),
        })
    }

    fn draw(&self, z_star: &Tensor<2>) -> Vec<Tensor<2>> {
        let z = z_star.clone().inner();
        (0..self.config.vectors)
            .map(|_| self.config.distribution.draw(&z))
            .collect()
    }
}

/// `(f(z + h d) - f(z - h d)) / (2 h)`, tracked, `[batch, dim]`.
fn difference<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    points: CentralDifference,
) -> Tensor<2> {
    let change = cell.forward(points.plus, context) - cell.forward(points.minus, context);
    change * points.factor
}

/// `|w|^2` with the gradient of `2 v^T (J w)`, for `w = J^T v` given as `image`.
fn cotangent(
    probe: Tensor<2>,
    image: Tensor<2>,
    derivative: impl Fn(&Tensor<2>) -> Tensor<2>,
) -> Contribution {
    let norm_sq = image.clone().square().sum_dim(1);
    let finite = finite_rows(&image).bool_and(norm_sq.clone().is_finite());
    let image = keep_rows(image, &finite);
    let norm_sq = keep_rows(norm_sq, &finite);

    let surrogate = derivative(&image) * (probe * 2.0);
    let usable = surrogate.clone().inner().sum_dim(1).is_finite();
    let surrogate = keep_rows(surrogate, &usable).sum_dim(1);
    let value = surrogate.clone() - surrogate.inner() + norm_sq;
    Contribution {
        value,
        finite: finite.bool_and(usable),
    }
}

/// `|J v|^2` with its own gradient, for `J v` given as `derivative`.
fn tangent(derivative: Tensor<2>) -> Contribution {
    let finite = derivative.clone().inner().square().sum_dim(1).is_finite();
    let value = keep_rows(derivative, &finite).square().sum_dim(1);
    Contribution { value, finite }
}

impl Probe {
    /// Draws one probe in the shape, type and on the device of `z`.
    fn draw(self, z: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Gaussian => z.random_like(Distribution::Normal(0.0, 1.0)),
            Self::Rademacher => {
                let heads = z
                    .random_like(Distribution::Uniform(0.0, 1.0))
                    .lower_elem(0.5);
                z.full_like(-1.0).mask_fill(heads, 1.0)
            }
        }
    }
}
