//! A problem in other units takes the same steps: nothing in a solver over- or underflows before
//! the state itself does.

use crate::linear::{product, systems};
use crate::{solvers, type_i};
use burn::tensor::{DType, Tensor};
use deq_solvers::{
    AndersonConfig, GmresConfig, LinearSolverConfig, MonotoneLayer, Scope, Solution, SolverConfig,
    SplittingConfig, StopConfig, TraceLevel,
};
use deq_testkit::{Problem, f64_device, problems, values};

/// The powers of two by which states are scaled in a type, and a tolerance that it reaches.
const UNITS: [(DType, [i32; 4], f64); 2] = [
    (DType::F32, [-100, -60, 60, 100], 1e-5),
    (DType::F64, [-950, -400, 400, 950], 1e-10),
];

fn stop(rel_tol: f64) -> StopConfig {
    StopConfig::new()
        .with_rel_tol(rel_tol)
        .with_max_steps(3000)
        .with_divergence(1e6)
        .with_trace(TraceLevel::Residuals)
}

/// The course of the scaled solve is that of the plain one, in other units.
fn assert_same_course(plain: &Solution, scaled: &Solution, power: i32, name: &str) {
    let name = format!("{name}, scaled by 2^{power}");
    let unit = 2.0_f64.powi(power);
    assert_eq!(plain.stats.nfe, scaled.stats.nfe, "{name}");
    assert_eq!(plain.stats.steps, scaled.stats.steps, "{name}");
    assert_eq!(plain.stats.best_step, scaled.stats.best_step, "{name}");
    assert_eq!(plain.stats.status, scaled.stats.status, "{name}");
    for (a, b) in [(&plain.z, &scaled.z), (&plain.fz, &scaled.fz)] {
        let a: Vec<f64> = values(a).into_iter().map(|x| x * unit).collect();
        assert_eq!(a, values(b), "{name}");
    }
    let [plain, scaled] = [plain, scaled].map(|s| &s.trace.as_ref().unwrap().steps);
    for (a, b) in plain.iter().zip(scaled) {
        assert_eq!(a.rel, b.rel, "{name}, step {}", a.step);
        let abs: Vec<f64> = a.abs.iter().map(|x| x * unit).collect();
        assert_eq!(abs, b.abs, "{name}, step {}", a.step);
    }
}

/// `x -> 2^power f(2^-power x)`, in halves, since the inverse of a power need not be in the type.
fn times(x: Tensor<2>, power: i32) -> Tensor<2> {
    let half = power / 2;
    x.mul_scalar(2.0_f64.powi(half))
        .mul_scalar(2.0_f64.powi(power - half))
}

fn course(
    config: &SolverConfig,
    problem: &Problem,
    at: (DType, i32),
    stop: &StopConfig,
) -> Solution {
    let (dtype, power) = at;
    // Away from 0, so that the first step is like the others.
    let z0 = times((problem.z0.clone() + 0.25).cast(dtype), power);
    let mut map = |z: Tensor<2>| {
        let z = times(z, -power).cast(DType::F64);
        times((problem.map)(z).cast(dtype), power)
    };
    let solver = config.build().unwrap();
    solver.solve(&mut map, z0, &stop.build().unwrap())
}

#[test]
fn a_problem_in_other_units_takes_the_same_steps() {
    let device = f64_device();
    let mut solvers = solvers();
    solvers.push(AndersonConfig::new().with_regularization(1e-10).into());
    solvers.push(type_i().with_regularization(1e-4).into());
    for (i, problem) in problems(&device).iter().enumerate() {
        // Norms of the batch are norms of norms, the same for every problem.
        let scopes = match i {
            0 => vec![Scope::Sample, Scope::Batch],
            _ => vec![Scope::Sample],
        };
        for config in &solvers {
            for (dtype, powers, rel_tol) in UNITS {
                for &scope in &scopes {
                    let stop = stop(rel_tol).with_scope(scope).with_max_steps(60);
                    let plain = course(config, problem, (dtype, 0), &stop);
                    let name = format!("{} with {config} in {dtype:?}", problem.name);
                    for power in powers {
                        let scaled = course(config, problem, (dtype, power), &stop);
                        assert_same_course(&plain, &scaled, power, &name);
                    }
                }
            }
        }
    }
}

#[test]
fn every_solver_converges_far_from_ordinary_units() {
    let device = f64_device();
    // An affine problem and a curved one.
    for problem in problems(&device).into_iter().step_by(3) {
        for config in solvers() {
            for (dtype, powers, rel_tol) in UNITS {
                for power in [powers[0], powers[3]] {
                    let stop = stop(rel_tol);
                    let solution = course(&config, &problem, (dtype, power), &stop);
                    let name = format!("{} with {config}, 2^{power}", problem.name);
                    assert!(
                        solution.stats.all_converged(),
                        "{name}: {:?}",
                        solution.stats
                    );
                    let z = times(solution.z, -power).cast(DType::F64);
                    let size = problem.z_star.clone().square().sum_dim(1).sqrt();
                    let bound = 2.0 * rel_tol / (1.0 - problem.lipschitz);
                    for (distance, size) in problem.distances(&z).iter().zip(values(&size)) {
                        assert!(*distance <= bound * size, "{name}: {distance:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn absolute_tolerances_are_in_units_of_the_state() {
    let device = f64_device();
    let problem = &problems(&device)[0];
    for (dtype, powers, _) in UNITS {
        let stop = |power: i32| {
            stop(0.0)
                .with_abs_tol(1e-4 * 2.0_f64.powi(power))
                .with_rel_floor(1e-3 * 2.0_f64.powi(power))
        };
        for config in solvers() {
            let plain = course(&config, problem, (dtype, 0), &stop(0));
            assert!(plain.stats.all_converged());
            for power in powers {
                let scaled = course(&config, problem, (dtype, power), &stop(power));
                assert_same_course(&plain, &scaled, power, &config.to_string());
            }
        }
    }
}

#[test]
fn a_linear_system_in_other_units_takes_the_same_steps() {
    let solvers = [
        LinearSolverConfig::gmres(),
        LinearSolverConfig::Gmres(GmresConfig::new().with_restart(4)),
        LinearSolverConfig::bicgstab(),
        LinearSolverConfig::neumann(),
        SolverConfig::anderson().into(),
        SolverConfig::broyden().into(),
    ];
    // In the second one the series diverges.
    for (n, norm, contracts) in [(14, 0.6, true), (9, 0.9, false)] {
        let (a, g, _) = systems(n, norm, 4);
        for config in &solvers {
            let solver = config.build().unwrap();
            for (dtype, powers, rel_tol) in UNITS {
                let (a, g) = (a.clone().cast(dtype), g.clone().cast(dtype));
                let stop = stop(rel_tol).build().unwrap();
                let course =
                    |power: i32| solver.solve(&mut product(&a), times(g.clone(), power), &stop);
                let plain = course(0);
                let name = format!("{n} unknowns with {config} in {dtype:?}");
                if contracts {
                    assert!(plain.stats.all_converged(), "{name}: {:?}", plain.stats);
                }
                for power in powers {
                    assert_same_course(&plain, &course(power), power, &name);
                }
            }
        }
    }
}

#[test]
fn a_monotone_layer_in_other_units_takes_the_same_steps() {
    let (weight, bias) = crate::monotone::weights(0.5);
    let z0 = bias.zeros_like();
    for config in [
        SplittingConfig::peaceman_rachford(),
        SplittingConfig::forward_backward(0.05),
    ] {
        let splitting = config.build().unwrap();
        for (dtype, powers, rel_tol) in UNITS {
            let stop = stop(rel_tol).build().unwrap();
            let course = |power: i32| {
                let bias = times(bias.clone().cast(dtype), power);
                let layer = MonotoneLayer::new(weight.clone().cast(dtype), bias);
                splitting.solve(&layer, z0.clone().cast(dtype), &stop)
            };
            let plain = course(0);
            assert!(plain.stats.all_converged(), "{config}: {:?}", plain.stats);
            for power in powers {
                assert_same_course(&plain, &course(power), power, &config.to_string());
            }
        }
    }
}

#[test]
fn a_state_beyond_the_square_root_of_the_range_is_finite() {
    let device = f64_device();
    // The solver's own point is 1e25, whose square is not a number of f32; the map spoils it.
    let z0 = Tensor::<2>::from_data([[1e25, 1e25]], &device).cast(DType::F32);
    let stop = StopConfig::new().build().unwrap();
    let solver = SolverConfig::picard().build().unwrap();
    let mut calls = 0;
    let mut map = |z: Tensor<2>| {
        calls += 1;
        let factor = if calls == 3 { f64::NAN } else { 0.5 };
        z.mul_scalar(factor)
    };
    let solution = solver.solve(&mut map, z0, &stop);
    let status = solution.stats.status[0];
    assert_eq!(status, deq_solvers::SolveStatus::NonFinite);
    assert_eq!(solution.stats.rel_residual, [1.0]);
}
