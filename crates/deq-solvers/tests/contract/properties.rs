//! Properties on random contractions: convergence, scale, order of the batch.

use crate::{solve, solvers, tight};
use burn::tensor::{Int, Tensor, TensorData};
use deq_solvers::{SolverConfig, TraceLevel};
use deq_testkit::{f64_device, relative_error, values};
use proptest::prelude::*;

const BATCH: usize = 3;
const DIM: usize = 6;

#[derive(Clone, Debug)]
struct Contraction {
    weight: Vec<f64>,
    bias: Vec<f64>,
    norm: f64,
}

fn contraction() -> impl Strategy<Value = Contraction> {
    let entries = |n| prop::collection::vec(-1.0..1.0_f64, n);
    (entries(DIM * DIM), entries(BATCH * DIM), 0.1..0.95_f64).prop_map(|(weight, bias, norm)| {
        // The Frobenius norm bounds the Lipschitz constant.
        let size = weight.iter().map(|w| w * w).sum::<f64>().sqrt().max(1e-3);
        Contraction {
            weight: weight.iter().map(|w| w * norm / size).collect(),
            bias,
            norm,
        }
    })
}

impl Contraction {
    fn map(&self, scale: f64, order: Option<&Tensor<1, Int>>) -> impl Fn(Tensor<2>) -> Tensor<2> {
        let device = f64_device();
        let weight = TensorData::new(self.weight.clone(), [DIM, DIM]);
        let weight = Tensor::<2>::from_data(weight, &device);
        let bias = TensorData::new(self.bias.clone(), [BATCH, DIM]);
        let mut bias = Tensor::<2>::from_data(bias, &device);
        if let Some(order) = order {
            bias = bias.select(0, order.clone());
        }
        // A power of two scales without rounding.
        move |z| ((z * (1.0 / scale)).matmul(weight.clone()) + bias.clone()).tanh() * scale
    }
}

fn start() -> Tensor<2> {
    Tensor::zeros([BATCH, DIM], &f64_device())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_contraction_is_solved(contraction in contraction()) {
        let map = contraction.map(1.0, None);
        let reference = solve(&SolverConfig::picard(), &map, &start(), &tight());
        for config in solvers() {
            let solution = solve(&config, &map, &start(), &tight());
            prop_assert!(solution.stats.all_converged(), "{config}: {:?}", solution.stats);
            // Both are within residual / (1 - norm) of the fixed point, and 1e-12 of rounding.
            let bound = 2.0 * 1e-11 / (1.0 - contraction.norm) + 1e-12;
            let distance = (solution.z - reference.z.clone()).square().sum_dim(1).sqrt();
            prop_assert!(values(&distance).iter().all(|d| *d <= bound), "{config}");
        }
    }

    #[test]
    fn a_scaled_problem_takes_the_same_steps(contraction in contraction(), power in -12_i32..12) {
        let scale = 2.0_f64.powi(power);
        for config in solvers() {
            let stop = tight().with_abs_tol(0.0).with_rel_tol(1e-8);
            let stop = stop.with_trace(TraceLevel::Residuals);
            let plain = solve(&config, contraction.map(1.0, None), &start(), &stop);
            let scaled = solve(&config, contraction.map(scale, None), &start(), &stop);
            prop_assert_eq!(&plain.stats.steps, &scaled.stats.steps, "{}", config);
            let error = relative_error(&values(&(scaled.z * (1.0 / scale))), &values(&plain.z));
            prop_assert!(error < 1e-12, "{config}: {error:e}");
        }
    }

    #[test]
    fn the_order_of_the_batch_does_not_matter(contraction in contraction()) {
        let order = Tensor::<1, Int>::from_data([2, 0, 1], &f64_device());
        for config in solvers() {
            let stop = tight().with_abs_tol(1e-8);
            let plain = solve(&config, contraction.map(1.0, None), &start(), &stop);
            let moved = solve(&config, contraction.map(1.0, Some(&order)), &start(), &stop);
            let plain = values(&plain.z.select(0, order.clone()));
            prop_assert_eq!(plain, values(&moved.z), "{}", config);
        }
    }
}
