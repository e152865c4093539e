//! A state of one's own: feature maps of two resolutions that reach equilibrium together.
//!
//! `cargo run --release -p deq-examples --example own_state`

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::module::{avg_pool2d, interpolate};
use burn::tensor::ops::{AvgPoolOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::{DeqConfig, DeqError, EquilibriumCell, impl_state};

/// `[batch, channels, side, side]`, and the same at half the side.
// ANCHOR: state
#[derive(Clone)]
struct Pyramid {
    fine: Tensor<4>,
    coarse: Tensor<4>,
}

// This line makes it a state: solvers and gradients see both maps as one vector per sample.
impl_state!(Pyramid { fine, coarse });
// ANCHOR_END: state

/// Every map is a convolution of itself and of the other.
#[derive(Module, Debug)]
struct Cell {
    fine: Conv2d,
    coarse: Conv2d,
    down: Conv2d,
    up: Conv2d,
}

impl EquilibriumCell for Cell {
    type State = Pyramid;
    type Context = Tensor<4>; // the picture, injected into the fine map

    fn forward(&self, z: Pyramid, picture: &Tensor<4>) -> Pyramid {
        let from_coarse = doubled(self.up.forward(z.coarse.clone()));
        let from_fine = self.down.forward(halved(z.fine.clone()));
        Pyramid {
            fine: (self.fine.forward(z.fine) + from_coarse + picture.clone()).tanh(),
            coarse: (self.coarse.forward(z.coarse) + from_fine).tanh(),
        }
    }
}

fn halved(x: Tensor<4>) -> Tensor<4> {
    avg_pool2d(x, AvgPoolOptions::new([2, 2]))
}

fn doubled(x: Tensor<4>) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let options =
        InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * height, 2 * width]);
    interpolate(x, options)
}

#[derive(Module, Debug)]
struct Network {
    cell: Cell,
    readout: Linear,
}

const CHANNELS: usize = 4;
const SIDE: usize = 8;

fn main() -> Result<(), DeqError> {
    let device = Device::flex().autodiff();
    device.seed(2);
    let conv = || {
        Conv2dConfig::new([CHANNELS, CHANNELS], [3, 3])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            // Small, so that the maps contract when training begins.
            .with_initializer(Initializer::Normal {
                mean: 0.0,
                std: 0.06,
            })
            .init(&device)
    };
    let mut network = Network {
        cell: Cell {
            fine: conv(),
            coarse: conv(),
            down: conv(),
            up: conv(),
        },
        readout: LinearConfig::new(CHANNELS, 1).init(&device),
    };
    let deq = DeqConfig::new().build()?;
    let mut optimizer = AdamConfig::new().init();
    let mut errors = Vec::new();
    for step in 0..40 {
        // The task: how bright is the brightest channel?
        let noise = Distribution::Uniform(-1.0, 1.0);
        let brightness = Tensor::<4>::random([16, CHANNELS, 1, 1], noise, &device);
        let target = brightness.clone().max_dim(1).reshape([16, 1]);
        let picture = brightness.expand([16, CHANNELS, SIDE, SIDE]);
        let z0 = Pyramid {
            fine: picture.zeros_like(),
            coarse: Tensor::zeros([16, CHANNELS, SIDE / 2, SIDE / 2], &device),
        };
        let out = deq.forward(&network.cell, &picture, z0);

        // The output is a pyramid as well, and the loss may read any part of it.
        let coarse = out.output.coarse.mean_dim(3).mean_dim(2);
        let features = coarse.reshape([16, CHANNELS]);
        let error = (network.readout.forward(features) - target).square().mean();
        errors.push(error.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(error.backward(), &network);
        network = optimizer.step(0.01, network, gradients);
        if step % 10 == 9 {
            let evaluations = out.solve.map_or(0, |solve| solve.nfe);
            println!(
                "step {step}  error {:.4}  evaluations {evaluations}",
                errors[step]
            );
        }
    }
    assert!(errors[39] < 0.5 * errors[0], "{errors:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_learns() -> Result<(), deq_core::DeqError> {
        super::main()
    }
}
