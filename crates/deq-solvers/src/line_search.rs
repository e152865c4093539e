//! Armijo's line search, per sample.

use crate::error::{InvalidConfig, require};
use crate::rows::{host_values, norms, squares};
use crate::stop::Scope;
use burn::config::Config;
use burn::tensor::Tensor;

/// Configuration of the line search along a [`Broyden`](crate::Broyden) step.
#[derive(Config, Debug, PartialEq)]
pub struct ArmijoConfig {
    /// The decrease asked for: `phi(s) <= (1 - decrease s) phi(0)` with `phi(s) = |g(z + s p)|^2`,
    /// in (0, 1). Default 1e-4, as in the original.
    #[config(default = 1e-4)]
    pub decrease: f64,
    /// Below this length the search gives up and takes the full step, in (0, 1). Default 0.01, as
    /// in the original.
    #[config(default = 1e-2)]
    pub shortest: f64,
    /// Whether every sample searches for itself. Default so. The original searches for the batch as
    /// a whole.
    #[config(default = "Scope::Sample")]
    pub scope: Scope,
}

impl ArmijoConfig {
    pub(crate) fn validate(&self) -> Result<(), InvalidConfig> {
        let inside = |value: f64| value > 0.0 && value < 1.0;
        require(
            inside(self.decrease),
            "armijo.decrease",
            self.decrease,
            "above 0 and below 1",
        )?;
        require(
            inside(self.shortest),
            "armijo.shortest",
            self.shortest,
            "above 0 and below 1",
        )
    }
}

/// Where every sample is on its line. Each trial costs an evaluation of `f` and a read of the
/// residual norms.
///
/// Only the ratio `phi(s) / phi(0)` matters, so `phi(0)` is 1.
///
/// Tried in turn, as in `locuslab/deq`: the full step; the minimiser of the quadratic through
/// `phi(0)`, `phi'(0) = -phi(0)` and `phi(1)`, which only serves the interpolation; then minimisers
/// of cubics, at ever shorter lengths, until one decreases `phi` enough.
#[derive(Debug)]
pub(crate) struct Armijo {
    config: ArmijoConfig,
    lines: Vec<Line>,
    reads: usize,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Full,
    Quadratic,
    Cubic,
    GaveUp,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    stage: Stage,
    /// `|g|` at its start.
    start: f64,
    /// The two lengths that are interpolated, with `phi` there, the longer first.
    known: [(f64, f64); 2],
    trial: f64,
}

impl Line {
    fn new(start: f64) -> Self {
        Self {
            stage: Stage::Full,
            start,
            known: [(1.0, 1.0); 2],
            trial: 1.0,
        }
    }

    /// Takes `|g|` at the trial and returns whether it is accepted. If not, the next trial is set.
    fn judge(&mut self, norm: f64, config: &ArmijoConfig) -> bool {
        let phi = match norm == 0.0 {
            true => 0.0,
            false => (norm / self.start).powi(2),
        };
        let enough = phi <= 1.0 - config.decrease * self.trial;
        match self.stage {
            Stage::Full if !enough => {
                self.known = [(1.0, phi); 2];
                self.stage = Stage::Quadratic;
                // With phi'(0) = -phi(0), the quadratic's minimiser is 1 / (2 phi(1)).
                self.trial = 1.0 / (2.0 * phi);
                false
            }
            Stage::Quadratic => {
                self.known[1] = (self.trial, phi);
                self.next_cubic(config);
                false
            }
            Stage::Cubic if !enough => {
                let (shorter, _) = self.known[1];
                self.known = [self.known[1], (shorter / 2.0, phi)];
                self.next_cubic(config);
                false
            }
            Stage::Full | Stage::Cubic | Stage::GaveUp => true,
        }
    }

    fn next_cubic(&mut self, config: &ArmijoConfig) {
        let [(a0, phi0), (a1, phi1)] = self.known;
        let slope = -1.0;
        let excess = |a: f64, phi: f64| phi - 1.0 - slope * a;
        let (e0, e1) = (excess(a0, phi0), excess(a1, phi1));
        let factor = a0 * a0 * a1 * a1 * (a1 - a0);
        let a = (a0 * a0 * e1 - a1 * a1 * e0) / factor;
        let b = (a1.powi(3) * e0 - a0.powi(3) * e1) / factor;
        let minimiser = (-b + (b * b - 3.0 * a * slope).abs().sqrt()) / (3.0 * a);
        if a1 > config.shortest && minimiser.is_finite() {
            self.stage = Stage::Cubic;
            self.trial = minimiser;
        } else {
            self.stage = Stage::GaveUp;
            self.trial = 1.0;
        }
    }
}

impl Armijo {
    pub(crate) fn new(config: &ArmijoConfig, residual: &Tensor<2>) -> Self {
        let (norms, reads) = merit(residual, config.scope);
        Self {
            config: config.clone(),
            lines: norms.into_iter().map(Line::new).collect(),
            reads,
        }
    }

    /// Judges the residuals at the present trials and returns which samples accept theirs; those
    /// begin a new line.
    pub(crate) fn judge(&mut self, residual: &Tensor<2>) -> Vec<bool> {
        let (norms, reads) = merit(residual, self.config.scope);
        self.reads = reads;
        let judge = |(line, norm): (&mut Line, f64)| {
            let accepted = line.judge(norm, &self.config);
            if accepted {
                *line = Line::new(norm);
            }
            accepted
        };
        self.lines.iter_mut().zip(norms).map(judge).collect()
    }

    /// Reads from the device in the last search step.
    pub(crate) fn reads(&self) -> usize {
        self.reads
    }

    /// The length that every sample tries next.
    pub(crate) fn trial(&self) -> Vec<f64> {
        self.lines.iter().map(|line| line.trial).collect()
    }
}

/// `|g|` of every sample, or of the batch for each of them, and the reads that took.
fn merit(residual: &Tensor<2>, scope: Scope) -> (Vec<f64>, usize) {
    let read = host_values(squares(residual));
    let (norms, reads) = norms(residual, &read, |_| true);
    let norms = match scope {
        Scope::Sample => norms,
        Scope::Batch => vec![norms.iter().copied().fold(0.0, f64::hypot); norms.len()],
    };
    (norms, 1 + reads)
}
