//! A convolutional equilibrium model that classifies images, and its accuracy on held-out ones.
//!
//! `cargo run --release -p deq-examples --example mnist -- FOLDER`, where FOLDER holds the four
//! files of MNIST as they are distributed (`train-images-idx3-ubyte` and so on, compressed or not).
//! Without FOLDER it takes generated shapes of deq-data in gray, eight classes, 28 x 28 as well.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor, activation::relu};
use deq_core::{Deq, DeqConfig, EquilibriumCell, random};
use deq_examples::GrayImages as Images;
use std::error::Error;
use std::path::Path;

const CHANNELS: usize = 16;

/// `f(z) = norm(relu(conv(z) + x))`.
#[derive(Module, Debug)]
struct Cell {
    conv: Conv2d,
    norm: GroupNorm,
}

impl EquilibriumCell for Cell {
    type State = Tensor<4>;
    type Context = Tensor<4>; // the injected image

    fn forward(&self, z: Tensor<4>, x: &Tensor<4>) -> Tensor<4> {
        self.norm.forward(relu(self.conv.forward(z) + x.clone()))
    }
}

#[derive(Module, Debug)]
struct Network {
    stem: Conv2d,
    cell: Cell,
    pool: AdaptiveAvgPool2d,
    classes: Linear,
}

impl Network {
    fn new(device: &Device) -> Self {
        let conv = |from| {
            Conv2dConfig::new([from, CHANNELS], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        };
        Self {
            stem: conv(1).with_stride([2, 2]).init(device),
            cell: Cell {
                conv: conv(CHANNELS).init(device),
                norm: GroupNormConfig::new(4, CHANNELS).init(device),
            },
            pool: AdaptiveAvgPool2dConfig::new([7, 7]).init(),
            classes: LinearConfig::new(49 * CHANNELS, 10).init(device),
        }
    }

    /// The scores of `[batch, 1, side, side]`, and evaluations of `f`.
    fn forward(&self, images: Tensor<4>, deq: &Deq) -> (Tensor<2>, usize) {
        let x = self.stem.forward(images);
        let out = deq.forward(&self.cell, &x, x.zeros_like());
        let features = self.pool.forward(out.output).flatten(1, 3);
        (self.classes.forward(features), out.nfe)
    }
}

fn run(train: &Images, test: &Images, steps: usize) -> Result<f64, Box<dyn Error>> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let mut network = Network::new(&device);
    let deq = DeqConfig::new().build()?;
    let loss_of = CrossEntropyLossConfig::new().init(&device);
    let mut optimizer = AdamConfig::new().init();
    for step in 0..steps {
        let draw = |at| random::uniform(step as u64, at) * train.count() as f64;
        let places: Vec<usize> = (0..64).map(|at| draw(at) as usize).collect();
        let (images, labels) = train.batch(&places, &device);
        let (scores, evaluations) = network.forward(images, &deq);
        let loss = loss_of.forward(scores, labels);
        if step % 50 == 0 {
            let loss = loss.clone().into_scalar::<f32>();
            println!("step {step:4}  loss {loss:.3}  evaluations {evaluations}");
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(0.003, network, gradients);
    }
    let (network, device) = (network.valid(), Device::flex());
    let places: Vec<usize> = (0..test.count()).collect();
    let right = places.chunks(500).map(|places| {
        let (images, labels) = test.batch(places, &device);
        let (scores, _) = network.forward(images, &deq);
        let answers = scores.argmax(1).flatten::<1>(0, 1);
        answers.equal(labels).int().sum().into_scalar::<i32>()
    });
    let accuracy = f64::from(right.sum::<i32>()) / places.len() as f64;
    println!(
        "{:.2} % of {} held-out images",
        100.0 * accuracy,
        places.len()
    );
    Ok(accuracy)
}

fn main() -> Result<(), Box<dyn Error>> {
    let (train, test, steps) = match std::env::args_os().nth(1) {
        Some(folder) => {
            let folder = Path::new(&folder);
            let train = Images::mnist(folder, "train", 60_000)?;
            (train, Images::mnist(folder, "t10k", 10_000)?, 938)
        }
        None => (Images::shapes(8_192, 1)?, Images::shapes(1_024, 2)?, 600),
    };
    run(&train, &test, steps)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_told_apart() -> Result<(), Box<dyn Error>> {
        let accuracy = run(&Images::shapes(256, 1)?, &Images::shapes(128, 2)?, 40)?;
        assert!(accuracy > 0.2, "an eighth by chance");
        Ok(())
    }
}
