//! What a solve returns.

use crate::status::{SolveStatus, StatusCounts};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The best iterate of every sample and how its solve went.
#[derive(Clone, Debug)]
pub struct Solution {
    /// The iterate with the smallest residual, or the one that converged, `[batch, dim]`. Always
    /// finite if the start was.
    pub z: Tensor<2>,
    /// `f(z)` there, `[batch, dim]`. One step of plain iteration closer to the fixed point of a
    /// contraction. `z` itself where that is a start whose `f(z)` is not finite.
    pub fz: Tensor<2>,
    /// Evaluations, steps, residuals, statuses.
    pub stats: SolveStats,
    /// The course of the solve, if [`StopConfig::trace`](crate::StopConfig) asked for it.
    pub trace: Option<Trace>,
    /// The points at the steps that [`StopConfig::keep`](crate::StopConfig) named, in that order.
    pub states: Vec<KeptState>,
}

impl Solution {
    /// The solution if every sample converged.
    ///
    /// # Errors
    ///
    /// [`NotConverged`] with the counts of each outcome and the worst residual.
    pub fn into_result(self) -> Result<Self, NotConverged> {
        let counts = self.stats.status_counts();
        match self.stats.status.iter().find(|s| !s.is_converged()) {
            None => Ok(self),
            Some(&first) => Err(NotConverged {
                counts,
                first,
                worst_rel_residual: self.stats.worst_rel_residual(),
            }),
        }
    }
}

/// Some samples of a solve did not converge.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "{} of {} samples did not converge (largest relative residual {worst_rel_residual:.1e}); the \
     first one: {first}",
    counts.total() - counts.converged, counts.total()
)]
pub struct NotConverged {
    /// Samples by outcome.
    pub counts: StatusCounts,
    /// The outcome of the first sample that failed.
    pub first: SolveStatus,
    /// The largest relative residual of the batch.
    pub worst_rel_residual: f64,
}

/// Counts and residuals of a solve. Vectors have one entry per sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SolveStats {
    /// Evaluations of `f`, on the batch or on those of its rows that were still active.
    pub nfe: usize,
    /// Rows evaluated, summed over all evaluations: `nfe` times the batch, unless the map was
    /// evaluated [by rows](crate::FixedPointMap::by_rows).
    pub evaluated_rows: usize,
    /// Reads from the device, each of which waits for the work queued there.
    pub reads: usize,
    /// Steps that the sample took before it ended.
    pub steps: Vec<usize>,
    /// The step, counted from 0 for the start, whose iterate is returned.
    pub best_step: Vec<usize>,
    /// `|f(z) - z|` at the returned iterate, in units of the state; `f64::MAX` where that is a
    /// start whose `f(z)` is not finite.
    pub abs_residual: Vec<f64>,
    /// `|f(z) - z| / (|f(z)| + rel_floor)` at the returned iterate; at most `f32::MAX`, which also
    /// stands for a start whose `f(z)` is not finite.
    pub rel_residual: Vec<f64>,
    /// How each sample ended.
    pub status: Vec<SolveStatus>,
}

impl SolveStats {
    /// Samples by outcome.
    pub fn status_counts(&self) -> StatusCounts {
        self.status.iter().copied().collect()
    }

    /// The mean number of steps of a sample.
    pub fn mean_steps(&self) -> f64 {
        mean(self.steps.iter().map(|&s| s as f64))
    }

    /// The mean relative residual.
    pub fn mean_rel_residual(&self) -> f64 {
        mean(self.rel_residual.iter().copied())
    }

    /// The largest relative residual, always finite.
    pub fn worst_rel_residual(&self) -> f64 {
        self.rel_residual.iter().copied().fold(0.0, f64::max)
    }

    /// Whether every sample met the tolerance.
    pub fn all_converged(&self) -> bool {
        self.status.iter().all(|s| s.is_converged())
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len();
    if n == 0 {
        return 0.0;
    }
    values.sum::<f64>() / n as f64
}

/// One step of a solve, as an observer sees it. Vectors have one entry per sample; samples that
/// ended before keep the values of their answer.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// The step, counted from 0 for the start.
    pub step: usize,
    /// Samples that had not ended before this step.
    pub active: usize,
    /// `|f(z) - z|`, which is not finite at the step at which a sample fails.
    pub abs: Vec<f64>,
    /// `|f(z) - z| / (|f(z)| + rel_floor)`, likewise.
    pub rel: Vec<f64>,
}

/// The course of a solve.
#[derive(Clone, Debug)]
pub struct Trace {
    /// One entry per step, the start first.
    pub steps: Vec<StepReport>,
    /// With [`TraceLevel::Iterates`](crate::TraceLevel), the point `z` and `f(z)` of every step,
    /// `[batch, dim]` each. Samples that ended show where the solver would have gone until the next
    /// read.
    pub iterates: Vec<(Tensor<2>, Tensor<2>)>,
}

impl Trace {
    /// The mean relative residual of each step.
    pub fn mean_rel(&self) -> Vec<f64> {
        self.steps
            .iter()
            .map(|step| mean(step.rel.iter().copied()))
            .collect()
    }
}

/// The state of the batch at one step of a solve; samples that ended before, or failed there, are
/// at their answer.
#[derive(Clone, Debug)]
pub struct KeptState {
    /// The step, counted from 0 for the start.
    pub step: usize,
    /// Whether a sample went so far. If not, this is the answer.
    pub reached: bool,
    /// The point, `[batch, dim]`.
    pub z: Tensor<2>,
    /// `f(z)` there, `[batch, dim]`.
    pub fz: Tensor<2>,
}
