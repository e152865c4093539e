//! The one loop that drives every solver.

use crate::map::{FixedPointMap, Iterate};
use crate::monitor::Monitor;
use crate::solution::{Solution, StepReport};
use crate::stop::StopRule;
use burn::tensor::{DType, Int, Tensor};

/// An algorithm that proposes the next point from the present one and `f` there.
///
/// The solver is immutable configuration and the state a separate value. Evaluations, convergence
/// tests, budgets and traces belong to the loop in [`Solve::solve`], which every `FixedPointSolver`
/// gets for free.
pub trait FixedPointSolver: std::fmt::Debug + Send + Sync {
    /// What the algorithm remembers between steps.
    type State;

    /// The name used in reports, in lower case.
    fn name(&self) -> &'static str;

    /// The state before the first step.
    fn init(&self, first: &Iterate) -> Self::State;

    /// Proposes the next point for every sample.
    ///
    /// Samples that have ended are held at their best iterate by the loop, which ignores the
    /// proposal for them; their rows then repeat, and the algorithm must not turn that into a
    /// panic. A row that is not finite ends its sample as
    /// [`Breakdown`](crate::SolveStatus::Breakdown).
    ///
    /// # Shapes
    ///
    /// - at: `[batch, dim]` each, f64 or f32 whatever the type of the map
    /// - output: `[batch, dim]`
    fn step(&self, at: &Iterate, state: &mut Self::State) -> Tensor<2>;

    /// Reads from the device that the algorithm itself made in its last step. Default none.
    fn reads(&self, _state: &Self::State) -> usize {
        0
    }

    /// Solves like [`Solve::solve`] and also returns what the algorithm remembers in the end.
    fn solve_with_state(
        &self,
        f: &mut dyn FixedPointMap,
        z0: Tensor<2>,
        stop: &StopRule,
    ) -> (Solution, Option<Self::State>)
    where
        Self: Sized,
    {
        let mut drive = Drive::new(self, z0, stop);
        while drive.advance(f) {}
        let state = drive.state.take();
        (Box::new(drive).finish(), state)
    }
}

/// A whole solve, object-safe.
pub trait Solve: std::fmt::Debug + Send + Sync {
    /// The name used in reports, in lower case.
    fn name(&self) -> &'static str;

    /// Begins a solve whose evaluations the caller makes.
    ///
    /// ```
    /// # use burn::tensor::{Device, Tensor};
    /// # use deq_solvers::{BroydenConfig, Solve, StopConfig};
    /// let solver = BroydenConfig::new().build()?;
    /// let z0 = Tensor::<2>::zeros([3, 2], &Device::flex());
    /// let mut stepper = solver.start(z0, &StopConfig::new().build()?);
    /// while stepper.observe(stepper.point().cos()) {}
    /// assert!(stepper.finish().stats.all_converged());
    /// # Ok::<(), deq_solvers::InvalidConfig>(())
    /// ```
    ///
    /// # Shapes
    ///
    /// - z0: `[batch, dim]`
    fn start<'a>(&'a self, z0: Tensor<2>, stop: &StopRule) -> Box<dyn Stepper + 'a>;

    /// Solves `z = f(z)` for every row of the batch, from `z0`.
    ///
    /// A good start saves evaluations: pass the solution of a similar problem (the last frame, the
    /// last token, the last step of training) to begin there. Failure to converge is reported per
    /// sample in [`SolveStats`](crate::SolveStats).
    ///
    /// A map of 16-bit floats is evaluated in its own type, while iterates, history and small
    /// systems are f32; the answer comes back in the type of `z0`.
    ///
    /// # Shapes
    ///
    /// - z0: `[batch, dim]`
    ///
    /// # Panics
    ///
    /// If `f` returns a tensor of another shape than it was given.
    fn solve(&self, f: &mut dyn FixedPointMap, z0: Tensor<2>, stop: &StopRule) -> Solution {
        self.solve_observed(f, z0, stop, &mut |_| {})
    }

    /// Solves like [`Solve::solve`] and shows every step to `observer`, as soon as it has been read
    /// from the device.
    ///
    /// # Panics
    ///
    /// As [`Solve::solve`].
    fn solve_observed(
        &self,
        f: &mut dyn FixedPointMap,
        z0: Tensor<2>,
        stop: &StopRule,
        observer: &mut dyn FnMut(&StepReport),
    ) -> Solution {
        let mut stepper = self.start(z0, stop);
        loop {
            let running = stepper.advance(f);
            stepper.take_reports().iter().for_each(&mut *observer);
            if !running {
                return stepper.finish();
            }
        }
    }
}

/// A solve that is driven from outside: evaluate the map at [`point`](Stepper::point), hand the
/// result to [`observe`](Stepper::observe), until that returns `false`; then
/// [`finish`](Stepper::finish).
pub trait Stepper {
    /// Where the map is wanted next, `[batch, dim]`, in the type of the start.
    fn point(&self) -> Tensor<2>;

    /// Takes `f` of [`point`](Stepper::point), `[batch, dim]`, and returns whether the solve goes
    /// on.
    ///
    /// # Panics
    ///
    /// If `f(z)` has another shape than the point.
    fn observe(&mut self, fz: Tensor<2>) -> bool;

    /// Evaluates `f` where it is wanted, on the active rows alone if it can do that, and observes
    /// the result.
    ///
    /// # Panics
    ///
    /// If `f(z)` has another shape than the point.
    fn advance(&mut self, f: &mut dyn FixedPointMap) -> bool;

    /// The rows of samples that have not ended, `[rows]`; `None` while none has.
    fn active_rows(&self) -> Option<Tensor<1, Int>>;

    /// The steps judged since the last call.
    fn take_reports(&mut self) -> Vec<StepReport>;

    /// The answer so far.
    ///
    /// # Panics
    ///
    /// If nothing was observed.
    fn finish(self: Box<Self>) -> Solution;
}

impl<S: FixedPointSolver> Solve for S {
    fn name(&self) -> &'static str {
        FixedPointSolver::name(self)
    }

    fn start<'a>(&'a self, z0: Tensor<2>, stop: &StopRule) -> Box<dyn Stepper + 'a> {
        Box::new(Drive::new(self, z0, stop))
    }
}

struct Drive<'a, S: FixedPointSolver> {
    solver: &'a S,
    state: Option<S::State>,
    monitor: Monitor,
    precision: Precision,
    /// In the type of the map.
    point: Tensor<2>,
}

impl<'a, S: FixedPointSolver> Drive<'a, S> {
    fn new(solver: &'a S, z0: Tensor<2>, stop: &StopRule) -> Self {
        Self {
            solver,
            state: None,
            monitor: Monitor::new(stop, &z0),
            precision: Precision::of(&z0),
            point: z0,
        }
    }

    fn take_in(&mut self, fz: Tensor<2>, rows: usize) -> bool {
        assert_same_shape(&fz, &self.point);
        let at = Iterate::new(
            self.precision.raise(self.point.clone()),
            self.precision.raise(fz),
        );
        if !self.monitor.observe(&at, rows) {
            return false;
        }
        let state = self.state.get_or_insert_with(|| self.solver.init(&at));
        let proposal = self.solver.step(&at, state);
        self.monitor.reads_more(self.solver.reads(state));
        self.point = self.precision.lower(self.monitor.freeze(proposal));
        true
    }
}

impl<S: FixedPointSolver> Stepper for Drive<'_, S> {
    fn point(&self) -> Tensor<2> {
        self.point.clone()
    }

    fn observe(&mut self, fz: Tensor<2>) -> bool {
        let [rows, _] = self.point.dims();
        self.take_in(fz, rows)
    }

    fn advance(&mut self, f: &mut dyn FixedPointMap) -> bool {
        if let (Some(rows), Some(map)) = (self.monitor.active_rows(), f.by_rows()) {
            let z = self.point.clone().select(0, rows.clone());
            let fz = map.call_rows(z.clone(), rows);
            assert_same_shape(&fz, &z);
            let [rows, _] = z.dims();
            let fz = self.monitor.complete(self.precision.raise(fz));
            return self.take_in(fz, rows);
        }
        let fz = f.call(self.point.clone());
        self.observe(fz)
    }

    fn active_rows(&self) -> Option<Tensor<1, Int>> {
        self.monitor.active_rows().cloned()
    }

    fn take_reports(&mut self) -> Vec<StepReport> {
        self.monitor.take_reports()
    }

    fn finish(self: Box<Self>) -> Solution {
        self.precision.lower_solution(self.monitor.finish())
    }
}

/// # Panics
///
/// If a map returned `fz` for the point `z` and they differ in shape.
pub(crate) fn assert_same_shape(fz: &Tensor<2>, z: &Tensor<2>) {
    assert_eq!(
        fz.dims(),
        z.dims(),
        "the map must keep the shape [batch, dim] of the state"
    );
}

/// The float type of the map, and the wider one of the solver's own arithmetic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Precision {
    map: DType,
    solver: DType,
}

impl Precision {
    pub(crate) fn of(z0: &Tensor<2>) -> Self {
        let map = z0.dtype();
        let solver = match map {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        Self { map, solver }
    }

    pub(crate) fn raise(self, tensor: Tensor<2>) -> Tensor<2> {
        self.cast(tensor, self.solver)
    }

    pub(crate) fn lower(self, tensor: Tensor<2>) -> Tensor<2> {
        self.cast(tensor, self.map)
    }

    pub(crate) fn lower_solution(self, mut solution: Solution) -> Solution {
        solution.z = self.lower(solution.z);
        solution.fz = self.lower(solution.fz);
        for state in &mut solution.states {
            state.z = self.lower(state.z.clone());
            state.fz = self.lower(state.fz.clone());
        }
        solution
    }

    fn cast(self, tensor: Tensor<2>, to: DType) -> Tensor<2> {
        if tensor.dtype() == to {
            return tensor;
        }
        tensor.cast(to)
    }
}
