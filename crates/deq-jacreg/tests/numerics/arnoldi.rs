//! Arnoldi's method and the whole spectrum against matrices with known eigenvalues.

use crate::support::{LinearCell, TanhCell, normal, tensor, values};
use deq_jacreg::{
    ArnoldiConfig, SpectralRadiusConfig, arnoldi, dense_jacobian, spectral_radius, spectrum,
};

/// A block diagonal matrix that turns pairs of coordinates by different angles, so that all
/// eigenvalues have the given modulus, in a basis that is not orthogonal.
fn turning(pairs: usize, modulus: f64) -> Vec<Vec<f64>> {
    let dim = 2 * pairs;
    let mut rows = vec![vec![0.0; dim]; dim];
    for pair in 0..pairs {
        let (sin, cos) = (0.4 + 0.5 * pair as f64).sin_cos();
        let (i, j) = (2 * pair, 2 * pair + 1);
        // Similar to a rotation by scaling one axis by two.
        rows[i][i] = modulus * cos;
        rows[i][j] = 2.0 * modulus * sin;
        rows[j][i] = -0.5 * modulus * sin;
        rows[j][j] = modulus * cos;
    }
    rows
}

fn cell(rows: &[Vec<f64>]) -> LinearCell {
    let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    LinearCell::new(&rows)
}

#[test]
fn many_eigenvalues_of_one_modulus_are_found_where_power_iteration_cannot() {
    let cell = cell(&turning(4, 0.9));
    let z = tensor(vec![0.0; 16], [2, 8]);
    let power = spectral_radius(&cell, &(), &z, &SpectralRadiusConfig::new()).unwrap();
    assert_eq!(power.converged, [false; 2]);
    let found = arnoldi(&cell, &(), &z, &ArnoldiConfig::new().with_tolerance(1e-9)).unwrap();
    assert_eq!(
        (found.products, found.converged.as_slice()),
        (8, [true; 2].as_slice())
    );
    for sample in &found.values {
        assert_eq!(sample.len(), 8);
        assert!(
            sample.iter().all(|value| (value.norm() - 0.9).abs() < 1e-9),
            "{sample:?}"
        );
        let angle = sample
            .iter()
            .map(|value| value.arg().abs())
            .fold(9.0, f64::min);
        assert!((angle - 0.4).abs() < 1e-9);
    }
}

#[test]
fn the_residual_bounds_the_error_and_falls_with_the_products() {
    let dim = 40;
    let weight = normal(5, [dim, dim], 0.8 / (dim as f64).sqrt());
    let cell = TanhCell::new(weight);
    let context = normal(6, [3, dim], 0.3);
    let z = normal(7, [3, dim], 0.3);
    let exact: Vec<f64> = spectrum(&cell, &context, &z)
        .iter()
        .map(|s| s[0].norm())
        .collect();
    let mut last = f64::INFINITY;
    for products in [10, 20, 40] {
        let config = ArnoldiConfig::new().with_products(products);
        let found = arnoldi(&cell, &context, &z, &config).unwrap();
        let errors = found
            .radius()
            .into_iter()
            .zip(&exact)
            .map(|(a, b)| (a - b).abs() / b);
        let worst = errors.fold(0.0, f64::max);
        assert!(worst < last || worst < 1e-10, "{worst} after {last}");
        last = worst;
    }
    assert!(last < 1e-9, "{last}");
}

#[test]
fn the_spectrum_has_the_trace_and_determinant_of_the_jacobian() {
    let cell = TanhCell::new(normal(1, [4, 4], 0.6));
    let context = normal(2, [2, 4], 0.5);
    let z = normal(3, [2, 4], 0.5);
    let jacobian = values(dense_jacobian(&cell, &context, &z));
    for (sample, found) in spectrum(&cell, &context, &z).iter().enumerate() {
        let entry = |i: usize, j: usize| jacobian[sample * 16 + i * 4 + j];
        let trace: f64 = (0..4).map(|i| entry(i, i)).sum();
        let squares: f64 = (0..4)
            .map(|i| (0..4).map(|j| entry(i, j) * entry(j, i)).sum::<f64>())
            .sum();
        let sum: nalgebra::Complex<f64> = found.iter().sum();
        let of_squares: nalgebra::Complex<f64> = found.iter().map(|v| v * v).sum();
        assert!((sum.re - trace).abs() < 1e-12 && sum.im.abs() < 1e-12);
        assert!((of_squares.re - squares).abs() < 1e-12);
        assert!(
            found
                .windows(2)
                .all(|pair| pair[0].norm() >= pair[1].norm())
        );
    }
}

#[test]
fn degenerate_jacobians_and_settings_are_handled() {
    let zero = cell(&[vec![0.0, 0.0], vec![0.0, 0.0]]);
    let z = tensor(vec![0.0; 2], [1, 2]);
    let found = arnoldi(&zero, &(), &z, &ArnoldiConfig::new()).unwrap();
    assert_eq!(found.radius(), [0.0]);
    let broken = cell(&[vec![f64::NAN, 0.0], vec![0.0, 1.0]]);
    let found = arnoldi(&broken, &(), &z, &ArnoldiConfig::new()).unwrap();
    assert!(found.radius()[0].is_nan() && !found.converged[0]);
    let broken = cell(&[
        vec![0.1, 0.2, 0.3],
        vec![0.4, f64::NAN, 0.6],
        vec![0.7, 0.8, 0.9],
    ]);
    let z = tensor(vec![0.0; 3], [1, 3]);
    let found = spectrum(&broken, &(), &z);
    assert_eq!(found[0].len(), 3);
    assert!(found[0].iter().all(|value| value.norm().is_nan()));
    let no_tolerance = ArnoldiConfig::new().with_tolerance(f64::INFINITY);
    assert_eq!(
        arnoldi(&broken, &(), &z, &no_tolerance)
            .unwrap_err()
            .to_string(),
        "arnoldi.tolerance is inf, but must be a finite number above 0"
    );
    let message = arnoldi(&broken, &(), &z, &ArnoldiConfig::new().with_products(0)).unwrap_err();
    assert_eq!(
        message.to_string(),
        "arnoldi.products is 0, but must be at least 1"
    );
}
