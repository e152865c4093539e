//! A pass over held-out text.

use super::learner::{LmInput, LmLearner, LmModel, LmStepOutput};
use crate::error::TrainError;
use crate::records::EvalRecord;
use burn::data::dataloader::{DataLoader, Progress};
use burn::tensor::Tensor;
use burn::train::InferenceStep;
use deq_core::FrozenCell;
use deq_core::solvers::{SolverConfig, StatusCounts, StopConfig, TraceLevel};
use deq_jacreg::{SpectralRadiusConfig, spectral_radius};
use deq_models::LmMemory;
use std::time::Instant;

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

/// The budget of the traced solve, which has no tolerance to stop at: twice what evaluation may spend.
const TRACE_STEPS: usize = 60;

/// Reads every segment of `loader` in order, carrying the memory, and hands each output to `on_item`.
///
/// # Errors
///
/// [`TrainError::NoSegments`] if there is nothing to read, and whatever `on_item` returns.
pub(crate) fn evaluate(
    learner: &LmLearner,
    loader: &dyn DataLoader<LmInput>,
    plan: &EvalPlan,
    mut on_item: impl FnMut(LmStepOutput, Progress) -> Result<(), TrainError>,
) -> Result<EvalRecord, TrainError> {
    let started = Instant::now();
    let mut iterator = loader.iter();
    let mut memory = LmMemory::empty();
    let mut totals = Totals::default();
    let mut probes = Probes::default();
    while let Some(input) = iterator.next() {
        let mut input = input.map_err(|error| TrainError::Stopped {
            reason: error.to_string(),
        })?;
        input.memory = memory;
        if plan.probe && totals.segments == 0 {
            probes = probe(learner, &input, &plan.solver)?;
        }
        let out = InferenceStep::step(learner, input);
        memory = out.memory.clone();
        totals.add(&out);
        on_item(out, iterator.progress())?;
    }
    if totals.segments == 0 {
        return Err(TrainError::NoSegments { split: plan.split });
    }
    let loss = totals.nats / totals.tokens as f64;
    let solved = totals.status.total();
    let per_sample = |sum: f64| (solved > 0).then(|| sum / solved as f64);
    Ok(EvalRecord {
        step: plan.step,
        split: plan.split.to_owned(),
        loss,
        perplexity: loss.exp(),
        tokens: totals.tokens,
        segments: totals.segments,
        nfe_per_segment: totals.nfe as f64 / totals.segments as f64,
        steps: per_sample(totals.steps),
        residual: per_sample(totals.residual),
        status: totals.status,
        spectral_radius: probes.spectral_radius,
        residual_by_step: probes.residual_by_step,
        seconds: started.elapsed().as_secs_f64(),
    })
}

#[derive(Default)]
struct Totals {
    nats: f64,
    tokens: usize,
    segments: usize,
    nfe: usize,
    /// Over samples.
    steps: f64,
    residual: f64,
    status: StatusCounts,
}

impl Totals {
    fn add(&mut self, out: &LmStepOutput) {
        let record = &out.record;
        self.nats += record.loss * record.tokens as f64;
        self.tokens += record.tokens;
        self.segments += 1;
        self.nfe += record.forward_nfe;
        if let Some(solve) = &record.forward {
            let samples = solve.status.total() as f64;
            self.steps += solve.steps * samples;
            self.residual += solve.residual * samples;
            self.status.merge(&solve.status);
        }
    }
}

#[derive(Default)]
struct Probes {
    spectral_radius: Option<f64>,
    residual_by_step: Vec<f64>,
}

/// The spectral radius at the equilibrium of one segment, and the residuals of one long solve. For a weight-tied network the radius is that
/// at its last state, and tells whether it would settle if it went on. A stack of layers has neither.
fn probe(
    learner: &LmLearner,
    input: &LmInput,
    solver: &SolverConfig,
) -> Result<Probes, TrainError> {
    let (LmModel::Deq(model), Some((equilibrium, context))) =
        (&learner.model, learner.read(input).cell)
    else {
        return Ok(Probes::default());
    };
    let frozen = FrozenCell::new(&model.cell, &context);
    let z = equilibrium.z_star;
    let radius = spectral_radius(&frozen, z.clone(), &SpectralRadiusConfig::new())?;
    // A tolerance that f32 does not reach, so that the whole curve is seen.
    let stop = StopConfig::new()
        .with_rel_tol(1e-12)
        .with_max_steps(TRACE_STEPS)
        .with_trace(TraceLevel::Residuals);
    let forward = deq_core::DeqError::Forward;
    let stop = stop.build().map_err(forward)?;
    let solver = solver.build().map_err(forward)?;
    let mut map = |z: Tensor<2>| frozen.call(z);
    let solution = solver.solve(&mut map, z.zeros_like(), &stop);
    Ok(Probes {
        spectral_radius: Some(radius.mean()),
        residual_by_step: solution.trace.map_or(Vec::new(), |trace| trace.mean_rel()),
    })
}
