//! The spectral radius of the Jacobian at an equilibrium, by power iteration.

use crate::difference::wide;
use crate::error::{InvalidPenalty, at_least_one, positive};
use crate::exact::{frozen, unit_products};
use burn::tensor::{Tensor, TensorData};
use deq_core::{EquilibriumCell, random};
use serde::{Deserialize, Serialize};

/// Settings of [`spectral_radius`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpectralRadiusConfig {
    /// The most vector-Jacobian products. Default 150, as the reference models run: a second
    /// eigenvalue of 0.95 times the first has then decayed to 5e-4.
    pub iterations: usize,
    /// The residual at which an estimate counts as converged, relative to the radius,
    /// dimensionless. Default 1e-3, within reach of f32 and fine enough to tell a contraction from
    /// an expansion.
    pub tolerance: f64,
    /// Products between two reads of the estimates from the device. Default 10: a read stalls a
    /// GPU's queue, and up to `check_every - 1` products too many are cheap beside that.
    pub check_every: usize,
    /// Seed of the start vector, which is the same for every sample. Default 0. The generator of
    /// the device is not used, so that watching the radius does not change a training run.
    pub seed: u64,
}

impl Default for SpectralRadiusConfig {
    fn default() -> Self {
        Self {
            iterations: 150,
            tolerance: 1e-3,
            check_every: 10,
            seed: 0,
        }
    }
}

impl SpectralRadiusConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::OutOfRange`] naming the first field outside its range.
    pub fn validate(&self) -> Result<(), InvalidPenalty> {
        at_least_one("spectral_radius.iterations", self.iterations)?;
        positive("spectral_radius.tolerance", self.tolerance)?;
        at_least_one("spectral_radius.check_every", self.check_every)
    }
}

setters!(SpectralRadiusConfig {
    with_iterations(iterations: usize),
    with_tolerance(tolerance: f64),
    with_check_every(check_every: usize),
    with_seed(seed: u64),
});

/// Estimates of the spectral radius, one per sample.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct SpectralRadius {
    /// The largest modulus of an eigenvalue of each sample's Jacobian. NaN for a sample whose first
    /// product is not finite.
    pub per_sample: Vec<f64>,
    /// Whether each estimate passed the residual test. Where `false`, the estimate is the mean
    /// growth rate.
    pub converged: Vec<bool>,
    /// The vector-Jacobian products spent, each with the whole batch.
    pub products: usize,
}

impl SpectralRadius {
    /// The mean over the batch, which the paper reports.
    pub fn mean(&self) -> f64 {
        self.per_sample.iter().sum::<f64>() / self.per_sample.len() as f64
    }

    /// The largest of the batch, which decides whether every sample's iteration contracts. NaN if
    /// any sample's is.
    pub fn max(&self) -> f64 {
        let larger = |a: f64, b: &f64| if *b > a || b.is_nan() { *b } else { a };
        self.per_sample.iter().fold(f64::NEG_INFINITY, larger)
    }
}

/// Estimates the spectral radius of `J = df/dz` at `z` for every sample.
///
/// ```text
/// v_{k+1} = J^T v_k / |J^T v_k|                                 (J^T has the eigenvalues of J)
/// H       = Q^T J^T Q,  Q = orthonormal basis of span{v_k, v_{k+1}}
///
/// one vector:   |J^T v_k - h_11 v_k|       <= tolerance * |h_11|      ->  radius = |h_11|
/// two vectors:  |J^T q_2 - Q (h_12, h_22)| <= tolerance * radius(H)   ->  radius = radius(H)
/// budget spent: radius = geometric mean of |J^T v_k| over the last half of the iterations
/// ```
///
/// A simple real dominant eigenvalue passes the first test. A dominant pair, complex or of opposite
/// signs, turns the iterate for ever and never passes it, but the plane of two successive iterates
/// becomes invariant, and the second test accepts the eigenvalues of the 2 by 2 matrix `H` on it.
/// Both need no products beyond those of the iteration. Without either, the growth rate is
/// returned. Its error falls like `1 / iterations`, whatever the eigenvalues: for a pair `r exp(+-i
/// t)` the norms of the iterates are `r^k` times a bounded periodic factor, so the mean of their
/// logarithms tends to `log r`, where a Rayleigh quotient would swing between `-r` and `r`. A
/// sample's estimate is that of the first iteration that passes a test.
///
/// Use it to watch training: a radius above 1 means that plain iteration diverges there. The tests
/// bound the backward error: the estimate is an eigenvalue of a matrix within `tolerance * radius`
/// of `J^T`, which for a strongly non-normal Jacobian may lie farther from the spectrum of `J`
/// itself. Three or more eigenvalues of nearly the largest modulus converge slowly, as in every
/// power iteration; look at `converged`.
///
/// Cost: one vector-Jacobian product per iteration; memory of five states.
///
/// # Errors
///
/// [`InvalidPenalty::OutOfRange`] if the settings are invalid.
///
/// # References
///
/// - Golub, Van Loan, "Matrix Computations", 4th edition, 2013, sections 7.3 (power method) and
///   10.1 (Ritz values).
/// - Bai, Koltun, Kolter, ICML 2021, <https://arxiv.org/abs/2106.14342>, section 3.
///
/// # Differences from the reference code
///
/// `power_method` of `locuslab/deq` runs a fixed number of iterations and returns the absolute
/// value of the last Rayleigh quotient, which is wrong for a complex dominant pair and says nothing
/// about convergence.
pub fn spectral_radius<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: &C::State,
    config: &SpectralRadiusConfig,
) -> Result<SpectralRadius, InvalidPenalty> {
    config.validate()?;
    let (frozen, z) = frozen(cell, context, z);
    let [batch, _] = z.dims();
    let mut iterate = start(&z, config.seed);
    let multiply = unit_products(&frozen, z);
    let mut last: Option<Step> = None;
    let mut samples = vec![Sample::default(); batch];
    let mut unread = Vec::new();
    let mut products = 0;
    while products < config.iterations && !samples.iter().all(Sample::done) {
        let step = Step::new(iterate, &multiply);
        products += 1;
        iterate = step.product.clone() / nonzero(&step.norm);
        unread.push(step.measure(last.as_ref()));
        last = Some(step);
        if unread.len() == config.check_every || products == config.iterations {
            read(&mut samples, core::mem::take(&mut unread), config.tolerance);
        }
    }
    Ok(SpectralRadius {
        per_sample: samples.iter().map(Sample::radius).collect(),
        converged: samples.iter().map(|s| s.converged.is_some()).collect(),
        products,
    })
}

/// One vector of norm 1, repeated for every sample, so that a sample's estimate does not depend on
/// its batch; in the [`wide`] type.
fn start(z: &Tensor<2>, seed: u64) -> Tensor<2> {
    let [batch, dim] = z.dims();
    let values = TensorData::new(random::normal(seed, dim), [1, dim]);
    let row = Tensor::<2>::from_data(values, (&z.device(), wide(z.dtype())));
    let norm = norm(&row);
    (row / nonzero(&norm)).repeat_dim(0, batch)
}

/// One product and the one-vector decomposition `J^T v = h_11 v + remainder`. Scalars are `[batch,
/// 1]`.
struct Step {
    /// `v`, of norm 1.
    vector: Tensor<2>,
    /// `J^T v`.
    product: Tensor<2>,
    norm: Tensor<2>,
    h11: Tensor<2>,
    remainder: Tensor<2>,
    /// `|remainder|`.
    h21: Tensor<2>,
}

impl Step {
    fn new(vector: Tensor<2>, multiply: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        let product = multiply(vector.clone());
        let h11 = dot(&vector, &product);
        let remainder = product.clone() - vector.clone() * h11.clone();
        Self {
            norm: norm(&product),
            h21: norm(&remainder),
            vector,
            product,
            h11,
            remainder,
        }
    }

    /// The numbers that the host judges this step by, `[batch, 1, 8]`, in the order of
    /// [`Measures`].
    fn measure(&self, last: Option<&Self>) -> Tensor<3> {
        let zero = self.norm.zeros_like();
        let plane = match last {
            // The last product is its norm times this vector, so J^T of q_2 = remainder / h21 needs
            // no product of its own.
            Some(last) => {
                let h21 = nonzero(&last.h21);
                let q2 = last.remainder.clone() / h21.clone();
                let turned = self.product.clone()
                    - last.product.clone() / nonzero(&last.norm) * last.h11.clone();
                let product = turned * (last.norm.clone() / h21);
                let h12 = dot(&last.vector, &product);
                let h22 = dot(&q2, &product);
                let residual =
                    norm(&(product - last.vector.clone() * h12.clone() - q2 * h22.clone()));
                [last.h11.clone(), h12, last.h21.clone(), h22, residual]
            }
            None => core::array::from_fn(|_| zero.clone()),
        };
        let line = [self.norm.clone(), self.h11.clone(), self.h21.clone()];
        let all = line.into_iter().chain(plane).collect();
        Tensor::<2>::cat(all, 1).unsqueeze_dim(1)
    }
}

/// What one sample shows in one iteration.
struct Measures {
    norm: f64,
    h11: f64,
    h21: f64,
    plane: [[f64; 2]; 2],
    plane_residual: f64,
}

impl Measures {
    const COUNT: usize = 8;

    fn new(values: &[f64]) -> Self {
        Self {
            norm: values[0],
            h11: values[1],
            h21: values[2],
            plane: [[values[3], values[4]], [values[5], values[6]]],
            plane_residual: values[7],
        }
    }

    /// The radius, if one of the tests is passed.
    fn converged(&self, tolerance: f64) -> Option<f64> {
        let along = self.h11.abs();
        if self.h21 <= tolerance * along || self.norm <= 0.0 {
            return Some(along);
        }
        let radius = radius_of(self.plane);
        let spans_a_plane = self.plane[1][0] > 0.0;
        (spans_a_plane && self.plane_residual <= tolerance * radius).then_some(radius)
    }
}

/// The spectral radius of a 2 by 2 matrix.
fn radius_of([[a, b], [c, d]]: [[f64; 2]; 2]) -> f64 {
    let half_trace = 0.5 * (a + d);
    let determinant = a * d - b * c;
    let discriminant = half_trace * half_trace - determinant;
    if discriminant < 0.0 {
        determinant.sqrt()
    } else {
        half_trace.abs() + discriminant.sqrt()
    }
}

/// What is known of one sample so far.
#[derive(Clone, Debug, Default)]
struct Sample {
    converged: Option<f64>,
    non_finite: bool,
    /// Logarithms of the growth per iteration.
    growth: Vec<f64>,
}

impl Sample {
    fn done(&self) -> bool {
        self.converged.is_some() || self.non_finite
    }

    fn read(&mut self, measures: &Measures, tolerance: f64) {
        if self.done() {
            return;
        }
        if !measures.norm.is_finite() {
            self.non_finite = true;
            return;
        }
        self.growth.push(measures.norm.ln());
        self.converged = measures.converged(tolerance);
    }

    fn radius(&self) -> f64 {
        self.converged.unwrap_or_else(|| {
            let late = &self.growth[self.growth.len() / 2..];
            (late.iter().sum::<f64>() / late.len() as f64).exp()
        })
    }
}

/// Reads the measures of some iterations from the device, oldest first.
fn read(samples: &mut [Sample], unread: Vec<Tensor<3>>, tolerance: f64) {
    let iterations = unread.len();
    let values: Vec<f64> = Tensor::cat(unread, 1).into_data().iter::<f64>().collect();
    for (sample, rows) in samples
        .iter_mut()
        .zip(values.chunks_exact(iterations * Measures::COUNT))
    {
        for row in rows.chunks_exact(Measures::COUNT) {
            sample.read(&Measures::new(row), tolerance);
        }
    }
}

fn dot(a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
    (a.clone() * b.clone()).sum_dim(1)
}

fn norm(a: &Tensor<2>) -> Tensor<2> {
    a.clone().square().sum_dim(1).sqrt()
}

/// A divisor: 1 where `a` is 0.
fn nonzero(a: &Tensor<2>) -> Tensor<2> {
    a.clone().mask_fill(a.clone().equal_elem(0.0), 1.0)
}
