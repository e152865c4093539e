//! Per-sample bookkeeping of a solve: residuals, best iterates, statuses. Nothing here reads from the device but
//! [`Monitor::read`].

use crate::map::Iterate;
use crate::solution::SolveStats;
use crate::status::SolveStatus;
use crate::stop::StopConfig;
use burn::tensor::{Bool, Tensor};

const ACTIVE: f64 = 0.0;
const CONVERGED: f64 = 1.0;
const STALLED: f64 = 2.0;
const DIVERGED: f64 = 3.0;
const NON_FINITE: f64 = 4.0;

/// Below any norm that a solve distinguishes from 0, and a normal number in f32.
const TINY: f64 = 1e-30;

/// All tensors but the iterates are `[batch, 1]`.
pub(crate) struct Monitor<'a> {
    stop: &'a StopConfig,
    best: Iterate,
    best_abs: Tensor<2>,
    best_rel: Tensor<2>,
    best_step: Tensor<2>,
    steps: Tensor<2>,
    limit: Tensor<2>,
    status: Tensor<2>,
    trace: Vec<(Tensor<2>, Tensor<2>)>,
}

impl<'a> Monitor<'a> {
    /// Judges the start, which is the first candidate for the best iterate.
    pub(crate) fn new(stop: &'a StopConfig, first: &Iterate) -> Self {
        let (abs, scale) = norms(first);
        let zeros = abs.zeros_like();
        // An image that is not finite must not be handed out; the start then stands for it.
        let finite = abs.clone().is_finite();
        let mut monitor = Self {
            stop,
            best: Iterate {
                z: first.z.clone(),
                fz: select(finite, &first.fz, &first.z),
            },
            best_abs: zeros.full_like(f64::INFINITY),
            best_rel: zeros.full_like(f64::INFINITY),
            best_step: zeros.clone(),
            steps: zeros.clone(),
            limit: abs
                .clone()
                .max_pair(monitor_tolerance(stop, &scale))
                .mul_scalar(stop.divergence),
            status: zeros,
            trace: Vec::new(),
        };
        monitor.judge(first, abs, scale, 0);
        monitor
    }

    /// Judges the iterate of step `step`, counted from 0.
    pub(crate) fn observe(&mut self, at: &Iterate, step: usize) {
        let (abs, scale) = norms(at);
        self.judge(at, abs, scale, step);
    }

    fn judge(&mut self, at: &Iterate, abs: Tensor<2>, scale: Tensor<2>, step: usize) {
        let active = self.active();
        let finite = abs.clone().is_finite();
        let tolerance = monitor_tolerance(self.stop, &scale);
        let rel = abs.clone() / scale.clamp_min(TINY);

        // A comparison with NaN is false, so `converged` and `improved` imply finite values.
        let converged = abs.clone().lower_equal(tolerance).bool_and(finite.clone());
        let improved = abs
            .clone()
            .lower(self.best_abs.clone())
            .bool_and(finite.clone())
            .bool_or(converged.clone())
            .bool_and(active.clone());

        self.best.z = select(improved.clone(), &at.z, &self.best.z);
        self.best.fz = select(improved.clone(), &at.fz, &self.best.fz);
        self.best_abs = self
            .best_abs
            .clone()
            .mask_where(improved.clone(), abs.clone());
        self.best_rel = self
            .best_rel
            .clone()
            .mask_where(improved.clone(), rel.clone());
        self.best_step = self.best_step.clone().mask_fill(improved, step as f64);
        self.steps = self
            .steps
            .clone()
            .mask_fill(active.clone(), (step + 1) as f64);

        // Later lines overrule earlier ones.
        let mut status = self.status.clone();
        if let Some(patience) = self.stop.patience {
            let last = self.best_step.clone().add_scalar(patience as f64);
            status = status.mask_fill(last.lower_equal_elem(step as f64), STALLED);
        }
        let exploded = abs.clone().greater(self.limit.clone());
        status = status.mask_fill(exploded, DIVERGED);
        status = status.mask_fill(converged, CONVERGED);
        status = status.mask_fill(finite.bool_not(), NON_FINITE);
        self.status = self.status.clone().mask_where(active, status);

        if self.stop.trace {
            self.trace.push((abs, rel));
        }
    }

    fn active(&self) -> Tensor<2, Bool> {
        self.status.clone().equal_elem(ACTIVE)
    }

    /// Moves the active samples to `proposal` and holds the others at their best iterate.
    pub(crate) fn freeze(&self, proposal: Tensor<2>) -> Tensor<2> {
        select(self.active(), &proposal, &self.best.z)
    }

    /// Reads the state of every sample from the device, in one transfer.
    ///
    /// Returns whether any sample is still active, and the statistics so far.
    pub(crate) fn read(&self, nfe: usize) -> (bool, SolveStats) {
        let columns = vec![
            self.status.clone(),
            self.steps.clone(),
            self.best_step.clone(),
            self.best_abs.clone(),
            self.best_rel.clone(),
        ];
        let rows = Tensor::cat(columns, 1).into_data().convert::<f64>();
        let rows: Vec<f64> = rows.iter::<f64>().collect();
        let mut stats = SolveStats {
            nfe,
            ..SolveStats::default()
        };
        let mut any_active = false;
        for row in rows.chunks_exact(5) {
            let (status, active) = decode(row[0]);
            any_active |= active;
            stats.status.push(status);
            stats.steps.push(row[1] as usize);
            stats.best_step.push(row[2] as usize);
            stats.abs_residual.push(row[3]);
            stats.rel_residual.push(row[4]);
        }
        (any_active, stats)
    }

    pub(crate) fn finish(self) -> (Iterate, Vec<(Tensor<2>, Tensor<2>)>) {
        (self.best, self.trace)
    }
}

fn decode(code: f64) -> (SolveStatus, bool) {
    // Codes are small whole numbers, which every float type holds exactly.
    match code as u8 {
        1 => (SolveStatus::Converged, false),
        2 => (SolveStatus::Stalled, false),
        3 => (SolveStatus::Diverged, false),
        4 => (SolveStatus::NonFinite, false),
        _ => (SolveStatus::MaxSteps, true),
    }
}

/// `mask ? then : otherwise` with a `[batch, 1]` mask. A select, so that a NaN in the branch not taken cannot leak.
fn select(mask: Tensor<2, Bool>, then: &Tensor<2>, otherwise: &Tensor<2>) -> Tensor<2> {
    let mask = mask.expand(then.shape());
    otherwise.clone().mask_where(mask, then.clone())
}

/// The residual norm and the norm of the image of every sample, `[batch, 1]`.
fn norms(at: &Iterate) -> (Tensor<2>, Tensor<2>) {
    (norm(at.residual()), norm(at.fz.clone()))
}

fn norm(rows: Tensor<2>) -> Tensor<2> {
    rows.square().sum_dim(1).sqrt()
}

fn monitor_tolerance(stop: &StopConfig, scale: &Tensor<2>) -> Tensor<2> {
    scale
        .clone()
        .mul_scalar(stop.rel_tol)
        .clamp_min(stop.abs_tol)
}
