//! The bookkeeping of a solve: residuals, best iterates, statuses.
//!
//! Norms are taken on the device and judged on the host, in f64. Between two reads the iterates
//! wait in a window, so that the answers do not depend on how often the device is read.

use crate::map::Iterate;
use crate::rows::{host_values, merge_rows, norms, squares};
use crate::sample::{Sample, relative};
use crate::solution::{KeptState, Solution, SolveStats, StepReport, Trace};
use crate::status::SolveStatus;
use crate::stop::{Scope, StopConfig, StopRule, TraceLevel};
use burn::tensor::{Device, Int, Tensor, TensorData};
use deq_kernels::on_host;

/// A step that has not been judged yet.
struct Pending {
    step: usize,
    at: Iterate,
    /// Squared norms of the residual and of `f(z)`, `[batch, 1]` each.
    squares: [Tensor<2>; 2],
}

/// The answers of the last check, and how they were judged.
struct Checked {
    samples: Vec<Sample>,
    best: [Tensor<2>; 2],
}

/// The bookkeeping of one solve: it counts evaluations, judges every sample by its stop rule, keeps
/// the best points, and assembles the [`Solution`].
///
/// The loops of this crate stand on it. It is public for methods that do not fit into one of them:
/// those whose proposal needs more than a point and its `f(z)`, as splittings do.
/// [`FixedPointSolver`](crate::FixedPointSolver) and [`LinearSystem`](crate::LinearSystem) need no
/// monitor of their own.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use deq_solvers::{Iterate, Monitor, StopConfig};
///
/// let mut z = Tensor::<2>::zeros([3, 2], &Device::flex());
/// let mut monitor = Monitor::new(&StopConfig::new().build()?, &z);
/// let solution = loop {
///     let at = Iterate::new(z.clone(), z.cos());
///     if !monitor.observe(&at, 3) {
///         break monitor.finish();
///     }
///     z = monitor.freeze((at.z().clone() + at.fz().clone()) * 0.5);
/// };
/// assert!(solution.stats.all_converged());
/// # Ok::<(), deq_solvers::InvalidConfig>(())
/// ```
pub struct Monitor {
    stop: StopConfig,
    samples: Vec<Sample>,
    window: Vec<Pending>,
    /// The best `z` of every sample with its `f(z)`.
    best: Option<[Tensor<2>; 2]>,
    /// The rows that have not ended; `None` while that is all of them.
    active: Option<Tensor<1, Int>>,
    device: Device,
    nfe: usize,
    /// The evaluations after which no sample has steps left.
    budget: usize,
    check_every: usize,
    checked: Option<Checked>,
    evaluated_rows: usize,
    reads: usize,
    reports: Vec<StepReport>,
    trace: Trace,
    states: Vec<KeptState>,
}

impl Monitor {
    /// The monitor of a solve from `z0`, `[batch, dim]`.
    pub fn new(stop: &StopRule, z0: &Tensor<2>) -> Self {
        let [batch, _] = z0.dims();
        let stop = stop.config();
        let by_device = if on_host(&z0.device()) { 1 } else { 4 };
        Self {
            budget: stop.max_steps,
            check_every: stop.check_every.unwrap_or(by_device),
            stop: stop.clone(),
            samples: vec![Sample::new(); batch],
            window: Vec::new(),
            best: None,
            active: None,
            device: z0.device(),
            nfe: 0,
            checked: None,
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
    ///
    /// `rows` is the number of rows that were evaluated for it. Points are f32 or f64.
    pub fn observe(&mut self, at: &Iterate, rows: usize) -> bool {
        self.take_in(at, rows);
        let last = self.nfe >= self.budget;
        if last || self.nfe.is_multiple_of(self.check_every) {
            self.read();
            return !last && self.running();
        }
        true
    }

    fn running(&self) -> bool {
        self.samples.iter().any(|s| s.ended.is_none())
    }

    fn take_in(&mut self, at: &Iterate, rows: usize) {
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
            squares: at.squares(),
        });
    }

    /// For points observed with an estimate of their residual, once a solve has come to its end:
    /// evaluates `f` at the answers, if samples have converged, and judges those by their true
    /// residuals. Returns the point if some have to go on from it.
    ///
    /// A sample whose residual has not halved since its last check has come to the rounding of its
    /// type, and ends as stalled.
    pub fn check(&mut self, f: impl FnOnce(&Tensor<2>) -> Tensor<2>) -> Option<Iterate> {
        if !self.window.is_empty() {
            self.read();
        }
        let claimed: Vec<usize> = (0..self.samples.len())
            .filter(|&s| self.samples[s].ended == Some(SolveStatus::Converged))
            // The residual of the start is no estimate.
            .filter(|&s| !self.samples[s].proven && self.samples[s].best_step > 0)
            .collect();
        let [z, _] = self.best.clone().filter(|_| !claimed.is_empty())?;
        let at = Iterate::new(z.clone(), f(&z));
        let estimated = self.samples.clone();
        for &s in &claimed {
            self.samples[s].ended = None;
            self.samples[s].abs = f64::INFINITY;
        }
        self.take_in(&at, self.samples.len());
        self.read();
        self.settle(&claimed, &estimated);
        self.list_active();
        let open = self.samples.iter().filter(|s| s.ended.is_none());
        let left = open.map(|s| self.stop.max_steps - s.steps).max()?;
        self.budget = self.nfe + left;
        Some(at)
    }

    /// Draws the conclusions from a check of the samples `claimed`.
    fn settle(&mut self, claimed: &[usize], estimated: &[Sample]) {
        let mut worse = vec![false; self.samples.len()];
        for &s in claimed {
            let sample = &mut self.samples[s];
            sample.proven = sample.ended == Some(SolveStatus::Converged);
            if sample.ended == Some(SolveStatus::NonFinite) {
                (sample.abs, sample.rel) = (estimated[s].abs, estimated[s].rel);
            }
            let Some(before) = self.checked.as_ref().map(|checked| &checked.samples[s]) else {
                continue;
            };
            if sample.ended.is_none() && sample.abs > 0.5 * before.abs {
                sample.ended = Some(SolveStatus::Stalled);
            }
            if !sample.proven && sample.abs > before.abs {
                worse[s] = true;
                sample.abs = before.abs;
                sample.rel = before.rel;
                sample.best_step = before.best_step;
            }
        }
        let Some([z, fz]) = &mut self.best else {
            return;
        };
        if let Some(Checked { best, .. }) = &self.checked {
            *z = merge_rows(&best[0], z, &worse);
            *fz = merge_rows(&best[1], fz, &worse);
        }
        self.checked = self
            .samples
            .iter()
            .any(|s| s.ended.is_none())
            .then(|| Checked {
                samples: self.samples.clone(),
                best: [z.clone(), fz.clone()],
            });
    }

    /// Judges the steps of the window.
    fn read(&mut self) {
        let window = std::mem::take(&mut self.window);
        let columns: Vec<Tensor<2>> = window.iter().flat_map(|p| p.squares.clone()).collect();
        let read = host_values(Tensor::cat(columns, 1));
        self.reads += 1;

        let batch = self.samples.len();
        let before = self.active_mask();
        let mut picks: Vec<Option<usize>> = vec![None; batch];
        let mut ended_at = vec![usize::MAX; batch];
        for (k, pending) in window.iter().enumerate() {
            let [abs, scale] = [(0, pending.at.residual()), (1, pending.at.fz())].map(|(i, x)| {
                let squares = (0..batch).map(|s| read[(s * window.len() + k) * 2 + i]);
                let squares: Vec<f64> = squares.collect();
                let running = |s: usize| self.samples[s].ended.is_none();
                let (norms, reads) = norms(x, &squares, running);
                self.reads += reads;
                match self.stop.scope {
                    Scope::Sample => norms,
                    Scope::Batch => vec![norms.into_iter().fold(0.0, f64::hypot); batch],
                }
            });
            let active = self.samples.iter().filter(|s| s.ended.is_none()).count();
            let mut failed = false;
            for (s, sample) in self.samples.iter_mut().enumerate() {
                let running = sample.ended.is_none();
                if sample.judge(pending.step, abs[s], scale[s], &self.stop) {
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
        if before != self.active_mask() {
            self.list_active();
        }
    }

    fn list_active(&mut self) {
        let rows: Vec<i64> = (0..self.samples.len())
            .filter(|&s| self.samples[s].ended.is_none())
            .map(|s| s as i64)
            .collect();
        let count = rows.len();
        if count > 0 {
            let rows = Tensor::from_data(TensorData::new(rows, [count]), &self.device);
            self.active = (count < self.samples.len()).then_some(rows);
        }
    }

    /// Tells a point that the solver itself spoiled from an `f(z)` that the map spoiled, and gives
    /// a spoiled start an answer.
    fn explain_failures(&mut self, pending: &Pending, ended_at: &[usize]) {
        let z = pending.at.z();
        let (point, reads) = norms(z, &host_values(squares(z)), |_| true);
        self.reads += 1 + reads;
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
        // An `f(z)` that is not finite must not be handed out; the start then stands for it.
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
                    (abs[s], relative(abs[s], scale[s] + self.stop.rel_floor))
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
            let step = pending.step;
            let running = |s: usize| before[s] && step <= ended_at[s];
            if !self.stop.keep.contains(&step) || !(0..before.len()).any(running) {
                continue;
            }
            // Where a sample fails there is no point to hand out.
            let failed = |s: usize| {
                let end = self.samples[s].ended;
                let failures = [SolveStatus::NonFinite, SolveStatus::Breakdown].map(Some);
                step == ended_at[s] && failures.contains(&end)
            };
            let present: Vec<bool> = (0..before.len())
                .map(|s| running(s) && !failed(s))
                .collect();
            self.states.push(KeptState {
                step,
                reached: true,
                z: merge_rows(pending.at.z(), best_z, &present),
                fz: merge_rows(pending.at.fz(), best_fz, &present),
            });
        }
    }

    /// The rows that have not ended, if some have and their number is known to be smaller than the
    /// batch.
    pub fn active_rows(&self) -> Option<&Tensor<1, Int>> {
        self.active.as_ref()
    }

    /// Holds the samples that have ended at their answer, and lets the others go to the proposal.
    ///
    /// # Shapes
    ///
    /// `[batch, dim]`, in and out.
    pub fn freeze(&self, proposal: Tensor<2>) -> Tensor<2> {
        match (&self.active, &self.best) {
            (Some(_), Some([z, _])) => merge_rows(&proposal, z, &self.active_mask()),
            _ => proposal,
        }
    }

    /// Completes `f(z)` of the active rows alone by that of the answers of the others.
    ///
    /// # Shapes
    ///
    /// - fz: `[rows, dim]`
    /// - output: `[batch, dim]`
    pub fn complete(&self, fz: Tensor<2>) -> Tensor<2> {
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
    pub fn take_reports(&mut self) -> Vec<StepReport> {
        std::mem::take(&mut self.reports)
    }

    /// Counts reads from the device that the solver made itself.
    pub fn reads_more(&mut self, reads: usize) {
        self.reads += reads;
    }

    /// The answer. Steps not yet judged are judged now.
    ///
    /// # Panics
    ///
    /// If nothing was observed.
    pub fn finish(mut self) -> Solution {
        if !self.window.is_empty() {
            self.read();
        }
        let [z, fz] = self
            .best
            .expect("a solve must be given f(z) of its start before it can finish");
        for &step in &self.stop.keep {
            if self.states.iter().all(|state| state.step != step) {
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
