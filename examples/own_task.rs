//! A cell, data and a measure of your own, trained by `deq-train`: penalty, checkpoints, resuming,
//! report, and a table of quality against solver steps.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::{Depth, EquilibriumCell, random};
use deq_train::{
    BatchPlan, Batches, BatchesFn, EvalOptions, Measure, Network, Opening, Quality, Reading,
    Recipe, Solved, Split, Start, Task, TaskModel, TrainError, TrainOptions, Variant,
    evaluate_budgets, train,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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

impl TaskModel for Sine {
    /// Inputs and targets, `[batch, 1]` each.
    type Batch = (Tensor<2>, Tensor<2>);
    /// Nothing is carried from batch to batch.
    type Memory = ();
    type Cell = Cell;
    type Output = Tensor<2>;
    /// The mean loss says it all.
    type Tally = ();

    fn read(&self, (x, _): &Self::Batch, (): &(), depth: Depth<'_>) -> Reading<Self> {
        let [batch, _] = x.dims();
        let [width, _] = self.cell.state.weight.dims();
        let z0 = Tensor::zeros([batch, width], &x.device());
        // The equilibrium, or so many applications of the cell, as the recipe says.
        let equilibrium = depth.reach(&self.cell, x, z0);
        Reading {
            output: self.readout.forward(equilibrium.output.clone()),
            memory: (),
            nfe: equilibrium.nfe,
            solved: Some(Solved {
                equilibrium,
                context: x.clone(),
            }),
        }
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

/// The task is its configuration: this is what `config.json` keeps under `task`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SineTask {
    width: usize,
    noise: f64,
}

type Points = Box<dyn Batches<(Tensor<2>, Tensor<2>)>>;

impl SineTask {
    /// Points `y = sin(2 x) + noise`. A batch is a function of its place, so that a resumed run
    /// reads what an uninterrupted one would have.
    fn points(&self, seed: u64, count: usize, per_pass: usize) -> Points {
        let noise = self.noise;
        Box::new(BatchesFn::new(per_pass, move |place, device| {
            let draws = random::normal(seed ^ place as u64, 2 * count);
            let (x, e) = draws.split_at(count);
            let y = x.iter().zip(e).map(|(x, e)| (2.0 * x).sin() + noise * e);
            let column = |values: Vec<f64>| {
                let data = TensorData::new(values, [count, 1]).convert::<f32>();
                Tensor::from_data(data, device)
            };
            Ok((column(x.to_vec()), column(y.collect())))
        }))
    }
}

impl Task for SineTask {
    const NAME: &'static str = "sine";
    type Model = Sine;
    type Data = ();

    /// Nothing to open here; a task with files reads them, and keeps their fingerprint.
    fn open(&mut self, _: &Opening<'_>) -> Result<(), TrainError> {
        Ok(())
    }

    fn init(&self, _: Network, device: &Device) -> Result<Sine, TrainError> {
        let layer = |inputs| LinearConfig::new(inputs, self.width).init(device);
        let (state, input) = (layer(self.width), layer(1));
        Ok(Sine {
            cell: Cell { state, input },
            readout: LinearConfig::new(self.width, 1).init(device),
        })
    }

    fn training(&self, (): &(), plan: &BatchPlan) -> Result<Points, TrainError> {
        Ok(self.points(plan.seed << 32, plan.batch, 100))
    }

    fn held_out(&self, (): &(), _: Split, plan: &BatchPlan) -> Result<Points, TrainError> {
        Ok(self.points(u64::MAX << 48, plan.batch, 4))
    }

    fn measure(&self) -> Measure {
        Measure::error("rms error")
    }

    fn quality(&self, loss: f64, (): &()) -> Quality {
        Quality::new(self.measure(), loss.sqrt())
    }
}

fn run(folder: PathBuf) -> Result<f64, TrainError> {
    // A recipe has the penalty, pre-training, learning rate and budgets; every field is public.
    let mut recipe = Recipe::new(
        SineTask {
            width: 24,
            noise: 0.1,
        },
        64,
        120,
    );
    recipe.learning_rate = 1e-2;
    let mut options = TrainOptions::new("flex", folder.clone());
    options.plain = true;
    println!(
        "after 120 steps: {}",
        train(recipe.clone(), &options)?.eval.quality.text()
    );

    // The finished run goes on from its newest checkpoint: more steps, a larger penalty.
    recipe.steps = 160;
    recipe.set("penalty.weight", "3.0")?;
    options.start = Start::Resume;
    let quality = train(recipe, &options)?.eval.quality;
    println!("after 160 steps: {}", quality.text());

    // How good is it when a solve may take fewer steps?
    let variants = [Variant::<SineTask>::as_trained()];
    let (eval, budgets) = (EvalOptions::new("flex"), [1, 2, 4, 8, 12]);
    let table = evaluate_budgets(&folder, &eval, &variants, &budgets, &mut |_| ())?;
    for (budget, eval) in budgets.iter().zip(&table.rows[0].cells) {
        println!("{budget:2} steps allowed: {}", eval.quality.text());
    }
    println!(
        "curves: {} and evaluation.html",
        folder.join("report.html").display()
    );
    Ok(quality.value)
}

fn main() -> Result<(), TrainError> {
    let folder = std::env::args().nth(1).unwrap_or("runs/sine".to_owned());
    run(folder.into()).map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_sine_is_learnt() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = super::run(folder.path().join("sine")).expect("it trains");
        // The noise alone is 0.1; a constant would leave 0.7.
        assert!(error < 0.3, "{error}");
    }
}
