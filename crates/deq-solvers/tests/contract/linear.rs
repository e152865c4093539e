//! Solvers of `u = A u + g` against a dense solver.

use burn::tensor::{DType, Distribution, Tensor};
use deq_solvers::{
    GmresConfig, LinearSolverConfig, Solution, SolveStatus, SolverConfig, StopConfig, TraceLevel,
};
use deq_testkit::{f64_device, problems, relative_error, solve_dense, values};

fn krylov() -> Vec<LinearSolverConfig> {
    vec![
        LinearSolverConfig::gmres(),
        LinearSolverConfig::Gmres(GmresConfig::new().with_restart(5)),
        LinearSolverConfig::bicgstab(),
    ]
}

fn all() -> Vec<LinearSolverConfig> {
    let mut all = krylov();
    all.extend([
        LinearSolverConfig::neumann(),
        SolverConfig::anderson().into(),
        SolverConfig::broyden().into(),
    ]);
    all
}

fn stop() -> StopConfig {
    StopConfig::new()
        .with_abs_tol(1e-11)
        .with_rel_tol(0.0)
        .with_max_steps(3000)
}

/// A matrix of the given size and norm per sample, `[batch, n, n]`, a right side, and the solution
/// by elimination.
pub(crate) fn systems(n: usize, norm: f64, batch: usize) -> (Tensor<3>, Tensor<2>, Vec<f64>) {
    let device = f64_device();
    device.seed(11);
    let normal = Distribution::Normal(0.0, norm / (n as f64).sqrt());
    let a = Tensor::<3>::random([batch, n, n], normal, &device);
    let g = Tensor::<2>::random([batch, n], Distribution::Normal(0.0, 1.0), &device);
    let (entries, right) = (values(&a), values(&g));
    let exact = (0..batch).flat_map(|b| {
        let mut matrix: Vec<f64> = entries[b * n * n..][..n * n].iter().map(|x| -x).collect();
        (0..n).for_each(|i| matrix[i * n + i] += 1.0);
        solve_dense(&matrix, &right[b * n..][..n])
    });
    let exact = exact.collect();
    (a, g, exact)
}

pub(crate) fn product(a: &Tensor<3>) -> impl FnMut(Tensor<2>) -> Tensor<2> + '_ {
    |u| a.clone().matmul(u.unsqueeze_dim(2)).squeeze_dim::<2>(2)
}

fn converged(
    config: &LinearSolverConfig,
    a: &Tensor<3>,
    g: &Tensor<2>,
    stop: &StopConfig,
) -> Solution {
    let solver = config.build().unwrap();
    let solution = solver.solve(&mut product(a), g.clone(), &stop.build().unwrap());
    assert!(
        solution.stats.all_converged(),
        "{config}: {:?}",
        solution.stats
    );
    solution
}

#[test]
fn every_method_agrees_with_elimination() {
    let (a, g, exact) = systems(14, 0.6, 5);
    for config in all() {
        let solution = converged(&config, &a, &g, &stop());
        let error = relative_error(&values(&solution.z), &exact);
        // Residual 1e-11 times |(I - A)^-1| below 10.
        assert!(error < 1e-10, "{config}: {error:e}");
    }
}

#[test]
fn krylov_methods_solve_where_the_series_diverges_and_the_spectrum_is_complex() {
    let (a, g, exact) = systems(14, 1.7, 5);
    for config in [LinearSolverConfig::gmres(), LinearSolverConfig::bicgstab()] {
        let solution = converged(&config, &a, &g, &stop());
        assert!(
            relative_error(&values(&solution.z), &exact) < 1e-8,
            "{config}"
        );
    }
    let neumann = LinearSolverConfig::neumann().build().unwrap();
    let solution = neumann.solve(&mut product(&a), g, &stop().build().unwrap());
    assert_eq!(solution.stats.status, [SolveStatus::Diverged; 5]);
}

#[test]
fn gmres_ends_within_the_dimension_and_its_residual_is_the_smallest_of_all() {
    let (a, g, _) = systems(9, 0.9, 3);
    let stop = stop().with_trace(TraceLevel::Residuals);
    let rule = stop.clone().build().unwrap();
    let gmres = LinearSolverConfig::gmres().build().unwrap();
    let solution = gmres.solve(&mut product(&a), g.clone(), &rule);
    // The start, a product for each dimension, and the check.
    assert!(solution.stats.nfe <= 11, "{:?}", solution.stats);
    let best = solution.trace.unwrap().steps;
    for config in all() {
        let other = config.build().unwrap();
        let trace = other
            .solve(&mut product(&a), g.clone(), &rule)
            .trace
            .unwrap();
        for (ours, theirs) in best.iter().zip(&trace.steps) {
            for (ours, theirs) in ours.abs.iter().zip(&theirs.abs) {
                assert!(*ours <= theirs * (1.0 + 1e-9) + 1e-11, "{config}");
            }
        }
    }
}

/// `|A z + g - z| / |A z + g|` of every row, in the type of the answer.
fn relative_residuals(a: &Tensor<3>, g: &Tensor<2>, z: &Tensor<2>) -> Vec<f64> {
    let fz = product(a)(z.clone()) + g.clone();
    let length = |x: Tensor<2>| values(&x.square().sum_dim(1)).into_iter().map(f64::sqrt);
    let residual = length(fz.clone() - z.clone());
    residual.zip(length(fz)).map(|(r, f)| r / f).collect()
}

fn recurrences() -> Vec<LinearSolverConfig> {
    let mut all = krylov();
    all.push(LinearSolverConfig::neumann());
    all
}

#[test]
fn the_residual_of_a_converged_sample_is_the_true_one() {
    let (a, g, _) = systems(30, 0.7, 4);
    // From an ordinary tolerance to a few roundings of the type.
    for (dtype, tolerances) in [
        (DType::F64, [1e-4, 1e-13, 2e-15]),
        (DType::F32, [1e-4, 2e-6, 4e-7]),
    ] {
        let (a, g) = (a.clone().cast(dtype), g.clone().cast(dtype));
        for config in recurrences() {
            for tolerance in tolerances {
                let stop = StopConfig::new()
                    .with_rel_tol(tolerance)
                    .with_max_steps(600);
                let solution = converged(&config, &a, &g, &stop);
                let residuals = relative_residuals(&a, &g, &solution.z);
                for (seen, reported) in residuals.iter().zip(&solution.stats.rel_residual) {
                    let name = format!("{config}, {tolerance:e}");
                    assert!(*seen <= tolerance, "{name}: {seen:e}");
                    assert!((seen - reported).abs() <= 1e-6 * seen, "{name}: {seen:e}");
                }
            }
        }
    }
}

#[test]
fn a_recurrence_that_promised_too_much_goes_on_or_stalls() {
    // One slow direction, so that the recurrence runs away from the truth.
    let device = f64_device();
    let slopes: Vec<f64> = (0..40).map(|i| 0.998 - 0.045 * f64::from(i)).collect();
    let slopes = Tensor::<1>::from_data(slopes.as_slice(), &device).reshape([1, 40]);
    let a = Tensor::<2>::eye(40, &device) * slopes;
    let a = a.unsqueeze_dim::<3>(0).repeat_dim(0, 3).cast(DType::F32);
    device.seed(5);
    let g = Tensor::<2>::random([3, 40], Distribution::Normal(0.0, 1.0), &device).cast(DType::F32);
    let (mut went_on, mut stalled) = (0, 0);
    for config in recurrences() {
        for tolerance in [2e-6, 5e-7, 1e-7, 1e-9] {
            let stop = StopConfig::new()
                .with_rel_tol(tolerance)
                .with_max_steps(20_000)
                .with_trace(TraceLevel::Residuals);
            let solver = config.build().unwrap();
            let solution = solver.solve(&mut product(&a), g.clone(), &stop.build().unwrap());
            let name = format!("{config}, {tolerance:e}");
            let residuals = relative_residuals(&a, &g, &solution.z);
            let stats = &solution.stats;
            for (row, &seen) in residuals.iter().enumerate() {
                let reported = stats.rel_residual[row];
                assert!((seen - reported).abs() <= 1e-6 * seen, "{name}: {stats:?}");
                let expected = match seen <= tolerance {
                    true => SolveStatus::Converged,
                    false => SolveStatus::Stalled,
                };
                assert_eq!(stats.status[row], expected, "{name}");
            }
            let steps = solution.trace.unwrap().steps;
            assert_eq!(steps.len(), stats.nfe);
            let claims = |row: usize| steps.iter().filter(|s| s.rel[row] <= tolerance).count();
            for row in 0..3 {
                match stats.status[row].is_converged() {
                    // The claim and its check; then once more.
                    true => went_on += usize::from(claims(row) > 2),
                    false => stalled += 1,
                }
            }
        }
    }
    assert!(went_on > 0 && stalled > 0, "{went_on} {stalled}");
}

#[test]
fn a_check_is_one_product_and_only_for_claims() {
    let (a, g, _) = systems(14, 0.8, 3);
    for config in recurrences() {
        let solver = config.build().unwrap();
        let solve = |stop: StopConfig| {
            let mut products = 0;
            let mut map = |u: Tensor<2>| {
                products += 1;
                product(&a)(u)
            };
            let solution = solver.solve(&mut map, g.clone(), &stop.build().unwrap());
            assert_eq!(solution.stats.nfe, products, "{config}");
            solution.stats
        };
        let ample = solve(stop().with_abs_tol(1e-6));
        let last = ample.steps.iter().max().copied().unwrap();
        assert_eq!(ample.nfe, last, "{config}: the check is a step");
        // Out of steps, nothing is claimed.
        let short = solve(stop().with_max_steps(3));
        assert_eq!(short.nfe, 3, "{config}");
        assert_eq!(short.status, [SolveStatus::MaxSteps; 3]);
        // A claim with the last step of the budget is checked beyond it.
        let exact = solve(stop().with_abs_tol(1e-6).with_max_steps(last - 1));
        assert_eq!(exact.nfe, last, "{config}");
        assert_eq!(exact.status, [SolveStatus::Converged; 3]);
        for check_every in [2, 5] {
            let seldom = stop()
                .with_abs_tol(1e-6)
                .with_check_every(Some(check_every));
            let seldom = solve(seldom);
            assert_eq!(seldom.best_step.len(), 3);
            assert_eq!(seldom.status, [SolveStatus::Converged; 3]);
        }
    }
}

#[test]
fn degenerate_systems_end_with_the_right_answer_or_a_status() {
    let device = f64_device();
    let g = Tensor::<2>::from_data([[1.0, 2.0], [0.0, 0.0]], &device);
    let rule = stop().build().unwrap();
    for config in all() {
        let solver = config.build().unwrap();
        // A = 0: the start is the solution. A right side of 0: so is 0.
        let solution = solver.solve(&mut |u: Tensor<2>| u * 0.0, g.clone(), &rule);
        assert_eq!(solution.stats.nfe, 1, "{config}");
        assert_eq!(values(&solution.z), values(&g));
        // A = I: no solution for the first row, any vector for the second.
        let rule = stop().with_max_steps(50).build().unwrap();
        let solution = solver.solve(&mut |u: Tensor<2>| u, g.clone(), &rule);
        assert!(!solution.stats.status[0].is_converged(), "{config}");
        assert!(solution.stats.status[1].is_converged(), "{config}");
        assert!(values(&solution.z).iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_batch_of_systems_equals_its_rows_solved_alone() {
    let (a, g, _) = systems(14, 0.8, 4);
    for config in all() {
        let solver = config.build().unwrap();
        let rule = stop().with_abs_tol(1e-9).build().unwrap();
        let together = solver.solve(&mut product(&a), g.clone(), &rule);
        for row in 0..4 {
            let own = a.clone().narrow(0, row, 1).repeat_dim(0, 4);
            let right = g.clone().narrow(0, row, 1).repeat_dim(0, 4);
            let alone = solver.solve(&mut product(&own), right, &rule);
            assert_eq!(
                together.stats.steps[row], alone.stats.steps[row],
                "{config}"
            );
            let together = values(&together.z.clone().narrow(0, row, 1));
            assert_eq!(together, values(&alone.z.narrow(0, row, 1)), "{config}");
        }
    }
}

#[test]
fn a_batch_at_the_rounding_of_its_type_equals_its_rows_solved_alone() {
    let (a, g, _) = systems(14, 0.95, 4);
    let (a, g) = (a.cast(DType::F32), g.cast(DType::F32));
    for config in recurrences() {
        let solver = config.build().unwrap();
        for tolerance in [1e-6, 3e-7, 1e-7] {
            let rule = stop().with_abs_tol(0.0).with_rel_tol(tolerance);
            let rule = rule.with_max_steps(100).build().unwrap();
            let together = solver.solve(&mut product(&a), g.clone(), &rule);
            for row in 0..4 {
                let own = a.clone().narrow(0, row, 1).repeat_dim(0, 4);
                let right = g.clone().narrow(0, row, 1).repeat_dim(0, 4);
                let alone = solver.solve(&mut product(&own), right, &rule);
                let name = format!("{config}, {tolerance:e}");
                assert_eq!(together.stats.steps[row], alone.stats.steps[row], "{name}");
                assert_eq!(together.stats.status[row], alone.stats.status[row]);
                let together = values(&together.z.clone().narrow(0, row, 1));
                assert_eq!(together, values(&alone.z.narrow(0, row, 1)), "{name}");
            }
        }
    }
}

#[test]
fn the_work_of_each_linear_solver_is_what_it_was() {
    let device = f64_device();
    let mut table = String::new();
    // The affine problems of the suite are linear systems of their own.
    for problem in problems(&device).into_iter().take(3) {
        let bias = (problem.map)(problem.z0.clone());
        let counts: Vec<String> = all()
            .iter()
            .map(|config| {
                let mut a = |u: Tensor<2>| (problem.map)(u) - bias.clone();
                let rule = stop().with_abs_tol(1e-8).build().unwrap();
                let solution = config.build().unwrap().solve(&mut a, bias.clone(), &rule);
                assert!(solution.stats.all_converged(), "{config}");
                solution.stats.nfe.to_string()
            })
            .collect();
        table += &format!("{}: {}\n", problem.name, counts.join(" "));
    }
    // Products, those of the start and of the check included, for GMRES(20), GMRES(5), BiCGStab,
    // Neumann, Anderson, Broyden.
    assert_eq!(table, include_str!("linear_work_counters.txt"));
}

#[test]
fn linear_configurations_survive_json_and_wrong_ones_are_rejected() {
    for config in all() {
        let json = serde_json::to_string(&config).unwrap();
        let back: LinearSolverConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(config, back);
    }
    let wrong = LinearSolverConfig::Gmres(GmresConfig::new().with_restart(0));
    assert_eq!(
        wrong.build().unwrap_err().to_string(),
        "gmres.restart is 0, but must be at least 1"
    );
}
