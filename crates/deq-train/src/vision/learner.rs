//! One step of training or evaluation.

use super::model::{VisionModel, VisionReading};
use super::recipe::VisionRecipe;
use crate::error::TrainError;
use crate::records::{Phase, SolveRecord, StepRecord};
use crate::rounds::{RoundInput, RoundOutput, step_seed};
use crate::step::{StepPlan, Weighted};
use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::metric::Adaptor;
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use deq_data::{IGNORE_LABEL, ImageBatch, VisionTask};
use std::sync::Arc;
use std::time::Instant;

/// The target of pixels that are not to be predicted.
pub(crate) const IGNORED: i32 = -1;

/// The model with what it needs to make a step.
#[derive(Module, Debug)]
pub(crate) struct VisionLearner {
    pub(crate) model: VisionModel,
    #[module(skip)]
    plan: Arc<StepPlan>,
    /// One per class, or none if all count the same.
    #[module(skip)]
    class_weights: Arc<[f32]>,
}

/// A batch of pictures.
#[derive(Clone, Debug)]
pub(crate) struct VisionInput {
    /// `[batch, 3, height, width]`.
    pub(crate) images: Tensor<4>,
    /// The class of every picture or pixel, or [`IGNORED`].
    pub(crate) targets: Vec<i32>,
    /// The step, counted from 0.
    step: usize,
    /// The weight of the penalty in the place of its schedule's.
    penalty_weight: Option<f64>,
}

impl VisionInput {
    /// The batch on `device`.
    pub(crate) fn new(batch: ImageBatch, task: VisionTask, device: &Device) -> Self {
        let shape = [batch.len, 3, batch.height, batch.width];
        let mut targets = batch.targets;
        // Class 255 exists where pictures are classified.
        if task == VisionTask::Segmentation {
            for target in &mut targets {
                if *target == i32::from(IGNORE_LABEL) {
                    *target = IGNORED;
                }
            }
        }
        Self {
            images: Tensor::from_data(TensorData::new(batch.pixels, shape), device),
            targets,
            step: batch.step,
            penalty_weight: None,
        }
    }
}

impl RoundInput for VisionInput {
    type Memory = ();

    fn step(&self) -> usize {
        self.step
    }

    fn prepare(&mut self, (): &mut (), penalty_weight: Option<f64>) {
        self.penalty_weight = penalty_weight;
    }
}

/// What a step measured, and what it predicted.
#[derive(Clone, Debug)]
pub(crate) struct VisionStepOutput {
    pub(crate) record: StepRecord,
    /// The likeliest class of every picture or pixel.
    pub(crate) predicted: Vec<i32>,
    /// The right ones.
    pub(crate) targets: Vec<i32>,
}

impl ItemLazy for VisionStepOutput {
    fn sync(self) -> Result<Self, burn::tensor::ExecutionError> {
        Ok(self)
    }
}

impl Adaptor<StepRecord> for VisionStepOutput {
    fn adapt(&self) -> StepRecord {
        self.record.clone()
    }
}

impl RoundOutput for VisionStepOutput {
    type Memory = ();

    fn record(&mut self) -> &mut StepRecord {
        &mut self.record
    }

    fn memory(&self) {}
}

impl VisionLearner {
    /// A model with fresh weights, which the seed determines.
    pub(crate) fn new(recipe: &VisionRecipe, device: &Device) -> Result<Self, TrainError> {
        device.seed(recipe.seed);
        let penalty = recipe.penalty.as_ref();
        Ok(Self {
            model: recipe.model.init(device)?,
            plan: Arc::new(StepPlan {
                deq: recipe.deq.build()?,
                explicit: recipe.explicit,
                penalty: penalty.map(|penalty| penalty.build()).transpose()?,
                pretrain_penalty: recipe.pretrain_penalty,
                pretrain_steps: recipe.pretrain_steps,
                pretrain_depth: recipe.pretrain_depth,
                clip: recipe.clip,
                seed: recipe.seed,
            }),
            class_weights: recipe.class_weights.as_slice().into(),
        })
    }

    /// Reads pictures in evaluation mode.
    pub(crate) fn read(&self, images: Tensor<4>) -> VisionReading {
        let (_, depth) = self.plan.depth(None, &self.plan.deq);
        self.model.read(images, depth)
    }

    /// The numbers of a step, all but the backward solve and the penalty.
    fn record(
        &self,
        step: usize,
        phase: Phase,
        out: &VisionReading,
        judged: &Judged,
    ) -> StepRecord {
        let solve = out.solved.as_ref().and_then(|(z, _)| z.solve.as_ref());
        StepRecord {
            step: step + 1,
            // An explicit network has no equilibrium.
            phase: match out.solved {
                Some(_) => phase,
                None => Phase::Unrolled,
            },
            loss: judged.loss,
            targets: judged.labelled,
            accuracy: Some(judged.right as f64 / judged.labelled.max(1) as f64),
            forward_nfe: out.nfe,
            forward: solve.map(SolveRecord::from),
            backward: None,
            penalty: None,
            learning_rate: 0.0,
            seconds: 0.0,
        }
    }
}

impl TrainStep for VisionLearner {
    type Input = VisionInput;
    type Output = VisionStepOutput;

    fn step(&self, input: VisionInput) -> TrainOutput<VisionStepOutput> {
        let started = Instant::now();
        let plan = &self.plan;
        // Masks and probes depend on seed and step alone, so that a resumed run draws what the first one would have.
        input.images.device().seed(step_seed(plan.seed, input.step));
        let deq = plan.deq.at_step(plan.seed, input.step as u64);
        let (phase, depth) = plan.depth(Some(input.step), &deq);
        let out = self.model.read(input.images.clone(), depth);
        let nll = mean_nll(out.scores.clone(), &input.targets, &self.class_weights);
        let penalty = match (self.model.cell(), &out.solved) {
            (Some(cell), Some((equilibrium, context))) => {
                let state = (cell, context, equilibrium);
                plan.penalty((input.step, phase), input.penalty_weight, state)
            }
            _ => None,
        };
        let grads = plan.gradients(self, nll.clone(), penalty.as_ref());

        let judged = Judged::new(nll.inner(), out.scores.clone().inner(), &input.targets);
        let backward = out.solved.as_ref().and_then(|(z, _)| z.backward.solve());
        let record = StepRecord {
            backward: backward.as_ref().map(SolveRecord::from),
            penalty: penalty.as_ref().map(Weighted::record),
            seconds: started.elapsed().as_secs_f64(),
            ..self.record(input.step, phase, &out, &judged)
        };
        TrainOutput {
            grads,
            item: VisionStepOutput {
                record,
                predicted: judged.predicted,
                targets: input.targets,
            },
        }
    }
}

impl InferenceStep for VisionLearner {
    type Input = VisionInput;
    type Output = VisionStepOutput;

    fn step(&self, input: VisionInput) -> VisionStepOutput {
        let started = Instant::now();
        let out = self.read(input.images);
        // All targets alike, so that the loss compares with that of runs with other weights.
        let nll = mean_nll(out.scores.clone(), &input.targets, &[]);
        let judged = Judged::new(nll, out.scores.clone(), &input.targets);
        let (phase, _) = self.plan.depth(None, &self.plan.deq);
        VisionStepOutput {
            record: StepRecord {
                seconds: started.elapsed().as_secs_f64(),
                ..self.record(input.step, phase, &out, &judged)
            },
            predicted: judged.predicted,
            targets: input.targets,
        }
    }
}

/// The mean negative log-likelihood of the targets that are not ignored, each weighted by its class if there are weights; 0 without any.
fn mean_nll(scores: Tensor<2>, targets: &[i32], class_weights: &[f32]) -> Tensor<1> {
    let device = scores.device();
    let count = targets.len();
    let classes: Vec<i32> = targets.iter().map(|target| (*target).max(0)).collect();
    let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, [count, 1]), &device);
    let likelihood = log_softmax(scores, 1).gather(1, classes).reshape([count]);
    if class_weights.is_empty() && !targets.contains(&IGNORED) {
        return likelihood.mean().neg();
    }
    let weight = |target: &i32| match usize::try_from(*target) {
        Ok(class) => class_weights.get(class).copied().unwrap_or(1.0),
        Err(_) => 0.0,
    };
    let weights: Vec<f32> = targets.iter().map(weight).collect();
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), &device);
    let sum = (likelihood * weights).sum().neg();
    match total > 0.0 {
        true => sum / total,
        false => sum,
    }
}

/// Predictions beside targets.
struct Judged {
    loss: f64,
    labelled: usize,
    right: usize,
    predicted: Vec<i32>,
}

impl Judged {
    fn new(loss: Tensor<1>, scores: Tensor<2>, targets: &[i32]) -> Self {
        let predicted = scores.argmax(1).into_data().convert::<i32>();
        let predicted = predicted
            .try_into_vec::<i32>()
            .expect("it was converted to this type");
        let pairs = || predicted.iter().zip(targets);
        Self {
            loss: loss.into_scalar::<f64>(),
            labelled: targets.iter().filter(|target| **target != IGNORED).count(),
            right: pairs().filter(|(found, target)| found == target).count(),
            predicted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_targets_count_neither_in_the_loss_nor_in_the_accuracy() {
        let device = Device::flex();
        let scores = || Tensor::<2>::from_data([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]], &device);
        let nll = |targets: &[i32]| mean_nll(scores(), targets, &[]).into_scalar::<f64>();
        let of = |right: f64, wrong: f64| (1.0 + (wrong - right).exp()).ln();
        let both = (of(2.0, 0.0) + of(0.0, 1.0)) / 2.0;
        assert!((nll(&[0, 0, IGNORED]) - both).abs() < 1e-6);
        assert!((nll(&[0, 0, 1]) - (2.0 * both + of(-5.0, 5.0)) / 3.0).abs() < 1e-6);
        assert!(nll(&[IGNORED; 3]).abs() < 1e-30);
        let judged = Judged::new(
            mean_nll(scores(), &[0, 0, IGNORED], &[]),
            scores(),
            &[0, 0, IGNORED],
        );
        assert_eq!((judged.labelled, judged.right), (2, 1));
        assert_eq!(judged.predicted, [0, 1, 0]);
    }

    /// PyTorch: `F.cross_entropy(scores, targets, weight=[2, 0.5])` divides by the sum of the weights.
    #[test]
    fn classes_count_by_their_weights() {
        let device = Device::flex();
        let scores = Tensor::<2>::from_data([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]], &device);
        let of = |right: f64, wrong: f64| (1.0 + (wrong - right).exp()).ln();
        let found = mean_nll(scores, &[0, 1, IGNORED], &[2.0, 0.5]).into_scalar::<f64>();
        let expected = (2.0 * of(2.0, 0.0) + 0.5 * of(1.0, 0.0)) / 2.5;
        assert!((found - expected).abs() < 1e-6);
    }
}
