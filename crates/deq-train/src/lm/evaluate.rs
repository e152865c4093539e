//! A pass over held-out text.

use super::learner::{LmInput, LmLearner, LmModel, LmStepOutput};
use crate::error::TrainError;
use crate::measure::{Probes, Totals, probe};
use crate::records::{EvalRecord, Quality};
use burn::data::dataloader::{DataLoader, Progress};
use burn::train::InferenceStep;
use deq_core::solvers::SolverConfig;
use deq_models::LmMemory;

/// What an evaluation measures besides the likelihood.
#[derive(Clone, Debug)]
pub(crate) struct EvalPlan {
    /// `valid` or `test`.
    pub(crate) split: &'static str,
    /// Training steps made so far.
    pub(crate) step: usize,
    /// Whether to estimate the spectral radius and to trace a long solve, both on the first segment.
    pub(crate) probe: bool,
    /// The solver that is traced.
    pub(crate) solver: SolverConfig,
}

/// Reads every segment of `loader` in order, carrying the memory, and hands each output to `on_item`.
///
/// # Errors
///
/// [`TrainError::NoSegments`] if there is nothing to read.
pub(crate) fn evaluate(
    learner: &LmLearner,
    loader: &dyn DataLoader<LmInput>,
    plan: &EvalPlan,
    mut on_item: impl FnMut(LmStepOutput, Progress),
) -> Result<EvalRecord, TrainError> {
    let mut totals = Totals::new();
    let mut iterator = loader.iter();
    let mut memory = LmMemory::empty();
    let mut probes = Probes::default();
    while let Some(input) = iterator.next() {
        let mut input = input.map_err(|error| TrainError::Stopped {
            reason: error.to_string(),
        })?;
        input.memory = memory;
        if plan.probe && totals.batches == 0 {
            probes = probe_segment(learner, &input, &plan.solver)?;
        }
        let out = InferenceStep::step(learner, input);
        memory = out.memory.clone();
        totals.add(&out.record);
        on_item(out, iterator.progress());
    }
    totals.record((plan.split, plan.step), probes, |loss| Quality::Text {
        perplexity: loss.exp(),
    })
}

/// The probes at the equilibrium of one segment. A stack of layers has none.
fn probe_segment(
    learner: &LmLearner,
    input: &LmInput,
    solver: &SolverConfig,
) -> Result<Probes, TrainError> {
    match (&learner.model, learner.read(input).cell) {
        (LmModel::Deq(model), Some((equilibrium, context))) => {
            probe(&model.cell, &context, equilibrium.z_star, solver)
        }
        _ => Ok(Probes::default()),
    }
}
