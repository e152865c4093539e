//! What every solver must do, checked on every solver. In f64 unless a test says otherwise.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod behaviour;
mod kernels;
mod linear;
mod monotone;
mod properties;
mod scale;

use burn::config::Config;
use burn::tensor::{DType, Device, Tensor};
use deq_solvers::{
    AndersonConfig, AndersonType, ArmijoConfig, BroydenConfig, BroydenUpdate, FullHistory,
    PicardConfig, ReversibleConfig, Solution, SolveStatus, SolverConfig, StopConfig, StopRule,
};
use deq_testkit::{f64_device, problems, relative_error, values};

fn solvers() -> Vec<SolverConfig> {
    vec![
        PicardConfig::new().into(),
        PicardConfig::new().with_damping(0.7).into(),
        AndersonConfig::new().into(),
        AndersonConfig::new()
            .with_history(3)
            .with_mixing(0.8)
            .into(),
        type_i().into(),
        type_i().with_history(12).with_mixing(0.8).into(),
        BroydenConfig::new().into(),
        BroydenConfig::new().with_history(4).into(),
        BroydenConfig::new()
            .with_history(9)
            .with_when_full(FullHistory::DropOldest)
            .into(),
        BroydenConfig::new().with_update(BroydenUpdate::Bad).into(),
        BroydenConfig::new()
            .with_line_search(Some(ArmijoConfig::new()))
            .into(),
        ReversibleConfig::new().into(),
    ]
}

fn type_i() -> AndersonConfig {
    AndersonConfig::new()
        .with_kind(AndersonType::TypeI)
        .with_regularization(1e-10)
}

fn solve(
    config: &SolverConfig,
    map: impl Fn(Tensor<2>) -> Tensor<2>,
    z0: &Tensor<2>,
    stop: &StopConfig,
) -> Solution {
    let stop: StopRule = stop.build().unwrap();
    let solver = config.build().unwrap();
    solver.solve(&mut |z: Tensor<2>| map(z), z0.clone(), &stop)
}

fn tight() -> StopConfig {
    StopConfig::new()
        .with_abs_tol(1e-11)
        .with_rel_tol(0.0)
        .with_max_steps(3000)
}

#[test]
fn every_solver_converges_on_every_problem_as_close_as_its_residual_promises() {
    let device = f64_device();
    for problem in problems(&device) {
        for config in solvers() {
            let solution = solve(&config, &problem.map, &problem.z0, &tight());
            let name = format!("{} with {config}", problem.name);
            assert!(
                solution.stats.all_converged(),
                "{name}: {:?}",
                solution.stats
            );
            for (distance, residual) in problem
                .distances(&solution.z)
                .into_iter()
                .zip(&solution.stats.abs_residual)
            {
                assert!(*residual <= 1e-11);
                let bound = residual / (1.0 - problem.lipschitz) + 1e-12;
                assert!(distance <= bound, "{name}: {distance:e} > {bound:e}");
            }
        }
    }
}

#[test]
fn the_work_of_each_solver_is_what_it_was() {
    let device = f64_device();
    let stop = tight().with_abs_tol(1e-8);
    let mut table = String::new();
    for problem in problems(&device) {
        let counts: Vec<String> = [
            SolverConfig::picard(),
            SolverConfig::anderson(),
            type_i().into(),
            SolverConfig::broyden(),
            BroydenConfig::new().with_update(BroydenUpdate::Bad).into(),
            BroydenConfig::new()
                .with_history(8)
                .with_when_full(FullHistory::DropOldest)
                .into(),
        ]
        .iter()
        .map(|config| {
            solve(config, &problem.map, &problem.z0, &stop)
                .stats
                .nfe
                .to_string()
        })
        .collect();
        table += &format!("{}: {}\n", problem.name, counts.join(" "));
    }
    // Evaluations of f for Picard, Anderson II and I, Broyden good, bad, and with a ring of 8
    // terms. A change here is a change of an algorithm.
    let expected = include_str!("work_counters.txt");
    assert_eq!(table, expected);
    for line in expected.lines() {
        let counts: Vec<usize> = line
            .rsplit(": ")
            .next()
            .unwrap()
            .split(' ')
            .map(|n| n.parse().unwrap())
            .collect();
        assert!(counts[1..].iter().all(|&c| c < counts[0]), "{line}");
    }
}

#[test]
fn a_converged_start_stops_at_once() {
    let device = f64_device();
    for problem in problems(&device) {
        for config in solvers() {
            let stop = tight().with_abs_tol(1e-10);
            let solution = solve(&config, &problem.map, &problem.z_star, &stop);
            assert_eq!(solution.stats.nfe, 1);
            assert_eq!(values(&solution.z), values(&problem.z_star));
        }
    }
}

#[test]
fn a_budget_of_one_returns_the_start_and_its_fz() {
    let device = f64_device();
    for problem in problems(&device) {
        for config in solvers() {
            let stop = tight().with_max_steps(1);
            let solution = solve(&config, &problem.map, &problem.z0, &stop);
            assert_eq!(solution.stats.nfe, 1);
            assert_eq!(solution.stats.status_counts().max_steps, 4);
            assert_eq!(values(&solution.z), values(&problem.z0));
            let fz = (problem.map)(problem.z0.clone());
            assert_eq!(values(&solution.fz), values(&fz));
        }
    }
}

#[test]
fn a_nan_ends_only_the_sample_that_met_it() {
    let device = f64_device();
    // Rows whose first entry is negative meet a NaN after the start; the others halve.
    let map = |z: Tensor<2>| {
        let bad = z.clone().narrow(1, 0, 1).lower_elem(0.0);
        (z.clone() * 0.5).mask_fill(bad.expand(z.shape()), f64::NAN)
    };
    let z0 = Tensor::<2>::from_data([[1.0, 2.0], [-1.0, 2.0], [3.0, -4.0]], &device);
    for config in solvers() {
        let stop = tight().with_abs_tol(1e-6);
        let solution = solve(&config, map, &z0, &stop);
        assert_eq!(
            solution.stats.status,
            [
                SolveStatus::Converged,
                SolveStatus::NonFinite,
                SolveStatus::Converged
            ],
            "{config}"
        );
        let z = values(&solution.z);
        assert_eq!(
            &z[2..4],
            &[-1.0, 2.0],
            "the start is the best finite iterate"
        );
        assert!(values(&solution.fz).iter().all(|v| v.is_finite()));
    }
}

#[test]
fn an_expanding_map_ends_diverged_with_a_finite_best_iterate() {
    let device = f64_device();
    // Slope 3 everywhere: plain iteration moves away from the fixed point -1/2.
    let z0 = Tensor::<2>::from_data([[1.0, 2.0], [0.5, 4.0]], &device);
    let map = |z: Tensor<2>| z * 3.0 + 1.0;
    let stop = tight().with_max_steps(200);
    let solution = solve(&SolverConfig::picard(), map, &z0, &stop);
    assert_eq!(solution.stats.status, [SolveStatus::Diverged; 2]);
    assert_eq!(values(&solution.z), values(&z0));
    assert!(solution.stats.nfe < 12, "3^9 exceeds the limit of 1e4");
    // The quasi-Newton methods solve this linear map although it expands.
    for config in [SolverConfig::anderson(), SolverConfig::broyden()] {
        let solution = solve(&config, map, &z0, &stop);
        assert!(solution.stats.all_converged(), "{config}");
        let error = relative_error(&values(&solution.z), &[-0.5; 4]);
        assert!(error < 1e-10, "{config}: {error:e}");
    }
    // No fixed point at all: every solver must end without one, at a finite iterate.
    let map = |z: Tensor<2>| z.clone() * 2.0 + z.abs() + 1.0;
    for config in solvers() {
        let solution = solve(&config, map, &z0, &stop);
        assert_eq!(solution.stats.status_counts().converged, 0, "{config}");
        assert!(values(&solution.z).iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_stalled_solve_is_told_from_one_out_of_steps() {
    let device = f64_device();
    // Every point of the circle is mapped half a turn on: the residual stays 2.
    let z0 = Tensor::<2>::from_data([[1.0, 0.0]], &device);
    let map = |z: Tensor<2>| z.neg();
    let stop = tight().with_max_steps(50).with_patience(Some(5));
    let solution = solve(&SolverConfig::picard(), map, &z0, &stop);
    assert_eq!(solution.stats.status, [SolveStatus::Stalled]);
    assert_eq!(solution.stats.nfe, 6);
    let solution = solve(&SolverConfig::picard(), map, &z0, &stop.with_patience(None));
    assert_eq!(solution.stats.status, [SolveStatus::MaxSteps]);
}

#[test]
fn a_batch_equals_its_rows_solved_alone() {
    let device = f64_device();
    for problem in problems(&device) {
        // Starts at different distances, so that samples end at different steps.
        let spread = Tensor::<2>::from_data([[0.0], [1.0], [10.0], [0.999]], &device);
        let z0 = problem.z0.clone() + problem.z_star.clone() * spread;
        let [batch, _] = z0.dims();
        for config in solvers() {
            let stop = tight().with_abs_tol(1e-7);
            let together = solve(&config, &problem.map, &z0, &stop);
            for row in 0..batch {
                // The map of one row is the map of the batch with that row repeated.
                let rows = z0.clone().narrow(0, row, 1).repeat_dim(0, batch);
                let alone = solve(&config, &problem.map, &rows, &stop);
                let name = format!("{} with {config}, row {row}", problem.name);
                assert_eq!(
                    together.stats.status[row], alone.stats.status[row],
                    "{name}"
                );
                assert_eq!(together.stats.steps[row], alone.stats.steps[row], "{name}");
                assert_eq!(
                    values(&together.z.clone().narrow(0, row, 1)),
                    values(&alone.z.narrow(0, row, 1)),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn reading_the_device_less_often_changes_no_answer() {
    let device = f64_device();
    for problem in problems(&device) {
        for config in solvers() {
            let stop = tight().with_abs_tol(1e-7);
            let often = solve(&config, &problem.map, &problem.z0, &stop);
            let seldom = solve(
                &config,
                &problem.map,
                &problem.z0,
                &stop.clone().with_check_every(Some(7)),
            );
            assert_eq!(values(&often.z), values(&seldom.z));
            assert_eq!(often.stats.steps, seldom.stats.steps);
            assert!(seldom.stats.nfe < often.stats.nfe + 7);
        }
    }
}

#[test]
fn f32_solves_reach_f32_tolerances() {
    let device = f64_device();
    for problem in problems(&device) {
        let map = |z: Tensor<2>| (problem.map)(z.cast(DType::F64)).cast(DType::F32);
        let z0 = problem.z0.clone().cast(DType::F32);
        for config in solvers() {
            // One unit of rounding, 6e-8, carried through a map of slope 0.98 becomes 3e-6.
            let stop = tight().with_abs_tol(0.0).with_rel_tol(5e-6);
            let solution = solve(&config, map, &z0, &stop);
            assert_eq!(solution.z.dtype(), DType::F32);
            assert!(
                solution.stats.all_converged(),
                "{} with {config}: {:?}",
                problem.name,
                solution.stats
            );
        }
    }
}

#[test]
fn failure_becomes_an_error_only_when_asked_for() {
    let device = f64_device();
    let problem = &problems(&device)[0];
    let stop = tight().with_max_steps(2);
    let solution = solve(&SolverConfig::picard(), &problem.map, &problem.z0, &stop);
    let message = solution.into_result().unwrap_err().to_string();
    assert!(
        message.starts_with("4 of 4 samples did not converge (largest relative residual ")
            && message
                .ends_with("raise max_steps, loosen the tolerance, or regularise the Jacobian"),
        "{message}"
    );
}

#[test]
fn configurations_survive_json() {
    for config in solvers() {
        let json = serde_json::to_string(&config).unwrap();
        let back: SolverConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(config, back);
    }
    let stop = tight().with_patience(Some(4));
    let path = std::env::temp_dir().join(format!("deq-stop-{}.json", std::process::id()));
    stop.save(&path).unwrap();
    let loaded = StopConfig::load(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(stop, loaded.unwrap());
}

#[test]
fn invalid_configurations_are_rejected_with_what_would_be_right() {
    let message = |config: SolverConfig| config.build().unwrap_err().to_string();
    assert_eq!(
        message(PicardConfig::new().with_damping(0.0).into()),
        "picard.damping is 0, but must be above 0 and at most 1"
    );
    assert_eq!(
        message(AndersonConfig::new().with_history(0).into()),
        "anderson.history is 0, but must be at least 1"
    );
    assert_eq!(
        message(AndersonConfig::new().with_regularization(-1.0).into()),
        "anderson.regularization is -1, but must be a finite number above 0"
    );
    assert_eq!(
        message(AndersonConfig::new().with_mixing(1.5).into()),
        "anderson.mixing is 1.5, but must be above 0 and at most 1"
    );
    assert_eq!(
        message(BroydenConfig::new().with_history(0).into()),
        "broyden.history is 0, but must be at least 1"
    );
    let message = |stop: StopConfig| stop.build().unwrap_err().to_string();
    assert_eq!(
        message(StopConfig::new().with_max_steps(0)),
        "stop.max_steps is 0, but must be at least 1"
    );
    assert_eq!(
        message(StopConfig::new().with_rel_tol(f64::NAN)),
        "stop.rel_tol is NaN, but must be a finite number of at least 0"
    );
    assert_eq!(
        message(StopConfig::new().with_rel_tol(0.0)),
        "stop.abs_tol and stop.rel_tol are both 0: set at least one of them above 0"
    );
}

#[test]
#[should_panic(expected = "the map must keep the shape [batch, dim] of the state")]
fn a_map_that_changes_the_shape_panics() {
    let device: Device = f64_device();
    let z0 = Tensor::<2>::zeros([2, 3], &device);
    let _ = solve(
        &SolverConfig::picard(),
        |z| z.narrow(1, 0, 2),
        &z0,
        &tight(),
    );
}
