//! What the Jacobian penalty adds to a training step, by estimator, side by side in one run: products, tracked evaluations, time and peak memory; and how far each
//! estimate of one probe is from the exact gradient of that probe.

use burn::tensor::{Device, Distribution, Gradients, Int, Tensor};
use deq_benches::{distance, median};
use deq_core::solvers::StopConfig;
use deq_core::{DeqConfig, GradientConfig, ImplicitConfig};
use deq_jacreg::{Estimator, JacobianPenalty, JacobianPenaltyConfig, Penalty};
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
    Exact(Estimator),
    Central(Estimator),
    OneSided,
    Denoising,
    Turned,
}

fn main() {
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
        let counts = penalty.map_or((0, 0), |penalty| (penalty.products, penalty.nfe));
        (seconds, peak, counts)
    };
    let kinds = [
        ("no penalty", Kind::None),
        ("cotangent, exact", Kind::Exact(Estimator::Cotangent)),
        ("tangent, exact", Kind::Exact(Estimator::Tangent)),
        (
            "cotangent, differences",
            Kind::Central(Estimator::Cotangent),
        ),
        ("tangent, differences", Kind::Central(Estimator::Tangent)),
        ("tangent, one-sided", Kind::OneSided),
        ("denoising, sigma 0.1", Kind::Denoising),
        ("spectral, 2 rounds", Kind::Turned),
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
    let exact = [Estimator::Cotangent, Estimator::Tangent]
        .map(|estimator| gradient(Kind::Exact(estimator), &model, &tokens, &deq));
    for (index, ((name, kind), time)) in kinds.iter().zip(&times).enumerate() {
        let (peak, (products, evaluations)) = last[index];
        let extra = time - times[0];
        let error = match kind {
            Kind::Central(Estimator::Cotangent) => Some(0),
            Kind::Central(Estimator::Tangent) | Kind::OneSided => Some(1),
            _ => None,
        };
        let error = error.map_or("-".to_owned(), |index| {
            format!(
                "{:.1e}",
                distance(&gradient(*kind, &model, &tokens, &deq), &exact[index])
            )
        });
        println!(
            "{name:24} {products:8} {evaluations:11} {:8.1} {:9.1}% {:8.1}% {peak:8.1} {error:>8}",
            time * 1e3,
            100.0 * extra / time,
            100.0 * 0.35 * extra / times[0],
        );
    }
}

fn estimate(kind: Kind, model: &DeqTransformerLm, out: &LmOutput) -> Option<Penalty> {
    let setting = |estimator, rounds| -> JacobianPenalty {
        JacobianPenaltyConfig::new()
            .with_estimator(estimator)
            .with_power_iterations(rounds)
            .build()
            .expect("the settings are valid")
    };
    let (cell, context) = (&model.cell, &out.context);
    let z = out.equilibrium.z_star.clone();
    let penalty = match kind {
        Kind::None => return None,
        Kind::Exact(estimator) => setting(estimator, 0).estimate_exact(cell, context, z),
        Kind::Central(estimator) => setting(estimator, 0).estimate(cell, context, z),
        Kind::OneSided => {
            let image = out
                .equilibrium
                .image
                .clone()
                .expect("the layer recorded it");
            setting(Estimator::Tangent, 0).estimate_one_sided(cell, context, z, image)
        }
        Kind::Denoising => setting(Estimator::Tangent, 0).denoising_energy(cell, context, z, 0.1),
        Kind::Turned => setting(Estimator::Cotangent, 2).estimate_exact(cell, context, z),
    };
    Some(penalty.expect("the state is f32"))
}

/// The gradient of the penalty alone with respect to the weight of queries, keys and values, with the same probe every time.
fn gradient(
    kind: Kind,
    model: &DeqTransformerLm,
    tokens: &Tensor<2, Int>,
    deq: &deq_core::Deq,
) -> Vec<f32> {
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
