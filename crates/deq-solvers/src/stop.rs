//! When a solve ends.

use crate::error::{InvalidConfig, require, require_count};
use burn::config::Config;
use serde::{Deserialize, Serialize};

/// What a norm is taken over, and what ends together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every sample is its own problem: it ends by its own residual and is held at its answer from
    /// then on.
    #[default]
    Sample,
    /// The batch is one problem, with norms over all of its entries, and all samples end together.
    /// This is what `locuslab/deq` does; an answer then depends on the batch mates. For comparisons
    /// with recorded runs.
    Batch,
}

/// How much of a solve is kept in [`Solution::trace`](crate::Solution).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceLevel {
    /// Nothing.
    #[default]
    Off,
    /// The residual norms of every step and sample: two numbers each.
    Residuals,
    /// The residual norms, and every point with its `f(z)`: two states for each step.
    Iterates,
}

/// Tolerances and budgets of a solve, the same for every solver.
///
/// A sample has converged when `|f(z) - z| <= max(abs_tol, rel_tol * (|f(z)| + rel_floor))`, with
/// Euclidean norms over the sample.
#[derive(Config, Debug, PartialEq)]
pub struct StopConfig {
    /// The most steps of a solve. One step is one evaluation of `f` with its test; the evaluation
    /// of the start is the first step. Default 30, the budget of the DEQ-Transformer without
    /// regularisation (Bai et al. 2021, Table 1).
    #[config(default = 30)]
    pub max_steps: usize,
    /// Absolute tolerance on the residual norm of a sample, in the units of the state. Default 0:
    /// relative only, since the size of a state grows with its dimension.
    #[config(default = 0.0)]
    pub abs_tol: f64,
    /// Tolerance on the residual norm relative to the norm of `f(z)`, dimensionless. Default 1e-3,
    /// the forward tolerance of Bai et al. 2021, Table 4.
    #[config(default = 1e-3)]
    pub rel_tol: f64,
    /// Added to `|f(z)|` where the relative residual divides by it, in the units of the state.
    /// Default 0. The original code has 1e-5 in its Anderson and 1e-9 in its Broyden solver.
    #[config(default = 0.0)]
    pub rel_floor: f64,
    /// Whether samples end one by one or the batch as a whole. Default one by one.
    #[config(default = "Scope::Sample")]
    pub scope: Scope,
    /// Steps between reads of the residual norms from the device. Between reads the loop keeps
    /// evaluating `f`, so a solve may spend up to `check_every - 1` evaluations more than it needs,
    /// and keeps as many points with their `f(z)`; the answers are the same. Default none: 1 on the
    /// CPU backend, where a read costs nothing, and 4 on other devices, where it waits for
    /// everything that is queued and a step is short beside that.
    #[config(default = "None")]
    pub check_every: Option<usize>,
    /// A sample ends as stalled when its best residual has not improved for so many steps. Default
    /// none: the residual of a quasi-Newton solve may rise for many steps before it falls.
    #[config(default = "None")]
    pub patience: Option<usize>,
    /// A sample ends as diverged when its residual exceeds this multiple of the larger of its first
    /// residual and its tolerance. Default 1e4, above any transient growth seen in a solve that
    /// still converged.
    #[config(default = 1e4)]
    pub divergence: f64,
    /// What to record of every step. Default nothing.
    #[config(default = "TraceLevel::Off")]
    pub trace: TraceLevel,
    /// The steps, counted from 0 for the start, whose points are returned in
    /// [`Solution::states`](crate::Solution), for losses on the way to the equilibrium; one named
    /// twice comes once. Default none.
    #[config(default = "Vec::new()")]
    pub keep: Vec<usize>,
}

impl StopConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] naming the first field outside its range.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        require_count("stop.max_steps", self.max_steps)?;
        require_count("stop.check_every", self.check_every.unwrap_or(1))?;
        let tolerance = "a finite number of at least 0";
        let valid = |tol: f64| tol.is_finite() && tol >= 0.0;
        require(valid(self.abs_tol), "stop.abs_tol", self.abs_tol, tolerance)?;
        require(valid(self.rel_tol), "stop.rel_tol", self.rel_tol, tolerance)?;
        if self.abs_tol <= 0.0 && self.rel_tol <= 0.0 {
            return Err(InvalidConfig::NoTolerance);
        }
        require(
            valid(self.rel_floor),
            "stop.rel_floor",
            self.rel_floor,
            tolerance,
        )?;
        if let Some(&step) = self.keep.iter().find(|&&step| step >= self.max_steps) {
            return Err(InvalidConfig::OutOfRange {
                field: "stop.keep",
                value: step as f64,
                requirement: "below stop.max_steps, since steps are counted from 0",
            });
        }
        require(
            self.divergence > 1.0,
            "stop.divergence",
            self.divergence,
            "above 1",
        )?;
        let patience = self.patience.unwrap_or(1);
        require(
            patience >= 1,
            "stop.patience",
            patience as f64,
            "at least 1",
        )
    }
}

impl StopConfig {
    /// Checks the fields and returns the rule that a solve follows.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] naming the first field outside its range.
    pub fn build(&self) -> Result<StopRule, InvalidConfig> {
        self.validate()?;
        Ok(StopRule {
            config: self.clone(),
        })
    }

    /// The same with another budget. Steps to keep beyond it are left out.
    pub fn limited_to(&self, max_steps: usize) -> Self {
        let mut limited = self.clone().with_max_steps(max_steps);
        limited.keep.retain(|step| *step < max_steps);
        limited
    }
}

/// A checked [`StopConfig`].
#[derive(Clone, Debug)]
pub struct StopRule {
    config: StopConfig,
}

impl StopRule {
    /// The values it was built from.
    pub fn config(&self) -> &StopConfig {
        &self.config
    }

    /// The same rule with another budget, of at least one step. Steps to keep beyond it are given
    /// the answer.
    pub fn with_max_steps(mut self, max_steps: usize) -> Self {
        self.config.max_steps = max_steps.max(1);
        self
    }
}
