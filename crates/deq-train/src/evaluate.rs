//! A pass over held-out batches, for any task.

use crate::error::{RunError, Stopped, TrainError};
use crate::measure::Measure;
use crate::parallel::Team;
use crate::records::{EvalRecord, StepRecord};
use crate::step::{LearnerOf, OutputOf, input};
use crate::task::{BatchOf, Batches, MemoryOf, Solved, Tally, TallyOf, Task, TaskModel};
use burn::data::dataloader::Progress;
use burn::tensor::Tensor;
use deq_core::solvers::{SolverConfig, StatusCounts, StopConfig, TraceLevel};
use deq_core::{EquilibriumCell, FrozenCell};
use deq_jacreg::{SpectralRadiusConfig, spectral_radius};
use std::ops::ControlFlow;
use std::time::Instant;

/// The budget of the traced solve, which has no tolerance to stop at: twice the 30 steps that
/// evaluation may spend at most in the presets.
const TRACE_STEPS: usize = 60;

/// What an evaluation measures, after which step, and on which devices.
pub(crate) struct EvalPlan<'a> {
    /// The name of the split.
    pub(crate) split: &'static str,
    /// Training steps made so far.
    pub(crate) step: usize,
    /// The solver whose residuals are traced on the first batch, where the spectral radius is
    /// estimated too; `None` leaves both out.
    pub(crate) probe: Option<SolverConfig>,
    pub(crate) team: &'a Team,
}

/// Reads the first `most` batches in order, carrying the memory, and hands each output to
/// `on_item`, until that says to stop: the record is `None` then.
pub(crate) fn evaluate<T: Task>(
    task: &T,
    learner: &LearnerOf<T>,
    (batches, most): (&dyn Batches<BatchOf<T>>, usize),
    plan: &EvalPlan<'_>,
    on_item: &mut dyn FnMut(OutputOf<T>, Progress) -> ControlFlow<()>,
) -> Result<Option<EvalRecord>, TrainError> {
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut tally = TallyOf::<T>::default();
    let mut memory = Vec::<MemoryOf<T>>::new();
    let (mut spectral_radius, mut residual_by_step) = (None, Vec::new());
    let replicas = plan.team.replicas(learner);
    let step = plan.step;
    for (place, batch) in batches.batches(0..most, plan.team.main()).enumerate() {
        let batch = batch.map_err(|source| Stopped::Batch { step, source })?;
        let input = input::<T>(batch, place);
        if let (Some(solver), 0) = (&plan.probe, totals.batches) {
            let batch = learner.model.probed(&input.batch);
            let solved = learner.read(&batch, &input.memory).solved;
            if let (Some(cell), Some(solved)) = (learner.model.cell(), solved) {
                let (radius, residuals) = probe(cell, &solved, solver)?;
                (spectral_radius, residual_by_step) = (Some(radius), residuals);
            }
        }
        let mut out = plan.team.infer(&replicas, input, &mut memory)?;
        totals.add(&out.record);
        tally.add(&out.tally);
        out.record.quality = batch_quality(task, out.record.loss, &out.tally);
        if on_item(out, progress(place, most)).is_break() {
            return Ok(None);
        }
    }
    if totals.targets == 0 {
        return Err(RunError::NothingToRead { split: plan.split }.into());
    }
    let loss = totals.loss / totals.targets as f64;
    let solved = totals.status.total();
    let per_sample = |sum: f64| (solved > 0).then(|| sum / solved as f64);
    Ok(Some(EvalRecord {
        step,
        split: plan.split.to_owned(),
        loss,
        quality: task.quality(loss, &tally),
        targets: totals.targets,
        batches: totals.batches,
        nfe_per_solve: totals.nfe as f64 / totals.batches as f64,
        steps: per_sample(totals.steps),
        residual: per_sample(totals.residual),
        status: totals.status,
        spectral_radius,
        residual_by_step,
        seconds: started.elapsed().as_secs_f64(),
    }))
}

/// That the batch at a place was read.
pub(crate) fn progress(place: usize, all: usize) -> Progress {
    Progress::new(place + 1, all, Some("batches".to_owned()))
}

/// The quality of one batch; `None` for a perplexity, which follows from the loss, and whose mean
/// over batches is not one.
pub(crate) fn batch_quality<T: Task>(task: &T, loss: f64, tally: &TallyOf<T>) -> Option<f64> {
    let quality = task.quality(loss, tally);
    (quality.measure != Measure::Perplexity).then_some(quality.value)
}

/// Sums over the batches of an evaluation.
#[derive(Default)]
struct Totals {
    /// Over targets.
    loss: f64,
    targets: usize,
    batches: usize,
    nfe: usize,
    /// Over samples.
    steps: f64,
    residual: f64,
    status: StatusCounts,
}

impl Totals {
    fn add(&mut self, record: &StepRecord) {
        // Of a batch without targets it need not be a number.
        if record.targets > 0 {
            self.loss += record.loss * record.targets as f64;
        }
        self.targets += record.targets;
        self.batches += 1;
        self.nfe += record.forward_nfe;
        if let Some(solve) = &record.forward {
            let samples = solve.status.total() as f64;
            self.steps += solve.steps * samples;
            self.residual += solve.residual * samples;
            self.status.merge(&solve.status);
        }
    }
}

/// The spectral radius at a state of a cell, and the residuals of one long solve. For a weight-tied
/// network the radius is that at its last state, and tells whether it would settle if it went on.
fn probe<C: EquilibriumCell>(
    cell: &C,
    solved: &Solved<C>,
    solver: &SolverConfig,
) -> Result<(f64, Vec<f64>), TrainError> {
    let z = &solved.equilibrium.z;
    let radius = spectral_radius(cell, &solved.context, z, &SpectralRadiusConfig::new())?;
    // A tolerance that f32 does not reach, so that the whole curve is seen.
    let stop = StopConfig::new()
        .with_rel_tol(1e-12)
        .with_max_steps(TRACE_STEPS)
        .with_trace(TraceLevel::Residuals);
    let forward = deq_core::DeqError::Forward;
    let stop = stop.build().map_err(forward)?;
    let solver = solver.build().map_err(forward)?;
    let frozen = FrozenCell::new(cell, &solved.context, z);
    let zero = frozen.layout().flatten(z.clone()).zeros_like();
    let mut map = |z: Tensor<2>| frozen.call(z);
    let solution = solver.solve(&mut map, zero, &stop);
    let residuals = solution.trace.map_or(Vec::new(), |trace| trace.mean_rel());
    Ok((radius.mean(), residuals))
}
