//! What a training step holds in memory, on paper.
//!
//! A step holds parameters and moments of the optimizer throughout, and beside them the most of
//! what its phases hold one after the other:
//!
//! ```text
//! solve      constants + history of the forward solver + an evaluation
//! output     constants + tape of the output layers, with a penalty also its linearisation
//! adjoint    constants + linearisation + history of its solver
//! backward   constants + tape of one application, with a penalty of one for each probe
//! weights    constants + gradients
//! unrolled   constants + tapes of all applications + tape of the output layers
//! ```
//!
//! Each is a number of tensors whose shapes the configuration knows; their number was read from the
//! code that makes them. All but the weights grow with the batch.

use crate::recipe::{Network, Optimizer, Recipe};
use crate::task::Task;
use deq_core::GradientConfig;
use deq_core::solvers::{FullHistory, LinearSolverConfig, SolverConfig, StopConfig};
use deq_models::StepNumbers;
use serde::Serialize;

/// Bytes of tensors in f32 during a training step. Pools of a device and their fragmentation come
/// on top.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryPlan {
    /// Samples, or streams, in the batch.
    pub batch: usize,
    /// The parameters.
    pub parameters: usize,
    /// The moments of the optimizer.
    pub moments: usize,
    /// The gradients of all parameters, at the end of a step.
    pub gradients: usize,
    /// What stands throughout a step: the tape before the cell, normalised weights, memories.
    pub constants: usize,
    /// What the larger solve, forward or backward, remembers of its points.
    pub history: usize,
    /// The tape of one application of the cell.
    pub tape: usize,
    /// The tape of the layers behind the cell.
    pub output: usize,
    /// The tapes of the penalty; 0 without one.
    pub penalty: usize,
    /// What each kind of moment of the step holds, beside parameters and moments of the optimizer.
    pub phases: Vec<PhaseBytes>,
}

/// The phase of steps that unroll the cell.
const UNROLLED: &str = "unrolled";

/// A moment of a training step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PhaseBytes {
    /// Its name.
    pub name: &'static str,
    /// The bytes of its tensors.
    pub bytes: usize,
}

impl MemoryPlan {
    /// The plan of a step of the recipe on `batch` samples; `None` if the task does not count its
    /// numbers, for explicit layers, and for gradients other than the implicit one. `on_host` says
    /// whether the step runs by the kernels of the CPU.
    ///
    /// Solves are taken to use up their budgets, and memories of text to be full.
    pub fn new<T: Task>(recipe: &Recipe<T>, batch: usize, on_host: bool) -> Option<Self> {
        let numbers = recipe.task.step_numbers(batch, on_host)?;
        let GradientConfig::Implicit(adjoint) = &recipe.deq.gradient else {
            return None;
        };
        let state = numbers.state;
        let window = |stop: &StopConfig| {
            let every = stop.check_every.unwrap_or(if on_host { 1 } else { 4 });
            // A point, its value and their difference.
            3 * state * every.saturating_sub(1)
        };
        let forward = Solve {
            history: history(&recipe.deq.solver, recipe.deq.stop.max_steps) * state,
            evaluation: numbers.evaluation,
            window: window(&recipe.deq.stop),
            state,
        };
        let backward = Solve {
            history: linear_history(&adjoint.solver, adjoint.stop.max_steps) * state,
            evaluation: numbers.evaluation,
            window: window(&adjoint.stop),
            state,
        };
        let tied = match recipe.network {
            Network::Equilibrium => None,
            Network::WeightTied { depth } => Some(depth),
            Network::Layers { .. } => return None,
        };
        let penalty = recipe.penalty.as_ref().filter(|_| tied.is_none());
        let probes = penalty.map_or(0, |penalty| penalty.vectors);
        let mut phases = match tied {
            None => solved(&numbers, probes, &forward, &backward),
            Some(_) => Vec::new(),
        };
        // Cotangents of normalised weights go while gradients come.
        let arranged = numbers.shared / 2;
        phases.push(phase(
            "weights",
            numbers.constants + numbers.kept + arranged + numbers.weights,
        ));
        let [_, pretrained] = recipe.phases();
        let depth = tied.or((pretrained > 0).then_some(recipe.pretrain_depth));
        if let Some(depth) = depth {
            let weighted = penalty.is_some_and(|penalty| penalty.pretrain_weight > 0.0);
            let probes = if weighted { probes } else { 0 };
            phases.push(phase(UNROLLED, unrolled(&numbers, depth, probes)));
        }
        let moments = match recipe.optimizer {
            Optimizer::Adam => 2,
            Optimizer::Nesterov | Optimizer::Momentum => 1,
        };
        Some(Self {
            batch,
            parameters: bytes(numbers.parameters),
            moments: bytes(moments * numbers.parameters),
            gradients: bytes(numbers.parameters),
            constants: bytes(numbers.constants),
            history: bytes(forward.history.max(backward.history)),
            tape: bytes(numbers.tape),
            output: bytes(numbers.output),
            penalty: bytes(probes * numbers.probe),
            phases,
        })
    }

    /// The phase that holds most.
    pub fn largest(&self) -> PhaseBytes {
        let most = self.phases.iter().max_by_key(|phase| phase.bytes);
        *most.expect("every step ends with gradients")
    }

    /// The most bytes at one time, of any step of the training.
    pub fn peak(&self) -> usize {
        self.parameters + self.moments + self.largest().bytes
    }

    /// The most bytes at one time, of steps that do not unroll the cell.
    pub fn solving(&self) -> usize {
        let solving = self.phases.iter().filter(|phase| phase.name != UNROLLED);
        let most = solving.map(|phase| phase.bytes).max();
        self.parameters + self.moments + most.unwrap_or_default()
    }

    /// The largest batch whose step fits into so many bytes; 0 if none does. `None` as for
    /// [`new`](Self::new).
    pub fn largest_batch<T: Task>(recipe: &Recipe<T>, memory: usize) -> Option<usize> {
        let peak = |batch| Self::new(recipe, batch, false).map(|plan| plan.peak());
        let mut fits = 0;
        let mut too_large = 1;
        while peak(too_large)? <= memory {
            (fits, too_large) = (too_large, 2 * too_large);
        }
        while too_large - fits > 1 {
            let between = fits.midpoint(too_large);
            match peak(between)? <= memory {
                true => fits = between,
                false => too_large = between,
            }
        }
        Some(fits)
    }
}

/// Numbers that a solve holds.
struct Solve {
    history: usize,
    evaluation: usize,
    /// Points that wait for their residuals to be read.
    window: usize,
    state: usize,
}

impl Solve {
    /// Either points and an evaluation beside the history, or its two halves while one is made or
    /// made longer: both lengths, what the old one is filled up with, and a step of the solver.
    fn most(&self) -> usize {
        let grown = self.history / 2 + 7 * self.state;
        self.history + self.window + grown.max(self.evaluation + 6 * self.state)
    }
}

fn solved(
    numbers: &StepNumbers,
    probes: usize,
    forward: &Solve,
    backward: &Solve,
) -> Vec<PhaseBytes> {
    let StepNumbers {
        constants,
        arranged,
        state,
        ..
    } = *numbers;
    // A probe and its product.
    let reached = constants + numbers.reached + 2 * probes * state;
    let behind = numbers.kept + numbers.head;
    let linear = numbers.point + arranged;
    let shared = if probes > 0 { linear } else { 0 };
    let output = numbers.output + numbers.output_peak;
    vec![
        phase("solve", constants + arranged + state + forward.most()),
        phase("output", reached + arranged + shared + output),
        phase(
            "adjoint",
            reached + behind + arranged + linear + backward.most(),
        ),
        phase(
            "backward",
            reached + behind + numbers.shared + recorded(numbers, probes),
        ),
    ]
}

/// The last application in its backward pass.
fn recorded(numbers: &StepNumbers, probes: usize) -> usize {
    let tape = numbers.tape.max(probes * numbers.probe);
    numbers.state + tape + numbers.backward
}

/// With the penalty of unrolled steps, if it has probes.
fn unrolled(numbers: &StepNumbers, depth: usize, probes: usize) -> usize {
    // Transposed weights come while tapes go.
    let shared = numbers.shared / 2;
    let others = depth.saturating_sub(1) * numbers.tape;
    let before = numbers.constants + shared + numbers.state + others;
    let behind = numbers.output + numbers.output_peak;
    let last = numbers.tape + behind.max(numbers.kept + numbers.head + numbers.backward);
    // Of the last application and of what is behind it nothing has been differentiated yet.
    let penalty = match probes {
        0 => 0,
        _ => numbers.tape + numbers.output + recorded(numbers, probes),
    };
    before + last.max(penalty)
}

/// The states that a solver keeps in a solve of `max_steps` evaluations.
fn history(solver: &SolverConfig, max_steps: usize) -> usize {
    match solver {
        SolverConfig::Picard(_) | SolverConfig::Reversible(_) => 0,
        SolverConfig::Anderson(anderson) => {
            2 * slots(max_steps.saturating_sub(1), anderson.history)
        }
        SolverConfig::Broyden(broyden) => {
            let terms = max_steps.saturating_sub(2);
            let pairs = match broyden.when_full {
                FullHistory::Restart => 0,
                FullHistory::DropOldest => 2 * terms.min(broyden.history),
            };
            2 * slots(terms, broyden.history) + pairs
        }
    }
}

fn linear_history(solver: &LinearSolverConfig, max_steps: usize) -> usize {
    match solver {
        LinearSolverConfig::FixedPoint(solver) => history(solver, max_steps),
        LinearSolverConfig::Gmres(gmres) => 2 * slots(max_steps, gmres.restart),
        LinearSolverConfig::BiCgStab(_) => 8,
        LinearSolverConfig::Neumann(_) => 0,
    }
}

/// The length of a history of at most `capacity` vectors that has taken in so many: eight at once,
/// then by doubling.
fn slots(vectors: usize, capacity: usize) -> usize {
    let mut slots = capacity.min(8);
    while slots < vectors.min(capacity) {
        slots = capacity.min(2 * slots);
    }
    slots
}

fn phase(name: &'static str, numbers: usize) -> PhaseBytes {
    PhaseBytes {
        name,
        bytes: bytes(numbers),
    }
}

fn bytes(numbers: usize) -> usize {
    numbers * size_of::<f32>()
}
