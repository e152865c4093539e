//! What a user writes to train a model of one's own: a [`Task`], its [`TaskModel`], its
//! [`Batches`].

use crate::error::{BoxError, ExchangeError, TrainError};
use crate::measure::{Measure, Quality};
use crate::presets::Preset;
use crate::recipe::Network;
use crate::run::Trained;
use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::{Depth, Equilibrium, EquilibriumCell};
use deq_models::StepNumbers;
use deq_models::checkpoint::{LoadReport, StateDict};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is learnt, and from which data: the part of a [`Recipe`](crate::Recipe) that is not the
/// same for all.
///
/// The value is a configuration, kept in the run's `config.json`. The methods open the data, make
/// the model, and say how good a result is. Only the first group has no defaults.
///
/// # Errors
///
/// Methods that can fail say what is wrong, in which file or field, and what would be right; errors
/// of one's own go through [`TrainError::task`].
pub trait Task:
    Clone + PartialEq + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The name of the task in configurations, such as `text`.
    const NAME: &'static str;

    /// Fields of the task that say where its data lie, by their paths, such as `data`. A resumed
    /// run may find the same data elsewhere; every other field must stay what it was.
    const PLACES: &'static [&'static str] = &[];

    /// The model.
    type Model: TaskModel;

    /// The opened data, from which batches are made.
    type Data: Send + Sync;

    /// Opens the data and fills in what depends on them: sizes, names, a fingerprint by which a
    /// resumed run knows the data again.
    fn open(&mut self, from: &Opening<'_>) -> Result<Self::Data, TrainError>;

    /// A model with fresh weights on `device`, whose random numbers have been seeded; an error if
    /// there is no such network for this task.
    fn init(&self, network: Network, device: &Device) -> Result<Self::Model, TrainError>;

    /// The batches to train on. Batch `step` must depend on nothing but the step and the seed, so
    /// that a resumed run reads what the first one would have.
    fn training(
        &self,
        data: &Self::Data,
        plan: &BatchPlan,
    ) -> Result<Box<dyn Batches<BatchOf<Self>>>, TrainError>;

    /// The batches of one pass over a held-out split, the first ones a sample of all; an error if
    /// the data have no such split.
    fn held_out(
        &self,
        data: &Self::Data,
        split: Split,
        plan: &BatchPlan,
    ) -> Result<Box<dyn Batches<BatchOf<Self>>>, TrainError>;

    /// What quality is in this task.
    fn measure(&self) -> Measure;

    /// The quality of a model whose mean loss is `loss` and whose tallies add up to `tally`.
    fn quality(&self, loss: f64, tally: &TallyOf<Self>) -> Quality;

    /// Checks every field that [`init`](Self::init) does not check.
    fn validate(&self) -> Result<(), TrainError> {
        Ok(())
    }

    /// What a training step on so many samples holds, by the kernels of the CPU if `on_host`, for a
    /// [`MemoryPlan`](crate::MemoryPlan). Default: it is not known.
    fn step_numbers(&self, _batch: usize, _on_host: bool) -> Option<StepNumbers> {
        None
    }

    /// Where the data lie, for messages. Default: nothing to tell.
    fn place(&self) -> String {
        String::new()
    }

    /// The presets there are. Default: none.
    fn presets() -> &'static [Preset] {
        &[]
    }

    /// Adapts the configuration of a recipe to its network before the data are opened, such as the
    /// width of an explicit network that is to have as many parameters. Default: nothing.
    fn prepare(&mut self, _network: Network) -> Result<(), TrainError> {
        Ok(())
    }

    /// Keeps with a run what must be known to use its model without the data, such as a
    /// vocabulary. Default: nothing.
    fn keep(&self, _data: &Self::Data, _run: &Path) -> Result<(), TrainError> {
        Ok(())
    }

    /// More to say about data and results, as name and value. Default: nothing.
    fn facts(&self, _data: &Self::Data, _split: Split) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Files of the data that could not be used, with the reason. Default: none.
    fn left_out(&self, _data: &Self::Data) -> Vec<(PathBuf, String)> {
        Vec::new()
    }

    /// HTML that the report of a run shows behind its curves; files beside the report may be
    /// written too. Default: nothing.
    fn gallery(&self, _trained: &Trained<Self>, _data: &Self::Data) -> Result<String, TrainError> {
        Ok(String::new())
    }

    /// Takes from a checkpoint of another program what its names and shapes say of the model.
    /// Default: there are no such checkpoints.
    fn sized_by(&mut self, _file: &StateDict) -> Result<(), TrainError> {
        Err(ExchangeError::NoOriginal { task: Self::NAME }.into())
    }

    /// Checks the opened data against a model that was sized by a checkpoint. Default: nothing.
    fn fits(&self, _before: &Self, _file: &Path) -> Result<(), TrainError> {
        Ok(())
    }

    /// Checks that the weights of a run of the task `before` mean the same here, where training is
    /// to begin with them: shapes do not tell one vocabulary from another. Default: nothing.
    fn takes_weights_of(&self, _before: &Self, _run: &Path) -> Result<(), TrainError> {
        Ok(())
    }

    /// Takes the weights of a checkpoint of another program. Default: there are none.
    fn load(
        &self,
        _model: Self::Model,
        _file: &StateDict,
    ) -> Result<(Self::Model, LoadReport), TrainError> {
        Err(ExchangeError::NoOriginal { task: Self::NAME }.into())
    }

    /// The weights under the names of the other program. Default: there is none.
    fn state_dict(&self, _model: &Self::Model) -> Result<Vec<(String, TensorData)>, TrainError> {
        Err(ExchangeError::NoOriginal { task: Self::NAME }.into())
    }

    /// Whether a tensor of such a checkpoint belongs to the head, which may be another one where
    /// training begins with given weights. Default: none does.
    fn is_head(_name: &str) -> bool {
        false
    }
}

/// The batches of a task.
pub type BatchOf<T> = <<T as Task>::Model as TaskModel>::Batch;
/// The memory of a task.
pub type MemoryOf<T> = <<T as Task>::Model as TaskModel>::Memory;
/// The tally of a task.
pub type TallyOf<T> = <<T as Task>::Model as TaskModel>::Tally;

/// A model built around an equilibrium, or an explicit network to compare it with.
pub trait TaskModel: Module + ModuleDisplay + Debug + Send + Sync + 'static {
    /// What it reads in a step.
    type Batch: Clone + Send + Sync + 'static;
    /// What it carries from step to step; `()` for nothing.
    type Memory: Memory;
    /// The cell whose equilibrium it computes.
    type Cell: EquilibriumCell;
    /// What the head makes of the state: scores, likelihoods, predictions.
    type Output;
    /// What is counted to measure quality; `()` if the loss says it all.
    type Tally: Tally;

    /// Reads a batch: what stands before the cell, the cell to the given depth, what stands behind.
    fn read(&self, batch: &Self::Batch, memory: &Self::Memory, depth: Depth<'_>) -> Reading<Self>;

    /// The cell; `None` for an explicit network with layers of its own.
    fn cell(&self) -> Option<&Self::Cell>;

    /// The mean loss of a training batch over its targets, `[1]`. Of a part without targets it is
    /// not read where others have some; make it 0 where a whole batch may lack them, since training
    /// ends with a loss that is not a number.
    fn loss(&self, output: &Self::Output, batch: &Self::Batch) -> Tensor<1>;

    /// The mean loss of a held-out batch, `[1]`. Default: [`loss`](Self::loss).
    fn held_out_loss(&self, output: &Self::Output, batch: &Self::Batch) -> Tensor<1> {
        self.loss(output, batch)
    }

    /// What is predicted in a batch: the weight of its mean loss in that of a split.
    fn targets(&self, batch: &Self::Batch) -> usize;

    /// Counts for the measure of quality.
    fn tally(&self, output: &Self::Output, batch: &Self::Batch) -> Self::Tally;

    /// The part of a batch at whose equilibria the spectral radius is estimated. Default: all.
    fn probed(&self, batch: &Self::Batch) -> Self::Batch {
        batch.clone()
    }

    /// The samples, or streams, of a batch, by which several devices divide it. Default: `None`, it
    /// cannot be divided.
    ///
    /// A model whose batches are divided makes its random numbers for a step by
    /// [`deq_core::dropout`] or [`deq_core::random`]: only those do not depend on the division.
    fn samples(&self, _batch: &Self::Batch) -> Option<usize> {
        None
    }

    /// Some samples of a batch, on `device`. Needed where [`samples`](Self::samples) says how many
    /// there are.
    ///
    /// # Panics
    ///
    /// The default always does.
    fn part(&self, _batch: &Self::Batch, rows: Range<usize>, device: &Device) -> Self::Batch {
        panic!("a batch whose samples are counted needs `part` for {rows:?} on {device:?}")
    }

    /// How much the mean [`loss`](Self::loss) of a part of a batch counts in that of the batch.
    /// Default: by its [`targets`](Self::targets).
    fn loss_weight(&self, batch: &Self::Batch) -> f64 {
        self.targets(batch) as f64
    }
}

/// A batch as a model has read it.
pub struct Reading<M: TaskModel> {
    /// What the head made of the state.
    pub output: M::Output,
    /// What the next step needs.
    pub memory: M::Memory,
    /// Evaluations of the cell, or layers.
    pub nfe: usize,
    /// The equilibrium, or the last state, and the constants of its solve; `None` for an explicit
    /// network with layers of its own.
    pub solved: Option<Solved<M::Cell>>,
}

impl<M: TaskModel> Reading<M> {
    /// A batch read by way of an equilibrium, or of an unroll of the cell.
    pub fn solved(
        output: M::Output,
        memory: M::Memory,
        equilibrium: Equilibrium<<M::Cell as EquilibriumCell>::State>,
        context: <M::Cell as EquilibriumCell>::Context,
    ) -> Self {
        Self {
            output,
            memory,
            nfe: equilibrium.nfe,
            solved: Some(Solved {
                equilibrium,
                context,
            }),
        }
    }
}

/// A state of a cell with everything that the cell read to get there.
pub struct Solved<C: EquilibriumCell> {
    /// The equilibrium, or the end of an unroll.
    pub equilibrium: Equilibrium<C::State>,
    /// The constants of the solve.
    pub context: C::Context,
}

/// What is carried from step to step, and kept in checkpoints.
pub trait Memory: Clone + Default + Send + Sync + 'static {
    /// The memory of some samples, on `device`.
    fn part(&self, rows: Range<usize>, device: &Device) -> Self;

    /// The memory of all samples, on `device`, from its [parts](Self::part) in order.
    fn joined(parts: &[Self], device: &Device) -> Self;

    /// The content of a file; empty for nothing.
    fn to_bytes(&self) -> Vec<u8>;

    /// The inverse, on `device`.
    ///
    /// # Errors
    ///
    /// What is wrong with the bytes.
    fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self, String>;
}

impl Memory for () {
    fn part(&self, _: Range<usize>, _: &Device) -> Self {}

    fn joined(_: &[Self], _: &Device) -> Self {}

    fn to_bytes(&self) -> Vec<u8> {
        Vec::new()
    }

    fn from_bytes(_: &[u8], _: &Device) -> Result<Self, String> {
        Ok(())
    }
}

/// Counts of a batch that are added up over a split.
pub trait Tally: Clone + Default + Send + Sync + 'static {
    /// Adds the counts of another batch.
    fn add(&mut self, other: &Self);
}

impl Tally for () {
    fn add(&mut self, (): &()) {}
}

/// Batches by their place.
pub trait Batches<B>: Send + Sync {
    /// The batches of one pass over the data.
    fn per_pass(&self) -> usize;

    /// The batches of a range of places, made on `device`. Places count on over passes: place
    /// `per_pass()` is the first batch of the second pass. A held-out batch none of whose files can
    /// be used may be left out.
    fn batches<'a>(
        &'a self,
        places: Range<usize>,
        device: &'a Device,
    ) -> Box<dyn Iterator<Item = Result<B, BoxError>> + 'a>;
}

/// Batches made by a function of their place.
///
/// ```
/// use deq_train::{Batches, BatchesFn};
///
/// let numbers = BatchesFn::new(10, |place, _device| Ok(place % 10));
/// let device = Default::default();
/// let two: Vec<usize> = numbers.batches(9..11, &device).map(Result::unwrap).collect();
/// assert_eq!(two, [9, 0]);
/// ```
pub struct BatchesFn<F> {
    per_pass: usize,
    make: F,
}

impl<F> BatchesFn<F> {
    /// Batches of which `make` makes any one, and `per_pass` are a pass over the data.
    pub fn new<B>(per_pass: usize, make: F) -> Self
    where
        F: Fn(usize, &Device) -> Result<B, BoxError> + Send + Sync,
    {
        Self { per_pass, make }
    }
}

impl<B, F> Batches<B> for BatchesFn<F>
where
    F: Fn(usize, &Device) -> Result<B, BoxError> + Send + Sync,
{
    fn per_pass(&self) -> usize {
        self.per_pass
    }

    fn batches<'a>(
        &'a self,
        places: Range<usize>,
        device: &'a Device,
    ) -> Box<dyn Iterator<Item = Result<B, BoxError>> + 'a> {
        Box::new(places.map(move |place| (self.make)(place, device)))
    }
}

/// What is known when the data of a task are opened.
#[derive(Clone, Copy, Default)]
pub struct Opening<'a> {
    /// The folder of the run that exists already, with what it [keeps](Task::keep).
    pub run: Option<&'a Path>,
    /// Whether training steps are to be made, or only an existing model is to be used.
    pub training: bool,
    /// Called with progress, as a sentence, while large data are read; ignored by default.
    pub progress: Option<&'a (dyn Fn(&str) + Send + Sync)>,
}

/// How batches are made.
#[derive(Clone, Copy, Debug)]
pub struct BatchPlan {
    /// Samples, or streams, in a batch.
    pub batch: usize,
    /// The seed of order and augmentation.
    pub seed: u64,
    /// Threads that make batches ahead of time.
    pub workers: usize,
}

/// A held-out part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The one by which models are chosen.
    Valid,
    /// The one that is reported.
    Test,
}

impl Split {
    /// `valid` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Valid => "valid",
            Split::Test => "test",
        }
    }
}
