//! What a solve returns.

use crate::status::{SolveStatus, StatusCounts};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The best iterate of every sample and how its solve went.
#[derive(Clone, Debug)]
pub struct Solution {
    /// The iterate with the smallest residual, or the one that converged, `[batch, dim]`. Always finite if the start was.
    pub z: Tensor<2>,
    /// Its image `f(z)`, `[batch, dim]`. One step of plain iteration closer to the fixed point of a contraction.
    pub fz: Tensor<2>,
    /// Evaluations, steps, residuals, statuses.
    pub stats: SolveStats,
    /// Residual norms of every step, if [`StopConfig::trace`](crate::StopConfig) asked for them.
    pub trace: Option<Trace>,
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
    "{} of {} samples did not converge (largest relative residual {worst_rel_residual:.1e}); the first one: {first}",
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
    /// Evaluations of `f` on the batch.
    pub nfe: usize,
    /// Steps that the sample took before it ended.
    pub steps: Vec<usize>,
    /// The step, counted from 0 for the start, whose iterate is returned.
    pub best_step: Vec<usize>,
    /// `|f(z) - z|` at the returned iterate, in units of the state.
    pub abs_residual: Vec<f64>,
    /// `|f(z) - z| / |f(z)|` at the returned iterate.
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

    /// The largest relative residual, NaN-free because the best iterate is finite.
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

/// Residual norms of every step. Samples that ended keep the values of their answer.
#[derive(Clone, Debug)]
pub struct Trace {
    /// `|f(z) - z|`, `[steps, batch]`.
    pub abs: Tensor<2>,
    /// `|f(z) - z| / |f(z)|`, `[steps, batch]`.
    pub rel: Tensor<2>,
}

impl Trace {
    pub(crate) fn collect(steps: Vec<(Tensor<2>, Tensor<2>)>) -> Option<Self> {
        if steps.is_empty() {
            return None;
        }
        let (abs, rel) = steps.into_iter().unzip();
        Some(Self {
            abs: Tensor::<2>::cat(abs, 1).transpose(),
            rel: Tensor::<2>::cat(rel, 1).transpose(),
        })
    }

    /// The mean relative residual of each step. Reads from the device.
    pub fn mean_rel(&self) -> Vec<f64> {
        let data = self.rel.clone().mean_dim(1).into_data().convert::<f64>();
        data.iter::<f64>().collect()
    }
}
