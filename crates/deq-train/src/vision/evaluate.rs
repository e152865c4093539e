//! A pass over held-out pictures.

use super::learner::{IGNORED, VisionInput, VisionLearner, VisionStepOutput};
use crate::error::TrainError;
use crate::measure::{Probes, Totals, probe};
use crate::records::{EvalRecord, Quality};
use burn::data::dataloader::{DataLoader, Progress};
use burn::train::InferenceStep;
use deq_core::solvers::SolverConfig;
use deq_data::VisionTask;

/// What an evaluation measures, and after which step.
#[derive(Clone, Debug)]
pub(crate) struct EvalPlan {
    pub(crate) task: VisionTask,
    pub(crate) classes: usize,
    /// Training steps made so far.
    pub(crate) step: usize,
    /// The solver whose residuals are traced on the first batch, where the spectral radius is estimated too; `None` leaves both out.
    pub(crate) probe: Option<SolverConfig>,
}

/// The largest number of pictures at whose equilibrium the spectral radius is estimated.
const PROBED: usize = 16;
/// The largest number of pixels in them, unless the first one has more: large pictures take long and differ less from each other.
const PROBED_PIXELS: usize = 1 << 18;

/// Reads every batch of `loader` and hands each output to `on_item`.
///
/// # Errors
///
/// [`TrainError::NoSegments`] if there is nothing to read.
pub(crate) fn evaluate(
    learner: &VisionLearner,
    loader: &dyn DataLoader<VisionInput>,
    plan: &EvalPlan,
    on_item: &mut dyn FnMut(VisionStepOutput, Progress),
) -> Result<EvalRecord, TrainError> {
    let mut totals = Totals::new();
    let mut iterator = loader.iter();
    let mut probes = Probes::default();
    let mut confusion = Confusion::new(plan.classes);
    while let Some(input) = iterator.next() {
        let input = input.map_err(|error| TrainError::Stopped {
            reason: error.to_string(),
        })?;
        if let (Some(solver), 0) = (&plan.probe, totals.batches) {
            probes = probe_batch(learner, &input, solver)?;
        }
        let out = InferenceStep::step(learner, input);
        totals.add(&out.record);
        confusion.add(&out.predicted, &out.targets);
        on_item(out, iterator.progress());
    }
    totals.record(("valid", plan.step), probes, |_| {
        confusion.quality(plan.task)
    })
}

/// The probes at the equilibria of a few pictures. An explicit network has none.
fn probe_batch(
    learner: &VisionLearner,
    input: &VisionInput,
    solver: &SolverConfig,
) -> Result<Probes, TrainError> {
    let [batch, _, height, width] = input.images.dims();
    let fitting = PROBED_PIXELS / (height * width);
    let count = batch.min(PROBED).min(fitting.max(1));
    let images = input.images.clone().narrow(0, 0, count);
    match (learner.model.cell(), learner.read(images).solved) {
        (Some(cell), Some((equilibrium, context))) => {
            probe(cell, &context, equilibrium.z_star, solver)
        }
        _ => Ok(Probes::default()),
    }
}

/// How often each class was predicted as each.
pub(crate) struct Confusion {
    classes: usize,
    /// By target, then prediction.
    counts: Vec<u64>,
}

impl Confusion {
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            classes,
            counts: vec![0; classes * classes],
        }
    }

    pub(crate) fn add(&mut self, predicted: &[i32], targets: &[i32]) {
        for (predicted, target) in predicted.iter().zip(targets) {
            if *target != IGNORED {
                self.counts[*target as usize * self.classes + *predicted as usize] += 1;
            }
        }
    }

    pub(crate) fn quality(&self, task: VisionTask) -> Quality {
        let count =
            |target: usize, predicted: usize| self.counts[target * self.classes + predicted];
        let right: u64 = (0..self.classes).map(|class| count(class, class)).sum();
        let all: u64 = self.counts.iter().sum();
        let accuracy = right as f64 / all.max(1) as f64;
        if task == VisionTask::Classification {
            return Quality::Classification { accuracy };
        }
        let iou: Vec<Option<f64>> = (0..self.classes)
            .map(|class| {
                let targets: u64 = (0..self.classes).map(|other| count(class, other)).sum();
                let predicted: u64 = (0..self.classes).map(|other| count(other, class)).sum();
                let both = count(class, class);
                let either = targets + predicted - both;
                (either > 0).then(|| both as f64 / either as f64)
            })
            .collect();
        let present: Vec<f64> = iou.iter().flatten().copied().collect();
        Quality::Segmentation {
            miou: present.iter().sum::<f64>() / present.len().max(1) as f64,
            accuracy,
            iou,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersection_over_union_follows_its_definition() {
        let mut confusion = Confusion::new(4);
        confusion.add(&[0, 0, 1, 1, 2], &[0, 1, 1, IGNORED, 1]);
        let Quality::Segmentation {
            miou,
            accuracy,
            iou,
        } = confusion.quality(VisionTask::Segmentation)
        else {
            panic!("of a segmentation");
        };
        // Class 0: 1 of 2; class 1: 1 of 3; class 2 is predicted once and never right; class 3 does not occur.
        assert_eq!(iou, [Some(0.5), Some(1.0 / 3.0), Some(0.0), None]);
        assert!((miou - (0.5 + 1.0 / 3.0) / 3.0).abs() < 1e-12);
        assert!((accuracy - 0.5).abs() < 1e-12);
        let quality = confusion.quality(VisionTask::Classification);
        assert_eq!(quality, Quality::Classification { accuracy: 0.5 });
    }
}
