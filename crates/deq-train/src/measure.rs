//! What every evaluation measures, whatever the task.

use crate::error::TrainError;
use crate::records::{EvalRecord, Quality, StepRecord};
use burn::tensor::Tensor;
use deq_core::solvers::{SolverConfig, StatusCounts, StopConfig, TraceLevel};
use deq_core::{EquilibriumCell, FrozenCell};
use deq_jacreg::{SpectralRadiusConfig, spectral_radius};
use std::time::Instant;

/// The budget of the traced solve, which has no tolerance to stop at: twice what evaluation may spend.
const TRACE_STEPS: usize = 60;

/// Sums over the batches of an evaluation.
pub(crate) struct Totals {
    started: Instant,
    nats: f64,
    pub(crate) targets: usize,
    pub(crate) batches: usize,
    nfe: usize,
    /// Over samples.
    steps: f64,
    residual: f64,
    status: StatusCounts,
}

impl Totals {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            nats: 0.0,
            targets: 0,
            batches: 0,
            nfe: 0,
            steps: 0.0,
            residual: 0.0,
            status: StatusCounts::default(),
        }
    }

    pub(crate) fn add(&mut self, record: &StepRecord) {
        self.nats += record.loss * record.targets as f64;
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

    /// The record of `split` after training step `step`; `quality` is told the mean loss.
    ///
    /// # Errors
    ///
    /// [`TrainError::NoSegments`] if nothing was added.
    pub(crate) fn record(
        self,
        (split, step): (&'static str, usize),
        probes: Probes,
        quality: impl FnOnce(f64) -> Quality,
    ) -> Result<EvalRecord, TrainError> {
        if self.targets == 0 {
            return Err(TrainError::NoSegments { split });
        }
        let loss = self.nats / self.targets as f64;
        let solved = self.status.total();
        let per_sample = |sum: f64| (solved > 0).then(|| sum / solved as f64);
        Ok(EvalRecord {
            step,
            split: split.to_owned(),
            loss,
            quality: quality(loss),
            targets: self.targets,
            batches: self.batches,
            nfe_per_solve: self.nfe as f64 / self.batches as f64,
            steps: per_sample(self.steps),
            residual: per_sample(self.residual),
            status: self.status,
            spectral_radius: probes.spectral_radius,
            residual_by_step: probes.residual_by_step,
            seconds: self.started.elapsed().as_secs_f64(),
        })
    }
}

/// What is measured at a single equilibrium.
#[derive(Default)]
pub(crate) struct Probes {
    spectral_radius: Option<f64>,
    residual_by_step: Vec<f64>,
}

/// The spectral radius at a state of a cell, and the residuals of one long solve. For a weight-tied network the radius is that at its last state, and
/// tells whether it would settle if it went on.
pub(crate) fn probe<C: EquilibriumCell>(
    cell: &C,
    context: &C::Context,
    z: Tensor<2>,
    solver: &SolverConfig,
) -> Result<Probes, TrainError> {
    let frozen = FrozenCell::new(cell, context);
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
