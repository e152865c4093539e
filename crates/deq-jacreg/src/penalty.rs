//! The two estimators of the penalty.

use crate::config::{Estimator, JacobianPenalty, Probe};
use crate::difference::{CentralDifference, finite_rows, keep_rows, relative_step};
use crate::error::{InvalidPenalty, require};
use burn::tensor::{Bool, Distribution, Tensor, assert_shape};
use deq_core::{EquilibriumCell, FrozenCell, TangentCell, recomputed};

/// One estimate of the penalty and what it cost.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub struct Penalty {
    /// The estimate of `|J|_F^2 / (batch * dim)`, `[1]`, not yet weighted. Its gradient reaches the cell's parameters and
    /// whatever the context was computed from.
    pub value: Tensor<1>,
    /// The same for every sample, `[batch]`: estimates of `|J|_F^2 / dim`, whose mean is `value`. For losses that weigh samples.
    pub per_sample: Tensor<1>,
    /// Which samples contribute, `[batch]`: those for which the state, `J^T v` and, where it is evaluated before the backward pass, `f` near the state
    /// are finite. The others count as zero in `value`.
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
        let probes = self.draw(cell, context, &z_star);
        let penalty = self.estimate_with_probes(cell, context, z_star, &probes.vectors)?;
        Ok(probes.charge(penalty))
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
        let point = Point::new(z_star, probes)?;
        let difference = |z: &Tensor<2>, direction: &Tensor<2>| {
            let points = CentralDifference::new(z, direction, relative);
            let change = cell.forward(points.plus, context) - cell.forward(points.minus, context);
            change * points.factor
        };
        let mut penalty = match self.config.estimator {
            Estimator::Tangent => point.penalty(|z, probe| tangent(difference(z, &probe))),
            Estimator::Cotangent => {
                let frozen = FrozenCell::new(cell, context);
                let product = frozen.linearize(point.z.clone());
                let mut penalty = point.penalty(|z, probe| {
                    let image = product(probe.clone());
                    cotangent(probe, image, |image| difference(z, image))
                });
                penalty.products = probes.len();
                penalty
            }
        };
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
        let probes = self.draw(cell, context, &z_star);
        let penalty = self.estimate_exact_with_probes(cell, context, z_star, &probes.vectors)?;
        Ok(probes.charge(penalty))
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
        let point = Point::new(z_star, probes)?;
        Ok(match self.config.estimator {
            Estimator::Cotangent => point.deferred_penalty(cell, context),
            Estimator::Tangent => {
                point.penalty(|z, probe| tangent(cell.tangent(z.clone(), probe, context)))
            }
        })
    }

    /// Estimates the penalty by one-sided differences from an image that is at hand, the
    /// [`Equilibrium::image`](deq_core::Equilibrium) of the layer: one evaluation of `f` per probe and nothing else.
    ///
    /// ```text
    /// value     |(f(z + h v) - f(z)) / h|^2         and its gradient
    /// ```
    ///
    /// It is the tangent estimate whatever [`Estimator`] says. A one-sided difference errs by a multiple of `h`, so the step is
    /// `eps^(1/2)` in the units of [`estimate`](Self::estimate), and the error of that order too: 1.5e-8 in f64, 3e-4 in f32. What is said there about
    /// kinks holds here.
    ///
    /// # Shapes
    ///
    /// - z_star, image: `[batch, dim]`; `image` is `f(z_star)`, tracked
    ///
    /// # Errors
    ///
    /// As [`estimate`](Self::estimate).
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    pub fn estimate_one_sided<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z_star: Tensor<2>,
        image: Tensor<2>,
    ) -> Result<Penalty, InvalidPenalty> {
        // The central difference's step is the cube root of epsilon; this one wants the square root.
        let relative = relative_step(z_star.dtype())?.powf(1.5);
        let [batch, dim] = z_star.dims();
        assert_shape!(image, [batch, dim]);
        let probes = self.draw(cell, context, &z_star);
        let penalty = Point::new(z_star, &probes.vectors)?.penalty(|z, probe| {
            let points = CentralDifference::new(z, &probe, relative);
            let change = cell.forward(points.plus, context) - image.clone();
            tangent(change * (points.factor * 2.0))
        });
        Ok(probes.charge(penalty))
    }

    /// The denoising energy: how far `f` carries a disturbed equilibrium from where it was.
    ///
    /// ```text
    /// value     |f(z + sigma v) - z|^2 / sigma^2           and its gradient
    /// ```
    ///
    /// For small `sigma` it is the tangent estimate with `z` in the place of `f(z)`, so that what the solve left of the residual counts
    /// too, as `|f(z) - z|^2 / sigma^2`. A larger `sigma` makes `f` contract on a ball around the equilibrium instead of at one point. One tracked
    /// evaluation per probe, any float type, and no trouble with kinks once `sigma` is larger than their distances.
    ///
    /// Perschewski and Stober, "Efficient Deep Equilibrium Models [...]", Procedia Computer Science 2025, doi 10.1016/j.procs.2025.07.136. Their code does
    /// not divide by `sigma^2`; here the weight means the same for all estimates.
    ///
    /// # Shapes
    ///
    /// - z_star: `[batch, dim]`
    /// - sigma: the standard deviation of the disturbance, in the units of the state
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::OutOfRange`] if `sigma` is not a positive number.
    pub fn denoising_energy<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z_star: Tensor<2>,
        sigma: f64,
    ) -> Result<Penalty, InvalidPenalty> {
        require(
            sigma.is_finite() && sigma > 0.0,
            "sigma",
            sigma,
            "a finite number above 0",
        )?;
        let probes = self.draw(cell, context, &z_star);
        let penalty = Point::new(z_star, &probes.vectors)?.penalty(|z, probe| {
            let disturbed = z.clone() + probe * sigma;
            tangent((cell.forward(disturbed, context) - z.clone()) * (1.0 / sigma))
        });
        Ok(probes.charge(penalty))
    }

    fn draw<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z_star: &Tensor<2>,
    ) -> Probes {
        let z = z_star.clone().inner();
        let mut probes = Probes {
            vectors: (0..self.config.vectors)
                .map(|_| self.config.distribution.draw(&z))
                .collect(),
            products: self.config.vectors * self.config.power_iterations,
        };
        if self.config.power_iterations > 0 {
            let frozen = FrozenCell::new(cell, context);
            let product = frozen.linearize(z);
            for vector in &mut probes.vectors {
                for _ in 0..self.config.power_iterations {
                    *vector = lengthened(product(vector.clone()));
                }
            }
        }
        probes
    }
}

/// Freshly drawn probes.
struct Probes {
    /// `[batch, dim]` each.
    vectors: Vec<Tensor<2>>,
    /// Products that turned them.
    products: usize,
}

impl Probes {
    /// The penalty that was estimated with them, their own cost included.
    fn charge(&self, mut penalty: Penalty) -> Penalty {
        penalty.products += self.products;
        penalty
    }
}

/// Where a penalty is estimated, and along what. Rows that are not finite are zero: a cell must not see a row that would poison the gradients of the shared
/// parameters.
struct Point {
    /// `[batch, dim]`, on the plain device, where it is a constant to every tape and fits any checkpointing strategy.
    z: Tensor<2>,
    /// `[batch, dim]` each, on the plain device.
    probes: Vec<Tensor<2>>,
    /// Which rows are finite in all of them, `[batch, 1]`.
    finite: Tensor<2, Bool>,
}

impl Point {
    /// # Errors
    ///
    /// [`InvalidPenalty::NoProbes`] if `probes` is empty.
    ///
    /// # Panics
    ///
    /// If a probe has another shape than the state.
    fn new(z_star: Tensor<2>, probes: &[Tensor<2>]) -> Result<Self, InvalidPenalty> {
        if probes.is_empty() {
            return Err(InvalidPenalty::NoProbes);
        }
        let z = z_star.inner();
        let [batch, dim] = z.dims();
        let own = finite_rows(&z);
        let mut finite = own.clone();
        let probes = probes.iter().map(|probe| {
            assert_shape!(probe, [batch, dim]);
            let probe = probe.clone().inner();
            let drawn = finite_rows(&probe);
            finite = finite.clone().bool_and(drawn.clone());
            keep_rows(probe, &drawn)
        });
        let probes = probes.collect();
        Ok(Self {
            z: keep_rows(z, &own),
            probes,
            finite,
        })
    }

    /// What every probe's part of a sample's estimate is multiplied by. A factor, not a divisor: Burn's derivative of a division by a number rounds the number to f32.
    fn share(&self) -> f64 {
        let [_, dim] = self.z.dims();
        1.0 / (self.probes.len() * dim) as f64
    }

    /// The penalty made of one tracked contribution, of one evaluation, per probe.
    fn penalty(&self, contribution: impl Fn(&Tensor<2>, Tensor<2>) -> Contribution) -> Penalty {
        let mut finite = self.finite.clone();
        let mut values = Vec::with_capacity(self.probes.len());
        for probe in &self.probes {
            let contribution = contribution(&self.z, probe.clone());
            finite = finite.bool_and(contribution.finite);
            values.push(contribution.value);
        }
        let share = self.share();
        let per_sample = values
            .into_iter()
            .map(|value| keep_rows(value, &finite) * share);
        Penalty::new(summed(per_sample), finite, self.probes.len())
    }

    /// The cotangent estimate, whose value needs no tape. What its gradient needs is recorded only in the backward pass, when the tape of the layer itself is gone.
    fn deferred_penalty<C: TangentCell>(self, cell: &C, context: &C::Context) -> Penalty {
        let frozen = FrozenCell::new(cell, context);
        let product = frozen.linearize(self.z.clone());
        let images: Vec<Tensor<2>> = self.probes.iter().cloned().map(&product).collect();
        let finite = images.iter().fold(self.finite.clone(), |finite, image| {
            finite.bool_and(finite_rows(&image.clone().square().sum_dim(1)))
        });
        let share = self.share();
        // Samples that are not finite take no part, neither in the value nor in the gradient.
        let images: Vec<Tensor<2>> = images
            .into_iter()
            .map(|image| keep_rows(image, &finite))
            .collect();
        let squares = images
            .iter()
            .map(|image| image.clone().square().sum_dim(1) * share);
        let value = summed(squares);
        let count = self.probes.len();
        let (z, probes, rows) = (self.z, self.probes, finite.clone());
        let per_sample = recomputed(cell, context, value, move |cell, context| {
            let terms = probes.iter().zip(&images).map(|(probe, image)| {
                let tangent = cell.tangent(z.clone(), image.clone(), context);
                let term = tangent * keep_rows(probe.clone() * (2.0 * share), &rows);
                let usable = finite_rows(&term.clone().inner().sum_dim(1));
                keep_rows(term, &usable).sum_dim(1)
            });
            summed(terms)
        });
        let mut penalty = Penalty::new(per_sample, finite, count);
        penalty.products = count;
        penalty
    }
}

/// The sum of columns `[batch, 1]`, of which there is at least one, as `[batch]`.
fn summed(columns: impl Iterator<Item = Tensor<2>>) -> Tensor<1> {
    columns
        .reduce(|sum, column| sum + column)
        .expect("at least one probe")
        .squeeze_dim(1)
}

impl Penalty {
    /// From its samples' shares, with `nfe` evaluations and no product.
    fn new(per_sample: Tensor<1>, finite: Tensor<2, Bool>, nfe: usize) -> Self {
        let [batch] = per_sample.dims();
        Self {
            value: per_sample.clone().sum() * (1.0 / batch as f64),
            per_sample,
            finite: finite.squeeze_dim(1),
            nfe,
            products: 0,
        }
    }
}

/// The rows with the length that a probe has on average, `sqrt(dim)`; a row of zeros stays.
fn lengthened(rows: Tensor<2>) -> Tensor<2> {
    let [_, dim] = rows.dims();
    let norm = rows.clone().square().sum_dim(1).sqrt();
    let norm = norm.clone().mask_fill(norm.equal_elem(0.0), 1.0);
    rows * norm.recip().mul_scalar((dim as f64).sqrt())
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
