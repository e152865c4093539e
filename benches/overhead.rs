//! What a solver adds to the evaluations of its map, as a table of ratios measured side by side:
//! the time of a solve of fixed length beside as many bare evaluations of its map, in turn, the
//! median of many rounds. Two maps: `tanh(z W + x)`, the cheapest there is of its width, and a
//! feed-forward block `z -> tanh(relu(z U) V - z + x)` with an inner width of four times the outer
//! one, as in a transformer.

use burn::tensor::{Device, Distribution, Tensor, activation::relu};
use deq_benches::median;
use deq_core::solvers::{
    AndersonConfig, AndersonType, BroydenConfig, BroydenUpdate, SolverConfig, StopConfig,
};
use std::hint::black_box;
use std::time::Instant;

const STEPS: usize = 12;
const ROUNDS: usize = 41;

fn main() {
    // As the command does.
    deq_kernels::in_pool(run);
}

fn run() {
    let device = Device::flex();
    println!(
        "{:6} {:>6} {:>6}  {:24} {:>12} {:>10} {:>6}",
        "map", "batch", "width", "solver", "map us/step", "overhead", "reads"
    );
    let cases = [
        ("tanh", 1, 512),
        ("tanh", 16, 512),
        ("tanh", 64, 512),
        ("tanh", 64, 2048),
        ("block", 1, 512),
        ("block", 16, 512),
        ("block", 64, 512),
    ];
    for (kind, batch, width) in cases {
        let normal = Distribution::Normal(0.0, 0.5 / f64::from(width).sqrt());
        let w = Tensor::<2>::random([width as usize, width as usize], normal, &device);
        let x = Tensor::<2>::random(
            [batch, width as usize],
            Distribution::Normal(0.0, 1.0),
            &device,
        );
        let u = Tensor::<2>::random([width as usize, 4 * width as usize], normal, &device);
        let v = u.clone().transpose().mul_scalar(0.5);
        let map = |z: Tensor<2>| match kind {
            "tanh" => (z.matmul(w.clone()) + x.clone()).tanh(),
            _ => (relu(z.clone().matmul(u.clone())).matmul(v.clone()) + z.neg() + x.clone()).tanh(),
        };
        let stop = StopConfig::new()
            .with_max_steps(STEPS)
            .with_rel_tol(1e-30)
            .build()
            .expect("the rule is valid");
        let anderson = |m| SolverConfig::from(AndersonConfig::new().with_history(m));
        for (name, config) in [
            ("picard", SolverConfig::picard()),
            ("anderson(3)", anderson(3)),
            ("anderson(6)", anderson(6)),
            ("anderson(12)", anderson(12)),
            (
                "anderson(6) type I",
                AndersonConfig::new().with_kind(AndersonType::TypeI).into(),
            ),
            ("broyden", SolverConfig::broyden()),
            (
                "broyden bad",
                BroydenConfig::new().with_update(BroydenUpdate::Bad).into(),
            ),
            ("reversible", SolverConfig::reversible()),
        ] {
            let solver = config.build().expect("the values are valid");
            let (mut bare, mut whole, mut reads) = (Vec::new(), Vec::new(), 0);
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let mut z = x.zeros_like();
                for _ in 0..STEPS {
                    z = map(z);
                }
                black_box(z.into_data());
                bare.push(start.elapsed().as_secs_f64());
                let start = Instant::now();
                let mut counted = |z: Tensor<2>| map(z);
                let solution = solver.solve(&mut counted, x.zeros_like(), &stop);
                reads = solution.stats.reads;
                black_box(solution.z.into_data());
                whole.push(start.elapsed().as_secs_f64());
            }
            let (bare, whole) = (median(bare), median(whole));
            println!(
                "{kind:6} {batch:6} {width:6}  {name:24} {:12.1} {:9.1}% {reads:6}",
                bare * 1e6 / STEPS as f64,
                100.0 * (whole / bare - 1.0)
            );
        }
    }
}
