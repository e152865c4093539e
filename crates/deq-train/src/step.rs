//! One step of training or evaluation, for any task.

use crate::clip::clip_global_norm;
use crate::error::{DeviceError, TrainError};
use crate::recipe::{Network, Recipe};
use crate::records::{PenaltyRecord, Phase, SolveRecord, StepRecord};
use crate::task::{BatchOf, MemoryOf, Reading, Task, TaskModel};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn::train::metric::Adaptor;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use deq_core::{Depth, Deq, Precision};
use deq_jacreg::{InvalidPenalty, JacobianPenalty, Penalty};
use std::sync::Arc;
use std::time::Instant;

/// What a recipe says about single steps.
#[derive(Debug)]
pub(crate) struct StepPlan {
    pub(crate) deq: Deq,
    network: Network,
    penalty: Option<JacobianPenalty>,
    pretrain_steps: usize,
    pretrain_depth: usize,
    /// The largest norm of the whole gradient, if it is bounded.
    pub(crate) clip: Option<f64>,
    pub(crate) seed: u64,
}

impl StepPlan {
    pub(crate) fn new<T: Task>(recipe: &Recipe<T>) -> Result<Self, TrainError> {
        let penalty = recipe.penalty.as_ref();
        Ok(Self {
            deq: recipe.deq.build()?,
            network: recipe.network,
            penalty: penalty.map(|penalty| penalty.build()).transpose()?,
            pretrain_steps: recipe.pretrain_steps,
            pretrain_depth: recipe.pretrain_depth,
            clip: recipe.clip,
            seed: recipe.seed,
        })
    }

    /// Phase and depth of training step `step`, counted from 0; `None` means evaluation.
    pub(crate) fn depth<'a>(&self, step: Option<usize>, deq: &'a Deq) -> (Phase, Depth<'a>) {
        match (self.network.depth(), step) {
            (Some(depth), _) => (Phase::Unrolled, Depth::Unrolled(depth)),
            (None, Some(step)) if step < self.pretrain_steps => {
                (Phase::Unrolled, Depth::Unrolled(self.pretrain_depth))
            }
            _ => (Phase::Equilibrium, Depth::Equilibrium(deq)),
        }
    }
}

/// A model with what it needs to make a step.
#[derive(Module, Debug)]
pub(crate) struct Learner<M: Module> {
    pub(crate) model: M,
    #[module(skip)]
    pub(crate) plan: Arc<StepPlan>,
}

/// What a step reads.
pub(crate) struct StepInput<M: TaskModel> {
    pub(crate) batch: M::Batch,
    /// The step, counted from 0.
    pub(crate) step: usize,
    pub(crate) memory: M::Memory,
    /// The weight of the penalty, if this step has one.
    pub(crate) penalty: Option<f64>,
}

/// How much a part of a batch counts in the whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// In its mean loss.
    pub(crate) of_loss: f64,
    /// In a mean over its samples.
    pub(crate) of_samples: f64,
}

/// What a step measured, and what the next one needs.
pub(crate) struct StepOutput<M: TaskModel> {
    pub(crate) record: StepRecord,
    pub(crate) memory: M::Memory,
    pub(crate) tally: M::Tally,
}

impl<M: TaskModel> ItemLazy for StepOutput<M> {
    fn sync(self) -> Result<Self, burn::tensor::ExecutionError> {
        Ok(self)
    }
}

impl<M: TaskModel> Adaptor<StepRecord> for StepOutput<M> {
    fn adapt(&self) -> StepRecord {
        self.record.clone()
    }
}

impl<M: TaskModel> Learner<M> {
    /// A model with fresh weights, which the seed determines.
    ///
    /// # Errors
    ///
    /// If the recipe describes no model or layer, or one for which the device lacks the type.
    pub(crate) fn fresh<T>(recipe: &Recipe<T>, device: &Device) -> Result<Self, TrainError>
    where
        T: Task<Model = M>,
    {
        require_type(recipe.deq.precision, device)?;
        device.seed(recipe.seed);
        Ok(Self {
            model: recipe.task.init(recipe.network, device)?,
            plan: Arc::new(StepPlan::new(recipe)?),
        })
    }

    /// Reads a batch in evaluation mode.
    pub(crate) fn read(&self, batch: &M::Batch, memory: &M::Memory) -> Reading<M> {
        let (_, depth) = self.plan.depth(None, &self.plan.deq);
        self.model.read(batch, memory, depth)
    }

    /// The weighted penalty of a step at the end of its solve.
    fn penalty(
        &self,
        weight: Option<f64>,
        reading: &Reading<M>,
    ) -> Result<Option<(f64, Penalty)>, InvalidPenalty> {
        let (Some(weight), Some(penalty)) = (weight, self.plan.penalty.as_ref()) else {
            return Ok(None);
        };
        let (Some(cell), Some(solved)) = (self.model.cell(), reading.solved.as_ref()) else {
            return Ok(None);
        };
        let estimate = penalty.at_equilibrium(cell, &solved.context, &solved.equilibrium)?;
        Ok(Some((weight, estimate)))
    }
}

/// Requires that a device computes in the type of a map.
pub(crate) fn require_type(
    precision: Option<Precision>,
    device: &Device,
) -> Result<(), DeviceError> {
    match precision {
        Some(precision) if !device.supports_dtype(precision.dtype()) => {
            Err(DeviceError::NoSuchType {
                device: format!("{:?}", device.clone().inner()),
                precision: precision.name(),
            })
        }
        _ => Ok(()),
    }
}

/// The numbers of a step, all but those of its backward pass.
fn record<M: TaskModel>(
    model: &M,
    (input, phase): (&StepInput<M>, Phase),
    reading: &Reading<M>,
    loss: f64,
) -> StepRecord {
    let solve = reading.solved.as_ref();
    let solve = solve.and_then(|solved| solved.equilibrium.solve.as_ref());
    StepRecord {
        step: input.step + 1,
        phase,
        loss,
        targets: model.targets(&input.batch),
        forward_nfe: reading.nfe,
        forward: solve.map(SolveRecord::from),
        ..StepRecord::default()
    }
}

/// A seed for one step (the finaliser of SplitMix64).
pub(crate) fn step_seed(seed: u64, step: usize) -> u64 {
    let mut x = seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What burn-train asks of a learner; steps are made by [`Learner::whole_step`], which can fail.
impl<M: TaskModel> TrainStep for Learner<M> {
    type Input = StepInput<M>;
    type Output = StepOutput<M>;

    /// # Panics
    ///
    /// As [`Learner::whole_step`] fails.
    fn step(&self, input: StepInput<M>) -> TrainOutput<StepOutput<M>> {
        self.whole_step(input)
            .expect("the state is of a type that the penalty takes")
    }
}

impl<M: TaskModel> Learner<M> {
    /// One step on the whole batch, with clipped gradients.
    ///
    /// # Errors
    ///
    /// As [`part_of_step`](Self::part_of_step).
    pub(crate) fn whole_step(&self, input: StepInput<M>) -> StepResult<M> {
        let plan = &self.plan;
        // Masks and probes depend on seed and step alone, so that a resumed run draws what the
        // first one would have.
        for device in self.model.devices() {
            device.seed(step_seed(plan.seed, input.step));
        }
        let out = self.part_of_step(input, None)?;
        Ok(TrainOutput {
            grads: match plan.clip {
                Some(limit) => clip_global_norm(self, out.grads, limit),
                None => out.grads,
            },
            item: out.item,
        })
    }

    /// One step on the whole batch, or on a part of it with that share, whose gradients then add
    /// up to those of the whole. Gradients are not clipped.
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty`] if the state is of a type in which its penalty cannot be taken.
    pub(crate) fn part_of_step(&self, input: StepInput<M>, share: Option<Share>) -> StepResult<M> {
        let started = Instant::now();
        let plan = &self.plan;
        let deq = plan.deq.at_step(plan.seed, input.step as u64);
        let (phase, depth) = plan.depth(Some(input.step), &deq);
        let reading = self.model.read(&input.batch, &input.memory, depth);
        let loss = self.model.loss(&reading.output, &input.batch);
        let penalty = self.penalty(input.penalty, &reading)?;
        let (own, samples) = match share {
            // A mean over no target need not be a number.
            Some(share) if share.of_loss <= 0.0 => (None, share.of_samples),
            Some(share) => (Some(loss.clone() * share.of_loss), share.of_samples),
            None => (Some(loss.clone()), 1.0),
        };
        let weighted = penalty
            .as_ref()
            .map(|(weight, estimate)| estimate.value.clone() * (*weight * samples));
        let total = own.into_iter().chain(weighted).reduce(|a, b| a + b);
        let grads = match total {
            Some(total) => GradientsParams::from_grads(total.backward(), self),
            None => GradientsParams::new(),
        };

        let number = |tensor: Tensor<1>| tensor.inner().into_scalar::<f64>();
        let solved = reading.solved.as_ref();
        let backward = solved.and_then(|solved| solved.equilibrium.backward.solve());
        // An asynchronous device is waited for here, before the time is taken.
        let loss = number(loss);
        let record = StepRecord {
            backward: backward.as_ref().map(SolveRecord::from),
            penalty: penalty.map(|(weight, estimate)| PenaltyRecord {
                nfe: estimate.nfe(),
                products: estimate.products,
                value: number(estimate.value),
                weight,
            }),
            seconds: started.elapsed().as_secs_f64(),
            ..record(&self.model, (&input, phase), &reading, loss)
        };
        let item = StepOutput {
            record,
            tally: self.model.tally(&reading.output, &input.batch),
            memory: reading.memory,
        };
        Ok(TrainOutput { grads, item })
    }
}

/// The outcome of a step of training.
pub(crate) type StepResult<M> = Result<TrainOutput<StepOutput<M>>, InvalidPenalty>;

impl<M: TaskModel> InferenceStep for Learner<M> {
    type Input = StepInput<M>;
    type Output = StepOutput<M>;

    fn step(&self, input: StepInput<M>) -> StepOutput<M> {
        let started = Instant::now();
        let reading = self.read(&input.batch, &input.memory);
        let loss = self.model.held_out_loss(&reading.output, &input.batch);
        let (phase, _) = self.plan.depth(None, &self.plan.deq);
        let loss = loss.into_scalar::<f64>();
        StepOutput {
            record: StepRecord {
                seconds: started.elapsed().as_secs_f64(),
                ..record(&self.model, (&input, phase), &reading, loss)
            },
            tally: self.model.tally(&reading.output, &input.batch),
            memory: reading.memory,
        }
    }
}

/// The learner of a task.
pub(crate) type LearnerOf<T> = Learner<<T as Task>::Model>;
/// The input of a step of a task.
pub(crate) type InputOf<T> = StepInput<<T as Task>::Model>;
/// The outcome of a step of a task.
pub(crate) type OutputOf<T> = StepOutput<<T as Task>::Model>;

/// What a step reads whose batch is `batch`, before the trainer has told it memory and penalty.
pub(crate) fn input<T: Task>(batch: BatchOf<T>, step: usize) -> InputOf<T> {
    StepInput {
        batch,
        step,
        memory: MemoryOf::<T>::default(),
        penalty: None,
    }
}
