//! Splittings on a monotone layer whose map expands.

use burn::tensor::{Distribution, Tensor};
use deq_solvers::{MonotoneLayer, PicardConfig, Solve, SplittingConfig, StopConfig, TraceLevel};
use deq_testkit::{f64_device, values};

/// `W = (1 - m) I - A^T A + S - S^T`, strongly monotone with constant m, with a spectral radius
/// above 1.
pub(crate) fn weights(m: f64) -> (Tensor<2>, Tensor<2>) {
    let device = f64_device();
    device.seed(3);
    let n = 24;
    let a = Tensor::<2>::random([n, n], Distribution::Normal(0.0, 0.3), &device);
    let s = Tensor::<2>::random([n, n], Distribution::Normal(0.0, 0.2), &device);
    let eye = Tensor::<2>::eye(n, &device);
    let w = eye * (1.0 - m) - a.clone().transpose().matmul(a) + s.clone() - s.transpose();
    let bias = Tensor::<2>::random([5, n], Distribution::Normal(0.0, 1.0), &device);
    (w, bias)
}

fn layer(m: f64) -> (MonotoneLayer, Tensor<2>) {
    let (weight, bias) = weights(m);
    let z0 = bias.zeros_like();
    (MonotoneLayer::new(weight, bias), z0)
}

#[test]
fn splittings_find_the_equilibrium_where_plain_iteration_runs_away() {
    let (layer, z0) = layer(0.5);
    let stop = StopConfig::new()
        .with_abs_tol(1e-10)
        .with_rel_tol(0.0)
        .with_max_steps(4000)
        .with_trace(TraceLevel::Residuals)
        .build()
        .unwrap();
    let plain = PicardConfig::new().build().unwrap();
    let plain = plain.solve(&mut |z: Tensor<2>| layer.call(&z), z0.clone(), &stop);
    assert_eq!(plain.stats.status_counts().converged, 0);

    let mut answers = Vec::new();
    let mut steps = Vec::new();
    for config in [
        SplittingConfig::peaceman_rachford(),
        SplittingConfig::peaceman_rachford().with_step(0.4),
        SplittingConfig::forward_backward(0.05),
    ] {
        let splitting = config.build().unwrap();
        let solution = splitting.solve(&layer, z0.clone(), &stop);
        assert!(
            solution.stats.all_converged(),
            "{config}: {:?}",
            solution.stats
        );
        let residual = (layer.call(&solution.z) - solution.z.clone())
            .square()
            .sum_dim(1)
            .sqrt();
        assert!(values(&residual).iter().all(|r| *r <= 1e-10), "{config}");
        answers.push(values(&solution.z));
        steps.push(solution.stats.nfe);
    }
    // Strong monotonicity with m = 0.5: the distance to the equilibrium is at most |I - W| / m < 40
    // residuals.
    for answer in &answers[1..] {
        let distance: f64 = answer
            .iter()
            .zip(&answers[0])
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!(distance < 1e-8, "{distance:e}");
    }
    assert!(
        steps[0] < steps[2],
        "the implicit splitting takes fewer steps: {steps:?}"
    );
}

#[test]
fn a_splitting_configuration_is_checked() {
    let wrong = SplittingConfig::forward_backward(0.0);
    assert_eq!(
        wrong.build().unwrap_err().to_string(),
        "splitting.step is 0, but must be a finite number above 0"
    );
    let json = serde_json::to_string(&SplittingConfig::peaceman_rachford()).unwrap();
    let back: SplittingConfig = serde_json::from_str(&json).unwrap();
    assert_eq!(back, SplittingConfig::peaceman_rachford());
}
