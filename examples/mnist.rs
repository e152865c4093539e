//! An equilibrium model that classifies handwritten digits, and its accuracy on held-out ones.
//!
//! `cargo run --release -p deq-examples --example mnist -- FOLDER`, where FOLDER holds the four
//! files of MNIST as they are distributed (`train-images-idx3-ubyte` and so on, compressed or not).
//! Without FOLDER it takes the generated shapes of deq-data, gray and of 28 x 28 pixels as well,
//! which are much harder for a network without convolutions.

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use deq_core::{Deq, DeqConfig, EquilibriumCell, random};
use deq_examples::GrayImages;
use std::error::Error;
use std::path::Path;

const WIDTH: usize = 100;

/// `f(z) = tanh(z W + x)`.
#[derive(Module, Debug)]
struct Cell {
    state: Linear,
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Tensor<2>; // what the input layer makes of an image

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        (self.state.forward(z) + x.clone()).tanh()
    }
}

#[derive(Module, Debug)]
struct Network {
    input: Linear,
    cell: Cell,
    classes: Linear,
}

impl Network {
    fn new(device: &Device) -> Self {
        let layer = |from, to| LinearConfig::new(from, to).init(device);
        let (input, state) = (layer(784, WIDTH), layer(WIDTH, WIDTH));
        let cell = Cell { state };
        Self {
            input,
            cell,
            classes: layer(WIDTH, 10),
        }
    }

    /// The scores of `[batch, 1, 28, 28]`, and evaluations of `f`.
    fn forward(&self, images: Tensor<4>, deq: &Deq) -> (Tensor<2>, usize) {
        let x = self.input.forward(images.flatten(1, 3));
        let out = deq.forward(&self.cell, &x, x.zeros_like());
        (self.classes.forward(out.output), out.nfe)
    }
}

/// Trains on batches of 64 and returns the share of right answers in `test`.
fn run(train: &GrayImages, test: &GrayImages, steps: usize) -> Result<f64, Box<dyn Error>> {
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
        if step % 500 == 0 {
            let loss = loss.clone().into_scalar::<f32>();
            println!("step {step:4}  loss {loss:.3}  evaluations {evaluations}");
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(0.001, network, gradients);
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
    println!("{:.2} % of {} images", 100.0 * accuracy, places.len());
    Ok(accuracy)
}

fn main() -> Result<(), Box<dyn Error>> {
    let (train, test) = match std::env::args_os().nth(1) {
        Some(folder) => {
            let folder = Path::new(&folder);
            let train = GrayImages::mnist(folder, "train", 60_000)?;
            (train, GrayImages::mnist(folder, "t10k", 10_000)?)
        }
        None => (GrayImages::shapes(8_192, 1)?, GrayImages::shapes(1_024, 2)?),
    };
    run(&train, &test, 3_000)?; // of MNIST three passes
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_shapes_are_learnt() -> Result<(), Box<dyn Error>> {
        let few = GrayImages::shapes(32, 1)?;
        let accuracy = run(&few, &few, 200)?;
        assert!(accuracy > 0.5, "an eighth by chance");
        Ok(())
    }
}
