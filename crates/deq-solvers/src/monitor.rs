//! Per-sample bookkeeping of a solve: residuals, best iterates, statuses.
//!
//! Norms are taken on the device and judged on the host, in f64. Between two reads the iterates wait in a window, so that the answers do
//! not depend on how often the device is read.

use crate::map::Iterate;
use crate::rows::{host_values, merge_rows};
use crate::solution::{KeptState, Solution, SolveStats, StepReport, Trace};
use crate::status::SolveStatus;
use crate::stop::{Scope, StopConfig, TraceLevel};
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Below any norm that a solve distinguishes from 0.
const TINY: f64 = 1e-30;

/// One sample's part of the judgement.
#[derive(Clone, Debug)]
struct Sample {
    ended: Option<SolveStatus>,
    steps: usize,
    best_step: usize,
    abs: f64,
    rel: f64,
    /// The residual above which the sample has diverged.
    limit: f64,
}

impl Sample {
    fn new() -> Self {
        Self {
            ended: None,
            steps: 0,
            best_step: 0,
            abs: f64::INFINITY,
            rel: f64::INFINITY,
            limit: f64::INFINITY,
        }
    }

    /// Judges one step and returns whether its iterate is now the best.
    fn judge(&mut self, step: usize, abs: f64, scale: f64, stop: &StopConfig) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.steps = step + 1;
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
            self.rel = abs / scale.max(TINY);
            self.best_step = step;
        }
        if converged {
            self.ended = Some(SolveStatus::Converged);
        } else if abs > self.limit {
            self.ended = Some(SolveStatus::Diverged);
        } else if stop.patience.is_some_and(|p| step >= self.best_step + p) {
            self.ended = Some(SolveStatus::Stalled);
        }
        improved
    }
}

/// A step that has not been judged yet.
struct Pending {
    step: usize,
    at: Iterate,
    /// Squared norms of the residual and of the image, `[batch, 1]` each.
    squares: [Tensor<2>; 2],
}

pub(crate) struct Monitor {
    stop: StopConfig,
    samples: Vec<Sample>,
    window: Vec<Pending>,
    /// The best point of every sample with its image.
    best: Option<[Tensor<2>; 2]>,
    /// The rows that have not ended; `None` while that is all of them.
    active: Option<Tensor<1, Int>>,
    device: Device,
    nfe: usize,
    evaluated_rows: usize,
    reads: usize,
    reports: Vec<StepReport>,
    trace: Trace,
    states: Vec<KeptState>,
}

impl Monitor {
    pub(crate) fn new(stop: &StopConfig, batch: usize, device: Device) -> Self {
        Self {
            stop: stop.clone(),
            samples: vec![Sample::new(); batch],
            window: Vec::new(),
            best: None,
            active: None,
            device,
            nfe: 0,
            evaluated_rows: 0,
            reads: 0,
            reports: Vec::new(),
            trace: Trace {
                steps: Vec::new(),
                iterates: Vec::new(),
            },
            states: Vec::new(),
        }
    }

    /// Takes in one evaluated point and returns whether the solve goes on.
    pub(crate) fn observe(&mut self, at: &Iterate, rows: usize) -> bool {
        let step = self.nfe;
        self.nfe += 1;
        self.evaluated_rows += rows;
        if self.best.is_none() {
            self.best = Some([at.z().clone(), at.fz().clone()]);
        }
        if self.stop.trace == TraceLevel::Iterates {
            self.trace.iterates.push((at.z().clone(), at.fz().clone()));
        }
        self.window.push(Pending {
            step,
            at: at.clone(),
            squares: [at.residual(), at.fz()].map(|rows| rows.clone().square().sum_dim(1)),
        });
        let last = self.nfe >= self.stop.max_steps;
        if last || self.nfe.is_multiple_of(self.stop.check_every) {
            self.read();
            return !last && self.samples.iter().any(|s| s.ended.is_none());
        }
        true
    }

    /// Judges the steps of the window.
    fn read(&mut self) {
        let window = std::mem::take(&mut self.window);
        let columns: Vec<Tensor<2>> = window.iter().flat_map(|p| p.squares.clone()).collect();
        let squares = host_values(Tensor::cat(columns, 1));
        self.reads += 1;

        let batch = self.samples.len();
        let before = self.active_mask();
        let mut picks: Vec<Option<usize>> = vec![None; batch];
        let mut ended_at = vec![usize::MAX; batch];
        for (k, pending) in window.iter().enumerate() {
            let squares = |column: usize| -> Vec<f64> {
                let rows = (0..batch).map(|s| squares[(s * window.len() + k) * 2 + column]);
                match self.stop.scope {
                    Scope::Sample => rows.collect(),
                    Scope::Batch => vec![rows.sum(); batch],
                }
            };
            let (abs, scale) = (squares(0), squares(1));
            let active = self.samples.iter().filter(|s| s.ended.is_none()).count();
            let mut failed = false;
            for (s, sample) in self.samples.iter_mut().enumerate() {
                let running = sample.ended.is_none();
                if sample.judge(pending.step, abs[s].sqrt(), scale[s].sqrt(), &self.stop) {
                    picks[s] = Some(k);
                }
                if running && sample.ended.is_some() {
                    ended_at[s] = pending.step;
                    failed |= sample.ended == Some(SolveStatus::NonFinite);
                }
            }
            if failed {
                self.explain_failures(pending, &ended_at);
            }
            let report = self.report(pending.step, active, [&abs, &scale], &ended_at);
            if self.stop.trace != TraceLevel::Off {
                self.trace.steps.push(report.clone());
            }
            self.reports.push(report);
        }
        self.adopt(&window, &picks);
        self.keep(&window, &before, &ended_at);
        let rows: Vec<i64> = (0..batch)
            .filter(|&s| self.samples[s].ended.is_none())
            .map(|s| s as i64)
            .collect();
        let changed = rows.len() < before.iter().filter(|&&active| active).count();
        if changed && !rows.is_empty() {
            let count = rows.len();
            self.active = Some(Tensor::from_data(
                TensorData::new(rows, [count]),
                &self.device,
            ));
        }
    }

    /// Tells points that the solver itself spoiled from images that the map spoiled, and gives a spoiled start an answer.
    fn explain_failures(&mut self, pending: &Pending, ended_at: &[usize]) {
        let point = pending.at.z().clone().square().sum_dim(1);
        let point = host_values(point);
        self.reads += 1;
        let whole = self.stop.scope == Scope::Batch && point.iter().any(|x| !x.is_finite());
        let mut start = vec![false; self.samples.len()];
        for (s, sample) in self.samples.iter_mut().enumerate() {
            let failed =
                sample.ended == Some(SolveStatus::NonFinite) && ended_at[s] == pending.step;
            if failed && pending.step > 0 && (whole || !point[s].is_finite()) {
                sample.ended = Some(SolveStatus::Breakdown);
            }
            start[s] = failed && pending.step == 0;
        }
        // An image that is not finite must not be handed out; the start then stands for it.
        if let Some([z, fz]) = self.best.as_mut().filter(|_| start.contains(&true)) {
            *fz = merge_rows(z, fz, &start);
        }
    }

    fn report(
        &self,
        step: usize,
        active: usize,
        [abs, scale]: [&[f64]; 2],
        ended_at: &[usize],
    ) -> StepReport {
        let now = |s: usize| self.samples[s].ended.is_none() || ended_at[s] == step;
        let (abs, rel) = (0..self.samples.len())
            .map(|s| {
                let sample = &self.samples[s];
                if now(s) {
                    let scale = scale[s].sqrt() + self.stop.rel_floor;
                    (abs[s].sqrt(), abs[s].sqrt() / scale.max(TINY))
                } else {
                    (sample.abs, sample.rel)
                }
            })
            .unzip();
        StepReport {
            step,
            active,
            abs,
            rel,
        }
    }

    /// Moves the best points to those of the window that are better.
    fn adopt(&mut self, window: &[Pending], picks: &[Option<usize>]) {
        let Some([z, fz]) = &mut self.best else {
            return;
        };
        for (k, pending) in window.iter().enumerate() {
            let picked: Vec<bool> = picks.iter().map(|&pick| pick == Some(k)).collect();
            if picked.contains(&true) {
                *z = merge_rows(pending.at.z(), z, &picked);
                *fz = merge_rows(pending.at.fz(), fz, &picked);
            }
        }
    }

    fn keep(&mut self, window: &[Pending], before: &[bool], ended_at: &[usize]) {
        let Some([best_z, best_fz]) = &self.best else {
            return;
        };
        for pending in window {
            if self.stop.keep.contains(&pending.step) {
                let present: Vec<bool> = before
                    .iter()
                    .zip(ended_at)
                    .map(|(&before, &end)| before && pending.step <= end)
                    .collect();
                self.states.push(KeptState {
                    step: pending.step,
                    reached: true,
                    z: merge_rows(pending.at.z(), best_z, &present),
                    fz: merge_rows(pending.at.fz(), best_fz, &present),
                });
            }
        }
    }

    /// The rows that have not ended, if some have and their number is known to be smaller than the batch.
    pub(crate) fn active_rows(&self) -> Option<&Tensor<1, Int>> {
        self.active.as_ref()
    }

    /// Holds the samples that have ended at their answer.
    pub(crate) fn freeze(&self, proposal: Tensor<2>) -> Tensor<2> {
        match (&self.active, &self.best) {
            (Some(_), Some([z, _])) => merge_rows(&proposal, z, &self.active_mask()),
            _ => proposal,
        }
    }

    /// Completes the images of the active rows by the answers of the others.
    pub(crate) fn complete(&self, fz: Tensor<2>) -> Tensor<2> {
        let Some([_, best]) = &self.best else {
            return fz;
        };
        let [count, _] = fz.dims();
        let mut next = 0;
        let rows: Vec<i64> = (0..self.samples.len())
            .map(|s| {
                if self.samples[s].ended.is_none() {
                    next += 1;
                    next - 1
                } else {
                    (count + s) as i64
                }
            })
            .collect();
        let batch = rows.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [batch]), &self.device);
        Tensor::cat(vec![fz, best.clone()], 0).select(0, rows)
    }

    fn active_mask(&self) -> Vec<bool> {
        self.samples.iter().map(|s| s.ended.is_none()).collect()
    }

    /// The steps judged since the last call.
    pub(crate) fn take_reports(&mut self) -> Vec<StepReport> {
        std::mem::take(&mut self.reports)
    }

    pub(crate) fn reads_more(&mut self, reads: usize) {
        self.reads += reads;
    }

    /// The answer. Steps not yet judged are judged now.
    ///
    /// # Panics
    ///
    /// If nothing was observed.
    pub(crate) fn finish(mut self) -> Solution {
        if !self.window.is_empty() {
            self.read();
        }
        let [z, fz] = self
            .best
            .expect("a solve must be given the image of its start before it can finish");
        for &step in &self.stop.keep {
            if step >= self.nfe {
                self.states.push(KeptState {
                    step,
                    reached: false,
                    z: z.clone(),
                    fz: fz.clone(),
                });
            }
        }
        self.states
            .sort_by_key(|state| self.stop.keep.iter().position(|&step| step == state.step));
        let samples = &self.samples;
        Solution {
            z,
            fz,
            stats: SolveStats {
                nfe: self.nfe,
                evaluated_rows: self.evaluated_rows,
                reads: self.reads,
                steps: samples.iter().map(|s| s.steps).collect(),
                best_step: samples.iter().map(|s| s.best_step).collect(),
                abs_residual: samples.iter().map(|s| s.abs).collect(),
                rel_residual: samples.iter().map(|s| s.rel).collect(),
                status: samples
                    .iter()
                    .map(|s| s.ended.unwrap_or(SolveStatus::MaxSteps))
                    .collect(),
            },
            trace: (self.stop.trace != TraceLevel::Off).then_some(self.trace),
            states: self.states,
        }
    }
}
