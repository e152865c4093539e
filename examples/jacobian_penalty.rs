//! A training loop with the Jacobian penalty, and the same without it.
//!
//! `cargo run --release -p deq-examples --example jacobian_penalty`

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use deq_core::{DeqConfig, EquilibriumCell};
// ANCHOR: names
use deq_jacreg::{
    IncrementConfig, JacobianPenaltyConfig, Observation, Phase, SpectralRadiusConfig,
    WeightSchedule, spectral_radius,
};
// ANCHOR_END: names
use std::error::Error;

const WIDTH: usize = 24;
const STEPS: usize = 200;

#[derive(Module, Debug)]
struct Cell {
    state: Linear,
    input: Linear,
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        (self.state.forward(z) + self.input.forward(x.clone())).tanh()
    }

    // ANCHOR: tangent
    /// `f(z)` and `J d`: with it the gradient of the penalty is exact; without it differences are
    /// taken.
    fn tangent(&self, z: Tensor<2>, d: Tensor<2>, x: &Tensor<2>) -> Option<(Tensor<2>, Tensor<2>)> {
        let fz = self.forward(z, x);
        let slope = fz.clone().square().neg() + 1.0;
        Some((fz, d.matmul(self.state.weight.val()) * slope))
    }
    // ANCHOR_END: tangent
}

#[derive(Module, Debug)]
struct Network {
    cell: Cell,
    readout: Linear,
}

/// What a training ends with.
struct Outcome {
    error: f32,
    evaluations: f64,
    radius: f64,
}

// ANCHOR: loop
fn train(config: &JacobianPenaltyConfig, device: &Device) -> Result<Outcome, Box<dyn Error>> {
    let seed = 3;
    device.seed(seed);
    let layer = |from, to| LinearConfig::new(from, to).init(device);
    let (state, input) = (layer(WIDTH, WIDTH), layer(1, WIDTH));
    let (cell, readout) = (Cell { state, input }, layer(WIDTH, 1));
    let mut network = Network { cell, readout };

    let deq = DeqConfig::new().build()?;
    let penalty = config.build()?; // makes the estimates
    let mut policy = config.policy()?; // says when, and with what weight
    let mut optimizer = AdamConfig::new().init();
    let (mut error, mut evaluations) = (f32::NAN, 0);
    for step in 0..STEPS {
        let x = Tensor::<2>::random([64, 1], Distribution::Uniform(-3.0, 3.0), device);
        let target = (x.clone() * 2.0).sin();
        let out = deq.forward(&network.cell, &x, Tensor::zeros([64, WIDTH], device));
        let answer = network.readout.forward(out.output.clone());
        let mut loss = (answer - target).square().mean();
        error = loss.clone().into_scalar::<f32>();
        if let Some(weight) = policy.decide(seed, step, Phase::Equilibrium) {
            let estimate = penalty.at_equilibrium(&network.cell, &x, &out)?;
            loss = loss + estimate.value * weight;
        }
        if let Some(solve) = &out.solve {
            policy.observe(Observation::from(solve)); // for weights that follow the solves
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(0.01, network, gradients);
        evaluations += if step + 50 < STEPS { 0 } else { out.nfe };
    }
    // ANCHOR_END: loop

    let x = Tensor::<2>::random([64, 1], Distribution::Uniform(-3.0, 3.0), device);
    let out = deq.forward(&network.cell, &x, Tensor::zeros([64, WIDTH], device));
    let radius = spectral_radius(&network.cell, &x, &out.z, &SpectralRadiusConfig::new())?;
    Ok(Outcome {
        error,
        evaluations: evaluations as f64 / 50.0,
        radius: radius.mean(),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex().autodiff();
    // ANCHOR: config
    let none = JacobianPenaltyConfig::new().with_frequency(0.0);
    let some = JacobianPenaltyConfig::new()
        .with_weight(0.3)
        .with_frequency(0.5) // on every second step, drawn by seed and step
        .with_schedule(WeightSchedule::Increment(IncrementConfig::new(100)));
    // ANCHOR_END: config
    println!(
        "{:10} {:>7} {:>12} {:>7}",
        "penalty", "error", "evaluations", "radius"
    );
    let [none, some] = [("none", none), ("0.3 to 0.4", some)].map(|(name, config)| {
        let outcome = train(&config, &device);
        if let Ok(at) = &outcome {
            println!(
                "{name:10} {:7.4} {:12.1} {:7.3}",
                at.error, at.evaluations, at.radius
            );
        }
        outcome
    });
    let (none, some) = (none?, some?);
    assert!(some.radius < none.radius && some.evaluations < none.evaluations);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_penalty_shortens_the_solves() -> Result<(), Box<dyn std::error::Error>> {
        super::main()
    }
}
