//! The judgement of one sample, on the host.

use crate::status::SolveStatus;
use crate::stop::StopConfig;

/// The largest relative residual that is reported, so that means of it stay finite; also that of a
/// start whose residual is not.
const HUGE: f64 = f32::MAX as f64;

/// `abs / scale`, also where both are 0.
pub(crate) fn relative(abs: f64, scale: f64) -> f64 {
    match abs == 0.0 {
        true => 0.0,
        false => (abs / scale).clamp(0.0, HUGE),
    }
}

/// One sample's part of the judgement.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) ended: Option<SolveStatus>,
    /// Steps of its own, those before the present one included.
    pub(crate) steps: usize,
    /// Whether the residual by which it converged was that of an evaluation.
    pub(crate) proven: bool,
    pub(crate) best_step: usize,
    pub(crate) abs: f64,
    pub(crate) rel: f64,
    /// The residual above which the sample has diverged.
    pub(crate) limit: f64,
}

impl Sample {
    pub(crate) fn new() -> Self {
        Self {
            ended: None,
            steps: 0,
            proven: false,
            best_step: 0,
            // Any residual is an improvement, and a record can be read back.
            abs: f64::MAX,
            rel: HUGE,
            limit: f64::INFINITY,
        }
    }

    /// Judges one step and returns whether its iterate is now the best.
    pub(crate) fn judge(&mut self, step: usize, abs: f64, scale: f64, stop: &StopConfig) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.steps += 1;
        if !abs.is_finite() {
            self.ended = Some(SolveStatus::NonFinite);
            return false;
        }
        let scale = scale + stop.rel_floor;
        let tolerance = (stop.rel_tol * scale).max(stop.abs_tol);
        if step == 0 {
            self.limit = stop.divergence * abs.max(tolerance);
        }
        let converged = abs <= tolerance;
        let improved = converged || abs < self.abs;
        if improved {
            self.abs = abs;
            self.rel = relative(abs, scale);
            self.best_step = step;
        }
        if converged {
            self.ended = Some(SolveStatus::Converged);
        } else if abs > self.limit {
            self.ended = Some(SolveStatus::Diverged);
        } else if stop.patience.is_some_and(|p| step >= self.best_step + p) {
            self.ended = Some(SolveStatus::Stalled);
        } else if self.steps >= stop.max_steps {
            self.ended = Some(SolveStatus::MaxSteps);
        }
        improved
    }
}
