//! What a training step costs with each gradient strategy, side by side: evaluations, products,
//! time, peak memory, and how far the gradient is from the exact one. Then peak memory against the
//! length of the solve. With the path of an SVG file as argument, the latter is drawn there.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Gradients, Tensor, activation::relu};
use deq_benches::{distance, median};
use deq_core::solvers::{
    BroydenConfig, LinearSolverConfig, ReversibleConfig, SolverConfig, StopConfig,
};
use deq_core::{
    DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig, NeumannGradientConfig,
    PhantomConfig, ReversibleGradientConfig, ShineConfig, UnrolledConfig,
};
use peak_alloc::PeakAlloc;
use plotters::prelude::*;
use std::time::Instant;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const BATCH: usize = 256;
const DIM: usize = 256;
const STATE: f64 = (BATCH * DIM * 4) as f64;
const ROUNDS: usize = 15;

/// `f(z) = tanh(V relu(U z) + x)`
#[derive(Module, Debug)]
struct Block {
    up: Linear,
    down: Linear,
}

impl EquilibriumCell for Block {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        (self.down.forward(relu(self.up.forward(z))) * 2.5 + x.clone()).tanh()
    }
}

struct Step {
    seconds: f64,
    /// In states of the batch.
    peak: f64,
    forward: usize,
    evaluations: usize,
    products: usize,
    /// The largest of the batch.
    reversal_error: f64,
    gradient: Vec<f32>,
}

struct Bench {
    cell: Block,
    x: Tensor<2>,
}

impl Bench {
    fn step(&self, config: &DeqConfig) -> Step {
        let deq = config.build().expect("the configuration is valid");
        let z0 = Tensor::zeros([BATCH, DIM], &self.x.device());
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let started = Instant::now();
        let out = deq.forward(&self.cell, &self.x, z0);
        let weights = Tensor::<1>::ones([DIM], &self.x.device()).unsqueeze();
        let grads = (out.output * weights).square().sum().backward();
        let gradient = self.weight_gradient(&grads);
        let seconds = started.elapsed().as_secs_f64();
        let pass = out.backward.get().unwrap_or_default();
        Step {
            seconds,
            peak: (HEAP.peak_usage() - before) as f64 / STATE,
            forward: out.nfe,
            evaluations: pass.evaluations,
            products: pass.products,
            reversal_error: pass.reversal_error.into_iter().fold(0.0, f64::max),
            gradient,
        }
    }

    fn weight_gradient(&self, grads: &Gradients) -> Vec<f32> {
        let grad = self.cell.up.weight.grad(grads).expect("it was used");
        grad.into_data().iter::<f32>().collect()
    }
}

fn layer(solver: SolverConfig, stop: StopConfig, gradient: GradientConfig) -> DeqConfig {
    DeqConfig::new()
        .with_solver(solver)
        .with_stop(stop)
        .with_gradient(gradient)
}

fn implicit(solver: LinearSolverConfig, stop: StopConfig) -> GradientConfig {
    GradientConfig::Implicit(ImplicitConfig::new().with_solver(solver).with_stop(stop))
}

fn unrolled(steps: usize, states: Option<usize>) -> GradientConfig {
    GradientConfig::Unrolled(UnrolledConfig::new(steps).with_stored_states(states))
}

fn strategies() -> Vec<(&'static str, DeqConfig)> {
    let forward = StopConfig::new().with_rel_tol(1e-4).with_max_steps(60);
    let backward = forward.clone();
    let anderson = |gradient| layer(SolverConfig::anderson(), forward.clone(), gradient);
    // As long a history as a solve, which SHINE asks for.
    let broyden = BroydenConfig::new().with_history(forward.max_steps);
    let broyden = |gradient| layer(broyden.clone().into(), forward.clone(), gradient);
    let phantom = |damping, states| {
        GradientConfig::Phantom(
            PhantomConfig::new()
                .with_damping(damping)
                .with_stored_states(states),
        )
    };
    let refine = ImplicitConfig::new()
        .with_solver(LinearSolverConfig::gmres())
        .with_stop(backward.clone());
    vec![
        (
            "implicit, anderson",
            anderson(implicit(SolverConfig::anderson().into(), backward.clone())),
        ),
        (
            "implicit, broyden",
            anderson(implicit(SolverConfig::broyden().into(), backward.clone())),
        ),
        (
            "implicit, gmres",
            anderson(implicit(LinearSolverConfig::gmres(), backward.clone())),
        ),
        (
            "implicit, bicgstab",
            anderson(implicit(LinearSolverConfig::bicgstab(), backward.clone())),
        ),
        ("one step", anderson(GradientConfig::OneStep)),
        (
            "neumann 5",
            anderson(GradientConfig::Neumann(NeumannGradientConfig::new())),
        ),
        ("phantom 5, damping 0.5", anderson(phantom(0.5, None))),
        ("phantom 5, damping 1", anderson(phantom(1.0, None))),
        ("phantom 5, 1 state", anderson(phantom(1.0, Some(1)))),
        ("shine", broyden(GradientConfig::Shine(ShineConfig::new()))),
        (
            "shine, refined",
            broyden(GradientConfig::Shine(
                ShineConfig::new().with_refine(Some(refine)),
            )),
        ),
        (
            "reversible",
            layer(
                ReversibleConfig::new().into(),
                forward.clone(),
                GradientConfig::Reversible(ReversibleGradientConfig::new()),
            ),
        ),
        ("unrolled 20", anderson(unrolled(20, None))),
        ("unrolled 20, 4 states", anderson(unrolled(20, Some(4)))),
    ]
}

fn main() {
    // As the command does.
    deq_kernels::in_pool(run);
}

fn run() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let bench = Bench {
        cell: Block {
            up: LinearConfig::new(DIM, 2 * DIM).init(&device),
            down: LinearConfig::new(2 * DIM, DIM).init(&device),
        },
        x: Tensor::random([BATCH, DIM], Distribution::Normal(0.0, 0.5), &device),
    };
    let tight = StopConfig::new().with_rel_tol(1e-6).with_max_steps(200);
    let exact = implicit(LinearSolverConfig::gmres(), tight.clone());
    let exact = layer(SolverConfig::anderson(), tight, exact);
    let exact = bench.step(&exact).gradient;

    let cases = strategies();
    let mut seconds = vec![Vec::new(); cases.len()];
    let mut last = Vec::new();
    // In turn, so that a slow moment of the machine touches all of them.
    for _ in 0..ROUNDS {
        last.clear();
        for ((_, config), seconds) in cases.iter().zip(&mut seconds) {
            let step = bench.step(config);
            seconds.push(step.seconds);
            last.push(step);
        }
    }
    let times: Vec<f64> = seconds.into_iter().map(median).collect();
    let one_step = cases
        .iter()
        .position(|(name, _)| *name == "one step")
        .map_or(f64::NAN, |index| times[index]);
    println!(
        "{:24} {:>8} {:>9} {:>9} {:>9} {:>6} {:>8} {:>9}",
        "gradient", "forward", "repeated", "products", "ms", "ratio", "states", "error"
    );
    for (((name, _), step), time) in cases.iter().zip(&last).zip(&times) {
        println!(
            "{name:24} {:8} {:9} {:9} {:9.1} {:6.2} {:8.1} {:9.1e}",
            step.forward,
            step.evaluations,
            step.products,
            time * 1e3,
            time / one_step,
            step.peak,
            distance(&step.gradient, &exact)
        );
        if step.reversal_error > 0.0 {
            println!(
                "{:24} went back to within {:.1e} of its start",
                "", step.reversal_error
            );
        }
    }
    memory(&bench);
}

/// Peak memory against the length of the solve.
fn memory(bench: &Bench) {
    let lengths = [5, 10, 20, 40, 80];
    let stop = |steps| StopConfig::new().with_rel_tol(1e-30).with_max_steps(steps);
    let solved = |steps, gradient: GradientConfig| {
        let solver = match gradient {
            GradientConfig::Reversible(_) => SolverConfig::reversible(),
            _ => SolverConfig::anderson(),
        };
        layer(solver, stop(steps), gradient)
    };
    type Family<'a> = (&'a str, &'a dyn Fn(usize) -> DeqConfig);
    let families: [Family; 7] = [
        ("implicit", &|steps| {
            solved(
                steps,
                implicit(SolverConfig::anderson().into(), stop(steps)),
            )
        }),
        ("one step", &|steps| solved(steps, GradientConfig::OneStep)),
        ("neumann 5", &|steps| {
            solved(steps, GradientConfig::Neumann(NeumannGradientConfig::new()))
        }),
        ("phantom 5", &|steps| {
            solved(steps, GradientConfig::Phantom(PhantomConfig::new()))
        }),
        ("reversible", &|steps| {
            solved(
                steps,
                GradientConfig::Reversible(ReversibleGradientConfig::new()),
            )
        }),
        ("unrolled, 4 states", &|steps| {
            solved(steps, unrolled(steps, Some(4)))
        }),
        ("unrolled", &|steps| solved(steps, unrolled(steps, None))),
    ];
    println!("\npeak memory in states, by steps of the solve");
    println!(
        "{:24} {}",
        "gradient",
        lengths.map(|steps| format!("{steps:>8}")).join("")
    );
    let mut curves = Vec::new();
    for (name, config) in families {
        let peaks = lengths.map(|steps| (steps as f64, bench.step(&config(steps)).peak));
        println!(
            "{name:24} {}",
            peaks.map(|(_, peak)| format!("{peak:8.1}")).join("")
        );
        curves.push((name, peaks));
    }
    if let Some(path) = std::env::args().find(|argument| argument.ends_with(".svg")) {
        draw(&path, &curves).unwrap_or_else(|error| eprintln!("cannot draw {path}: {error}"));
    }
}

fn draw(path: &str, curves: &[(&str, [(f64, f64); 5])]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (720, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..85.0, (5.0..1000.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("steps of the solve")
        .y_desc("peak memory, in states of the batch")
        .x_labels(9)
        .draw()?;
    for (index, (name, points)) in curves.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(
            points
                .iter()
                .map(|point| Circle::new(*point, 3, colour.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    area.present()?;
    Ok(())
}
