//! Spectral radii against matrices with known eigenvalues.

use crate::support::{Halving, LinearCell, TanhCell, device, normal, relative, tensor};
use burn::tensor::{DType, Tensor};
use deq_jacreg::{ArnoldiConfig, SpectralRadius, SpectralRadiusConfig, arnoldi, spectral_radius};

fn radius_of(rows: &[&[f64]], config: &SpectralRadiusConfig) -> SpectralRadius {
    let cell = LinearCell::new(rows);
    let z = tensor(vec![0.0; rows.len()], [1, rows.len()]);
    spectral_radius(&cell, &(), &z, config).unwrap()
}

fn tight() -> SpectralRadiusConfig {
    SpectralRadiusConfig::new().with_tolerance(1e-8)
}

type Matrix = [[f64; 4]; 4];

fn multiply(a: Matrix, b: Matrix) -> Matrix {
    core::array::from_fn(|i| core::array::from_fn(|j| (0..4).map(|k| a[i][k] * b[k][j]).sum()))
}

/// `Q D Q^-1` for a fixed Q of determinant 1 with an integer inverse.
fn similar(d: Matrix) -> Vec<Vec<f64>> {
    let lower = [
        [1., 0., 0., 0.],
        [2., 1., 0., 0.],
        [0., 1., 1., 0.],
        [1., 0., 1., 1.],
    ];
    let inverse = [
        [1., 0., 0., 0.],
        [-2., 1., 0., 0.],
        [2., -1., 1., 0.],
        [-3., 1., -1., 1.],
    ];
    let result = multiply(multiply(lower, d), inverse);
    result.iter().map(|row| row.to_vec()).collect()
}

fn radius_of_similar(d: Matrix, config: &SpectralRadiusConfig) -> SpectralRadius {
    let matrix = similar(d);
    let rows: Vec<&[f64]> = matrix.iter().map(Vec::as_slice).collect();
    radius_of(&rows, config)
}

fn diagonal(entries: [f64; 4]) -> Matrix {
    core::array::from_fn(|i| core::array::from_fn(|j| if i == j { entries[i] } else { 0.0 }))
}

/// A block `r (cos t, -sin t; sin t, cos t)` with the eigenvalues `r exp(+-i t)`, and two smaller
/// ones.
fn rotation(radius: f64, angle: f64, others: [f64; 2]) -> Matrix {
    let (sin, cos) = angle.sin_cos();
    let mut d = diagonal([radius * cos, radius * cos, others[0], others[1]]);
    d[0][1] = -radius * sin;
    d[1][0] = radius * sin;
    d
}

#[test]
fn finds_a_real_dominant_eigenvalue() {
    for sign in [1.0, -1.0] {
        let radius = radius_of_similar(diagonal([sign * 1.3, 0.9, -0.5, 0.1]), &tight());
        assert_eq!(radius.converged, [true]);
        assert!(relative(&radius.per_sample, &[1.3]) < 1e-6, "{radius:?}");
        assert!(radius.products < 100);
    }
}

#[test]
fn finds_the_modulus_of_a_complex_dominant_pair() {
    for angle in [0.01, 0.3, 1.0, 1.5, 2.5, 3.1] {
        let radius = radius_of_similar(rotation(0.8, angle, [0.5, -0.3]), &tight());
        assert_eq!(radius.converged, [true], "angle {angle}");
        assert!(
            relative(&radius.per_sample, &[0.8]) < 1e-6,
            "angle {angle}: {radius:?}"
        );
    }
}

#[test]
fn finds_a_pair_of_opposite_signs() {
    let radius = radius_of_similar(diagonal([0.9, -0.9, 0.4, 0.2]), &tight());
    assert_eq!(radius.converged, [true]);
    assert!(relative(&radius.per_sample, &[0.9]) < 1e-6, "{radius:?}");
}

#[test]
fn growth_rate_stands_in_where_no_test_passes() {
    // Four eigenvalues of one modulus: neither a line nor a plane ever becomes invariant.
    let mut d = rotation(0.7, 0.4, [0.0, 0.0]);
    let (sin, cos) = 2.0_f64.sin_cos();
    d[2] = [0.0, 0.0, 0.7 * cos, -0.7 * sin];
    d[3] = [0.0, 0.0, 0.7 * sin, 0.7 * cos];
    let radius = radius_of_similar(d, &SpectralRadiusConfig::new());
    assert_eq!(
        (radius.converged.as_slice(), radius.products),
        ([false].as_slice(), 150)
    );
    // The norms of iterates 75 and 150 differ by a factor of at most Q's condition number, below
    // 200, from 0.7^75.
    let bound = 200.0_f64.ln() / 75.0;
    assert!(relative(&radius.per_sample, &[0.7]) < bound, "{radius:?}");
}

#[test]
fn zero_and_nilpotent_maps_have_radius_zero() {
    let config = SpectralRadiusConfig::new();
    let zero = radius_of(&[&[0.0, 0.0], &[0.0, 0.0]], &config);
    let nilpotent = radius_of(&[&[0.0, 1.0], &[0.0, 0.0]], &config);
    for radius in [zero, nilpotent] {
        assert_eq!(
            (radius.per_sample, radius.converged),
            (vec![0.0], vec![true])
        );
    }
}

#[test]
fn one_dimensional_states_converge_at_once() {
    let config = SpectralRadiusConfig::new().with_check_every(1);
    let radius = radius_of(&[&[-0.25]], &config);
    assert_eq!((radius.per_sample, radius.products), (vec![0.25], 1));
    // Read once, at the end.
    let radius = radius_of(&[&[-0.25]], &config.with_check_every(usize::MAX));
    assert_eq!((radius.per_sample, radius.products), (vec![0.25], 150));
}

#[test]
fn a_batch_equals_its_rows_alone_and_spares_no_sample() {
    let (batch, dim) = (4, 6);
    let cell = TanhCell::new(normal(20, [dim, dim], 0.6));
    let context = normal(21, [batch, dim], 1.0);
    let z = normal(22, [batch, dim], 1.0);
    let config = SpectralRadiusConfig::new();
    let together = spectral_radius(&cell, &context, &z, &config).unwrap();
    for row in 0..batch {
        let one = |tensor: &Tensor<2>| tensor.clone().narrow(0, row, 1);
        let alone = spectral_radius(&cell, &one(&context), &one(&z), &config).unwrap();
        assert_eq!(alone.converged[0], together.converged[row]);
        assert!(relative(&alone.per_sample, &[together.per_sample[row]]) < 1e-10);
    }
    assert!(together.max() >= together.mean());
}

#[test]
fn non_finite_samples_end_without_an_estimate() {
    let cell = TanhCell::new(normal(20, [6, 6], 0.6));
    let context = normal(21, [2, 6], 1.0).slice_fill([0..1, 0..1], f64::NAN);
    let z = normal(22, [2, 6], 1.0);
    let radius = spectral_radius(&cell, &context, &z, &SpectralRadiusConfig::new()).unwrap();
    assert!(radius.per_sample[0].is_nan() && !radius.converged[0]);
    assert!(radius.per_sample[1].is_finite());
    assert!(radius.max().is_nan());
}

#[test]
fn default_settings_work_in_f32() {
    let matrix = similar(rotation(0.8, 1.0, [0.5, -0.3])).concat();
    let matrix = tensor(matrix, [4, 4]).cast(DType::F32);
    // At z = 0 without a context the slope of tanh is 1.
    let cell = TanhCell::new(matrix);
    let zero = tensor(vec![0.0; 4], [1, 4]).cast(DType::F32);
    let radius = spectral_radius(&cell, &zero, &zero, &SpectralRadiusConfig::new()).unwrap();
    println!("{radius:?}");
    assert_eq!(radius.converged, [true]);
    assert!(relative(&radius.per_sample, &[0.8]) < 1e-2);
}

#[test]
fn f16_states_whose_squares_it_cannot_sum_are_measured() {
    let z = Tensor::<2>::zeros([1, 70_000], (&device(), DType::F16));
    let radius = spectral_radius(&Halving, &(), &z, &SpectralRadiusConfig::new()).unwrap();
    assert_eq!(radius.converged, [true]);
    assert!(relative(&radius.per_sample, &[0.5]) < 1e-3, "{radius:?}");
    let config = ArnoldiConfig::new().with_products(2);
    let radius = arnoldi(&Halving, &(), &z, &config).unwrap().radius();
    assert!(relative(&radius, &[0.5]) < 1e-3, "{radius:?}");
}

#[test]
fn rejects_invalid_settings() {
    let config = SpectralRadiusConfig::new;
    let cases = [
        (
            config().with_iterations(0),
            "spectral_radius.iterations is 0, but must be at least 1",
        ),
        (
            config().with_tolerance(0.0),
            "spectral_radius.tolerance is 0, but must be a finite number above 0",
        ),
        (
            config().with_tolerance(f64::NAN),
            "spectral_radius.tolerance is NaN, but must be a finite number above 0",
        ),
        (
            config().with_check_every(0),
            "spectral_radius.check_every is 0, but must be at least 1",
        ),
    ];
    for (config, message) in cases {
        assert_eq!(config.validate().unwrap_err().to_string(), message);
    }
}
