//! Any Burn module whose output has the shape of its input becomes an equilibrium layer, and is
//! trained on a regression.
//!
//! `cargo run --release -p deq-examples --example wrap_a_module`

// ANCHOR: module
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::{DeqConfig, DeqError, EquilibriumCell};

/// The module to wrap: one hidden layer.
#[derive(Module, Debug)]
struct Block {
    state: Linear,
    input: Linear,
}
// ANCHOR_END: module

// These lines are all it takes.
// ANCHOR: cell
impl EquilibriumCell for Block {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        (self.state.forward(z) + self.input.forward(x.clone())).tanh()
    }
}
// ANCHOR_END: cell

// ANCHOR: train
#[derive(Module, Debug)]
struct Network {
    block: Block,
    readout: Linear,
}

fn main() -> Result<(), DeqError> {
    let device = Device::flex().autodiff();
    device.seed(3);
    let width = 24;
    let mut network = Network {
        block: Block {
            state: LinearConfig::new(width, width).init(&device),
            input: LinearConfig::new(1, width).init(&device),
        },
        readout: LinearConfig::new(width, 1).init(&device),
    };
    let deq = DeqConfig::new().build()?;
    let mut optimizer = AdamConfig::new().init();

    for step in 0..=300 {
        let x = Tensor::<2>::random([64, 1], Distribution::Uniform(-3.0, 3.0), &device);
        let target = (x.clone() * 2.0).sin();
        let z0 = Tensor::zeros([64, width], &device);
        let out = deq.forward(&network.block, &x, z0);
        let error = (network.readout.forward(out.output.clone()) - target)
            .square()
            .mean();
        let gradients = GradientsParams::from_grads(error.backward(), &network);
        network = optimizer.step(0.01, network, gradients);

        if step % 50 == 0 {
            let forward = out.solve.unwrap_or_default();
            let backward = out.backward.solve().unwrap_or_default();
            println!(
                "step {step:3}  error {:.4}  evaluations of f {:2} forward, {:2} backward",
                error.into_scalar::<f32>(),
                forward.nfe,
                backward.nfe
            );
        }
    }
    Ok(())
}
// ANCHOR_END: train

#[cfg(test)]
mod tests {
    #[test]
    fn it_runs() -> Result<(), deq_core::DeqError> {
        super::main()
    }
}
