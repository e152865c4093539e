//! Finite differences.

/// The gradient of `f` at `x` by central differences with step `eps^(1/3) (1 + |x_i|)`.
///
/// The truncation error is of order `step^2` and the rounding error of order `eps / step`; the cube
/// root balances them, which leaves about ten correct digits in f64 for a function of unit
/// curvature.
pub fn finite_difference(mut f: impl FnMut(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    let mut point = x.to_vec();
    (0..x.len())
        .map(|i| {
            let step = f64::EPSILON.cbrt() * (1.0 + x[i].abs());
            point[i] = x[i] + step;
            let above = f(&point);
            point[i] = x[i] - step;
            let below = f(&point);
            point[i] = x[i];
            (above - below) / (2.0 * step)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_of_a_cubic_is_found() {
        let gradient = finite_difference(|x| x[0].powi(3) - 2.0 * x[0] * x[1], &[1.5, -0.5]);
        assert!((gradient[0] - (3.0 * 2.25 + 1.0)).abs() < 1e-8);
        assert!((gradient[1] + 3.0).abs() < 1e-8);
    }
}
