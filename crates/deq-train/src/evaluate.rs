//! A pass over held-out batches, for any task.

use crate::error::{RunError, Stopped, TrainError};
use crate::measure::Measure;
use crate::parallel::Team;
use crate::recipe::Recipe;
use crate::records::{EvalRecord, StepRecord};
use crate::step::{InputOf, LearnerOf, OutputOf};
use crate::task::{MemoryOf, Solved, Tally, TallyOf, Task, TaskModel};
use burn::data::dataloader::{DataLoader, Progress};
use burn::tensor::Tensor;
use deq_core::solvers::{SolverConfig, StatusCounts, StopConfig, TraceLevel};
use deq_core::{EquilibriumCell, FrozenCell};
use deq_jacreg::{SpectralRadiusConfig, spectral_radius};
use std::ops::ControlFlow;
use std::time::Instant;

/// The budget of the traced solve, which has no tolerance to stop at: twice what evaluation may
/// spend.
const TRACE_STEPS: usize = 60;

/// What an evaluation measures, after which step, and on which devices.
#[derive(Clone)]
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

impl<'a> EvalPlan<'a> {
    /// Everything is measured.
    pub(crate) fn new<T: Task>(
        recipe: &Recipe<T>,
        split: &'static str,
        step: usize,
        team: &'a Team,
    ) -> Self {
        Self {
            split,
            step,
            probe: Some(recipe.deq.solver.clone()),
            team,
        }
    }
}

/// Reads every batch of `loader` in order, carrying the memory, and hands each output to `on_item`,
/// until that says to stop: the record is `None` then.
///
/// # Errors
///
/// [`RunError::NothingToRead`] if there is nothing to read;
/// [`DevicesError::Lost`](crate::DevicesError::Lost) naming a worker that is gone.
pub(crate) fn evaluate<T: Task>(
    task: &T,
    learner: &LearnerOf<T>,
    loader: &dyn DataLoader<InputOf<T>>,
    plan: &EvalPlan<'_>,
    on_item: &mut dyn FnMut(OutputOf<T>, Progress) -> ControlFlow<()>,
) -> Result<Option<EvalRecord>, TrainError> {
    let mut totals = Totals::new();
    let mut tally = TallyOf::<T>::default();
    let mut memory = Vec::<MemoryOf<T>>::new();
    let mut probes = Probes::default();
    let replicas = plan.team.replicas(learner);
    let mut iterator = loader.iter();
    while let Some(input) = iterator.next() {
        let input = input.map_err(|error| Stopped::Batch {
            step: plan.step,
            source: error.into(),
        })?;
        if let (Some(solver), 0) = (&plan.probe, totals.batches) {
            let batch = learner.model.probed(&input.batch);
            let solved = learner.read(&batch, &input.memory).solved;
            if let (Some(cell), Some(solved)) = (learner.model.cell(), solved) {
                probes = probe(cell, &solved, solver)?;
            }
        }
        let mut out = plan.team.infer(&replicas, input, &mut memory)?;
        totals.add(&out.record);
        tally.add(&out.tally);
        out.record.quality = batch_quality(task, out.record.loss, &out.tally);
        if on_item(out, iterator.progress()).is_break() {
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
        step: plan.step,
        split: plan.split.to_owned(),
        loss,
        quality: task.quality(loss, &tally),
        targets: totals.targets,
        batches: totals.batches,
        nfe_per_solve: totals.nfe as f64 / totals.batches as f64,
        steps: per_sample(totals.steps),
        residual: per_sample(totals.residual),
        status: totals.status,
        spectral_radius: probes.spectral_radius,
        residual_by_step: probes.residual_by_step,
        seconds: totals.started.elapsed().as_secs_f64(),
    }))
}

/// The quality of one batch; `None` for a perplexity, which follows from the loss, and whose mean
/// over batches is not one.
pub(crate) fn batch_quality<T: Task>(task: &T, loss: f64, tally: &TallyOf<T>) -> Option<f64> {
    let quality = task.quality(loss, tally);
    (quality.measure != Measure::Perplexity).then_some(quality.value)
}

/// Sums over the batches of an evaluation.
struct Totals {
    started: Instant,
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
    fn new() -> Self {
        Self {
            started: Instant::now(),
            loss: 0.0,
            targets: 0,
            batches: 0,
            nfe: 0,
            steps: 0.0,
            residual: 0.0,
            status: StatusCounts::default(),
        }
    }

    fn add(&mut self, record: &StepRecord) {
        self.loss += record.loss * record.targets as f64;
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

/// What is measured at the equilibria of one batch.
#[derive(Default)]
struct Probes {
    spectral_radius: Option<f64>,
    residual_by_step: Vec<f64>,
}

/// The spectral radius at a state of a cell, and the residuals of one long solve. For a weight-tied
/// network the radius is that at its last state, and tells whether it would settle if it went on.
fn probe<C: EquilibriumCell>(
    cell: &C,
    solved: &Solved<C>,
    solver: &SolverConfig,
) -> Result<Probes, TrainError> {
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
    Ok(Probes {
        spectral_radius: Some(radius.mean()),
        residual_by_step: solution.trace.map_or(Vec::new(), |trace| trace.mean_rel()),
    })
}
