//! One step of training or evaluation.

use super::recipe::{LmRecipe, Network};
use crate::clip::clip_global_norm;
use crate::error::TrainError;
use crate::records::{PenaltyRecord, Phase, SolveRecord, StepRecord};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::metric::Adaptor;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use deq_core::{Deq, Equilibrium};
use deq_data::Segment;
use deq_jacreg::JacobianPenalty;
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

/// What a recipe says about single steps.
#[derive(Debug)]
struct StepPlan {
    deq: Deq,
    network: Network,
    penalty: Option<JacobianPenalty>,
    pretrain_steps: usize,
    pretrain_depth: usize,
    clip: f64,
    seed: u64,
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
                network: recipe.network,
                penalty: penalty.map(|penalty| penalty.build()).transpose()?,
                pretrain_steps: recipe.pretrain_steps,
                pretrain_depth: recipe.pretrain_depth,
                clip: recipe.clip,
                seed: recipe.seed,
            }),
        })
    }

    /// The phase and depth of training step `step`, counted from 0; `None` means evaluation.
    fn depth<'a>(&self, step: Option<usize>, deq: &'a Deq) -> (Phase, Depth<'a>) {
        let plan = &self.plan;
        match plan.network {
            Network::WeightTied { depth } | Network::Layers { depth } => {
                (Phase::Unrolled, Depth::Unrolled(depth))
            }
            Network::Equilibrium => match step {
                Some(step) if step < plan.pretrain_steps => {
                    (Phase::Unrolled, Depth::Unrolled(plan.pretrain_depth))
                }
                _ => (Phase::Equilibrium, Depth::Equilibrium(deq)),
            },
        }
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
        let (_, depth) = self.depth(None, &self.plan.deq);
        self.model.read(tokens, memory, depth, start)
    }

    /// The numbers of a step, all but the backward solve and the penalty.
    fn record(&self, input: &LmInput, phase: Phase, out: &LmReading, loss: f64) -> StepRecord {
        let solve = out.cell.as_ref().and_then(|(z, _)| z.solve.as_ref());
        StepRecord {
            step: input.step + 1,
            phase,
            loss,
            tokens: input.targets.len(),
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
        input.tokens.device().seed(mix(plan.seed, input.step));
        let deq = plan.deq.at_step(plan.seed, input.step as u64);
        let (phase, depth) = self.depth(Some(input.step), &deq);
        let out = self
            .model
            .read(input.tokens.clone(), &input.memory, depth, None);
        let nll = self.model.nll(out.hidden.clone(), &input.targets).mean();

        let penalty = plan.penalty.as_ref().filter(|penalty| {
            phase == Phase::Equilibrium && penalty.applies_at(plan.seed, input.step)
        });
        let scheduled = penalty.map_or(0.0, |penalty| penalty.weight_at(input.step));
        let weight = input.penalty_weight.unwrap_or(scheduled);
        let penalty = match (penalty, &self.model, &out.cell) {
            (Some(penalty), LmModel::Deq(model), Some((equilibrium, context))) => Some(
                penalty
                    .estimate_exact(&model.cell, context, equilibrium.z_star.clone())
                    .expect("the settings were checked and the state is f32 or f64"),
            ),
            _ => None,
        };
        let total = match &penalty {
            Some(penalty) => nll.clone() + penalty.value.clone() * weight,
            None => nll.clone(),
        };
        let grads = GradientsParams::from_grads(total.backward(), self);
        let grads = clip_global_norm(self, grads, plan.clip);

        let loss = nll.inner().into_scalar::<f64>();
        let record = StepRecord {
            backward: out
                .cell
                .as_ref()
                .and_then(|(equilibrium, _)| equilibrium.backward.solve())
                .as_ref()
                .map(SolveRecord::from),
            penalty: penalty.map(|penalty| PenaltyRecord {
                value: penalty.value.clone().inner().into_scalar::<f64>(),
                weight,
                nfe: penalty.nfe,
                products: penalty.products,
            }),
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
        let (phase, _) = self.depth(None, &self.plan.deq);
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

/// A seed for one step (the finaliser of SplitMix64).
fn mix(seed: u64, step: usize) -> u64 {
    let mut x = seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
