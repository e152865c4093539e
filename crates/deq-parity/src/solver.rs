//! Traces of the original solvers and of TorchDEQ, step by step.
//!
//! Rounding grows along a solve, faster the more a method extrapolates, so two correct programs
//! part at some step. Where, is not guessed: the solve is repeated from a start that differs by a
//! few units in the last place, and steps whose residual moves by less than 1e-10 by that are
//! determined, as long as the residual stands far enough above the rounding of the values whose
//! difference it is. Those must agree with the recorded ones to 1e-8.

use crate::Check;
use burn::tensor::Tensor;
use deq_core::solvers::{
    AndersonConfig, ArmijoConfig, BroydenConfig, Ridge, Scope, Solution, SolverConfig, StopConfig,
    TraceLevel,
};
use deq_testkit::{Golden, f64_device, relative_error, values};

const DETERMINED: f64 = 1e-10;
const TRACE: f64 = 1e-8;
/// The fewest steps whose comparison says something.
const FEWEST: usize = 5;
/// Of a solution, whose error is that of the last determined steps, carried on.
const RESULT: f64 = 1e-6;

/// The window and the absolute ridge of both reference codes.
fn anderson() -> SolverConfig {
    AndersonConfig::new()
        .with_regularization(1e-4)
        .with_ridge(Ridge::Absolute)
        .into()
}

fn broyden(steps: usize) -> BroydenConfig {
    BroydenConfig::new().with_history(steps)
}

fn run(
    config: &SolverConfig,
    stop: &StopConfig,
    map: &dyn Fn(Tensor<2>) -> Tensor<2>,
    z0: Tensor<2>,
) -> Solution {
    let stop = stop.clone().with_trace(TraceLevel::Residuals).build();
    let solver = config.build();
    match (solver, stop) {
        (Ok(solver), Ok(stop)) => solver.solve(&mut |z: Tensor<2>| map(z), z0, &stop),
        (Err(error), _) | (_, Err(error)) => panic!("the recorded configuration: {error}"),
    }
}

fn trace(solution: &Solution, sample: usize, relative: bool) -> Vec<f64> {
    let steps = solution.trace.iter().flat_map(|trace| &trace.steps);
    steps
        .map(|step| {
            if relative {
                step.rel[sample]
            } else {
                step.abs[sample]
            }
        })
        .collect()
}

/// How many leading steps a disturbance of the start leaves alone, before the residual comes so
/// near to rounding that its own relative error exceeds a tenth of what is compared.
fn determined(ours: &Solution, disturbed: &Solution, sample: usize) -> usize {
    let [a, b] = [ours, disturbed].map(|solution| trace(solution, sample, false));
    a.iter()
        .zip(&b)
        .zip(trace(ours, sample, true))
        .take_while(|((a, b), rel)| {
            (*a - *b).abs() <= DETERMINED * a.abs() && f64::EPSILON <= 0.1 * TRACE * rel
        })
        .count()
}

fn worst(ours: &[f64], recorded: &[f64]) -> f64 {
    ours.iter()
        .zip(recorded)
        .map(|(a, b)| (a - b).abs() / b.abs().max(1e-300))
        .fold(0.0, larger)
}

/// The larger of two errors; unlike with `f64::max`, a NaN is larger than any number.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// A solver that the sidecar names and this file does not know.
fn unknown(run: &str, solver: &str) -> Check {
    Check::new(format!("{run}: solver {solver} unknown"), f64::NAN, 0.0)
}

/// The steps of `ours` that the recording keeps: those of the recorded values in their order. The
/// rest are trials of a line search.
fn accepted(ours: &[f64], recorded: &[f64]) -> Vec<usize> {
    let mut kept = Vec::new();
    let mut from = 0;
    for value in recorded {
        let near = |step: &usize| (ours[*step] - value).abs() <= 1e-6 * value.abs();
        let Some(step) = (from..ours.len()).find(near) else {
            break;
        };
        kept.push(step);
        from = step + 1;
    }
    kept
}

fn text(values: &serde_json::Value, key: &str) -> String {
    values[key].as_str().unwrap_or_default().to_owned()
}

/// Kind `solver`: `locuslab/deq`, norms over the whole batch.
pub(crate) fn original(case: &Golden) -> Vec<Check> {
    let device = f64_device();
    let [w, u] = ["W", "U"].map(|name| case.tensor::<2>(name, &device).unsqueeze::<3>());
    let bias = case.tensor::<1>("b", &device).unsqueeze_dims::<3>(&[0, 2]);
    let z0 = case.tensor::<3>("z0", &device);
    let [batch, d, length] = z0.dims();
    let injected = u.matmul(case.tensor::<3>("x", &device)) + bias;
    let tanh = case.info["map"] == "tanh";
    let map = move |z: Tensor<2>| {
        let image = w.clone().matmul(z.reshape([batch, d, length])) + injected.clone();
        let image = if tanh { image.tanh() } else { image };
        image.reshape([batch, d * length])
    };
    let z0 = z0.reshape([batch, d * length]);

    let mut checks = Vec::new();
    let runs = case.info["runs"].as_object();
    for (name, info) in runs.into_iter().flatten() {
        let steps = info["threshold"].as_u64().unwrap_or(0) as usize;
        let eps = info["eps"].as_f64().unwrap_or(f64::NAN);
        let relative = text(info, "stop_mode") == "rel";
        let solver = text(info, "solver");
        let search = solver == "broyden_ls";
        // The recorded traces begin at the third evaluation and at the second one.
        let (config, first, floor) = match solver.as_str() {
            "anderson" => (anderson(), 2, 1e-5),
            "broyden" => (broyden(4 * steps).into(), 1, 1e-9),
            "broyden_ls" => {
                let search = ArmijoConfig::new().with_scope(Scope::Batch);
                let config = broyden(4 * steps).with_line_search(Some(search));
                (config.into(), 1, 1e-9)
            }
            other => {
                checks.push(unknown(name, other));
                continue;
            }
        };
        let stop = StopConfig::new()
            .with_max_steps(if search { 4 * steps } else { steps + first - 1 })
            .with_abs_tol(if relative { 0.0 } else { eps })
            .with_rel_tol(if relative { eps } else { 0.0 })
            .with_rel_floor(floor)
            .with_divergence(1e30)
            .with_scope(Scope::Batch);
        let ours = run(&config, &stop, &map, z0.clone());
        let nudged = run(&config, &stop, &map, z0.clone() + 1e-15);
        for (mode, relative) in [("abs", false), ("rel", true)] {
            let recorded = case.values(&format!("{name}.{mode}_trace"));
            let all = trace(&ours, 0, relative);
            let sure = determined(&ours, &nudged, 0);
            let (kept, sure) = if search {
                let kept = accepted(&all, recorded);
                let sure = kept.iter().take_while(|&&step| step < sure).count();
                (kept.iter().map(|&step| all[step]).collect(), sure)
            } else {
                (
                    all[first.min(all.len())..].to_vec(),
                    sure.saturating_sub(first),
                )
            };
            let count = sure.min(recorded.len());
            let error = worst(&kept[..count], recorded);
            // A comparison of nothing must not pass.
            let error = if count < FEWEST { f64::NAN } else { error };
            let mut note = format!("{count} of {} steps determined", kept.len());
            if count < kept.len() {
                note += &format!(", to a residual of {:.0e}", kept[count.saturating_sub(1)]);
            }
            checks.push(Check::new(format!("{name} {mode} trace"), error, TRACE).noted(note));
        }
        let recorded = case.values(&format!("{name}.result"));
        let error = relative_error(&values(&ours.z), recorded);
        checks.push(Check::new(format!("{name} result"), error, RESULT));
    }
    checks
}

/// Kind `torchdeq_solver`: norms per sample; a sample goes on when it has converged, until all
/// have.
pub(crate) fn torchdeq(case: &Golden) -> Vec<Check> {
    let device = f64_device();
    let [w, u] = ["W", "U"].map(|name| case.tensor::<2>(name, &device).transpose());
    let bias = case.tensor::<1>("b", &device).unsqueeze::<2>();
    let injected = case.tensor::<2>("x", &device).matmul(u) + bias;
    let map = move |z: Tensor<2>| (z.matmul(w.clone()) + injected.clone()).tanh();
    let z0 = case.tensor::<2>("z0", &device);
    let [batch, _] = z0.dims();

    let mut checks = Vec::new();
    let runs = case.info["runs"].as_object();
    for (name, info) in runs.into_iter().flatten() {
        let steps = info["max_iter"].as_u64().unwrap_or(0) as usize;
        // The first recorded value is a placeholder; the second one belongs to this evaluation.
        let (config, first) = match text(info, "solver").as_str() {
            "anderson" => (anderson(), 2),
            "broyden" => (broyden(steps + 2).into(), 1),
            "fixed_point_iter" => (SolverConfig::picard(), 0),
            other => {
                checks.push(unknown(name, other));
                continue;
            }
        };
        // No tolerance is ever met, so that nothing is held.
        let stop = StopConfig::new()
            .with_max_steps(steps + 2)
            .with_abs_tol(1e-300)
            .with_rel_tol(0.0)
            .with_divergence(1e30);
        let ours = run(&config, &stop, &map, z0.clone());
        let nudged = run(&config, &stop, &map, z0.clone() + 1e-15);
        let recorded = case.values(&format!("{name}.abs_trace"));
        let length = recorded.len() / batch;
        let (mut error, mut fewest) = (0.0_f64, usize::MAX);
        for sample in 0..batch {
            let all = trace(&ours, sample, false);
            let sure = determined(&ours, &nudged, sample);
            let recorded = &recorded[sample * length..][1..length];
            // Filled up with its last value after the end.
            let last = recorded[recorded.len() - 1];
            let filled = recorded.iter().rev();
            let filled = filled.take_while(|r| r.to_bits() == last.to_bits());
            let count = sure
                .saturating_sub(first)
                .min(recorded.len() - filled.count());
            error = larger(error, worst(&all[first..first + count], recorded));
            fewest = fewest.min(count);
        }
        let error = if fewest < FEWEST { f64::NAN } else { error };
        let note = format!("at least {fewest} steps of every sample determined");
        checks.push(Check::new(format!("{name} abs trace"), error, TRACE).noted(note));
        let recorded = case.values(&format!("{name}.result"));
        let lowest = case.values(&format!("{name}.abs_lowest"));
        // Both are at their lowest residual; where that is not the same step they differ by no more
        // than residual over 1 - L.
        let error = relative_error(&values(&ours.z), recorded);
        let bound = lowest.iter().copied().fold(RESULT, f64::max);
        checks.push(Check::new(format!("{name} result"), error, bound));
    }
    checks
}
