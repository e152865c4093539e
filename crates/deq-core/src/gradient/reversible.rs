//! The gradient of a reversible iteration: its steps are undone and differentiated one by one.

use crate::cell::{EquilibriumCell, FrozenCell};
use crate::error::{DeqError, require_count};
use crate::gradient::config::ReversibleGradientConfig;
use crate::gradient::row_lengths;
use crate::report::{BackwardPass, BackwardReport};
use crate::state::StateLayout;
use crate::tape::{Inputs, Pulled, TapedCell, attach};
use burn::tensor::{Bool, Tensor, TensorData};
use deq_solvers::{
    PicardConfig, Reversible, ReversiblePair, Solution, Solve, SolveStatus, StopRule,
};
use std::sync::Arc;

/// The reversible iteration as plain iteration of pairs `[y, z]`, so that a sample's answer is
/// always a whole number of pairs from its start.
#[derive(Clone, Debug)]
pub(crate) struct ReversiblePairs {
    iteration: Reversible,
    plain: Arc<dyn Solve>,
    stored_pairs: usize,
}

/// A forward solve by pairs.
pub(crate) struct PairSolve<C: EquilibriumCell> {
    frozen: FrozenCell<C>,
    pub(crate) solution: Solution,
    /// `[batch, dim]` each.
    pair: ReversiblePair,
    /// How many pairs of steps made it, per sample.
    pairs: Vec<usize>,
    landmarks: Landmarks,
}

impl<C: EquilibriumCell> PairSolve<C> {
    /// The answer, `[batch, dim]`.
    pub(crate) fn z(&self) -> Tensor<2> {
        self.pair.z.clone()
    }
}

impl ReversiblePairs {
    /// # Errors
    ///
    /// If the configuration stores no pair.
    pub(crate) fn build(
        config: &ReversibleGradientConfig,
        iteration: Reversible,
    ) -> Result<Self, DeqError> {
        let stored_pairs = config.stored_pairs;
        require_count("reversible.stored_pairs", stored_pairs)?;
        let plain = PicardConfig::new().build().map_err(DeqError::Forward)?;
        Ok(Self {
            iteration,
            plain: Arc::new(plain),
            stored_pairs,
        })
    }

    /// Iterates from `z0`; the budget of `stop` counts evaluations, and allows one pair at least.
    /// Pairs are stored in training only.
    ///
    /// # Shapes
    ///
    /// - z0: `[batch, dim]`
    pub(crate) fn solve<C: EquilibriumCell>(
        &self,
        frozen: FrozenCell<C>,
        z0: Tensor<2>,
        stop: &StopRule,
        training: bool,
    ) -> PairSolve<C> {
        let stop = stop.clone().with_max_steps(stop.config().max_steps / 2);
        let mut landmarks = Landmarks::new(self.stored_pairs);
        let mut step = |pair: Tensor<2>| {
            if training {
                landmarks.pass(&pair);
            }
            let mut f = |z| frozen.call(z);
            join(self.iteration.forward(&mut f, &parted(pair)))
        };
        let start = Tensor::cat(vec![z0.clone(), z0], 1);
        let mut solution = self.plain.solve(&mut step, start, &stop);

        // What follows the best pair is one pair further, and has been paid for. A start that
        // nothing finite follows is its own answer.
        let stats = &solution.stats;
        let pairs = (stats.best_step.iter().zip(&stats.steps).zip(&stats.status))
            .map(|((best, steps), status)| match (steps, status) {
                (1, SolveStatus::NonFinite) => 0,
                _ => best + 1,
            })
            .collect();
        let pair = parted(solution.fz.clone());
        solution.stats.nfe *= 2;
        solution.stats.evaluated_rows *= 2;
        PairSolve {
            frozen,
            solution,
            pair,
            pairs,
            landmarks,
        }
    }

    /// Makes the answer differentiable with respect to `z0`, the parameters and the context.
    pub(crate) fn attach<C: EquilibriumCell>(
        &self,
        solve: PairSolve<C>,
        z0: &Tensor<2>,
        inputs: Inputs,
        report: BackwardReport,
    ) -> Tensor<2> {
        let answer = solve.z();
        let PairSolve {
            frozen,
            pair: end,
            pairs,
            landmarks,
            ..
        } = solve;
        let (tracked, iteration) = (inputs.tracked(), self.iteration.clone());
        attach(answer, Some(z0), inputs, move |cotangent| {
            let mut undo = Undo {
                layout: frozen.layout(),
                taped: TapedCell::new(&frozen, &tracked),
                damping: iteration.damping(),
                substitute: end.y.clone(),
                idle: None,
            };
            let mut pair = end.clone();
            let mut adjoint = ReversiblePair {
                y: cotangent.zeros_like(),
                z: cotangent,
            };
            let norm = row_lengths(end.z.clone()).clamp_min(f64::from(f32::MIN_POSITIVE));
            let mut missed = norm.zeros_like();
            let longest = pairs.iter().copied().max().unwrap_or(0);
            for step in (0..longest).rev() {
                let active = pairs.iter().map(|pairs| step < *pairs).collect();
                undo.idle = idle_rows(active, &pair.z);
                (pair.z, adjoint.z, adjoint.y) =
                    undo.half_step(pair.z, &pair.y, adjoint.z, adjoint.y);
                (pair.y, adjoint.y, adjoint.z) =
                    undo.half_step(pair.y, &pair.z, adjoint.y, adjoint.z);
                if let Some(true_pair) = landmarks.at(step) {
                    let there = undo.unless_idle(true_pair.clone(), join(pair.clone()));
                    let distance = row_lengths(join(pair) - there.clone()) / norm.clone();
                    missed = missed.max_pair(distance);
                    pair = parted(there);
                }
            }
            report.record(BackwardPass {
                products: undo.taped.products(),
                reversal_error: missed.into_data().iter::<f64>().collect(),
                ..BackwardPass::default()
            });
            Pulled {
                start: Some(adjoint.y + adjoint.z),
                inputs: undo.taped.into_cotangents(),
            }
        })
    }
}

/// Undoes `a <- (1 - damping) a + damping f(b)`.
struct Undo<'a, C: EquilibriumCell> {
    layout: &'a StateLayout<C::State>,
    taped: TapedCell<C>,
    damping: f64,
    /// Where `f` is known to be finite, `[batch, dim]`: it made the last half of the answer.
    substitute: Tensor<2>,
    /// The samples that did not take this step, `[batch, 1]`, if there are any.
    idle: Option<Tensor<2, Bool>>,
}

impl<C: EquilibriumCell> Undo<'_, C> {
    /// Returns `a` before the step and the cotangents of `a` and `b`; all tensors are `[batch,
    /// dim]`.
    fn half_step(
        &mut self,
        a: Tensor<2>,
        b: &Tensor<2>,
        a_cotangent: Tensor<2>,
        b_cotangent: Tensor<2>,
    ) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
        let along = a_cotangent.clone().mul_scalar(self.damping);
        let along = self.unless_idle(along.clone(), along.zeros_like());
        // Where a sample has come to, `f` need not be finite, and a cotangent of 0 would not keep
        // that from the sums over the batch.
        let point = self.unless_idle(b.clone(), self.substitute.clone());
        let pull = self.taped.pull(self.layout, point, along);
        let before =
            (a.clone() - pull.fz.mul_scalar(self.damping)).mul_scalar(1.0 / (1.0 - self.damping));
        let kept = a_cotangent.clone().mul_scalar(1.0 - self.damping);
        (
            self.unless_idle(before, a),
            self.unless_idle(kept, a_cotangent),
            b_cotangent + pull.product,
        )
    }

    /// `taken` for the samples that took this step, `other` for those that did not.
    fn unless_idle(&self, taken: Tensor<2>, other: Tensor<2>) -> Tensor<2> {
        match &self.idle {
            Some(idle) => taken.mask_where(idle.clone().expand(other.shape()), other),
            None => taken,
        }
    }
}

/// Some of the pairs that a solve has passed, the start among them, at equal distances: when there
/// are too many, every second is dropped.
#[derive(Clone, Debug)]
struct Landmarks {
    capacity: usize,
    stride: usize,
    passed: usize,
    /// By step, `[batch, 2 dim]`.
    pairs: Vec<(usize, Tensor<2>)>,
}

impl Landmarks {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            stride: 1,
            passed: 0,
            pairs: Vec::with_capacity(capacity),
        }
    }

    fn pass(&mut self, pair: &Tensor<2>) {
        let step = self.passed;
        self.passed += 1;
        if !step.is_multiple_of(self.stride) {
            return;
        }
        while self.pairs.len() == self.capacity {
            self.stride *= 2;
            self.pairs
                .retain(|(step, _)| step.is_multiple_of(self.stride));
            if !step.is_multiple_of(self.stride) {
                return;
            }
        }
        self.pairs.push((step, pair.clone()));
    }

    fn at(&self, step: usize) -> Option<&Tensor<2>> {
        let found = self.pairs.iter().find(|(at, _)| *at == step);
        found.map(|(_, pair)| pair)
    }
}

fn idle_rows(active: Vec<bool>, like: &Tensor<2>) -> Option<Tensor<2, Bool>> {
    let idle: Vec<bool> = active.into_iter().map(|active| !active).collect();
    idle.contains(&true).then(|| rows(idle, like))
}

/// `[batch, 1]`
fn rows(values: Vec<bool>, like: &Tensor<2>) -> Tensor<2, Bool> {
    let batch = values.len();
    Tensor::from_data(TensorData::new(values, [batch, 1]), &like.device())
}

fn join(pair: ReversiblePair) -> Tensor<2> {
    Tensor::cat(vec![pair.y, pair.z], 1)
}

fn parted(pair: Tensor<2>) -> ReversiblePair {
    let [_, width] = pair.dims();
    ReversiblePair {
        y: pair.clone().narrow(1, 0, width / 2),
        z: pair.narrow(1, width / 2, width / 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn landmarks_stay_within_their_number_and_evenly_spaced() {
        let pair = Tensor::<2>::zeros([1, 2], &Device::flex());
        for capacity in [1, 2, 3, 8] {
            let mut landmarks = Landmarks::new(capacity);
            for passed in 1..50 {
                landmarks.pass(&pair);
                let steps: Vec<usize> = landmarks.pairs.iter().map(|(step, _)| *step).collect();
                assert!(steps.len() <= capacity && steps[0] == 0, "{steps:?}");
                if capacity > 1 {
                    assert!(
                        steps
                            .windows(2)
                            .all(|pair| pair[1] - pair[0] == landmarks.stride)
                    );
                    // No way back is longer than twice an even division of the whole.
                    assert!(landmarks.stride * capacity < 2 * passed + capacity);
                }
            }
        }
    }
}
