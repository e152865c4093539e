//! A cell, data and a measure of your own, trained, resumed and measured by `deq-train`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::{Depth, EquilibriumCell, random};
use deq_train::*;
use serde::{Deserialize, Serialize};

/// The cell: any module whose output has the shape of its state.
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
}

/// The model: the cell, and what turns its state into an answer.
#[derive(Module, Debug)]
struct Sine {
    cell: Cell,
    readout: Linear,
}

// ANCHOR: model
impl TaskModel for Sine {
    type Batch = (Tensor<2>, Tensor<2>); // inputs and targets, [batch, 1] each
    type Memory = (); // nothing is carried from batch to batch
    type Cell = Cell;
    type Output = Tensor<2>;
    type Tally = (); // the mean loss says it all

    fn read(&self, (x, _): &Self::Batch, (): &(), depth: Depth<'_>) -> Reading<Self> {
        let z0 = self.cell.input.forward(x.clone()).zeros_like();
        // The equilibrium, or so many applications of the cell, as the recipe says.
        let equilibrium = depth.reach(&self.cell, x, z0);
        let output = self.readout.forward(equilibrium.output.clone());
        Reading::solved(output, (), equilibrium, x.clone())
    }

    fn cell(&self) -> Option<&Cell> {
        Some(&self.cell)
    }

    fn loss(&self, output: &Tensor<2>, (_, y): &Self::Batch) -> Tensor<1> {
        (output.clone() - y.clone()).square().mean()
    }

    fn targets(&self, (x, _): &Self::Batch) -> usize {
        x.dims()[0]
    }

    fn tally(&self, _: &Tensor<2>, _: &Self::Batch) {}
}
// ANCHOR_END: model

/// The task is its configuration: this is what `config.json` keeps under `task`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SineTask {
    width: usize,
}

type Points = Box<dyn Batches<(Tensor<2>, Tensor<2>)>>;

/// Points `y = sin(2 x) + noise`: functions of their place, so that a resumed run reads the same.
fn points(seed: u64, count: usize, per_pass: usize) -> Points {
    Box::new(BatchesFn::new(per_pass, move |place, device: &Device| {
        let draws = random::normal(seed ^ place as u64, 2 * count);
        let (x, noise) = draws.split_at(count);
        let y = x.iter().zip(noise).map(|(x, e)| (2.0 * x).sin() + 0.1 * e);
        let column = |values: Vec<f64>| {
            let data = TensorData::new(values, [count, 1]).convert::<f32>();
            Tensor::from_data(data, device)
        };
        Ok((column(x.to_vec()), column(y.collect())))
    }))
}

// ANCHOR: task
impl Task for SineTask {
    const NAME: &'static str = "sine";
    type Model = Sine;
    type Data = (); // nothing to open; a task with files keeps their fingerprint

    fn open(&mut self, _: &Opening<'_>) -> Result<(), TrainError> {
        Ok(())
    }

    fn init(&self, _: Network, device: &Device) -> Result<Sine, TrainError> {
        let layer = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        let (state, input) = (layer(self.width, self.width), layer(1, self.width));
        let (cell, readout) = (Cell { state, input }, layer(self.width, 1));
        Ok(Sine { cell, readout })
    }

    fn training(&self, (): &(), plan: &BatchPlan) -> Result<Points, TrainError> {
        Ok(points(plan.seed << 32, plan.batch, 100))
    }

    fn held_out(&self, (): &(), _: Split, plan: &BatchPlan) -> Result<Points, TrainError> {
        Ok(points(u64::MAX << 48, plan.batch, 4))
    }

    fn measure(&self) -> Measure {
        Measure::error("rms error")
    }

    fn quality(&self, loss: f64, (): &()) -> Quality {
        Quality::new(self.measure(), loss.sqrt())
    }
}
// ANCHOR_END: task

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let run = folder.path().join("sine"); // report.html, metrics.jsonl, checkpoints
    // ANCHOR: run
    // A recipe has the penalty, pre-training, learning rate and budgets; every field is public.
    let mut recipe = Recipe::new(SineTask { width: 24 }, 64, 120);
    recipe.learning_rate = 1e-2;
    let mut options = TrainOptions::new("flex", run.clone());
    options.plain = true;
    train(recipe.clone(), &options)?;

    // The finished run goes on from its newest checkpoint: more steps, a larger penalty.
    recipe.steps = 160;
    recipe.set("penalty.weight", "3.0")?;
    options.start = Start::Resume;
    let error = train(recipe, &options)?.eval.quality;
    // The noise alone is 0.1; a constant would leave 0.7.
    assert!(error.value < 0.3);

    // How good is it when a solve may take fewer steps?
    let variants = [Variant::<SineTask>::as_trained()];
    let (eval, budgets) = (EvalOptions::new("flex"), [1, 2, 4, 8, 12]);
    let table = evaluate_budgets(&run, &eval, &variants, &budgets, &mut |_| ())?;
    for (budget, eval) in budgets.iter().zip(&table.rows[0].cells) {
        println!("{budget:2} steps allowed: {}", eval.quality.text());
    }
    // ANCHOR_END: run
    Ok(())
}

#[test]
fn the_sine_is_learnt() -> Result<(), Box<dyn std::error::Error>> {
    main()
}
