//! MDEQ-small beside ResNet-101 on images of 224 by 224, side by side in one run: time and peak
//! memory of a forward pass and of a training step, the comparison of Bai et al. 2021, Table 2.
//!
//! `cargo bench -p deq-benches --bench imagenet -- [BATCH [ROUNDS]]`, by default one image and
//! three rounds.

use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Distribution, Int, Tensor};
use deq_benches::median;
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{Deq, DeqConfig, GradientConfig, ImplicitConfig};
use deq_jacreg::{JacobianPenalty, JacobianPenaltyConfig};
use deq_models::{Depth, MdeqClassifier, MdeqClassifierConfig, ResNet, ResNetConfig};
use peak_alloc::PeakAlloc;
use std::time::Instant;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const SIDE: usize = 224;
const CLASSES: usize = 1000;

fn main() {
    // As the command does.
    deq_kernels::in_pool(run);
}

fn run() {
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let batch = numbers.first().copied().unwrap_or(1);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let device = Device::flex().autodiff();
    device.seed(1);
    let images = Tensor::<4>::random(
        [batch, 3, SIDE, SIDE],
        Distribution::Normal(0.0, 1.0),
        &device,
    );
    let targets = Tensor::<2, Int>::zeros([batch, 1], &device);
    let mdeq = MdeqClassifierConfig::imagenet_small()
        .init(&device)
        .expect("the preset is valid");
    let regularised = MdeqClassifierConfig::imagenet_small_jr()
        .init(&device)
        .expect("the preset is valid");
    let resnet = ResNetConfig::resnet101(CLASSES)
        .init(&device)
        .expect("the configuration is valid");
    let penalty = JacobianPenaltyConfig::new()
        .build()
        .expect("the defaults are valid");
    // The steps of `cls_mdeq_SMALL.yaml` and `cls_mdeq_SMALL_reg.yaml`.
    let contenders = [
        ("ResNet-101", Contender::Explicit(resnet)),
        (
            "MDEQ-small, 26/27",
            Contender::Equilibrium(mdeq, layer(26, 27), None),
        ),
        (
            "MDEQ-small-jr, 14/14",
            Contender::Equilibrium(regularised.clone(), layer(14, 14), None),
        ),
        (
            "the same, penalised step",
            Contender::Equilibrium(regularised, layer(14, 14), Some(penalty)),
        ),
    ];
    let mut forward = vec![Vec::new(); contenders.len()];
    let mut step = vec![Vec::new(); contenders.len()];
    let mut bytes = vec![[0; 2]; contenders.len()];
    for _ in 0..rounds {
        for (index, (_, contender)) in contenders.iter().enumerate() {
            let (seconds, peak) = measured(|| contender.forward(images.clone().inner()));
            forward[index].push(seconds);
            bytes[index][0] = peak;
            let (seconds, peak) = measured(|| contender.step(images.clone(), targets.clone()));
            step[index].push(seconds);
            bytes[index][1] = peak;
        }
    }
    println!("{batch} x 3 x {SIDE} x {SIDE}, median of {rounds}; memory beside parameters");
    println!(
        "{:26} {:>10} {:>10} {:>8} {:>8} {:>10} {:>8} {:>8}",
        "", "parameters", "forward s", "ratio", "MiB", "training s", "ratio", "MiB"
    );
    let [forward, step] =
        [forward, step].map(|times| times.into_iter().map(median).collect::<Vec<f64>>());
    for (index, (name, contender)) in contenders.iter().enumerate() {
        let mib = bytes[index].map(|bytes| bytes as f64 / f64::from(1 << 20));
        println!(
            "{name:26} {:10} {:10.2} {:8.2} {:8.0} {:10.2} {:8.2} {:8.0}",
            contender.parameters(),
            forward[index],
            forward[index] / forward[0],
            mib[0],
            step[index],
            step[index] / step[0],
            mib[1],
        );
    }
}

/// Solves that use up their steps, as the original's do with their absolute tolerance.
fn layer(forward: usize, backward: usize) -> Deq {
    let stop = |steps| StopConfig::new().with_rel_tol(1e-30).with_max_steps(steps);
    DeqConfig::new()
        .with_solver(SolverConfig::broyden())
        .with_stop(stop(forward))
        .with_gradient(GradientConfig::Implicit(
            ImplicitConfig::new().with_stop(stop(backward)),
        ))
        .build()
        .expect("the steps are valid")
}

/// A network with what it needs for a step.
#[allow(clippy::large_enum_variant, reason = "there are four of them")]
enum Contender {
    Explicit(ResNet),
    Equilibrium(MdeqClassifier, Deq, Option<JacobianPenalty>),
}

impl Contender {
    fn parameters(&self) -> usize {
        match self {
            Contender::Explicit(model) => model.num_params(),
            Contender::Equilibrium(model, ..) => model.num_params(),
        }
    }

    /// In evaluation mode, without a tape.
    fn forward(&self, images: Tensor<4>) {
        let logits = match self {
            Contender::Explicit(model) => model.valid().forward(images),
            Contender::Equilibrium(model, deq, _) => {
                let depth = Depth::Equilibrium(deq);
                model.valid().forward(images, depth).logits
            }
        };
        // The value is there when it is read.
        let _ = logits.into_data();
    }

    /// Forward and backward, in training mode.
    fn step(&self, images: Tensor<4>, targets: Tensor<2, Int>) {
        let loss = |logits: Tensor<2>| {
            log_softmax(logits, 1)
                .gather(1, targets.clone())
                .mean()
                .neg()
        };
        let grads = match self {
            Contender::Explicit(model) => loss(model.forward(images)).backward(),
            Contender::Equilibrium(model, deq, penalty) => {
                let out = model.forward(images, Depth::Equilibrium(deq));
                let mut total = loss(out.logits);
                if let Some(penalty) = penalty {
                    let estimate = penalty
                        .at_equilibrium(&model.backbone.cell, &out.context, &out.equilibrium)
                        .expect("the state is f32");
                    total = total + estimate.value;
                }
                total.backward()
            }
        };
        drop(grads);
    }
}

/// Seconds, and the most bytes held beside what was there before.
fn measured(work: impl FnOnce()) -> (f64, usize) {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let started = Instant::now();
    work();
    let seconds = started.elapsed().as_secs_f64();
    (seconds, HEAP.peak_usage().saturating_sub(before))
}
