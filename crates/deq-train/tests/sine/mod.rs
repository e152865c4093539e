//! The smallest task of one's own.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::{Depth, EquilibriumCell, random};
use deq_train::{
    BatchPlan, Batches, BatchesFn, Measure, Network, Opening, Quality, Reading, Split, Task,
    TaskModel, TrainError,
};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number that tests set.
pub(crate) struct Switch(AtomicUsize);

impl Switch {
    pub(crate) fn set(&self, value: usize) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The first training batch with a target that is no number, of a task of this width.
static POISONED_FROM: Switch = Switch(AtomicUsize::new(usize::MAX));

/// 1 if the gradient of the cell is no number, although the loss is.
static POISONED_GRADIENT: Switch = Switch(AtomicUsize::new(0));

/// 1 if the device lacks the memory for held-out batches.
static TOO_LARGE: Switch = Switch(AtomicUsize::new(0));

/// 1 if points whose target is no number have none, and batches can be divided.
static LACKING: Switch = Switch(AtomicUsize::new(0));

impl Sine {
    #[allow(dead_code, reason = "not every test has such points")]
    pub(crate) const LACKING: &'static Switch = &LACKING;
    pub(crate) const POISONED_FROM: &'static Switch = &POISONED_FROM;
    #[allow(dead_code, reason = "not every test poisons it")]
    pub(crate) const POISONED_GRADIENT: &'static Switch = &POISONED_GRADIENT;
    #[allow(dead_code, reason = "not every test has such batches")]
    pub(crate) const TOO_LARGE: &'static Switch = &TOO_LARGE;
}

/// The cell: any module whose output has the shape of its state.
#[derive(Module, Debug)]
pub(crate) struct Cell {
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
pub(crate) struct Sine {
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
        let output = self.readout.forward(equilibrium.output.clone());
        Reading::solved(output, (), equilibrium, x.clone())
    }

    fn cell(&self) -> Option<&Cell> {
        Some(&self.cell)
    }

    fn loss(&self, output: &Tensor<2>, (_, y): &Self::Batch) -> Tensor<1> {
        if Sine::LACKING.get() == 1 {
            let lacking = y.clone().is_nan();
            let count = lacking.clone().bool_not().float().sum();
            let errors = (output.clone() - y.clone().mask_fill(lacking.clone(), 0.0)).square();
            // 0 / 0 without any.
            return errors.mask_fill(lacking, 0.0).sum() / count;
        }
        let loss = (output.clone() - y.clone()).square().mean();
        match Sine::POISONED_GRADIENT.get() {
            0 => loss,
            // A root of zero, whose slope is infinite.
            _ => loss + (self.cell.input.weight.val() * 0.0).sqrt().sum(),
        }
    }

    fn held_out_loss(&self, output: &Tensor<2>, batch: &Self::Batch) -> Tensor<1> {
        assert!(Sine::TOO_LARGE.get() == 0, "out of device memory");
        self.loss(output, batch)
    }

    fn targets(&self, (x, y): &Self::Batch) -> usize {
        match Sine::LACKING.get() {
            1 => y.to_data().iter::<f64>().filter(|y| !y.is_nan()).count(),
            _ => x.dims()[0],
        }
    }

    fn samples(&self, (x, _): &Self::Batch) -> Option<usize> {
        (Sine::LACKING.get() == 1).then(|| x.dims()[0])
    }

    fn part(&self, (x, y): &Self::Batch, rows: Range<usize>, device: &Device) -> Self::Batch {
        let part = |points: &Tensor<2>| {
            let part = points.clone().slice(rows.clone());
            Tensor::from_data(part.into_data(), device)
        };
        (part(x), part(y))
    }

    fn tally(&self, _: &Tensor<2>, _: &Self::Batch) {}
}

/// The task is its configuration: this is what `config.json` keeps under `task`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SineTask {
    pub(crate) width: usize,
}

pub(crate) type Points = Box<dyn Batches<(Tensor<2>, Tensor<2>)>>;

impl SineTask {
    /// Points `y = sin(2 x) + noise`. A batch is a function of its place, so that a resumed run
    /// reads what an uninterrupted one would have.
    fn points(&self, seed: u64, count: usize, per_pass: usize) -> Points {
        let noise = 0.1;
        Box::new(BatchesFn::new(per_pass, move |place, device| {
            let mut draws = random::normal(seed ^ place as u64, 2 * count);
            if place >= Sine::POISONED_FROM.get() {
                draws[count] = f64::NAN;
            }
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
