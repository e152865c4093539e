//! Dense linear algebra on the host, for closed forms.

/// Solves `A x = b` by Gaussian elimination with partial pivoting; `A` is `n x n`, row-major.
///
/// # Panics
///
/// If the sizes do not fit or `A` is singular to working precision.
pub fn solve_dense(matrix: &[f64], rhs: &[f64]) -> Vec<f64> {
    let n = rhs.len();
    assert_eq!(matrix.len(), n * n, "the matrix must be {n} x {n}");
    let mut rows: Vec<Vec<f64>> = matrix
        .chunks(n)
        .zip(rhs)
        .map(|(row, b)| row.iter().copied().chain([*b]).collect())
        .collect();
    for i in 0..n {
        let pivot = (i..n)
            .max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs()))
            .unwrap_or(i);
        rows.swap(i, pivot);
        let head = rows[i].clone();
        assert!(head[i].abs() > 1e-14, "the matrix is singular");
        for row in &mut rows[i + 1..] {
            let factor = row[i] / head[i];
            row.iter_mut()
                .zip(&head)
                .for_each(|(a, h)| *a -= factor * h);
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| rows[i][j] * x[j]).sum();
        x[i] = (rows[i][n] - known) / rows[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_system_that_needs_pivoting_is_solved() {
        let x = super::solve_dense(&[0.0, 2.0, 1.0, 1.0], &[4.0, 3.0]);
        assert!((x[0] - 1.0).abs() < 1e-15 && (x[1] - 2.0).abs() < 1e-15);
    }
}
