//! Terms of a loss that share the evaluation of a layer.

use crate::support::*;
use burn::module::{Module, ModuleDisplay, Param};
use burn::tensor::Tensor;
use deq_core::solvers::{BroydenConfig, SolverConfig};
use deq_core::{
    CellContext, DeqConfig, Equilibrium, EquilibriumCell, Evaluation, GradientConfig, MapAt,
    NeumannGradientConfig, PhantomConfig, Pullback, ShineConfig, check,
};
use deq_testkit::values;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `|f(z)|^2 + |J d|^2` of every sample; the second by a difference where there is no tangent.
fn term(at: &dyn MapAt, direction: &Tensor<2>) -> Tensor<1> {
    let squares = |x: Tensor<2>| x.square().sum_dim(1).squeeze_dim::<1>(1);
    let tangent = at.tangent(direction.clone()).unwrap_or_else(|| {
        let h = f64::EPSILON.cbrt();
        let points = [1.0, -1.0].map(|sign| at.z() + direction.clone() * (sign * h));
        let [above, below] = points.map(|z| at.call(z));
        (above - below) * (0.5 / h)
    });
    squares(at.call(at.z())) + squares(tangent)
}

/// The same with its gradient, of which every sample's counts, and used twice.
fn total(evaluation: &Evaluation) -> Tensor<1> {
    let direction = numbers([BATCH, DIM], 9, 1.0, &plain_device());
    let value = numbers([1, BATCH], 3, 1.0, &plain_device()).squeeze_dim::<1>(0);
    let recorded = evaluation.recorded(value.clone(), move |at| term(at, &direction));
    assert_eq!(values(&recorded), values(&value));
    let weights = numbers([1, BATCH], 4, 1.0, &device()).squeeze_dim::<1>(0);
    (recorded.clone() * weights).sum() + recorded.sum().square()
}

fn solve(config: &DeqConfig, cell: &Cell, inputs: &Inputs) -> Equilibrium<Tensor<2>> {
    let start = Tensor::zeros([BATCH, DIM], &device());
    config.build().unwrap().forward(cell, inputs, start)
}

fn strategies() -> [DeqConfig; 4] {
    let broyden = || SolverConfig::from(BroydenConfig::new().with_history(500));
    let refined = ShineConfig::new().with_refine(Some(deq_core::ImplicitConfig::new()));
    [
        config(SolverConfig::anderson(), GradientConfig::OneStep),
        config(SolverConfig::anderson(), implicit(SolverConfig::anderson())),
        config(
            SolverConfig::anderson(),
            GradientConfig::Neumann(NeumannGradientConfig::new()),
        ),
        config(broyden(), GradientConfig::Shine(refined)),
    ]
}

#[test]
fn a_term_has_the_gradient_that_it_has_alone() {
    let device = device();
    for by_hand in [true, false] {
        let mut cell = Cell::new(true, &device);
        cell.by_hand = by_hand;
        let inputs = inputs(&device);
        for config in strategies() {
            let of = |loss: Tensor<1>| gradients(&cell, &inputs, loss);
            let solve = || solve(&config, &cell, &inputs);
            let of_layer = of(loss(&solve().output, &device));
            let z = solve().z;
            let of_term = of(total(&Evaluation::at(&cell, &inputs, &z)));

            let out = solve();
            let evaluation = out.evaluation.as_ref().expect("in training");
            assert_eq!(values(&evaluation.z()), values(&z));
            let both = of(loss(&out.output, &device) + total(evaluation));
            let expected: Vec<Vec<f64>> = (of_layer.iter().zip(&of_term))
                .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect())
                .collect();
            // A difference of close points leaves ten digits, of which both sides lose the same.
            let close = |a: [Vec<f64>; 5], b: &[Vec<f64>; 5], what| {
                assert_gradients(&a, b, 1e-11, what);
            };
            close(both, &expected.try_into().unwrap(), "both");

            // A term by itself, whose layer has no cotangent, and one that nothing reads.
            let out = solve();
            close(of(total(&out.evaluation.unwrap())), &of_term, "the term");
            let out = solve();
            let _unread = total(&out.evaluation.unwrap());
            close(of(loss(&out.output, &device)), &of_layer, "the layer");
        }
    }
}

#[test]
fn a_term_alone_has_the_gradient_of_the_recorded_number() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let z = numbers([BATCH, DIM], 8, 1.0, &plain_device());
    let norms = |fz: Tensor<2>| fz.square().sum_dim(1).squeeze_dim::<1>(1);
    let recorded = norms(cell.forward(z.clone(), &inputs));
    let value = recorded.clone().inner();
    let expected = gradients(&cell, &inputs, recorded.sum().square());
    let evaluation = Evaluation::at(&cell, &inputs, &z);
    let deferred = evaluation.recorded(value.clone(), move |at| norms(at.call(at.z())));
    let actual = gradients(&cell, &inputs, deferred.sum().square());
    assert_gradients(&actual, &expected, 1e-13, "deferred");

    // Without anything to differentiate it is the value.
    let plain = Evaluation::at(&cell.valid(), &inputs.without_autodiff(), &z);
    let same = plain.recorded(value, |_| unreachable!("nothing is differentiated"));
    assert!(!same.is_tracked());
}

#[test]
fn only_layers_that_record_one_evaluation_have_it() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let exact = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()));
    assert!(solve(&exact, &cell, &inputs).evaluation.is_some());
    let plain = solve(&exact, &cell.valid(), &inputs.without_autodiff());
    assert!(
        plain.evaluation.is_some(),
        "the start is on an autodiff device"
    );
    let start = Tensor::zeros([BATCH, DIM], &plain_device());
    let context = inputs.without_autodiff();
    let held_out = exact.build().unwrap();
    let held_out = held_out.forward(&cell.valid(), &context, start);
    assert!(held_out.evaluation.is_none());
    let phantom = GradientConfig::Phantom(PhantomConfig::new());
    let phantom = config(SolverConfig::anderson(), phantom);
    assert!(solve(&phantom, &cell, &inputs).evaluation.is_none());
}

/// Calls of a cell.
#[derive(Debug, Default)]
struct Calls {
    forward: AtomicUsize,
    pullback: AtomicUsize,
    tangent: AtomicUsize,
}

impl Calls {
    fn get(&self) -> [usize; 3] {
        [&self.forward, &self.pullback, &self.tangent].map(|count| count.load(Ordering::Relaxed))
    }
}

#[derive(Module, Debug)]
struct Counted<C: Module> {
    cell: C,
    #[module(skip)]
    calls: Arc<Calls>,
}

impl<C: EquilibriumCell + ModuleDisplay> EquilibriumCell for Counted<C> {
    type State = C::State;
    type Context = C::Context;

    fn forward(&self, z: C::State, context: &C::Context) -> C::State {
        self.calls.forward.fetch_add(1, Ordering::Relaxed);
        self.cell.forward(z, context)
    }

    fn pullback(&self, z: C::State, context: &C::Context) -> Option<Pullback<C::State>> {
        self.calls.pullback.fetch_add(1, Ordering::Relaxed);
        self.cell.pullback(z, context)
    }

    fn tangent(
        &self,
        z: C::State,
        direction: C::State,
        context: &C::Context,
    ) -> Option<(C::State, C::State)> {
        self.calls.tangent.fetch_add(1, Ordering::Relaxed);
        self.cell.tangent(z, direction, context)
    }
}

#[test]
fn products_terms_and_layer_share_their_evaluations() {
    let device = device();
    let mut cell = Cell::new(true, &device);
    cell.by_hand = true;
    let cell = Counted {
        cell,
        calls: Arc::default(),
    };
    let inputs = inputs(&device);
    let exact = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()));
    let layer = exact.build().unwrap();
    let run = |penalised: bool| {
        let before = cell.calls.get();
        let start = Tensor::zeros([BATCH, DIM], &device);
        let out = layer.forward(&cell, &inputs, start);
        let solved = out.solve.unwrap().nfe;
        assert_eq!(out.nfe, solved + 1);
        let mut total = loss(&out.output, &device);
        if penalised {
            let evaluation = out.evaluation.unwrap();
            let direction = evaluation.vjp(numbers([BATCH, DIM], 9, 1.0, &plain_device()));
            let value = direction.clone().square().sum_dim(1).squeeze_dim(1);
            let term = evaluation.recorded(value, move |at| {
                let tangent = at.tangent(direction.clone()).expect("it has one");
                tangent.square().sum_dim(1).squeeze_dim(1)
            });
            total = total + term.sum();
        }
        total.backward();
        let [forward, pullback, tangent] = cell.calls.get();
        [
            forward - before[0] - solved,
            pullback - before[1],
            tangent - before[2],
        ]
    };
    assert_eq!(run(false), [1, 1, 0]);
    // The tangent brings the layer's evaluation along.
    assert_eq!(run(true), [0, 1, 1]);
}

/// A cell whose tangent forgets to record its value.
#[derive(Module, Debug)]
struct Forgetful {
    cell: Cell,
}

impl EquilibriumCell for Forgetful {
    type State = Tensor<2>;
    type Context = Inputs;

    fn forward(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
        self.cell.forward(z, inputs)
    }

    fn tangent(
        &self,
        z: Tensor<2>,
        direction: Tensor<2>,
        inputs: &Inputs,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        let (fz, along) = self.cell.tangent(z, direction, inputs)?;
        Some((fz.inner(), along))
    }
}

#[test]
fn a_tangent_whose_value_is_not_recorded_is_found() {
    let device = device();
    let mut cell = Cell::new(true, &device);
    cell.by_hand = true;
    let inputs = inputs(&device);
    let state = |seed| numbers([BATCH, DIM], seed, 1.0, &plain_device());
    let right = check::tangent_error(&cell, &inputs, state(6), state(7), 2);
    assert!(right.unwrap() < tolerance(1e-12));
    let forgetful = Forgetful { cell };
    let wrong = check::tangent_error(&forgetful, &inputs, state(6), state(7), 2);
    assert!(wrong.unwrap() > 0.9);
}

/// A cell with a parameter that it does not read.
#[derive(Module, Debug)]
struct Wasteful {
    cell: Cell,
    spare: Param<Tensor<2>>,
}

impl EquilibriumCell for Wasteful {
    type State = Tensor<2>;
    type Context = Inputs;

    fn forward(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
        self.cell.forward(z, inputs)
    }
}

#[test]
fn a_parameter_that_is_not_read_has_no_gradient() {
    let device = device();
    let cell = Wasteful {
        cell: Cell::new(true, &device),
        spare: Param::from_tensor(numbers([2, 2], 1, 1.0, &device)),
    };
    let inputs = inputs(&device);
    for config in strategies() {
        let start = Tensor::<2>::zeros([BATCH, DIM], &device);
        let out = config.build().unwrap().forward(&cell, &inputs, start);
        let grads = loss(&out.output, &device).backward();
        assert!(cell.cell.w.val().grad(&grads).is_some());
        assert!(cell.spare.val().grad(&grads).is_none());
    }
}

#[test]
fn frozen_layers_and_trained_ones_serve_where_the_tape_is_checkpointed() {
    let device = device().gradient_checkpointing();
    let trained = Cell::new(true, &device);
    let inputs = inputs(&device);
    let readout = numbers([DIM, 2], 3, 1.0, &device).require_grad();
    let frozen = trained.clone().no_grad();
    let context = inputs.without_autodiff();
    for config in strategies() {
        let deq = config.build().unwrap();
        let start = || Tensor::<2>::zeros([BATCH, DIM], &device);
        let out = deq.forward(&frozen, &context, start());
        let grads = out.output.matmul(readout.clone()).sum().backward();
        assert!(readout.grad(&grads).is_some());
        let out = deq.forward(&trained, &inputs, start());
        let read = out.output.clone().matmul(readout.clone()).sum();
        let term = out
            .evaluation
            .unwrap()
            .recorded(Tensor::zeros([BATCH], &plain_device()), |at| {
                at.call(at.z()).sum_dim(1).squeeze_dim(1)
            });
        let grads = (read + term.sum()).backward();
        assert!(readout.grad(&grads).is_some());
        assert!(trained.w.val().grad(&grads).is_some());
    }
}
