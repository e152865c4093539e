//! How the solve of each sample ended.

use serde::{Deserialize, Serialize};

/// The outcome for one sample of the batch. `Display` gives the outcome with what to try next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[must_use]
pub enum SolveStatus {
    /// The residual met the tolerance.
    Converged,
    /// The budget of steps ran out first.
    MaxSteps,
    /// The best residual did not improve for [`StopConfig::patience`](crate::StopConfig) steps, or
    /// the true residual of a linear system did not halve
    /// [from one check to the next](crate::LinearSolve::solve).
    Stalled,
    /// The residual grew beyond [`StopConfig::divergence`](crate::StopConfig) times the larger of
    /// its first value and the tolerance.
    Diverged,
    /// `f(z)` of a finite point held a NaN or an infinity.
    NonFinite,
    /// The solver itself proposed a point that is not finite.
    Breakdown,
}

impl SolveStatus {
    /// Every status, in the order of [`StatusCounts`]' fields.
    pub const ALL: [SolveStatus; 6] = [
        SolveStatus::Converged,
        SolveStatus::MaxSteps,
        SolveStatus::Stalled,
        SolveStatus::Diverged,
        SolveStatus::NonFinite,
        SolveStatus::Breakdown,
    ];

    /// Whether the residual met the tolerance.
    pub fn is_converged(self) -> bool {
        self == SolveStatus::Converged
    }
}

impl std::fmt::Display for SolveStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SolveStatus::Converged => "converged",
            SolveStatus::MaxSteps => {
                "out of steps: raise max_steps, loosen the tolerance, or regularise the Jacobian"
            }
            SolveStatus::Stalled => {
                "stalled: the residual stopped falling; loosen the tolerance or use f64"
            }
            SolveStatus::Diverged => {
                "diverged: the map expands here; use Broyden or damping, or regularise the Jacobian"
            }
            SolveStatus::NonFinite => {
                "not finite: the map returned a NaN or an infinity; check its inputs and parameters"
            }
            SolveStatus::Breakdown => {
                "broke down: the solver's own recurrence overflowed or divided by zero; use a \
                 shorter history, more regularisation, or another solver"
            }
        })
    }
}

/// How many samples ended with each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusCounts {
    /// Samples whose residual met the tolerance.
    pub converged: usize,
    /// Samples that ran out of steps.
    pub max_steps: usize,
    /// Samples whose residual stopped falling.
    pub stalled: usize,
    /// Samples whose residual exploded.
    pub diverged: usize,
    /// Samples whose map returned a NaN or an infinity.
    pub non_finite: usize,
    /// Samples whose solver broke down. Absent from records of older versions.
    #[serde(default)]
    pub breakdown: usize,
}

impl StatusCounts {
    /// Counts one more sample.
    pub fn add(&mut self, status: SolveStatus) {
        *match status {
            SolveStatus::Converged => &mut self.converged,
            SolveStatus::MaxSteps => &mut self.max_steps,
            SolveStatus::Stalled => &mut self.stalled,
            SolveStatus::Diverged => &mut self.diverged,
            SolveStatus::NonFinite => &mut self.non_finite,
            SolveStatus::Breakdown => &mut self.breakdown,
        } += 1;
    }

    /// Adds the counts of another solve.
    pub fn merge(&mut self, other: &StatusCounts) {
        self.converged += other.converged;
        self.max_steps += other.max_steps;
        self.stalled += other.stalled;
        self.diverged += other.diverged;
        self.non_finite += other.non_finite;
        self.breakdown += other.breakdown;
    }

    /// The number of samples counted.
    pub fn total(&self) -> usize {
        self.converged
            + self.max_steps
            + self.stalled
            + self.diverged
            + self.non_finite
            + self.breakdown
    }
}

impl FromIterator<SolveStatus> for StatusCounts {
    fn from_iter<I: IntoIterator<Item = SolveStatus>>(statuses: I) -> Self {
        let mut counts = StatusCounts::default();
        for status in statuses {
            counts.add(status);
        }
        counts
    }
}
