//! The implicit gradient against the closed form, a long unroll, finite differences and recorded
//! numbers.

use crate::support::*;
use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use deq_core::solvers::{BroydenConfig, SolveStatus, SolverConfig};
use deq_core::{
    CellContext, EquilibriumCell, FrozenCell, GradientConfig, ImplicitConfig, UnrolledConfig,
    unroll,
};
use deq_testkit::{assert_close, finite_difference, relative_error, values};

#[test]
fn implicit_gradients_equal_the_closed_form_with_every_pair_of_solvers() {
    let device = device();
    for tanh in [false, true] {
        let cell = Cell::new(tanh, &device);
        let inputs = inputs(&device);
        let expected = closed_form(&cell, &inputs);
        for forward in all_solvers() {
            for backward in all_linear_solvers() {
                let deq = config(forward.clone(), implicit(backward)).build().unwrap();
                let z0 = Tensor::zeros([BATCH, DIM], &device);
                let out = deq.forward(&cell, &inputs, z0);
                assert!(out.solve.as_ref().unwrap().all_converged());
                let actual = gradients(&cell, &inputs, loss(&out.output, &device));
                assert_gradients(&actual, &expected, 1e-8, "implicit against closed form");
                assert!(out.backward.solve().unwrap().all_converged());
            }
        }
    }
}

#[test]
fn implicit_gradients_equal_a_long_unroll() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let z0 = Tensor::zeros([BATCH, DIM], &device).require_grad();
    let unrolled = unroll(&cell, &inputs, z0.clone(), 150);
    let grads = loss(&unrolled.output, &device).backward();
    let start = values(&z0.grad(&grads).unwrap());
    assert!(
        start.iter().all(|g| g.abs() < 1e-8),
        "the start is forgotten"
    );

    let unrolled = unroll(&cell, &inputs, z0.clone(), 150);
    let expected = gradients(&cell, &inputs, loss(&unrolled.output, &device));
    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()));
    let out = deq.build().unwrap().forward(&cell, &inputs, z0);
    assert_close(
        &values(&out.output),
        &values(&unrolled.output),
        tolerance(1e-10),
        "z*",
    );
    let actual = gradients(&cell, &inputs, loss(&out.output, &device));
    assert_gradients(&actual, &expected, 1e-6, "implicit against unroll");
}

#[test]
fn the_unrolled_strategy_is_the_unroll() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let gradient = GradientConfig::Unrolled(UnrolledConfig::new(3));
    let deq = config(SolverConfig::anderson(), gradient).build().unwrap();
    let out = deq.forward(&cell, &inputs, z0.clone());
    assert_eq!((out.nfe, out.solve.is_none()), (3, true));
    let actual = gradients(&cell, &inputs, loss(&out.output, &device));
    let mut z = z0;
    for _ in 0..3 {
        z = cell.forward(z, &inputs);
    }
    let expected = gradients(&cell, &inputs, loss(&z, &device));
    assert_gradients(&actual, &expected, 1e-14, "unrolled");
}

#[test]
fn the_one_step_gradient_is_that_of_one_transition_at_the_equilibrium() {
    let device = device();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let deq = config(SolverConfig::anderson(), GradientConfig::OneStep);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let out = deq.build().unwrap().forward(&cell, &inputs, z0);
    let transition = cell.forward(out.z.clone(), &inputs);
    let expected = gradients(&cell, &inputs, loss(&transition, &device));
    let actual = gradients(&cell, &inputs, loss(&out.output, &device));
    assert_gradients(&actual, &expected, 1e-14, "one step");
    let exact = closed_form(&cell, &inputs);
    assert!(
        relative_error(&actual[2], &exact[2]) > 1e-3,
        "not the gradient"
    );
    assert!(out.backward.get().is_none());
}

#[test]
fn implicit_gradients_equal_finite_differences_of_the_solved_loss() {
    if single() {
        // Behind a solve to 1e-6, differences in f32 have no digit left.
        return;
    }
    let device = plain_device();
    let tracked = device.clone().autodiff();
    let cell = Cell::new(true, &tracked);
    let inputs = inputs(&tracked);
    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()))
        .build()
        .unwrap();
    let z0 = Tensor::zeros([BATCH, DIM], &tracked);
    let out = deq.forward(&cell, &inputs, z0);
    let actual = gradients(&cell, &inputs, loss(&out.output, &tracked));

    let plain = cell.valid();
    let solved = |cell: &Cell| {
        let z0 = Tensor::zeros([BATCH, DIM], &device);
        let out = deq.forward(cell, &inputs.without_autodiff(), z0);
        loss(&out.output, &device).into_scalar::<f64>()
    };
    let w = values(&plain.w.val());
    let expected = finite_difference(
        |w| {
            let mut moved = plain.clone();
            moved.w = Param::from_tensor(Tensor::from_data(
                TensorData::new(w.to_vec(), [DIM, DIM]),
                &device,
            ));
            solved(&moved)
        },
        &w,
    );
    assert_close(&actual[2], &expected, 1e-5, "dW against finite differences");
}

#[test]
fn a_hand_written_pullback_replaces_automatic_differentiation() {
    let device = device();
    let mut cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let z = numbers([BATCH, DIM], 8, 1.0, &plain_device());
    let u = numbers([BATCH, DIM], 9, 1.0, &plain_device());
    let auto = values(&FrozenCell::new(&cell, &inputs, &z).linearize(z.clone())(
        u.clone(),
    ));
    cell.by_hand = true;
    let hand = values(&FrozenCell::new(&cell, &inputs, &z).linearize(z)(u));
    assert_close(&hand, &auto, 1e-14, "pullback");

    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()));
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let out = deq.build().unwrap().forward(&cell, &inputs, z0);
    let actual = gradients(&cell, &inputs, loss(&out.output, &device));
    assert_gradients(&actual, &closed_form(&cell, &inputs), 1e-8, "by hand");
}

#[test]
fn two_equilibria_in_sequence_and_one_used_twice_get_the_right_gradient() {
    let device = device();
    let first = Cell::new(true, &device);
    let mut second = Cell::new(true, &device);
    second.u = Param::from_tensor(numbers([DIM, DIM], 11, 0.8, &device));
    let inputs = inputs(&device);
    let zeros = || Tensor::<2>::zeros([BATCH, DIM], &device);
    let build = |gradient| config(SolverConfig::anderson(), gradient).build().unwrap();

    let total = |deq: &deq_core::Deq| {
        let one = deq.forward(&first, &inputs, zeros()).output;
        let next = Inputs {
            x: one.clone(),
            e: zeros(),
        };
        let two = deq.forward(&second, &next, zeros()).output;
        // The first equilibrium reaches the loss by two ways, the second in two terms.
        loss(&one, &device) + loss(&two, &device) + two.sum().mul_scalar(0.3)
    };
    let exact = build(implicit(SolverConfig::anderson()));
    let actual = gradients(&first, &inputs, total(&exact));
    let long = build(GradientConfig::Unrolled(UnrolledConfig::new(120)));
    let expected = gradients(&first, &inputs, total(&long));
    assert_gradients(&actual, &expected, 1e-6, "two equilibria");
}

#[test]
fn an_adjoint_that_cannot_converge_says_so_and_gives_a_finite_gradient() {
    let device = device();
    let mut cell = Cell::new(false, &device);
    cell.w = Param::from_tensor(numbers([DIM, DIM], 1, 3.0, &device));
    let inputs = inputs(&device);
    let backward = GradientConfig::Implicit(
        ImplicitConfig::new()
            .with_solver(SolverConfig::picard().into())
            .with_stop(tight()),
    );
    // The forward solve succeeds by Broyden; plain iteration of the adjoint expands.
    let deq = config(BroydenConfig::new().with_history(60).into(), backward);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let out = deq.build().unwrap().forward(&cell, &inputs, z0);
    assert!(out.solve.as_ref().unwrap().all_converged());
    let actual = gradients(&cell, &inputs, loss(&out.output, &device));
    assert!(actual.iter().flatten().all(|g| g.is_finite()));
    assert!(actual[2].iter().any(|g| *g != 0.0));
    let report = out.backward.solve().unwrap();
    assert_eq!(report.status, [SolveStatus::Diverged; BATCH]);
}
