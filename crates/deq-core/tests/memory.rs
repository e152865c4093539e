//! Peak memory of a forward and a backward pass does not grow with the length of the solve. A
//! binary of its own, since it counts every allocation of the process.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor, activation::relu};
use deq_core::solvers::{LinearSolverConfig, SolverConfig, StopConfig};
use deq_core::{
    DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig, NeumannGradientConfig,
    PhantomConfig, ReversibleGradientConfig, UnrolledConfig,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const BATCH: usize = 512;
const DIM: usize = 128;
const STATE: f64 = (BATCH * DIM * 4) as f64;

/// `f(z) = tanh(4 V relu(U z) + x)`, whose evaluation leaves six states on the tape. It contracts
/// so weakly that no solve, forward or backward, reaches its end within the steps of this test.
#[derive(Module, Debug)]
struct Block {
    up: Linear,
    down: Linear,
}

impl EquilibriumCell for Block {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        (self.down.forward(relu(self.up.forward(z))) * 4.0 + x.clone()).tanh()
    }
}

/// The least of three steps: matrix products of Flex take a workspace of up to two states for each
/// thread, depending on how threads are scheduled.
fn peak(config: &DeqConfig, cell: &Block, x: &Tensor<2>) -> f64 {
    let steps = [(); 3].map(|()| peak_of_step(config, cell, x));
    steps.into_iter().fold(f64::INFINITY, f64::min)
}

/// The largest memory in use during a training step, or an evaluation on a plain device, in states
/// of the batch, beyond what was in use before it.
fn peak_of_step(config: &DeqConfig, cell: &Block, x: &Tensor<2>) -> f64 {
    let deq = config.build().unwrap();
    let z0 = Tensor::zeros([BATCH, DIM], &x.device());
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let out = deq.forward(cell, x, z0);
    if x.is_autodiff() {
        let grads = out.output.square().sum().backward();
        assert!(cell.up.weight.grad(&grads).is_some());
    }
    (HEAP.peak_usage() - before) as f64 / STATE
}

#[test]
fn memory_is_flat_in_the_length_of_the_solve_but_for_the_recorded_unroll() {
    let device = Device::flex().autodiff();
    let cell = Block {
        up: LinearConfig::new(DIM, 2 * DIM).init(&device),
        down: LinearConfig::new(2 * DIM, DIM).init(&device),
    };
    let x = Tensor::random([BATCH, DIM], Distribution::Normal(0.0, 1.0), &device);
    // Solves of exactly so many steps, by methods whose own memory does not depend on them.
    let stop = |steps| StopConfig::new().with_rel_tol(1e-30).with_max_steps(steps);
    let solved = |steps, gradient| {
        let solver = match gradient {
            GradientConfig::Reversible(_) => SolverConfig::reversible(),
            _ => SolverConfig::picard(),
        };
        DeqConfig::new()
            .with_solver(solver)
            .with_stop(stop(steps))
            .with_gradient(gradient)
    };
    let implicit = |steps| {
        let adjoint = ImplicitConfig::new()
            .with_solver(LinearSolverConfig::neumann())
            .with_stop(stop(steps));
        solved(steps, GradientConfig::Implicit(adjoint))
    };
    let unrolled = |steps, states| {
        let config = UnrolledConfig::new(steps).with_stored_states(states);
        solved(steps, GradientConfig::Unrolled(config))
    };
    type Strategy<'a> = (&'a str, &'a dyn Fn(usize) -> DeqConfig);
    let flat: [Strategy; 5] = [
        ("implicit", &implicit),
        ("one step", &|steps| solved(steps, GradientConfig::OneStep)),
        ("phantom", &|steps| {
            solved(steps, GradientConfig::Phantom(PhantomConfig::new()))
        }),
        ("reversible", &|steps| {
            let start_only = ReversibleGradientConfig::new().with_stored_pairs(1);
            solved(steps, GradientConfig::Reversible(start_only))
        }),
        ("recomputed unroll", &|steps| unrolled(steps, Some(4))),
    ];
    // Parameters are initialised by their first use.
    peak(&unrolled(1, None), &cell, &x);
    let lengths = [5, 10, 20, 40, 80];
    for (name, config) in flat {
        let peaks = lengths.map(|steps| peak(&config(steps), &cell, &x));
        println!("{name}: {peaks:.1?} states");
        let [least, most] =
            [f64::min, f64::max].map(|pick| peaks.into_iter().reduce(pick).unwrap());
        // The workspace of one thread.
        assert!(most - least < 2.1, "{name}: {peaks:?}");
        assert!(most < 60.0, "{name}: {peaks:?}");
    }
    // Seven stored pairs more than the start, of two states each, and the workspace.
    let reversible = |steps, stored| {
        let config = ReversibleGradientConfig::new().with_stored_pairs(stored);
        solved(steps, GradientConfig::Reversible(config))
    };
    let [start_only, eight] = [1, 8].map(|stored| peak(&reversible(80, stored), &cell, &x));
    assert!(
        eight - start_only < 14.0 + 2.1,
        "{start_only} and {eight} states"
    );
    // In evaluation none is stored.
    let (plain, input) = (cell.valid(), x.clone().inner());
    let [start_only, eight] = [1, 8].map(|stored| peak(&reversible(20, stored), &plain, &input));
    assert!(eight - start_only < 2.1, "{start_only} and {eight} states");

    // A series does not hold its terms.
    let [short, long] = [5, 40].map(|terms| {
        let series = NeumannGradientConfig::new().with_terms(terms);
        peak(&solved(5, GradientConfig::Neumann(series)), &cell, &x)
    });
    assert!(long - short < 2.1, "{short} and {long} states");

    let peaks = lengths.map(|steps| peak(&unrolled(steps, None), &cell, &x));
    println!("unrolled: {peaks:.1?} states");
    let growth: Vec<f64> = peaks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for pair in growth.windows(2) {
        // Twice as many further steps take twice as much further memory.
        assert!(
            (1.9..2.1).contains(&(pair[1] / pair[0])),
            "unrolled: {peaks:?}"
        );
    }
}
