//! What the Jacobian penalty adds to a training step, by estimator, side by side in one run:
//! vector-Jacobian products, recorded evaluations, time and peak memory; and how far each estimate
//! of one probe is from the exact gradient of that probe.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Distribution, Gradients, Int, Tensor};
use deq_benches::{distance, median};
use deq_core::solvers::StopConfig;
use deq_core::{Deq, DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig, Pullback};
use deq_jacreg::{DenoisingConfig, Estimator, JacobianPenaltyConfig, Penalty};
use deq_models::{Depth, DeqTransformerLm, DeqTransformerLmConfig, LmMemory, LmOutput};
use peak_alloc::PeakAlloc;
use std::time::Instant;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const BATCH: usize = 16;
const SEGMENT: usize = 64;
const ROUNDS: usize = 15;
/// The solver steps of the regularised WikiText-103 script.
const FORWARD: usize = 12;
const BACKWARD: usize = 13;

#[derive(Clone, Copy)]
enum Kind {
    None,
    /// By the cell's tangent, after so many rounds of power iteration.
    Exact(Estimator, usize),
    Differences(Estimator),
}

const COTANGENT: Estimator = Estimator::Cotangent;
const TANGENT: Estimator = Estimator::Tangent;

/// The cell without its tangent, for which differences are taken.
#[derive(Module, Debug)]
struct WithoutTangent<C: Module> {
    cell: C,
}

impl<C: EquilibriumCell + ModuleDisplay> EquilibriumCell for WithoutTangent<C> {
    type State = C::State;
    type Context = C::Context;

    fn forward(&self, z: C::State, context: &C::Context) -> C::State {
        self.cell.forward(z, context)
    }

    fn pullback(&self, z: C::State, context: &C::Context) -> Option<Pullback<C::State>> {
        self.cell.pullback(z, context)
    }
}

fn main() {
    // As the command does.
    deq_kernels::in_pool(run);
}

fn run() {
    let device = Device::flex().autodiff();
    device.seed(1);
    // The model of the quick start.
    let model = DeqTransformerLmConfig::new(256, 96, 4, 384)
        .init(&device)
        .expect("the sizes are valid");
    let stop = |steps| StopConfig::new().with_rel_tol(1e-30).with_max_steps(steps);
    let deq = DeqConfig::new()
        .with_stop(stop(FORWARD))
        .with_gradient(GradientConfig::Implicit(
            ImplicitConfig::new().with_stop(stop(BACKWARD)),
        ))
        .build()
        .expect("the steps are valid");
    let uniform = Distribution::Uniform(0.0, 256.0);
    let tokens: Tensor<2, Int> = Tensor::<2>::random([BATCH, SEGMENT], uniform, &device).int();
    let targets: Vec<i32> = tokens.clone().into_data().iter::<i32>().collect();
    let step = |kind: Kind| {
        device.seed(7);
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let started = Instant::now();
        let depth = Depth::Equilibrium(&deq);
        let out = model.forward(tokens.clone(), &LmMemory::empty(), depth);
        let mut loss = model.nll(out.hidden.clone(), &targets).mean();
        let penalty = estimate(kind, &model, &out);
        if let Some(penalty) = &penalty {
            loss = loss + penalty.value.clone();
        }
        let grads = loss.backward();
        let seconds = started.elapsed().as_secs_f64();
        let peak = (HEAP.peak_usage() - before) as f64 / (1 << 20) as f64;
        drop(grads);
        let counts = penalty.map_or((0, 0), |penalty| (penalty.products, penalty.nfe()));
        (seconds, peak, counts)
    };
    let denoising = Estimator::Denoising(DenoisingConfig::new(0.1));
    let kinds = [
        ("no penalty", Kind::None),
        ("cotangent, exact", Kind::Exact(COTANGENT, 0)),
        ("tangent, exact", Kind::Exact(TANGENT, 0)),
        ("cotangent, differences", Kind::Differences(COTANGENT)),
        ("tangent, differences", Kind::Differences(TANGENT)),
        ("denoising, sigma 0.1", Kind::Exact(denoising, 0)),
        ("spectral, 2 rounds", Kind::Exact(COTANGENT, 2)),
    ];
    let mut seconds = vec![Vec::new(); kinds.len()];
    let mut last = Vec::new();
    for _ in 0..ROUNDS {
        last.clear();
        for ((_, kind), seconds) in kinds.iter().zip(&mut seconds) {
            let (time, peak, counts) = step(*kind);
            seconds.push(time);
            last.push((peak, counts));
        }
    }
    let times: Vec<f64> = seconds.into_iter().map(median).collect();
    println!("{BATCH} x {SEGMENT} tokens, {FORWARD} forward and {BACKWARD} backward steps");
    println!(
        "{:24} {:>8} {:>11} {:>8} {:>10} {:>9} {:>8} {:>8}",
        "penalty", "products", "evaluations", "ms", "of a step", "p = 0.35", "MiB", "error"
    );
    let gradient = |kind| gradient(kind, &model, &tokens, &deq);
    for (index, ((name, kind), time)) in kinds.iter().zip(&times).enumerate() {
        let (peak, (products, evaluations)) = last[index];
        let extra = time - times[0];
        let error = match kind {
            Kind::Differences(estimator) => {
                let exact = gradient(Kind::Exact(*estimator, 0));
                format!("{:.1e}", distance(&gradient(*kind), &exact))
            }
            _ => "-".to_owned(),
        };
        println!(
            "{name:24} {products:8} {evaluations:11} {:8.1} {:9.1}% {:8.1}% {peak:8.1} {error:>8}",
            time * 1e3,
            100.0 * extra / time,
            100.0 * 0.35 * extra / times[0],
        );
    }
}

fn estimate(kind: Kind, model: &DeqTransformerLm, out: &LmOutput) -> Option<Penalty> {
    let (estimator, rounds) = match kind {
        Kind::None => return None,
        Kind::Exact(estimator, rounds) => (estimator, rounds),
        Kind::Differences(estimator) => (estimator, 0),
    };
    let penalty = JacobianPenaltyConfig::new()
        .with_estimator(estimator)
        .with_power_iterations(rounds)
        .build()
        .expect("the settings are valid");
    let (cell, context, z) = (&model.cell, &out.context, &out.equilibrium.z);
    let penalty = match kind {
        Kind::Differences(_) => {
            let cell = WithoutTangent { cell: cell.clone() };
            penalty.at(&cell, context, z)
        }
        _ => penalty.at_equilibrium(cell, context, &out.equilibrium),
    };
    Some(penalty.expect("the state is f32"))
}

/// The gradient of the penalty alone with respect to the weight of queries, keys and values, with
/// the same probe every time.
fn gradient(kind: Kind, model: &DeqTransformerLm, tokens: &Tensor<2, Int>, deq: &Deq) -> Vec<f32> {
    let out = model.forward(tokens.clone(), &LmMemory::empty(), Depth::Equilibrium(deq));
    tokens.device().seed(11);
    let value = estimate(kind, model, &out).expect("a penalty").value;
    let grads: Gradients = value.backward();
    let grad = model
        .cell
        .attention
        .qkv
        .weight
        .grad(&grads)
        .expect("it was used");
    grad.into_data().iter::<f32>().collect()
}
