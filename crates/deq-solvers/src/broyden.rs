//! Broyden's methods with low-rank factors.

use crate::error::{InvalidConfig, require_count};
use crate::history::History;
use crate::line_search::{Armijo, ArmijoConfig};
use crate::map::Iterate;
use crate::rows::{column, dot, largest, merge_rows};
use crate::solver::FixedPointSolver;
use burn::config::Config;
use burn::tensor::Tensor;
use deq_kernels::BroydenStep;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Which secant update [`Broyden`] makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BroydenUpdate {
    /// The smallest change of the Jacobian: `v = B^T dz`.
    #[default]
    Good,
    /// The smallest change of its inverse: `v = dg`. One product with the factors less per step.
    Bad,
}

/// What [`Broyden`] does when its history is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FullHistory {
    /// Start afresh from -I.
    #[default]
    Restart,
    /// Forget the oldest pair `dz, dg` and build the terms anew from the pairs that are left, so
    /// that they are those of a solve that began with them. Costs `history` times the products of a
    /// step, and `2 history` states more.
    DropOldest,
}

/// Configuration of [`Broyden`].
#[derive(Config, Debug, PartialEq)]
pub struct BroydenConfig {
    /// The most rank-one terms kept. Memory is `2 history batch dim` numbers, allocated as they are
    /// needed. Default 30, the default budget of steps: the history is not filled within it.
    #[config(default = 30)]
    pub history: usize,
    /// The secant update. Default the good one.
    #[config(default = "BroydenUpdate::Good")]
    pub update: BroydenUpdate,
    /// What happens when the history is full. Default a restart.
    #[config(default = "FullHistory::Restart")]
    pub when_full: FullHistory,
    /// A line search along every step. Default none, as in the original: near a solution full steps
    /// are right, and every trial costs an evaluation.
    #[config(default = "None")]
    pub line_search: Option<ArmijoConfig>,
}

impl BroydenConfig {
    /// Checks the fields.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] naming the first field outside its range.
    pub fn build(&self) -> Result<Broyden, InvalidConfig> {
        require_count("broyden.history", self.history)?;
        if let Some(line_search) = &self.line_search {
            line_search.validate()?;
        }
        Ok(Broyden {
            config: self.clone(),
        })
    }
}

/// Broyden's method for `g(z) = f(z) - z = 0`, one approximation of the inverse Jacobian per
/// sample.
///
/// ```text
/// z  <- z - B g(z)                        B = -I + sum_i u_i v_i^T
/// v   = B^T dz   (good)   or   dg   (bad)
/// u   = (dz - B dg) / (v . dg)
/// ```
///
/// Use it where plain iteration and Anderson fail because the map expands in some direction: B
/// learns the Jacobian along the directions visited. Its factors after a forward solve also
/// approximate the inverse Jacobian that the backward solve needs. Prefer Anderson when memory is
/// tight. The bad update saves work per step and is often as good near a solution; the good one is
/// safer far from it.
///
/// Cost per step with `k` terms: one evaluation of `f`, about `6 k` inner products or updates of
/// length `dim` (bad: `4 k`). Memory: `2 k` states, rounded up to a power of two, and seven for the
/// update; while it grows, half as much again.
///
/// # References
///
/// - Broyden, "A class of methods for solving nonlinear simultaneous equations", Math. Comp. 1965.
/// - Bai, Kolter, Koltun, "Deep Equilibrium Models", NeurIPS 2019, Appendix A.
///
/// # Differences from the reference code
///
/// - An update whose denominator `v . dg` vanishes beside `|v| |dg|` is skipped for that sample;
///   `locuslab/deq` divides and sets NaN to 0.
/// - TorchDEQ overwrites the oldest term of a full history in place. The terms left were computed
///   with it, so that no secant condition holds any more. See [`FullHistory`].
/// - The evaluation of the start counts as a step and can be the best iterate.
/// - The line search works per sample unless told otherwise.
#[derive(Clone, Debug)]
pub struct Broyden {
    config: BroydenConfig,
}

/// The previous point and the low-rank factors of [`Broyden`].
#[derive(Debug)]
pub struct BroydenState {
    previous: Option<Iterate>,
    inverse: InverseJacobian,
    search: Option<Search>,
}

/// A line search under way.
#[derive(Debug)]
struct Search {
    /// The last accepted points.
    base: Iterate,
    /// Where the search goes from them, `[batch, dim]`.
    direction: Tensor<2>,
    lines: Armijo,
}

impl BroydenState {
    /// The approximation of the inverse Jacobian of `f(z) - z`.
    pub fn inverse(&self) -> &InverseJacobian {
        &self.inverse
    }

    /// That approximation, without the rest of the state.
    pub fn into_inverse(self) -> InverseJacobian {
        self.inverse
    }
}

/// `B = -I + sum_i u_i v_i^T` for every sample, an approximation of the inverse of the Jacobian of
/// `f(z) - z`.
#[derive(Clone, Debug)]
pub struct InverseJacobian {
    u: History,
    v: History,
    /// The pairs that the terms were made of, oldest first; kept only where some will be dropped.
    pairs: VecDeque<(Tensor<2>, Tensor<2>)>,
}

impl InverseJacobian {
    fn new(like: &Tensor<2>, history: usize) -> Self {
        Self {
            u: History::new(like, history),
            v: History::new(like, history),
            pairs: VecDeque::new(),
        }
    }

    /// `B = -I`, what a solve begins with.
    ///
    /// # Shapes
    ///
    /// - like: `[batch, dim]`
    pub fn identity(like: &Tensor<2>) -> Self {
        Self::new(like, 1)
    }

    /// The number of rank-one terms in use.
    pub fn rank(&self) -> usize {
        self.u.len()
    }

    /// `B x` for every sample.
    ///
    /// # Shapes
    ///
    /// `[batch, dim]`, in and out.
    pub fn apply(&self, x: &Tensor<2>) -> Tensor<2> {
        product(&self.u, &self.v, x)
    }

    /// `B^T x` for every sample.
    ///
    /// # Shapes
    ///
    /// `[batch, dim]`, in and out.
    pub fn apply_transposed(&self, x: &Tensor<2>) -> Tensor<2> {
        product(&self.v, &self.u, x)
    }

    /// Learns from the move between two points.
    fn update(&mut self, from: &Iterate, to: &Iterate, config: &BroydenConfig) {
        let dz = to.z().clone() - from.z().clone();
        let dg = to.residual().clone() - from.residual().clone();
        // The terms depend on the direction of the move and not on its length, and products of
        // directions keep within the range of the type.
        let length = largest(&dz);
        let (dz, dg) = (&(dz / length.clone()), &(dg / length));
        let full = self.rank() == config.history;
        match config.when_full {
            FullHistory::Restart if full => self.clear(),
            FullHistory::Restart => {}
            FullHistory::DropOldest => {
                let mut pairs = std::mem::take(&mut self.pairs);
                if full {
                    pairs.pop_front();
                    self.clear();
                    for (dz, dg) in &pairs {
                        self.append(dz, dg, config);
                    }
                }
                pairs.push_back((dz.clone(), dg.clone()));
                self.pairs = pairs;
            }
        }
        self.append(dz, dg, config);
    }

    /// Learns from the move between two points and returns the next one, in one go.
    fn step(&mut self, from: &Iterate, to: &Iterate, config: &BroydenConfig) -> Tensor<2> {
        if self.rank() == config.history {
            self.clear();
        }
        let slot = self.rank();
        self.u.reserve(slot);
        self.v.reserve(slot);
        let step = BroydenStep {
            z: [from.z(), to.z()],
            residual: [from.residual(), to.residual()],
            used: slot,
            good: config.update == BroydenUpdate::Good,
        };
        let ([u, v], next) = step.run([self.u.take(), self.v.take()]);
        self.u.put(u);
        self.v.put(v);
        next
    }

    fn clear(&mut self) {
        self.u.clear();
        self.v.clear();
    }

    /// One more rank-one term, which makes `B dg = dz`.
    fn append(&mut self, dz: &Tensor<2>, dg: &Tensor<2>, config: &BroydenConfig) {
        let v = match config.update {
            BroydenUpdate::Good => self.apply_transposed(dz),
            BroydenUpdate::Bad => dg.clone(),
        };
        let numerator = dz.clone() - self.apply(dg);
        let denominator = dot(&v, dg);
        let size = (dot(&v, &v) * dot(dg, dg)).sqrt();
        let epsilon = f64::from(f32::EPSILON);
        // Written so that a NaN anywhere also counts as vanishing.
        let usable = denominator
            .clone()
            .abs()
            .greater(size.mul_scalar(epsilon))
            .bool_and(denominator.clone().is_finite());
        let u = numerator / denominator;
        let usable = usable.expand(u.shape());
        let slot = self.rank();
        let none = u.zeros_like();
        self.u.set(slot, none.clone().mask_where(usable.clone(), u));
        self.v.set(slot, none.mask_where(usable, v));
    }
}

/// `sum_i left_i (right_i . x) - x` for every sample.
fn product(left: &History, right: &History, x: &Tensor<2>) -> Tensor<2> {
    if left.is_empty() {
        return x.clone().neg();
    }
    left.combine(&right.dot(x)) - x.clone()
}

impl FixedPointSolver for Broyden {
    type State = BroydenState;

    fn name(&self) -> &'static str {
        match self.config.update {
            BroydenUpdate::Good => "broyden",
            BroydenUpdate::Bad => "broyden bad",
        }
    }

    fn init(&self, first: &Iterate) -> Self::State {
        BroydenState {
            previous: None,
            inverse: InverseJacobian::new(first.z(), self.config.history),
            search: None,
        }
    }

    fn step(&self, at: &Iterate, state: &mut Self::State) -> Tensor<2> {
        if let Some(line_search) = &self.config.line_search {
            return self.step_searching(line_search, at, state);
        }
        let Some(previous) = state.previous.replace(at.clone()) else {
            return at.z().clone() - state.inverse.apply(at.residual());
        };
        // Of z and f(z), the residual is differentiated if either is.
        let supported = BroydenStep::is_supported(at.residual(), self.config.history);
        if supported && self.config.when_full == FullHistory::Restart {
            return state.inverse.step(&previous, at, &self.config);
        }
        state.inverse.update(&previous, at, &self.config);
        at.z().clone() - state.inverse.apply(at.residual())
    }

    fn reads(&self, state: &Self::State) -> usize {
        state
            .search
            .as_ref()
            .map_or(0, |search| search.lines.reads())
    }
}

impl Broyden {
    fn step_searching(
        &self,
        line_search: &ArmijoConfig,
        at: &Iterate,
        state: &mut BroydenState,
    ) -> Tensor<2> {
        let (base, lines, held) = match state.search.take() {
            None => (at.clone(), Armijo::new(line_search, at.residual()), None),
            Some(Search {
                base,
                direction,
                mut lines,
            }) => {
                let accepted = lines.judge(at.residual());
                // Rows that go on searching do not move. A difference of 0 adds a term of 0, so
                // that the number of terms, and with it a restart, does not depend on the batch
                // mates.
                let z = merge_rows(at.z(), base.z(), &accepted);
                let fz = merge_rows(at.fz(), base.fz(), &accepted);
                let moved = Iterate::new(z, fz);
                state.inverse.update(&base, &moved, &self.config);
                (moved, lines, Some((direction, accepted)))
            }
        };
        let fresh = state.inverse.apply(base.residual()).neg();
        let direction = match held {
            Some((held, accepted)) => merge_rows(&fresh, &held, &accepted),
            None => fresh,
        };
        let next = base.z().clone() + direction.clone() * column(lines.trial(), base.z());
        state.search = Some(Search {
            base,
            direction,
            lines,
        });
        next
    }
}
