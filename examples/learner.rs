//! An equilibrium layer between Burn's own layers, trained by an ordinary `Learner` of burn-train.
//!
//! Nothing in the loop knows of the equilibrium: the network's forward pass solves for it, and the
//! backward pass crosses it.
//!
//! `cargo run --release -p deq-examples --example learner`

use burn::data::dataloader::{DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamConfig;
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::metric::LossMetric;
use burn::train::renderer::CliMetricsRenderer;
use burn::train::{
    InferenceStep, Learner, RegressionOutput, SupervisedTraining, TrainOutput, TrainStep,
};
use deq_core::{Deq, DeqConfig, EquilibriumCell, random};
use std::error::Error;

const WIDTH: usize = 24;

#[derive(Module, Debug)]
struct Cell {
    state: Linear,
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        (self.state.forward(z) + x.clone()).tanh()
    }
}

// ANCHOR: network
#[derive(Module, Debug)]
struct Network {
    first: Linear,
    cell: Cell,
    last: Linear,
    #[module(skip)] // it has no parameters
    deq: Deq,
}

impl Network {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.first.forward(x);
        let equilibrium = self.deq.forward(&self.cell, &x, x.zeros_like());
        self.last.forward(equilibrium.output)
    }
}
// ANCHOR_END: network

#[derive(Clone, Debug)]
struct Points {
    x: Tensor<2>,
    y: Tensor<2>,
}

impl InferenceStep for Network {
    type Input = Points;
    type Output = RegressionOutput;

    fn step(&self, points: Points) -> RegressionOutput {
        let output = self.forward(points.x);
        let loss = (output.clone() - points.y.clone()).square().mean();
        RegressionOutput::new(loss, output, points.y)
    }
}

impl TrainStep for Network {
    type Input = Points;
    type Output = RegressionOutput;

    fn step(&self, points: Points) -> TrainOutput<RegressionOutput> {
        let output = InferenceStep::step(self, points);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

/// Makes batches of `(x, sin(2 x))`.
#[derive(Clone)]
struct Sine;

impl Batcher<f32, Points> for Sine {
    fn batch(&self, x: Vec<f32>, device: &Device) -> Points {
        let count = x.len();
        let x = Tensor::from_data(TensorData::new(x, [count, 1]), device);
        let y = (x.clone() * 2.0).sin();
        Points { x, y }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let tracked = device.clone().autodiff();
    tracked.seed(3);
    let points = |seed, count| {
        let uniform = |at| (6.0 * random::uniform(seed, at) - 3.0) as f32;
        InMemDataset::new((0..count).map(uniform).collect())
    };
    let network = Network {
        first: LinearConfig::new(1, WIDTH).init(&tracked),
        cell: Cell {
            state: LinearConfig::new(WIDTH, WIDTH).init(&tracked),
        },
        last: LinearConfig::new(WIDTH, 1).init(&tracked),
        deq: DeqConfig::new().build()?,
    };
    let held_out = Sine.batch((0..60).map(|i| 0.1 * i as f32 - 3.0).collect(), &device);
    let error = |network: &Network| {
        let output = InferenceStep::step(network, held_out.clone());
        output.loss.into_scalar::<f32>()
    };
    let before = error(&network.valid());

    // ANCHOR: training
    let loader = |points, device: Device| {
        let builder = DataLoaderBuilder::new(Sine).batch_size(64).shuffle(1);
        builder.set_device(device).build(points)
    };
    let folder = tempfile::tempdir()?;
    let (train, valid) = (
        loader(points(1, 4096), tracked),
        loader(points(2, 256), device),
    );
    let training = SupervisedTraining::new(folder.path(), train, valid)
        .metric_train_numeric(LossMetric::new())
        .metric_valid_numeric(LossMetric::new())
        .with_application_logger(None)
        .renderer(Box::new(CliMetricsRenderer::new()))
        .num_epochs(4);
    let learner = Learner::new(network, AdamConfig::new().init(), 0.01);
    let trained = training.launch(learner).model;
    // ANCHOR_END: training
    let after = error(&trained);
    println!("squared error {before:.4} before, {after:.4} after four epochs");
    assert!(after < 0.3 * before);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_learns() -> Result<(), Box<dyn std::error::Error>> {
        super::main()
    }
}
