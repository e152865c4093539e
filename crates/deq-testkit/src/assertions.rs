//! Comparisons by relative error in the Euclidean norm.

use burn::tensor::Tensor;

/// The values of a tensor in f64, row-major.
pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    let data = tensor.clone().inner().into_data().convert::<f64>();
    data.iter::<f64>().collect()
}

/// `|actual - expected| / (|expected| + 1e-12)`, NaN if either holds one.
///
/// # Panics
///
/// If the lengths differ.
pub fn relative_error(actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len(), "lengths differ");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut actual.iter().zip(expected).map(|(a, e)| a - e));
    difference / (norm(&mut expected.iter().copied()) + 1e-12)
}

/// Asserts that `actual` equals `expected` to a relative error of `tolerance` in the Euclidean
/// norm.
///
/// # Panics
///
/// If it does not, with the name and the error; also on NaN.
#[track_caller]
pub fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    let error = relative_error(actual, expected);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:.3e} exceeds {tolerance:.1e}"
    );
}
