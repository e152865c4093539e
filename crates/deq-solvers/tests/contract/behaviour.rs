//! What the loop does around a solver: traces, rows, scopes, steps by hand, types.

use crate::{solve, solvers, tight};
use burn::tensor::{DType, Int, Tensor};
use deq_solvers::{
    AndersonConfig, AndersonType, ArmijoConfig, BroydenConfig, ByRows, FixedPointSolver,
    FullHistory, Iterate, ReversibleConfig, ReversiblePair, Scope, Solve, SolveStats, SolveStatus,
    SolverConfig, TraceLevel,
};
use deq_testkit::{f64_device, problems, relative_error, values};

#[test]
fn the_trace_has_one_entry_per_evaluation_at_each_level() {
    let device = f64_device();
    let problem = &problems(&device)[0];
    let stop = tight().with_abs_tol(1e-6);
    for (level, iterates) in [(TraceLevel::Residuals, false), (TraceLevel::Iterates, true)] {
        let stop = stop.clone().with_trace(level);
        let solution = solve(&SolverConfig::anderson(), &problem.map, &problem.z0, &stop);
        let trace = solution.trace.unwrap();
        let nfe = solution.stats.nfe;
        assert_eq!(trace.steps.len(), nfe);
        let residual = (problem.map)(problem.z0.clone()) - problem.z0.clone();
        let expected = values(&residual.square().sum_dim(1).sqrt());
        assert!(relative_error(&trace.steps[0].abs, &expected) < 1e-14);
        assert_eq!(trace.mean_rel().len(), nfe);
        let last = trace.steps.last().unwrap();
        assert_eq!(last.abs, solution.stats.abs_residual);
        assert_eq!(trace.iterates.len(), if iterates { nfe } else { 0 });
        for (step, (z, fz)) in trace.iterates.iter().enumerate() {
            assert_eq!(values(&(problem.map)(z.clone())), values(fz), "step {step}");
        }
    }
    let solution = solve(&SolverConfig::anderson(), &problem.map, &problem.z0, &stop);
    assert!(solution.trace.is_none());
}

#[test]
fn an_observer_sees_every_step_however_seldom_the_device_is_read() {
    let device = f64_device();
    let problem = &problems(&device)[3];
    for check_every in [1, 4] {
        let stop = tight()
            .with_abs_tol(1e-6)
            .with_check_every(Some(check_every));
        let stop = stop.build().unwrap();
        let solver = SolverConfig::anderson().build().unwrap();
        let mut seen = Vec::new();
        let mut map = |z: Tensor<2>| (problem.map)(z);
        let solution = solver.solve_observed(&mut map, problem.z0.clone(), &stop, &mut |report| {
            seen.push((report.step, report.active));
        });
        let steps: Vec<usize> = seen.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, (0..solution.stats.nfe).collect::<Vec<_>>());
        assert_eq!(seen[0].1, 4);
        assert_eq!(
            solution.stats.reads,
            solution.stats.nfe.div_ceil(check_every)
        );
    }
}

#[test]
fn kept_states_are_those_of_the_trace_and_the_answer_beyond_the_end() {
    let device = f64_device();
    let problem = &problems(&device)[0];
    let z0 = problem.z0.clone();
    for check_every in [1, 5] {
        let stop = tight()
            .with_abs_tol(1e-6)
            .with_check_every(Some(check_every))
            .with_trace(TraceLevel::Iterates)
            .with_keep(vec![7, 0, 2000]);
        let solution = solve(&SolverConfig::anderson(), &problem.map, &z0, &stop);
        let iterates = &solution.trace.as_ref().unwrap().iterates;
        let kept: Vec<_> = solution
            .states
            .iter()
            .map(|s| (s.step, s.reached))
            .collect();
        assert_eq!(kept, [(7, true), (0, true), (2000, false)]);
        assert_eq!(values(&solution.states[0].z), values(&iterates[7].0));
        assert_eq!(values(&solution.states[1].z), values(&z0));
        assert_eq!(values(&solution.states[2].z), values(&solution.z));
    }
    // A sample that ends early is at its answer in later states.
    let spread = Tensor::<2>::from_data([[1.0], [0.0], [0.0], [0.0]], &device);
    let z0 = problem.z_star.clone() * spread;
    let stop = tight()
        .with_abs_tol(1e-6)
        .with_keep(vec![3])
        .with_check_every(Some(4));
    let solution = solve(&SolverConfig::picard(), &problem.map, &z0, &stop);
    assert_eq!(solution.stats.steps[0], 1);
    let kept = values(&solution.states[0].z.clone().narrow(0, 0, 1));
    assert_eq!(kept, values(&solution.z.narrow(0, 0, 1)));
    let message = tight().with_max_steps(5).with_keep(vec![5]).build();
    assert_eq!(
        message.unwrap_err().to_string(),
        "stop.keep is 5, but must be below stop.max_steps, since steps are counted from 0"
    );
    let limited = tight().with_keep(vec![5, 2]).limited_to(5);
    assert_eq!((limited.max_steps, &*limited.keep), (5, &[2][..]));
    limited.build().unwrap();
}

#[test]
fn kept_states_depend_on_no_read_come_once_and_are_finite() {
    let device = f64_device();
    for check_every in [1, 4] {
        let stop = tight().with_check_every(Some(check_every));
        let solution = solve(
            &SolverConfig::picard(),
            |z| z.ones_like(),
            &Tensor::zeros([2, 1], &device),
            &stop.clone().with_keep(vec![3, 0, 3]),
        );
        assert_eq!(solution.stats.steps, [2, 2]);
        let states = solution.states.iter();
        let kept: Vec<_> = states.map(|s| (s.step, s.reached)).collect();
        assert_eq!(kept, [(3, false), (0, true)]);

        // The first sample goes 1, 1/2, 1/4, whose f(z) is not a number.
        let map = |z: Tensor<2>| {
            let bad = z.clone().lower_elem(0.3);
            (z * 0.5).mask_fill(bad, f64::NAN)
        };
        let z0 = Tensor::<2>::from_data([[1.0], [8.0]], &device);
        let stop = stop.with_max_steps(3).with_keep(vec![2]);
        let solution = solve(&SolverConfig::picard(), map, &z0, &stop);
        assert_eq!(solution.stats.status[0], SolveStatus::NonFinite);
        let kept = &solution.states[0];
        assert_eq!((kept.step, kept.reached), (2, true));
        assert_eq!(values(&kept.z), [0.5, 2.0]);
        assert_eq!(values(&kept.fz), [0.25, 1.0]);
    }
}

#[test]
fn evaluating_active_rows_only_changes_no_answer_and_costs_less() {
    let device = f64_device();
    let scales = Tensor::<2>::from_data([[0.1], [0.5], [0.9], [0.7]], &device);
    let z0 = Tensor::<2>::zeros([4, 3], &device);
    for config in solvers() {
        let stop = tight().with_abs_tol(1e-7);
        let whole = solve(&config, |z| (z * scales.clone()).cos(), &z0, &stop);
        let mut by_rows = ByRows(|z: Tensor<2>, rows: Option<&Tensor<1, Int>>| {
            let scales = match rows {
                Some(rows) => scales.clone().select(0, rows.clone()),
                None => scales.clone(),
            };
            (z * scales).cos()
        });
        let solver = config.build().unwrap();
        let rows = solver.solve(&mut by_rows, z0.clone(), &stop.build().unwrap());
        assert_eq!(values(&rows.z), values(&whole.z), "{config}");
        assert_eq!(rows.stats.steps, whole.stats.steps);
        let spent: usize = rows.stats.steps.iter().sum();
        assert_eq!(rows.stats.evaluated_rows, spent, "{config}");
        assert!(spent < whole.stats.evaluated_rows);
    }
}

#[test]
fn a_solve_driven_by_hand_is_the_solve() {
    let device = f64_device();
    let problem = &problems(&device)[3];
    for config in solvers() {
        let stop = tight().with_abs_tol(1e-7);
        let expected = solve(&config, &problem.map, &problem.z0, &stop);
        let solver = config.build().unwrap();
        let mut stepper = solver.start(problem.z0.clone(), &stop.build().unwrap());
        let mut steps = 1;
        assert!(stepper.active_rows().is_none());
        while stepper.observe((problem.map)(stepper.point())) {
            steps += 1;
        }
        let solution = stepper.finish();
        assert_eq!(steps, expected.stats.nfe);
        assert_eq!(values(&solution.z), values(&expected.z));
        assert_eq!(solution.stats, expected.stats);
    }
}

#[test]
fn a_batch_as_one_problem_stops_by_its_total_norm() {
    let device = f64_device();
    let problem = &problems(&device)[0];
    let stop = tight()
        .with_abs_tol(1e-6)
        .with_scope(Scope::Batch)
        .with_trace(TraceLevel::Residuals);
    let solution = solve(&SolverConfig::anderson(), &problem.map, &problem.z0, &stop);
    assert_eq!(solution.stats.steps, vec![solution.stats.nfe; 4]);
    let residual = solution.fz - solution.z;
    let norm = values(&residual.square().sum().sqrt().reshape([1]))[0];
    assert!(norm <= 1e-6);
    assert!((solution.stats.abs_residual[0] - norm).abs() < 1e-12 * norm.max(1.0));
    let trace = solution.trace.unwrap();
    assert!(trace.steps.iter().all(|s| s.abs == vec![s.abs[0]; 4]));
}

#[derive(Debug)]
struct Spoiler;

impl FixedPointSolver for Spoiler {
    type State = ();

    fn name(&self) -> &'static str {
        "spoiler"
    }

    fn init(&self, _: &Iterate) {}

    fn step(&self, at: &Iterate, (): &mut ()) -> Tensor<2> {
        let first = Tensor::<2>::from_data([[f64::NAN], [0.0]], &at.z().device());
        at.fz().clone() + first
    }
}

#[test]
fn a_solver_that_spoils_its_own_point_is_told_from_a_map_that_does() {
    let device = f64_device();
    let z0 = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device);
    let stop = tight().with_abs_tol(1e-3).build().unwrap();
    let solution = Spoiler.solve(&mut |z: Tensor<2>| z * 0.5, z0, &stop);
    assert_eq!(
        solution.stats.status,
        [SolveStatus::Breakdown, SolveStatus::Converged]
    );
    assert!(values(&solution.z).iter().all(|v| v.is_finite()));
    assert!(
        SolveStatus::Breakdown
            .to_string()
            .starts_with("broke down: ")
    );
}

#[test]
fn a_start_whose_fz_is_not_finite_is_handed_back() {
    let device = f64_device();
    let z0 = Tensor::<2>::from_data([[-1.0, 2.0], [4.0, 4.0]], &device);
    for config in solvers() {
        let solution = solve(
            &config,
            |z| z.sqrt() + 1.0,
            &z0,
            &tight().with_abs_tol(1e-6),
        );
        assert_eq!(
            solution.stats.status,
            [SolveStatus::NonFinite, SolveStatus::Converged],
            "{config}"
        );
        assert_eq!(&values(&solution.fz)[..2], [-1.0, 2.0]);
        assert!(solution.stats.mean_rel_residual().is_finite());
        let json = serde_json::to_string(&solution.stats).unwrap();
        let back: SolveStats = serde_json::from_str(&json).unwrap();
        assert_eq!(back, solution.stats);
    }
}

#[test]
fn half_precision_maps_are_solved_with_wider_arithmetic() {
    let device = f64_device();
    // A rounding in every step, carried on by a map of slope L, becomes 1 / (1 - L) of them.
    for (dtype, rounding) in [
        (DType::F16, 2.0_f64.powi(-11)),
        (DType::BF16, 2.0_f64.powi(-8)),
    ] {
        for problem in problems(&device) {
            let map = |z: Tensor<2>| {
                assert_eq!(z.dtype(), dtype);
                (problem.map)(z.cast(DType::F64)).cast(dtype)
            };
            let z0 = problem.z0.clone().cast(dtype);
            let tolerance = rounding / (1.0 - problem.lipschitz);
            for config in solvers() {
                let stop = tight().with_abs_tol(0.0).with_rel_tol(tolerance);
                let solution = solve(&config, map, &z0, &stop);
                assert_eq!(solution.z.dtype(), dtype);
                assert!(
                    solution.stats.all_converged(),
                    "{} with {config} in {dtype:?}: {:?}",
                    problem.name,
                    solution.stats
                );
            }
        }
    }
}

#[test]
fn nearly_parallel_residuals_in_f32_do_not_blow_up() {
    let device = f64_device();
    // One slow direction: after a few steps all residuals are parallel to rounding.
    let slopes = Tensor::<2>::from_data([[0.999, 0.1, 0.1, 0.1]], &device).cast(DType::F32);
    let map = |z: Tensor<2>| z * slopes.clone() + 1.0;
    let z0 = Tensor::<2>::zeros([2, 4], &device).cast(DType::F32);
    for (kind, ridge) in [
        (AndersonType::TypeII, 1e-4),
        (AndersonType::TypeII, 1e-12),
        (AndersonType::TypeI, 1e-12),
    ] {
        let config = AndersonConfig::new()
            .with_kind(kind)
            .with_regularization(ridge);
        let stop = tight()
            .with_abs_tol(0.0)
            .with_rel_tol(1e-6)
            .with_max_steps(200)
            .with_trace(TraceLevel::Residuals);
        let solution = solve(&config.clone().into(), map, &z0, &stop);
        assert!(
            solution.stats.all_converged(),
            "{config}: {:?}",
            solution.stats
        );
        let trace = solution.trace.unwrap();
        let first = trace.steps[0].abs[0];
        let worst = trace.steps.iter().map(|s| s.abs[0]).fold(0.0, f64::max);
        assert!(worst <= 10.0 * first, "{config}: {worst:e} after {first:e}");
    }
}

#[test]
fn a_ring_of_broyden_terms_keeps_the_newest_secant_condition() {
    let device = f64_device();
    let problem = &problems(&device)[0];
    for update in [
        deq_solvers::BroydenUpdate::Good,
        deq_solvers::BroydenUpdate::Bad,
    ] {
        let solver = BroydenConfig::new()
            .with_history(3)
            .with_update(update)
            .with_when_full(FullHistory::DropOldest)
            .build()
            .unwrap();
        let stop = tight().with_max_steps(8).with_trace(TraceLevel::Iterates);
        let mut map = |z: Tensor<2>| (problem.map)(z);
        let (solution, state) =
            solver.solve_with_state(&mut map, problem.z0.clone(), &stop.build().unwrap());
        // The last evaluation ends the solve before it is learned from.
        let iterates = solution.trace.unwrap().iterates;
        let (z1, f1) = iterates[6].clone();
        let (z0, f0) = iterates[5].clone();
        let dz = z1.clone() - z0.clone();
        let dg = (f1 - z1) - (f0 - z0);
        let state = state.unwrap();
        assert_eq!(state.inverse().rank(), 3);
        let error = relative_error(&values(&state.inverse().apply(&dg)), &values(&dz));
        assert!(error < 1e-12, "{update:?}: {error:e}");
        // <B^T x, y> = <x, B y>
        let left = (state.inverse().apply_transposed(&dz) * dg.clone()).sum();
        let right = (dz * state.inverse().apply(&dg)).sum();
        let (left, right) = (
            values(&left.reshape([1]))[0],
            values(&right.reshape([1]))[0],
        );
        assert!((left - right).abs() < 1e-12 * right.abs());
    }
}

#[test]
fn a_line_search_saves_a_solve_whose_full_steps_run_away() {
    let device = f64_device();
    // g(z) = -atan(8 z): Newton-like full steps from far away overshoot ever more.
    let map = |z: Tensor<2>| z.clone() - (z * 8.0).atan() * 3.0;
    let z0 = Tensor::<2>::from_data([[1.0, -2.0], [3.0, 0.5]], &device);
    let stop = tight().with_abs_tol(1e-9).with_max_steps(60);
    let config = BroydenConfig::new().with_line_search(Some(ArmijoConfig::new()));
    let searched = solve(&config.into(), map, &z0, &stop);
    assert!(searched.stats.all_converged(), "{:?}", searched.stats);
    // One read for the norms and one for the search, at every step but the last.
    assert_eq!(searched.stats.reads, 2 * searched.stats.nfe - 1);
}

#[test]
fn a_warm_start_saves_evaluations() {
    let device = f64_device();
    for problem in problems(&device) {
        for config in [
            SolverConfig::picard(),
            SolverConfig::anderson(),
            SolverConfig::broyden(),
        ] {
            let stop = tight().with_abs_tol(1e-8);
            let cold = solve(&config, &problem.map, &problem.z0, &stop);
            let near = cold.z.clone() + 1e-5;
            let warm = solve(&config, &problem.map, &near, &stop);
            assert!(
                warm.stats.nfe < cold.stats.nfe,
                "{} with {config}",
                problem.name
            );
        }
    }
}

#[test]
fn the_reversible_iteration_can_be_undone() {
    let device = f64_device();
    let problem = &problems(&device)[3];
    let reversible = ReversibleConfig::new().build().unwrap();
    let mut map = |z: Tensor<2>| (problem.map)(z);
    let start = ReversiblePair {
        y: problem.z0.clone(),
        z: problem.z0.clone() + 0.3,
    };
    let mut pair = start.clone();
    let steps = 6;
    for _ in 0..steps {
        pair = reversible.forward(&mut map, &pair);
    }
    for _ in 0..steps {
        pair = reversible.backward(&mut map, &pair);
    }
    // Rounding grows by at most (1 + damping L) / (1 - damping) = 8.6 in each of the 12 half steps
    // back.
    let bound = 1e-15 * 8.6_f64.powi(2 * steps);
    assert!(relative_error(&values(&pair.z), &values(&start.z)) < bound);
    assert!((pair.y - start.y).abs().max().into_scalar::<f64>() < bound);
    // Two evaluations of the solver are one pair of the iteration.
    let pair = ReversiblePair {
        y: problem.z0.clone(),
        z: problem.z0.clone(),
    };
    let pair = reversible.forward(&mut map, &pair);
    let stop = tight().with_max_steps(3).with_trace(TraceLevel::Iterates);
    let solution = reversible.solve(&mut map, problem.z0.clone(), &stop.build().unwrap());
    let iterates = solution.trace.unwrap().iterates;
    assert_eq!(values(&iterates[1].0), values(&pair.y));
    assert_eq!(values(&iterates[2].0), values(&pair.z));
}
