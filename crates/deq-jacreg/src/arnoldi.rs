//! Eigenvalues of the Jacobian: several dominant ones by Arnoldi's method, all of them for small
//! models.

use crate::difference::wide;
use crate::error::{InvalidPenalty, at_least_one, positive};
use crate::exact::{dense_jacobian, frozen, unit_products};
use burn::tensor::{Tensor, TensorData};
use deq_core::{EquilibriumCell, random};
use nalgebra::{Complex, DMatrix};
use serde::{Deserialize, Serialize};

/// Settings of [`arnoldi`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArnoldiConfig {
    /// Vector-Jacobian products, which is the dimension of the Krylov space; at most that of the
    /// state is used. Default 30, as many as [`StopConfig`](deq_core::solvers::StopConfig) allows a
    /// solve; look at `converged`.
    pub products: usize,
    /// The residual at which the dominant eigenvalue counts as converged, relative to it,
    /// dimensionless. Default 1e-3, as for [`SpectralRadiusConfig`](crate::SpectralRadiusConfig).
    pub tolerance: f64,
    /// Seed of the start vector, the same for every sample. Default 0. The generator of the device
    /// is not used.
    pub seed: u64,
}

impl Default for ArnoldiConfig {
    fn default() -> Self {
        Self {
            products: 30,
            tolerance: 1e-3,
            seed: 0,
        }
    }
}

impl ArnoldiConfig {
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
        at_least_one("arnoldi.products", self.products)?;
        positive("arnoldi.tolerance", self.tolerance)
    }
}

setters!(ArnoldiConfig {
    with_products(products: usize),
    with_tolerance(tolerance: f64),
    with_seed(seed: u64),
});

/// What [`arnoldi`] found, by sample.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct RitzValues {
    /// Approximate eigenvalues of the sample's Jacobian, by falling modulus. The first ones are the
    /// most accurate.
    pub values: Vec<Vec<Complex<f64>>>,
    /// `|J^T x - theta x| / |theta|` for the first value `theta` with its unit vector `x`.
    pub residual: Vec<f64>,
    /// Whether that residual is within the tolerance.
    pub converged: Vec<bool>,
    /// The vector-Jacobian products spent, each with the whole batch.
    pub products: usize,
}

impl RitzValues {
    /// The modulus of the first value of every sample, NaN where a product was not finite.
    pub fn radius(&self) -> Vec<f64> {
        let first = |values: &Vec<Complex<f64>>| values.first().map_or(f64::NAN, |v| v.norm());
        self.values.iter().map(first).collect()
    }
}

/// Approximates the dominant eigenvalues of `J = df/dz` at `z` for every sample.
///
/// ```text
/// J^T Q_m = Q_m H_m + h e_m^T      Q_m: orthonormal basis of span{v, J^T v, ..., (J^T)^(m-1) v}
/// ```
///
/// The eigenvalues of the small `H_m` (Ritz values) approximate those of `J` at the rim of its
/// spectrum. Use it instead of [`spectral_radius`](crate::spectral_radius) where several
/// eigenvalues, complex pairs among them, have nearly the largest modulus: power iteration then
/// takes hundreds of products, and two vectors cannot tell three eigenvalues apart.
///
/// Cost: `products` vector-Jacobian products and as many dot products of growing number, memory of
/// twice `products` states, one read.
///
/// # Errors
///
/// [`InvalidPenalty::OutOfRange`] if the settings are invalid.
///
/// # References
///
/// Saad, "Numerical Methods for Large Eigenvalue Problems", 2nd ed. 2011, sections 6.2 and 6.7.
pub fn arnoldi<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: &C::State,
    config: &ArnoldiConfig,
) -> Result<RitzValues, InvalidPenalty> {
    config.validate()?;
    let (frozen, z) = frozen(cell, context, z);
    let [batch, dim] = z.dims();
    let size = config.products.min(dim);
    let options = (&z.device(), wide(z.dtype()));
    let start = TensorData::new(random::normal(config.seed, dim), [1, 1, dim]);
    let start = unit(Tensor::<3>::from_data(start, options)).0;
    let multiply = unit_products(&frozen, z);
    let mut newest = start.repeat_dim(0, batch); // [batch, 1, dim]
    let mut basis = newest.clone(); // [batch, k, dim]
    let mut columns = Vec::with_capacity(size); // of H, [batch, k + 2, 1]
    for _ in 0..size {
        let product = multiply(newest.squeeze_dim(1)).unsqueeze_dim::<3>(1);
        // Elementwise, since a GPU may round matrix products to TF32.
        let project = |x: &Tensor<3>| (basis.clone() * x.clone()).sum_dim(2); // [batch, k, 1]
        let within = |weights: &Tensor<3>| (basis.clone() * weights.clone()).sum_dim(1);
        // Twice, since one pass of Gram-Schmidt loses orthogonality where the product nearly lies
        // in the space.
        let first = project(&product);
        let rest = product - within(&first);
        let second = project(&rest);
        let rest = rest - within(&second);
        let (next, below) = unit(rest);
        columns.push(Tensor::cat(vec![first + second, below], 1));
        basis = Tensor::cat(vec![basis, next.clone()], 1);
        newest = next;
    }
    let columns = Tensor::cat(columns, 1).into_data();
    let columns: Vec<f64> = columns.iter::<f64>().collect();
    let (mut values, mut residual) = (Vec::new(), Vec::new());
    for columns in columns.chunks_exact(size * (size + 3) / 2) {
        let (found, error) = ritz(columns, size);
        values.push(found);
        residual.push(error);
    }
    Ok(RitzValues {
        converged: residual.iter().map(|r| *r <= config.tolerance).collect(),
        values,
        residual,
        products: size,
    })
}

/// The Ritz values of one sample and the residual of the first, from its `products` columns, which
/// follow one another and of which each is longer by one than the one before.
fn ritz(columns: &[f64], products: usize) -> (Vec<Complex<f64>>, f64) {
    let column = |k: usize| &columns[k * (k + 3) / 2..][..k + 2];
    // An invariant space ends the sequence: what follows is rounding.
    let scale = columns.iter().map(|h| h.abs()).fold(0.0, f64::max);
    if !columns.iter().all(|h| h.is_finite()) {
        return (Vec::new(), f64::NAN);
    }
    let exhausted = |k: &usize| column(*k)[k + 1] <= 1e-7 * scale;
    let size = (0..products).find(exhausted).map_or(products, |k| k + 1);
    let h = DMatrix::from_fn(size, size, |i, j| {
        column(j).get(i).copied().unwrap_or_default()
    });
    let values = sorted(h.complex_eigenvalues().iter().copied().collect());
    let below = column(size - 1)[size];
    let Some(first) = values.first() else {
        return (values, f64::NAN);
    };
    let shifted = h.map(|x| Complex::new(x, 0.0)) - DMatrix::identity(size, size) * *first;
    // The vector of the smallest singular value is the eigenvector.
    let residual = match shifted.svd(false, true).v_t {
        Some(v_t) => below * v_t[(size - 1, size - 1)].norm() / first.norm().max(f64::MIN_POSITIVE),
        None => f64::NAN,
    };
    (values, residual)
}

/// All eigenvalues of the Jacobian of every sample, by falling modulus; `dim` times NaN where the
/// Jacobian is not finite.
///
/// Costs `dim` vector-Jacobian products and `batch * dim^3` operations on the host: for small
/// models and for plots of their spectra.
pub fn spectrum<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: &C::State,
) -> Vec<Vec<Complex<f64>>> {
    let jacobian = dense_jacobian(cell, context, z);
    let [batch, dim, _] = jacobian.dims();
    let entries: Vec<f64> = jacobian.into_data().iter::<f64>().collect();
    (0..batch)
        .map(|sample| {
            let rows = &entries[sample * dim * dim..][..dim * dim];
            // The eigenvalues of such a matrix would be sought for ever.
            if !rows.iter().all(|entry| entry.is_finite()) {
                return vec![Complex::new(f64::NAN, f64::NAN); dim];
            }
            let matrix = DMatrix::from_row_slice(dim, dim, rows);
            sorted(matrix.complex_eigenvalues().iter().copied().collect())
        })
        .collect()
}

fn sorted(mut values: Vec<Complex<f64>>) -> Vec<Complex<f64>> {
    values.sort_by(|a, b| b.norm().total_cmp(&a.norm()));
    values
}

/// Vectors `[batch, 1, dim]` brought to norm 1, and their norms, `[batch, 1, 1]`; zero stays zero.
fn unit(x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let norm = x.clone().square().sum_dim(2).sqrt();
    let divisor = norm.clone().mask_fill(norm.clone().equal_elem(0.0), 1.0);
    (x / divisor, norm)
}
