//! More solver steps than in training solve longer instances than in training.
//!
//! The task is prefix sums modulo 2: of a row of bits, whether the number of ones up to each place
//! is odd. The cell reads a bit and its left neighbour's state, so that an answer needs as many
//! steps as its place; the network is trained on eight bits and tested on up to 64. That a model
//! uses further steps well hangs together with its not depending on where the solve starts (Anil
//! et al., "Path Independent Equilibrium Models Can Better Exploit Test-Time Computation", 2022).
//!
//! `cargo run --release -p deq-examples --example path_independence`

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{DeqConfig, DeqError, EquilibriumCell, GradientConfig, ImplicitConfig, random};

const WIDTH: usize = 16;
const TRAINED_ON: usize = 8;

/// `f(z)` at place `i` of `[batch, length, width]`: a hidden layer of `z` at place `i - 1` and the
/// bit `i`.
#[derive(Module, Debug)]
struct Cell {
    left: Linear,
    bit: Linear,
    out: Linear,
}

impl EquilibriumCell for Cell {
    type State = Tensor<3>;
    type Context = Tensor<3>; // the bits as -1 and 1, [batch, length, 1]

    fn forward(&self, z: Tensor<3>, bits: &Tensor<3>) -> Tensor<3> {
        let [batch, length, width] = z.dims();
        let first = Tensor::zeros([batch, 1, width], &z.device());
        let left = Tensor::cat(vec![first, z.narrow(1, 0, length - 1)], 1);
        let hidden = (self.left.forward(left) + self.bit.forward(bits.clone())).tanh();
        self.out.forward(hidden).tanh()
    }
}

#[derive(Module, Debug)]
struct Network {
    cell: Cell,
    readout: Linear,
}

/// Rows of random bits and their prefix sums modulo 2, as -1 and 1, `[batch, length, 1]`.
fn instances(seed: u64, length: usize, device: &Device) -> (Tensor<3>, Tensor<3>) {
    const BATCH: usize = 64;
    let (mut bits, mut sums) = (Vec::new(), Vec::new());
    for row in 0..BATCH {
        let mut sum = -1.0f32;
        for place in 0..length {
            let one = random::uniform(seed, (row * length + place) as u64) < 0.5;
            sum = if one { -sum } else { sum };
            bits.push(if one { 1.0f32 } else { -1.0 });
            sums.push(sum);
        }
    }
    let tensor = |values| Tensor::from_data(TensorData::new(values, [BATCH, length, 1]), device);
    (tensor(bits), tensor(sums))
}

fn main() -> Result<(), DeqError> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let layer = |from, to| LinearConfig::new(from, to).init(&device);
    let (left, bit, out) = (layer(WIDTH, 32), layer(1, 32), layer(32, WIDTH));
    let mut network = Network {
        cell: Cell { left, bit, out },
        readout: layer(WIDTH, 1),
    };
    let stop = |steps| StopConfig::new().with_max_steps(steps);
    let adjoint = ImplicitConfig::new()
        .with_solver(SolverConfig::picard().into())
        .with_stop(stop(12));
    let config = DeqConfig::new()
        .with_solver(SolverConfig::picard())
        .with_stop(stop(12))
        .with_gradient(GradientConfig::Implicit(adjoint));
    let deq = config.build()?;

    let mut optimizer = AdamConfig::new().init();
    for step in 0..300 {
        let (bits, sums) = instances(step, TRAINED_ON, &device);
        let z0 = Tensor::zeros([bits.dims()[0], TRAINED_ON, WIDTH], &device);
        let out = deq.forward(&network.cell, &bits, z0);
        let loss = (network.readout.forward(out.output) - sums).square().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(0.01, network, gradients);
    }

    let (network, device) = (network.valid(), Device::flex());
    let budgets = [8, 16, 32, 64, 96];
    println!("trained on {TRAINED_ON} bits with 12 steps; rows with every prefix sum right:\n");
    println!(
        "{:>4} bits  {:>4} steps {:>5} {:>5} {:>5} {:>5}   random start",
        "", 8, 16, 32, 64, 96
    );
    // ANCHOR: table
    for length in [8, 16, 32, 64] {
        let (bits, sums) = instances(1 << 32, length, &device);
        let solved = |budget: usize, z0: Tensor<3>| {
            let config = config.clone().with_eval_stop(Some(stop(budget)));
            let out = config.build()?.forward(&network.cell, &bits, z0);
            let right = (network.readout.forward(out.output) * sums.clone()).greater_elem(0.0);
            let rows = right.int().min_dim(1).float().mean();
            Ok(100.0 * rows.into_scalar::<f32>())
        };
        let shape = [bits.dims()[0], length, WIDTH];
        let from_zero = budgets.map(|budget| solved(budget, Tensor::zeros(shape, &device)));
        let from_zero = from_zero
            .into_iter()
            .collect::<Result<Vec<f32>, DeqError>>()?;
        let noise = Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let from_noise = solved(96, noise)?;
        // ANCHOR_END: table
        let cells: Vec<String> = from_zero.iter().map(|s| format!("{s:4.0}%")).collect();
        println!("{length:9}        {}   {from_noise:4.0}%", cells.join(" "));
        assert!(
            from_zero[4] > 95.0 && from_noise > 95.0,
            "more steps solve it"
        );
        assert!(length < 32 || from_zero[0] < 5.0, "few steps do not");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn more_steps_solve_longer_rows() -> Result<(), deq_core::DeqError> {
        super::main()
    }
}
