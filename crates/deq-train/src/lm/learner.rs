//! One step of training or evaluation.

use super::recipe::{LmRecipe, Network};
use crate::error::TrainError;
use crate::records::{Phase, SolveRecord, StepRecord};
use crate::rounds::{RoundInput, RoundOutput, step_seed};
use crate::step::{StepPlan, Weighted};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::metric::Adaptor;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use deq_core::Equilibrium;
use deq_data::Segment;
use deq_models::{Depth, DeqTransformerLm, LmMemory, TransformerContext, TransformerXlLm};
use std::sync::Arc;
use std::time::Instant;

/// The model with what it needs to make a step.
#[derive(Module, Debug)]
pub(crate) struct LmLearner {
    pub(crate) model: LmModel,
    #[module(skip)]
    plan: Arc<StepPlan>,
}

/// The kinds of models that a recipe can ask for.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a process has one of them")]
pub(crate) enum LmModel {
    /// One cell: its equilibrium, or so many applications of it.
    Deq(DeqTransformerLm),
    /// A stack of layers.
    Layers(TransformerXlLm),
}

/// A segment read by an [`LmModel`].
pub(crate) struct LmReading {
    pub(crate) hidden: Tensor<3>,
    pub(crate) memory: LmMemory,
    /// Applications of a layer.
    pub(crate) nfe: usize,
    /// The last state of the cell and the constants of its solve; absent for a stack of layers.
    pub(crate) cell: Option<(Equilibrium, TransformerContext)>,
}

impl LmModel {
    fn read(
        &self,
        tokens: Tensor<2, Int>,
        memory: &LmMemory,
        depth: Depth<'_>,
        start: Option<Tensor<2>>,
    ) -> LmReading {
        match self {
            LmModel::Deq(model) => {
                let out = model.forward_from(tokens, memory, depth, start);
                LmReading {
                    hidden: out.hidden,
                    memory: out.memory,
                    nfe: out.equilibrium.nfe,
                    cell: Some((out.equilibrium, out.context)),
                }
            }
            LmModel::Layers(model) => {
                let out = model.forward(tokens, memory);
                LmReading {
                    hidden: out.hidden,
                    memory: out.memory,
                    nfe: model.layers.len(),
                    cell: None,
                }
            }
        }
    }

    pub(crate) fn log_probs(&self, hidden: Tensor<3>) -> Tensor<2> {
        match self {
            LmModel::Deq(model) => model.log_probs(hidden),
            LmModel::Layers(model) => model.log_probs(hidden),
        }
    }

    fn nll(&self, hidden: Tensor<3>, targets: &[i32]) -> Tensor<1> {
        match self {
            LmModel::Deq(model) => model.nll(hidden, targets),
            LmModel::Layers(model) => model.nll(hidden, targets),
        }
    }
}

/// One segment with the memory of the streams before it.
#[derive(Clone, Debug)]
pub(crate) struct LmInput {
    pub(crate) tokens: Tensor<2, Int>,
    pub(crate) targets: Vec<i32>,
    pub(crate) starts_stream: bool,
    /// The step, counted from 0.
    pub(crate) step: usize,
    pub(crate) memory: LmMemory,
    /// The weight of the penalty in the place of its schedule's.
    pub(crate) penalty_weight: Option<f64>,
}

impl LmInput {
    /// The segment on `device`, with an empty memory.
    pub(crate) fn new(segment: Segment, step: usize, device: &Device) -> Self {
        let tokens = TensorData::new(segment.inputs, [segment.batch, segment.len]);
        Self {
            tokens: Tensor::from_data(tokens, device),
            targets: segment.targets,
            starts_stream: segment.starts_stream,
            step,
            memory: LmMemory::empty(),
            penalty_weight: None,
        }
    }
}

/// What a step measured, and the memory for the next one.
#[derive(Clone, Debug)]
pub(crate) struct LmStepOutput {
    pub(crate) record: StepRecord,
    pub(crate) memory: LmMemory,
}

impl ItemLazy for LmStepOutput {
    fn sync(self) -> Result<Self, burn::tensor::ExecutionError> {
        Ok(self)
    }
}

impl Adaptor<StepRecord> for LmStepOutput {
    fn adapt(&self) -> StepRecord {
        self.record.clone()
    }
}

impl RoundInput for LmInput {
    type Memory = LmMemory;

    fn step(&self) -> usize {
        self.step
    }

    fn prepare(&mut self, memory: &mut LmMemory, penalty_weight: Option<f64>) {
        if !self.starts_stream {
            self.memory = std::mem::take(memory);
        }
        self.penalty_weight = penalty_weight;
    }
}

impl RoundOutput for LmStepOutput {
    type Memory = LmMemory;

    fn record(&mut self) -> &mut StepRecord {
        &mut self.record
    }

    fn memory(&self) -> LmMemory {
        self.memory.clone()
    }
}

impl LmLearner {
    /// A model with fresh weights, which the seed determines.
    pub(crate) fn new(recipe: &LmRecipe, device: &Device) -> Result<Self, TrainError> {
        device.seed(recipe.seed);
        let penalty = recipe.penalty.as_ref();
        Ok(Self {
            model: match recipe.network {
                Network::Layers { depth } => {
                    LmModel::Layers(recipe.model.init_explicit(depth, device)?)
                }
                _ => LmModel::Deq(recipe.model.init(device)?),
            },
            plan: Arc::new(StepPlan {
                deq: recipe.deq.build()?,
                explicit: match recipe.network {
                    Network::Equilibrium => None,
                    Network::WeightTied { depth } | Network::Layers { depth } => Some(depth),
                },
                penalty: penalty.map(|penalty| penalty.build()).transpose()?,
                pretrain_penalty: 0.0,
                pretrain_steps: recipe.pretrain_steps,
                pretrain_depth: recipe.pretrain_depth,
                clip: Some(recipe.clip),
                seed: recipe.seed,
            }),
        })
    }

    /// Reads a segment in evaluation mode.
    pub(crate) fn read(&self, input: &LmInput) -> LmReading {
        self.read_on(input.tokens.clone(), &input.memory, None)
    }

    /// Reads tokens in evaluation mode, with a state to start the solve from.
    pub(crate) fn read_on(
        &self,
        tokens: Tensor<2, Int>,
        memory: &LmMemory,
        start: Option<Tensor<2>>,
    ) -> LmReading {
        let (_, depth) = self.plan.depth(None, &self.plan.deq);
        self.model.read(tokens, memory, depth, start)
    }

    /// The numbers of a step, all but the backward solve and the penalty.
    fn record(&self, input: &LmInput, phase: Phase, out: &LmReading, loss: f64) -> StepRecord {
        let solve = out.cell.as_ref().and_then(|(z, _)| z.solve.as_ref());
        StepRecord {
            step: input.step + 1,
            phase,
            loss,
            targets: input.targets.len(),
            accuracy: None,
            forward_nfe: out.nfe,
            forward: solve.map(SolveRecord::from),
            backward: None,
            penalty: None,
            learning_rate: 0.0,
            seconds: 0.0,
        }
    }
}

impl TrainStep for LmLearner {
    type Input = LmInput;
    type Output = LmStepOutput;

    fn step(&self, input: LmInput) -> TrainOutput<LmStepOutput> {
        let started = Instant::now();
        let plan = &self.plan;
        // Masks and probes depend on seed and step alone, so that a resumed run draws what the first one would have.
        input.tokens.device().seed(step_seed(plan.seed, input.step));
        let deq = plan.deq.at_step(plan.seed, input.step as u64);
        let (phase, depth) = plan.depth(Some(input.step), &deq);
        let out = self
            .model
            .read(input.tokens.clone(), &input.memory, depth, None);
        let nll = self.model.nll(out.hidden.clone(), &input.targets).mean();

        let penalty = match (&self.model, &out.cell) {
            (LmModel::Deq(model), Some((equilibrium, context))) => {
                let state = (&model.cell, context, equilibrium);
                plan.penalty((input.step, phase), input.penalty_weight, state)
            }
            _ => None,
        };
        let grads = plan.gradients(self, nll.clone(), penalty.as_ref());

        let loss = nll.inner().into_scalar::<f64>();
        let record = StepRecord {
            backward: out
                .cell
                .as_ref()
                .and_then(|(equilibrium, _)| equilibrium.backward.solve())
                .as_ref()
                .map(SolveRecord::from),
            penalty: penalty.as_ref().map(Weighted::record),
            seconds: started.elapsed().as_secs_f64(),
            ..self.record(&input, phase, &out, loss)
        };
        let memory = out.memory;
        TrainOutput {
            grads,
            item: LmStepOutput { record, memory },
        }
    }
}

impl InferenceStep for LmLearner {
    type Input = LmInput;
    type Output = LmStepOutput;

    fn step(&self, input: LmInput) -> LmStepOutput {
        let started = Instant::now();
        let out = self.read(&input);
        let nll = self.model.nll(out.hidden.clone(), &input.targets).mean();
        let (phase, _) = self.plan.depth(None, &self.plan.deq);
        let loss = nll.into_scalar::<f64>();
        LmStepOutput {
            record: StepRecord {
                seconds: started.elapsed().as_secs_f64(),
                ..self.record(&input, phase, &out, loss)
            },
            memory: out.memory,
        }
    }
}
