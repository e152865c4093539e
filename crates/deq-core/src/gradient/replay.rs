//! A fixed number of damped steps, differentiated through: the unroll and the phantom gradient.

use crate::cell::{EquilibriumCell, Flat, FrozenCell};
use crate::error::{DeqError, require};
use crate::report::{BackwardPass, BackwardReport};
use crate::tape::{Inputs, Pulled, TapedCell, attach};
use burn::tensor::Tensor;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// `z <- (1 - damping) z + damping f(z)`, so many times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    steps: usize,
    damping: f64,
    /// States kept for the backward pass, the start included; with none given, everything stays on
    /// the tape.
    stored_states: Option<usize>,
}

impl Replay {
    /// # Errors
    ///
    /// If there are no steps, no states, or the damping is outside (0, 1]; `name` is the strategy
    /// that was configured.
    pub(crate) fn build(
        name: ReplayNames,
        steps: usize,
        damping: f64,
        stored_states: Option<usize>,
    ) -> Result<Self, DeqError> {
        require(steps >= 1, name.steps, steps as f64, "at least 1")?;
        require(steps <= 10_000, name.steps, steps as f64, "at most 10,000")?;
        require(
            damping > 0.0 && damping <= 1.0,
            "phantom.damping",
            damping,
            "above 0 and at most 1",
        )?;
        let stored = stored_states.unwrap_or(1);
        require(
            stored >= 1,
            name.stored_states,
            stored as f64,
            "at least 1, since the start must be stored",
        )?;
        require(
            stored <= 1_000,
            name.stored_states,
            stored as f64,
            "at most 1,000",
        )?;
        Ok(Self {
            steps,
            damping,
            stored_states,
        })
    }

    /// Evaluations of `f` in the forward pass.
    pub(crate) fn steps(self) -> usize {
        self.steps
    }

    /// The state after all steps, differentiable with respect to `z0`, the parameters and the
    /// context.
    ///
    /// # Shapes
    ///
    /// - z0, output: `[batch, dim]`
    pub(crate) fn run<C: EquilibriumCell>(
        self,
        f: &Flat<'_, C>,
        z0: Tensor<2>,
        report: &BackwardReport,
    ) -> Tensor<2> {
        let Some(states) = self.stored_states else {
            return (0..self.steps).fold(z0, |z, _| {
                let fz = f.call(z.clone());
                self.mix(z, fz)
            });
        };
        let frozen = f.freeze();
        let start = z0.clone().inner();
        let mut z = start.clone();
        let mut saved = VecDeque::new();
        let stops = first_stops(self.steps, states);
        for step in 0..self.steps {
            if stops.contains(&step) {
                saved.push_back((step, z.clone()));
            }
            z = self.step(&frozen, z);
        }
        let inputs = Inputs::of(f.cell, f.context);
        let (tracked, report) = (inputs.tracked(), report.clone());
        // Handed over, so that the sweep can drop each when it has served.
        let saved = Mutex::new(saved);
        attach(z, Some(&z0), inputs, move |cotangent| {
            let mut sweep = Sweep {
                replay: self,
                frozen: &frozen,
                taped: TapedCell::new(&frozen, &tracked),
                saved: std::mem::take(&mut *saved.lock().unwrap_or_else(PoisonError::into_inner)),
                evaluations: 0,
            };
            let from = (0, start.clone());
            let start = sweep.back(from, self.steps, states, cotangent);
            report.record(BackwardPass {
                evaluations: sweep.evaluations,
                products: sweep.taped.products(),
                ..BackwardPass::default()
            });
            Pulled {
                start: Some(start),
                inputs: sweep.taped.into_cotangents(),
            }
        })
    }

    fn step<C: EquilibriumCell>(self, frozen: &FrozenCell<C>, z: Tensor<2>) -> Tensor<2> {
        let fz = frozen.call(z.clone());
        self.mix(z, fz)
    }

    fn mix(self, z: Tensor<2>, fz: Tensor<2>) -> Tensor<2> {
        if self.is_plain() {
            return fz;
        }
        z.mul_scalar(1.0 - self.damping) + fz.mul_scalar(self.damping)
    }

    fn is_plain(self) -> bool {
        self.damping >= 1.0
    }
}

/// The names under which the fields of a [`Replay`] were configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplayNames {
    pub(crate) steps: &'static str,
    pub(crate) stored_states: &'static str,
}

/// One backward pass.
struct Sweep<'a, C: EquilibriumCell> {
    replay: Replay,
    frozen: &'a FrozenCell<C>,
    taped: TapedCell<C>,
    /// States of the forward pass, by step; each is used and dropped once.
    saved: VecDeque<(usize, Tensor<2>)>,
    evaluations: usize,
}

impl<C: EquilibriumCell> Sweep<'_, C> {
    /// Carries the cotangent from the state after step `end` back to the one at `from`.
    ///
    /// `states` may be in store, that at `from` included.
    fn back(
        &mut self,
        from: (usize, Tensor<2>),
        end: usize,
        states: usize,
        mut cotangent: Tensor<2>,
    ) -> Tensor<2> {
        let (start, z) = from;
        let mut end = end;
        while end - start > 1 && states > 1 {
            let middle = start + split(end - start, states);
            let there = match self.saved.pop_front_if(|(step, _)| *step == middle) {
                Some((_, there)) => there,
                None => self.advance(z.clone(), middle - start),
            };
            cotangent = self.back((middle, there), end, states - 1, cotangent);
            end = middle;
        }
        // One step, or all that are left when nothing more may be stored.
        for step in (start..end).rev() {
            let at = self.advance(z.clone(), step - start);
            cotangent = self.pull(at, cotangent);
        }
        cotangent
    }

    fn advance(&mut self, z: Tensor<2>, steps: usize) -> Tensor<2> {
        self.evaluations += steps;
        (0..steps).fold(z, |z, _| self.replay.step(self.frozen, z))
    }

    fn pull(&mut self, z: Tensor<2>, cotangent: Tensor<2>) -> Tensor<2> {
        let layout = self.frozen.layout();
        if self.replay.is_plain() {
            return self.taped.pull(layout, z, cotangent).product;
        }
        let along = cotangent.clone().mul_scalar(self.replay.damping);
        self.taped.pull(layout, z, along).product + cotangent.mul_scalar(1.0 - self.replay.damping)
    }
}

/// Where the forward pass should store states, so that the backward pass finds the first ones it
/// wants.
fn first_stops(steps: usize, states: usize) -> Vec<usize> {
    let (mut at, mut free) = (0, states);
    let mut stops = Vec::new();
    while steps - at > 1 && free > 1 {
        at += split(steps - at, free);
        free -= 1;
        stops.push(at);
    }
    stops
}

/// After how many of `steps` the next state should be stored, if `states` can be, the present one
/// included.
///
/// With `r` the fewest repetitions for which `C(states + r, states) >= steps`, both parts must be
/// reversible with at most `r`, and neither may be so short that the other wastes some.
fn split(steps: usize, states: usize) -> usize {
    let mut r = 1;
    while choose(states + r, states) < steps {
        r += 1;
    }
    let longest_right = choose(states + r - 1, states - 1);
    let shortest_left = choose(states + r - 2, states);
    steps
        .saturating_sub(longest_right)
        .max(shortest_left)
        .max(1)
}

/// The binomial coefficient, or `usize::MAX` where it is larger.
fn choose(n: usize, k: usize) -> usize {
    if k > n {
        return 0;
    }
    // After each factor the product is a binomial coefficient itself, so the division is exact.
    (1..=k)
        .try_fold(1usize, |product, i| {
            Some(product.checked_mul(n - k + i)? / i)
        })
        .unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evaluations that a sweep makes besides the recorded ones, when the forward pass has stored
    /// its states.
    fn repeated(steps: usize, states: usize, saved: bool) -> usize {
        let mut end = steps;
        let mut count = 0;
        let mut first = saved;
        while end > 1 && states > 1 {
            let middle = split(end, states);
            count += if first { 0 } else { middle };
            count += repeated(end - middle, states - 1, first);
            first = false;
            end = middle;
        }
        count + (0..end).sum::<usize>()
    }

    /// The fewest possible, by exhaustion over all first stops. A sweep that may not use stored
    /// states walks to the stop itself.
    fn fewest(steps: usize, states: usize) -> usize {
        let mut table = vec![vec![0; states + 1]; steps + 1];
        for n in 2..=steps {
            table[n][1] = n * (n - 1) / 2;
            for s in 2..=states {
                table[n][s] = (1..n)
                    .map(|left| left + table[n - left][s - 1] + table[left][s])
                    .min()
                    .unwrap_or(0);
            }
        }
        table[steps][states]
    }

    #[test]
    fn no_order_needs_fewer_evaluations() {
        for states in 1..=7 {
            for steps in 1..=60 {
                assert_eq!(
                    repeated(steps, states, false),
                    fewest(steps, states),
                    "{steps} steps, {states} states"
                );
            }
        }
        // 45 = C(8 + 2, 2): with eight states no step is evaluated more than twice, the forward
        // pass included.
        assert!(repeated(45, 8, true) < 45);
    }

    #[test]
    fn binomial_coefficients_saturate() {
        assert_eq!(choose(10, 3), 120);
        assert_eq!(choose(3, 10), 0);
        assert_eq!(choose(500, 250), usize::MAX);
    }
}
