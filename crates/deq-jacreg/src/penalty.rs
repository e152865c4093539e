//! The penalty at a state, with its gradient.

use crate::config::{DenoisingConfig, Estimator, JacobianPenaltyConfig, Probe};
use crate::difference::{
    CentralDifference, finite_rows, keep_rows, relative_step, row_squares, wide,
};
use crate::error::InvalidPenalty;
use burn::tensor::{Bool, Distribution, Tensor, assert_shape};
use deq_core::{
    CellAt, CellContext, Equilibrium, EquilibriumCell, Evaluation, MapAt, State, StateLayout,
    random,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The stochastic Jacobian penalty of Bai et al. 2021; made by [`JacobianPenaltyConfig::build`].
///
/// Adds to the loss of a training step, at the equilibrium `z*` of a batch,
///
/// ```text
/// loss + tau * gamma * 1/(M n) * sum over M probes v of |J^T v|^2,      J = df/dz at (z*, context)
/// ```
///
/// with `n = batch * dim`; a [`PenaltyPolicy`](crate::PenaltyPolicy) draws `tau` and gives `gamma`.
/// The sum estimates the Frobenius norm `|J|_F^2`, which bounds the squared spectral radius of `J`
/// from above. A smaller radius makes the forward and the backward solve converge in fewer steps.
///
/// With `power_iterations`, every probe is first multiplied by `J^T` so many times and brought back
/// to its length `sqrt(dim)`. Near the dominant left eigenvector, `|J^T v|^2 / dim` is the squared
/// spectral radius itself instead of its bound, at one product more per round: the regulariser of
/// STARS. The direction counts as a constant in the gradient. Only the cotangent estimate takes
/// them.
///
/// Use it when solves need more steps as training goes on. It does not help a model whose budget is
/// already ample, and costs some accuracy when the weight is large.
///
/// # References
///
/// - Bai, Koltun, Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", ICML 2021,
///   <https://arxiv.org/abs/2106.14342>, equation 6 and section 4.
/// - "STARS", arXiv 2605.26733 (probes turned by power iteration).
/// - Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in
///   Statistics 1989.
///
/// # Differences from the reference code
///
/// `locuslab/deq` differentiates `|J^T v|^2` by a second backward pass. Burn differentiates once,
/// so the gradient is taken of the cell's own tangent here, or of a central difference: see
/// [`at`](Self::at). The random decision whether a training step applies the penalty is a function
/// of seed and step, not of the state of a generator.
#[derive(Clone, Debug, PartialEq)]
pub struct JacobianPenalty {
    config: JacobianPenaltyConfig,
}

/// One estimate of the penalty and what it cost.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub struct Penalty {
    /// The estimate of `|J|_F^2 / (batch * dim)`, `[1]`, not yet weighted. Its gradient reaches the
    /// cell's parameters and whatever the context was computed from.
    pub value: Tensor<1>,
    /// The same for every sample, `[batch]`: estimates of `|J|_F^2 / dim`, whose mean is `value`.
    /// For losses that weigh samples.
    pub per_sample: Tensor<1>,
    /// Which samples contribute, `[batch]`: those for which the state, the probes and what the
    /// value is made of are finite. The others count as zero in `value`.
    pub finite: Tensor<1, Bool>,
    /// Vector-Jacobian products with the whole batch.
    pub products: usize,
    evaluations: Evaluations,
}

impl Penalty {
    /// Evaluations of `f`, or products with `J` by the cell's tangent, on the whole batch that were
    /// recorded so far. The evaluation that comes with a tangent is not counted.
    ///
    /// Those of the cotangent estimate come in the backward pass of the loss: ask afterwards.
    pub fn nfe(&self) -> usize {
        self.evaluations.0.load(Ordering::Relaxed)
    }
}

/// A count that the backward pass goes on with.
#[derive(Clone, Debug, Default)]
struct Evaluations(Arc<AtomicUsize>);

impl Evaluations {
    fn add(&self, count: usize) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

impl JacobianPenalty {
    /// `config` was validated.
    pub(crate) fn new(config: JacobianPenaltyConfig) -> Self {
        Self { config }
    }

    /// The settings.
    pub fn config(&self) -> &JacobianPenaltyConfig {
        &self.config
    }

    /// Estimates the penalty at an equilibrium with freshly drawn probes.
    ///
    /// ```text
    /// cotangent   w = J^T v                   exact product, held fixed
    ///             value     |w|^2
    ///             gradient  d/dtheta 2 v^T J w
    ///
    /// tangent     value     |J v|^2                                and its gradient
    ///
    /// denoising   value     |f(z + sigma v) - z|^2 / sigma^2       and its gradient
    /// ```
    ///
    /// `J w` and `J v` are the cell's own [tangent](EquilibriumCell::tangent) where it has one.
    /// Values and gradients are then those of a double backward pass, up to rounding, in any float
    /// type.
    ///
    /// # Cells without a tangent
    ///
    /// For them the products are central differences,
    ///
    /// ```text
    /// J w = (f(z + h w) - f(z - h w)) / (2 h),       h * max|w| = eps^(1/3) * max(mean|z|, 0.01)
    /// ```
    ///
    /// with the machine epsilon `eps` of the state's type and a step `h` per sample. A central
    /// difference errs by a multiple of `h^2` (truncation) plus one of `eps / h` (rounding), and
    /// the cube root balances the two: for smooth cells the relative error of the gradient is near
    /// 3e-11 in f64 and 3e-5 in f32. The state's size enters because `f` at an equilibrium is as
    /// large, and bends over distances as long, as `z` itself; the largest entry of the direction
    /// enters rather than its norm, so that no coordinate moves far.
    ///
    /// **In f32, a cell with kinks (ReLU) needs a tangent.** A unit that crosses its kink within
    /// the step adds a term of order `1 / h` to the gradients before it, so that larger and smaller
    /// steps are noisy alike: in a two-layer ReLU cell those gradients were off by several times
    /// their size, with 1 sample as with 4096. The term is not an artefact: it is a sample of how
    /// the parameters move units across their kinks, which a double backward pass leaves out, but
    /// its variance is too large to train with.
    ///
    /// # Gradient and memory
    ///
    /// The equilibrium is a constant here: no gradient flows through it to the solve that found it,
    /// as in the reference code. Probes come from the generator of the state's device.
    ///
    /// The cotangent estimate records nothing before the backward pass; the others hold the tape of
    /// `vectors` products. Where only the value is wanted, as in validation, pass `cell.valid()`
    /// and an untracked context: nothing is recorded then. (Burn keeps a tape that is never
    /// differentiated until a later backward pass frees it.)
    ///
    /// # Returns
    ///
    /// The unweighted penalty: multiply it by the weight that a
    /// [`PenaltyPolicy`](crate::PenaltyPolicy) decides on, and add it to the loss.
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::UnsupportedDType`] where a difference would have to be taken of a state in
    /// neither f32 nor f64.
    pub fn at<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z: &C::State,
    ) -> Result<Penalty, InvalidPenalty> {
        let layout = StateLayout::of(z);
        let rows = layout.flatten(z.without_autodiff());
        self.check_dtype(cell, context, (z, &rows))?;
        let point = Point::new(rows.clone(), self.draw(&rows));
        let at = CellAt::new(cell, context, &layout, point.z.clone());
        Ok(self.estimate(&at, &point, self.config.power_iterations))
    }

    /// [`at`](Self::at) the equilibrium that a layer has found with this cell and this context,
    /// with the same value and gradient at less cost.
    ///
    /// The cotangent estimate shares its evaluations with the layer: the product that of the
    /// adjoint solve, the gradient the one that the layer records. The layer's output and the
    /// penalty must then be differentiated in one backward pass, as those of one loss are. Other
    /// estimates, and layers [without such an evaluation](Equilibrium::evaluation), share nothing.
    ///
    /// # Errors
    ///
    /// As [`at`](Self::at).
    pub fn at_equilibrium<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        equilibrium: &Equilibrium<C::State>,
    ) -> Result<Penalty, InvalidPenalty> {
        let Some(evaluation) = self.shared(equilibrium) else {
            return self.at(cell, context, &equilibrium.z);
        };
        let z = evaluation.z();
        self.check_dtype(cell, context, (&equilibrium.z, &z))?;
        let point = Point::new(z.clone(), self.draw(&z));
        Ok(point.cotangent(evaluation, self.config.power_iterations))
    }

    /// [`at_equilibrium`](Self::at_equilibrium) with given probes, which are taken as they are, as
    /// by [`at_with_probes`](Self::at_with_probes).
    ///
    /// # Errors
    ///
    /// As [`at_with_probes`](Self::at_with_probes).
    ///
    /// # Panics
    ///
    /// If a probe has another shape than the state.
    pub fn at_equilibrium_with_probes<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        equilibrium: &Equilibrium<C::State>,
        probes: &[C::State],
    ) -> Result<Penalty, InvalidPenalty> {
        let Some(evaluation) = self.shared(equilibrium) else {
            return self.at_with_probes(cell, context, &equilibrium.z, probes);
        };
        if probes.is_empty() {
            return Err(InvalidPenalty::NoProbes);
        }
        let z = evaluation.z();
        self.check_dtype(cell, context, (&equilibrium.z, &z))?;
        let point = Point::new(z, rows(&equilibrium.z, probes));
        Ok(point.cotangent(evaluation, 0))
    }

    /// What this estimate can share with the layer.
    fn shared<'a, S>(&self, equilibrium: &'a Equilibrium<S>) -> Option<&'a Evaluation> {
        match self.config.estimator {
            Estimator::Cotangent => equilibrium.evaluation.as_ref(),
            Estimator::Tangent | Estimator::Denoising(_) => None,
        }
    }

    /// [`at`](Self::at) with given probes, which are taken as they are: neither
    /// [`vectors`](JacobianPenaltyConfig::vectors) nor
    /// [`power_iterations`](JacobianPenaltyConfig::power_iterations) matter.
    ///
    /// With the `dim` probes `sqrt(dim) * e_i` (on every row) the value is `|J|_F^2 / (batch *
    /// dim)` exactly, and its gradient that of the exact norm.
    ///
    /// # Errors
    ///
    /// As [`at`](Self::at); [`InvalidPenalty::NoProbes`] if `probes` is empty.
    ///
    /// # Panics
    ///
    /// If a probe has another shape than the state.
    pub fn at_with_probes<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        z: &C::State,
        probes: &[C::State],
    ) -> Result<Penalty, InvalidPenalty> {
        if probes.is_empty() {
            return Err(InvalidPenalty::NoProbes);
        }
        let layout = StateLayout::of(z);
        let at = layout.flatten(z.without_autodiff());
        self.check_dtype(cell, context, (z, &at))?;
        let point = Point::new(at, rows(z, probes));
        let at = CellAt::new(cell, context, &layout, point.z.clone());
        Ok(self.estimate(&at, &point, 0))
    }

    /// Probes for states as rows.
    fn draw(&self, z: &Tensor<2>) -> Vec<Tensor<2>> {
        let Self { config } = self;
        (0..config.vectors)
            .map(|_| config.distribution.draw(z))
            .collect()
    }

    /// Refuses a difference of close points in a coarse type.
    fn check_dtype<C: EquilibriumCell>(
        &self,
        cell: &C,
        context: &C::Context,
        (z, rows): (&C::State, &Tensor<2>),
    ) -> Result<(), InvalidPenalty> {
        let dtype = cell.compute_dtype(rows.dtype());
        let denoising = matches!(self.config.estimator, Estimator::Denoising(_));
        if denoising || relative_step(dtype).is_some() {
            return Ok(());
        }
        let (z, context) = (z.without_autodiff(), context.without_autodiff());
        match cell.valid().tangent(z.clone(), z, &context) {
            Some(_) => Ok(()),
            None => Err(InvalidPenalty::UnsupportedDType { dtype }),
        }
    }

    /// After `rounds` of power iteration, for the estimator that has them.
    fn estimate<C: EquilibriumCell>(
        &self,
        at: &CellAt<C>,
        point: &Point,
        rounds: usize,
    ) -> Penalty {
        match self.config.estimator {
            Estimator::Cotangent => point.cotangent(&at.evaluation(), rounds),
            Estimator::Tangent => point.mean_square(|probe, count| derivative(at, probe, count)),
            Estimator::Denoising(DenoisingConfig { sigma }) => {
                point.mean_square(|probe, evaluations| {
                    evaluations.add(1);
                    (at.call(at.z() + probe * sigma) - at.z()) * (1.0 / sigma)
                })
            }
        }
    }
}

/// States as rows on the plain device, by the layout of `z`.
fn rows<S: State>(z: &S, states: &[S]) -> Vec<Tensor<2>> {
    let layout = StateLayout::of(z);
    let states = states.iter();
    let rows = states.map(|state| layout.flatten(state.without_autodiff()));
    rows.collect()
}

/// `J d`, by the cell's own tangent or else by a central difference.
///
/// # Panics
///
/// If the type is too coarse for a difference, which was ruled out for cells that have a tangent
/// either always or never.
fn derivative(at: &dyn MapAt, direction: Tensor<2>, evaluations: &Evaluations) -> Tensor<2> {
    if let Some(tangent) = at.tangent(direction.clone()) {
        evaluations.add(1);
        return tangent;
    }
    evaluations.add(2);
    let z = at.z();
    let relative = relative_step(z.dtype()).expect("a cell has a tangent always or never");
    let points = CentralDifference::new(&z, &direction, relative);
    (at.call(points.plus) - at.call(points.minus)) * points.factor
}

/// Where a penalty is estimated, and along what. Rows that are not finite are zero: a cell must not
/// see a row that would poison the gradients of the shared parameters.
struct Point {
    /// `[batch, dim]`, on the plain device, where it is a constant to every tape and fits any
    /// checkpointing strategy.
    z: Tensor<2>,
    /// `[batch, dim]` each, on the plain device; at least one.
    probes: Vec<Tensor<2>>,
    /// Which rows are finite in all of them, `[batch, 1]`.
    finite: Tensor<2, Bool>,
}

impl Point {
    /// # Panics
    ///
    /// If a probe has another shape than the state.
    fn new(z: Tensor<2>, probes: Vec<Tensor<2>>) -> Self {
        let [batch, dim] = z.dims();
        let own = finite_rows(&z);
        let mut finite = own.clone();
        let probes = probes.into_iter().map(|probe| {
            assert_shape!(probe, [batch, dim]);
            let drawn = finite_rows(&probe);
            finite = finite.clone().bool_and(drawn.clone());
            keep_rows(probe, &drawn)
        });
        let probes = probes.collect();
        Self {
            z: keep_rows(z, &own),
            probes,
            finite,
        }
    }

    /// What every probe's part of a sample's estimate is multiplied by. A factor, not a divisor:
    /// Burn's derivative of a division by a number rounds the number to f32.
    fn share(&self) -> f64 {
        let [_, dim] = self.z.dims();
        1.0 / (self.probes.len() * dim) as f64
    }

    /// The penalty made of the squared norm of one recorded vector per probe.
    fn mean_square(&self, vector: impl Fn(Tensor<2>, &Evaluations) -> Tensor<2>) -> Penalty {
        let evaluations = Evaluations::default();
        let mut finite = self.finite.clone();
        let mut squares = Vec::with_capacity(self.probes.len());
        for probe in &self.probes {
            let vector = vector(probe.clone(), &evaluations);
            let usable = finite_rows(&row_squares(vector.clone().inner()));
            squares.push(row_squares(keep_rows(vector, &usable)));
            finite = finite.bool_and(usable);
        }
        let share = self.share();
        let per_sample = squares
            .into_iter()
            .map(|square| keep_rows(square, &finite) * share);
        let per_sample = summed(per_sample).cast(self.z.dtype());
        Penalty::new(per_sample, finite, evaluations)
    }

    /// The cotangent estimate, whose value needs no tape. What its gradient needs is recorded only
    /// in the backward pass, when the tape of what follows the layer is gone.
    fn cotangent(&self, evaluation: &Evaluation, rounds: usize) -> Penalty {
        let multiply = |v| evaluation.vjp(v);
        let turn = |probe| (0..rounds).fold(probe, |v, _| lengthened(multiply(v)));
        let probes: Vec<Tensor<2>> = self.probes.iter().cloned().map(turn).collect();
        let products: Vec<Tensor<2>> = probes.iter().cloned().map(multiply).collect();
        // The probes as they were drawn are known to be finite.
        let turned: &[Tensor<2>] = match rounds {
            0 => &[],
            _ => &probes,
        };
        let finite = turned
            .iter()
            .chain(&products)
            .fold(self.finite.clone(), |finite, vector| {
                finite.bool_and(finite_rows(&row_squares(vector.clone())))
            });
        let share = self.share();
        // Samples that are not finite take no part, neither in the value nor in the gradient.
        let products: Vec<Tensor<2>> = products
            .into_iter()
            .map(|product| keep_rows(product, &finite))
            .collect();
        let squares = products
            .iter()
            .map(|product| row_squares(product.clone()) * share);
        let own = self.z.dtype();
        let value = summed(squares).cast(own);
        let count = probes.len() * (1 + rounds);
        let (rows, evaluations) = (finite.clone(), Evaluations::default());
        let counted = evaluations.clone();
        let per_sample = evaluation.recorded(value, move |at| {
            let terms = probes.iter().zip(&products).map(|(probe, product)| {
                let tangent = derivative(at, product.clone(), &counted).cast(wide(own));
                let probe = probe.clone().cast(wide(own));
                let term = tangent * keep_rows(probe * (2.0 * share), &rows);
                let usable = finite_rows(&term.clone().inner().sum_dim(1));
                keep_rows(term, &usable).sum_dim(1)
            });
            summed(terms).cast(own)
        });
        let mut penalty = Penalty::new(per_sample, finite, evaluations);
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
    /// From its samples' shares, with no product.
    fn new(per_sample: Tensor<1>, finite: Tensor<2, Bool>, evaluations: Evaluations) -> Self {
        let [batch] = per_sample.dims();
        Self {
            value: per_sample.clone().sum() * (1.0 / batch as f64),
            per_sample,
            finite: finite.squeeze_dim(1),
            products: 0,
            evaluations,
        }
    }
}

/// The rows with the length that a probe has on average, `sqrt(dim)`; a row of zeros stays.
fn lengthened(rows: Tensor<2>) -> Tensor<2> {
    let [_, dim] = rows.dims();
    let norm = row_squares(rows.clone()).sqrt();
    let norm = norm.clone().mask_fill(norm.equal_elem(0.0), 1.0);
    let factor = norm.recip().mul_scalar((dim as f64).sqrt());
    let own = rows.dtype();
    (rows.cast(wide(own)) * factor).cast(own)
}

impl Probe {
    /// Draws one probe in the shape, type and on the device of `z`.
    fn draw(self, z: &Tensor<2>) -> Tensor<2> {
        let numbers = |distribution| {
            let options = (&z.device(), z.dtype());
            random::for_samples(z.dims(), distribution, options)
        };
        match self {
            Self::Gaussian => numbers(Distribution::Normal(0.0, 1.0)),
            Self::Rademacher => {
                let heads = numbers(Distribution::Uniform(0.0, 1.0)).lower_elem(0.5);
                z.full_like(-1.0).mask_fill(heads, 1.0)
            }
        }
    }
}
