//! A solve allocates no more than its documented memory. A binary of its own, since it counts every
//! allocation of the process.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use burn::tensor::{Device, Tensor};
use deq_solvers::{
    AndersonConfig, AndersonType, BroydenConfig, GmresConfig, LinearSolverConfig, SolverConfig,
    StopConfig,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const BATCH: usize = 4;
const DIM: usize = 65_536;
const STATE: f64 = (BATCH * DIM * 4) as f64;

/// The largest memory in use during `work`, in states of the batch, beyond what was in use before.
fn peak(work: impl FnOnce() -> Tensor<2>) -> f64 {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let answer = work();
    let peak = HEAP.peak_usage();
    drop(answer);
    (peak - before) as f64 / STATE
}

/// Besides the history: z, f(z), the residual, the best z and its f(z), and one temporary; up to
/// two states of workspace that Flex takes for its matrix products, depending on how threads are
/// scheduled; small change for norms and weights.
const LOOP: f64 = 8.1;

#[test]
fn a_solve_allocates_no_more_than_its_documented_memory() {
    let device = Device::flex();
    let slopes = Tensor::<2>::random(
        [1, DIM],
        burn::tensor::Distribution::Uniform(-0.9, 0.9),
        &device,
    );
    let z0 = Tensor::<2>::ones([BATCH, DIM], &device);
    for steps in [6, 12, 24] {
        let stop = StopConfig::new().with_rel_tol(1e-30).with_max_steps(steps);
        let stop = stop.build().unwrap();
        // (solver, vectors of its history after so many steps)
        let grown =
            |terms: usize, most: usize| terms.next_power_of_two().clamp(8, most.max(8)).min(most);
        let broyden = grown(steps - 2, 30);
        let cases: Vec<(SolverConfig, f64)> = vec![
            (SolverConfig::picard(), 0.0),
            (AndersonConfig::new().into(), 12.0),
            (AndersonConfig::new().with_history(3).into(), 6.0),
            (
                AndersonConfig::new().with_kind(AndersonType::TypeI).into(),
                15.0,
            ),
            // While one factor grows, its old half and the zeros of its new half are there beside
            // the whole.
            (BroydenConfig::new().into(), 3.0 * broyden as f64 + 6.0),
            (BroydenConfig::new().with_history(5).into(), 17.0),
            (SolverConfig::reversible(), 1.0),
        ];
        for (config, history) in cases {
            let solver = config.build().unwrap();
            let used = peak(|| {
                let mut map = |z: Tensor<2>| z * slopes.clone() + 1.0;
                let solution = solver.solve(&mut map, z0.clone(), &stop);
                assert_eq!(solution.stats.nfe, steps);
                solution.z
            });
            println!("{config}, {steps} steps: {used:.1} states, history {history}");
            assert!(
                used <= history + LOOP,
                "{config}: {used} states after {steps} steps"
            );
        }
        let restart = 10;
        for (config, history) in [
            (
                LinearSolverConfig::Gmres(GmresConfig::new().with_restart(restart)),
                3.0 * restart as f64 + 4.0,
            ),
            (LinearSolverConfig::bicgstab(), 8.0),
            (LinearSolverConfig::neumann(), 3.0),
        ] {
            let solver = config.build().unwrap();
            let used = peak(|| {
                let mut map = |u: Tensor<2>| u * slopes.clone();
                solver.solve(&mut map, z0.clone(), &stop).z
            });
            println!("{config}, {steps} steps: {used:.1} states, history {history}");
            assert!(
                used <= history + LOOP,
                "{config}: {used} states after {steps} steps"
            );
        }
    }
}
