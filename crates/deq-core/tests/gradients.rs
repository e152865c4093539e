//! Gradients across an equilibrium against closed forms, unrolls, finite differences and recorded numbers, in f64.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::solvers::{
    AndersonConfig, BroydenConfig, PicardConfig, SolveStatus, SolverConfig, StopConfig,
};
use deq_core::{
    CellContext, DeqConfig, EquilibriumCell, FrozenCell, GradientConfig, ImplicitConfig, Pullback,
    TensorMap, UnrolledConfig, unroll,
};
use deq_testkit::{
    assert_close, f64_device, finite_difference, fixture, relative_error, solve_dense, values,
};

const BATCH: usize = 3;
const DIM: usize = 5;
const INPUT: usize = 4;

/// `f(z) = act(z W + x U + b) + e` with `act` tanh or the identity.
#[derive(Module, Debug)]
struct Cell {
    w: Param<Tensor<2>>,
    u: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
    #[module(skip)]
    tanh: bool,
    #[module(skip)]
    by_hand: bool,
}

#[derive(Clone, Debug)]
struct Inputs {
    x: Tensor<2>,
    e: Tensor<2>,
}

impl CellContext for Inputs {
    fn map_tensors<M: TensorMap>(&self, map: &mut M) -> Self {
        Self {
            x: self.x.map_tensors(map),
            e: self.e.map_tensors(map),
        }
    }
}

impl Cell {
    fn new(tanh: bool, device: &Device) -> Self {
        Self {
            w: Param::from_tensor(numbers([DIM, DIM], 1, 0.35, device)),
            u: Param::from_tensor(numbers([INPUT, DIM], 2, 1.0, device)),
            b: Param::from_tensor(numbers([1, DIM], 3, 0.5, device).squeeze_dim(0)),
            tanh,
            by_hand: false,
        }
    }

    fn linear(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
        z.matmul(self.w.val()) + inputs.x.clone().matmul(self.u.val()) + self.b.val().unsqueeze()
    }
}

impl EquilibriumCell for Cell {
    type Context = Inputs;

    fn forward(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
        let y = self.linear(z, inputs);
        let y = if self.tanh { y.tanh() } else { y };
        y + inputs.e.clone()
    }

    fn pullback(&self, z: &Tensor<2>, inputs: &Inputs) -> Option<Pullback> {
        if !self.by_hand {
            return None;
        }
        let y = self.linear(z.clone(), inputs).tanh();
        let slope = y.square().neg() + 1.0;
        let w = self.w.val().inner();
        Some(Box::new(move |u| {
            (u * slope.clone()).matmul(w.clone().transpose())
        }))
    }
}

/// Fixed numbers in (-scale, scale).
fn numbers(shape: [usize; 2], seed: u64, scale: f64, device: &Device) -> Tensor<2> {
    let count = shape[0] * shape[1];
    let values: Vec<f64> = (0..count)
        .map(|i| ((i as f64 + 1.0) * 1.618 * (seed as f64 + 2.3)).sin() * scale)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn inputs(device: &Device) -> Inputs {
    Inputs {
        x: numbers([BATCH, INPUT], 4, 1.0, device).require_grad(),
        e: Tensor::zeros([BATCH, DIM], device).require_grad(),
    }
}

fn loss_weight(device: &Device) -> Tensor<2> {
    numbers([BATCH, DIM], 5, 1.0, device)
}

fn tight() -> StopConfig {
    StopConfig::new()
        .with_abs_tol(1e-13)
        .with_rel_tol(0.0)
        .with_max_steps(500)
}

fn config(forward: SolverConfig, gradient: GradientConfig) -> DeqConfig {
    DeqConfig::new()
        .with_solver(forward)
        .with_stop(tight())
        .with_gradient(gradient)
}

fn implicit(solver: SolverConfig) -> GradientConfig {
    GradientConfig::Implicit(
        ImplicitConfig::new()
            .with_solver(solver.into())
            .with_stop(tight()),
    )
}

fn all_solvers() -> [SolverConfig; 3] {
    [
        PicardConfig::new().into(),
        AndersonConfig::new().into(),
        BroydenConfig::new().with_history(60).into(),
    ]
}

/// Gradients with respect to x, e, W, U, b.
fn gradients(cell: &Cell, inputs: &Inputs, loss: Tensor<1>) -> [Vec<f64>; 5] {
    let grads = loss.backward();
    [
        values(&inputs.x.grad(&grads).expect("x is tracked")),
        values(&inputs.e.grad(&grads).expect("e is tracked")),
        values(&cell.w.val().grad(&grads).expect("W is tracked")),
        values(&cell.u.val().grad(&grads).expect("U is tracked")),
        values(&cell.b.val().grad(&grads).expect("b is tracked")),
    ]
}

const NAMES: [&str; 5] = ["x", "e", "W", "U", "b"];

fn assert_gradients(actual: &[Vec<f64>; 5], expected: &[Vec<f64>; 5], tolerance: f64, what: &str) {
    for ((actual, expected), name) in actual.iter().zip(expected).zip(NAMES) {
        assert_close(actual, expected, tolerance, &format!("{what}, d{name}"));
    }
}

fn loss(z: &Tensor<2>, device: &Device) -> Tensor<1> {
    (z.clone().square() * loss_weight(device)).sum()
}

/// The gradients by the implicit function theorem, with a dense solve per sample.
fn closed_form(cell: &Cell, inputs: &Inputs) -> [Vec<f64>; 5] {
    let plain = cell.valid();
    let context = inputs.without_autodiff();
    let device = context.x.device();
    let deq = config(SolverConfig::anderson(), GradientConfig::OneStep);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let z = deq.build().unwrap().forward(&plain, &context, z0).z;

    let slope = if cell.tanh {
        plain.linear(z.clone(), &context).tanh().square().neg() + 1.0
    } else {
        Tensor::ones([BATCH, DIM], &device)
    };
    let g = values(&(z.clone() * loss_weight(&device) * 2.0));
    let (w, s) = (values(&plain.w.val()), values(&slope));
    let mut u = Vec::new();
    for sample in 0..BATCH {
        // df_j/dz_i = slope_j W_ij, so that (I - J^T) u = g has the matrix I - W_ij slope_j.
        let slope = &s[sample * DIM..(sample + 1) * DIM];
        let matrix: Vec<f64> = (0..DIM * DIM)
            .map(|k| f64::from(u8::from(k / DIM == k % DIM)) - w[k] * slope[k % DIM])
            .collect();
        u.extend(solve_dense(&matrix, &g[sample * DIM..(sample + 1) * DIM]));
    }
    let u = Tensor::<2>::from_data(TensorData::new(u, [BATCH, DIM]), &device);
    let us = u.clone() * slope;
    [
        values(&us.clone().matmul(plain.u.val().transpose())),
        values(&u),
        values(&z.transpose().matmul(us.clone())),
        values(&context.x.transpose().matmul(us.clone())),
        values(&us.sum_dim(0)),
    ]
}

#[test]
fn implicit_gradients_equal_the_closed_form_with_every_pair_of_solvers() {
    let device = f64_device().autodiff();
    for tanh in [false, true] {
        let cell = Cell::new(tanh, &device);
        let inputs = inputs(&device);
        let expected = closed_form(&cell, &inputs);
        for forward in all_solvers() {
            for backward in all_solvers() {
                let deq = config(forward.clone(), implicit(backward)).build().unwrap();
                let z0 = Tensor::zeros([BATCH, DIM], &device);
                let out = deq.forward(&cell, &inputs, z0);
                assert!(out.solve.as_ref().unwrap().all_converged());
                let actual = gradients(&cell, &inputs, loss(&out.z, &device));
                assert_gradients(&actual, &expected, 1e-8, "implicit against closed form");
                assert!(out.backward.solve().unwrap().all_converged());
            }
        }
    }
}

#[test]
fn implicit_gradients_equal_a_long_unroll() {
    let device = f64_device().autodiff();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let z0 = Tensor::zeros([BATCH, DIM], &device).require_grad();
    let unrolled = unroll(&cell, &inputs, z0.clone(), 150);
    let grads = loss(&unrolled.z, &device).backward();
    let start = values(&z0.grad(&grads).unwrap());
    assert!(
        start.iter().all(|g| g.abs() < 1e-8),
        "the start is forgotten"
    );

    let unrolled = unroll(&cell, &inputs, z0.clone(), 150);
    let expected = gradients(&cell, &inputs, loss(&unrolled.z, &device));
    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()));
    let out = deq.build().unwrap().forward(&cell, &inputs, z0);
    assert_close(&values(&out.z), &values(&unrolled.z), 1e-10, "z*");
    let actual = gradients(&cell, &inputs, loss(&out.z, &device));
    assert_gradients(&actual, &expected, 1e-6, "implicit against unroll");
}

#[test]
fn the_unrolled_strategy_is_the_unroll() {
    let device = f64_device().autodiff();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let gradient = GradientConfig::Unrolled(UnrolledConfig::new(3));
    let deq = config(SolverConfig::anderson(), gradient).build().unwrap();
    let out = deq.forward(&cell, &inputs, z0.clone());
    assert_eq!((out.nfe, out.solve.is_none()), (3, true));
    let actual = gradients(&cell, &inputs, loss(&out.z, &device));
    let mut z = z0;
    for _ in 0..3 {
        z = cell.forward(z, &inputs);
    }
    let expected = gradients(&cell, &inputs, loss(&z, &device));
    assert_gradients(&actual, &expected, 1e-14, "unrolled");
}

#[test]
fn the_one_step_gradient_is_that_of_one_transition_at_the_equilibrium() {
    let device = f64_device().autodiff();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let deq = config(SolverConfig::anderson(), GradientConfig::OneStep);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let out = deq.build().unwrap().forward(&cell, &inputs, z0);
    let transition = cell.forward(out.z_star.clone(), &inputs);
    let expected = gradients(&cell, &inputs, loss(&transition, &device));
    let actual = gradients(&cell, &inputs, loss(&out.z, &device));
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
    let device = f64_device();
    let tracked = device.clone().autodiff();
    let cell = Cell::new(true, &tracked);
    let inputs = inputs(&tracked);
    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()))
        .build()
        .unwrap();
    let z0 = Tensor::zeros([BATCH, DIM], &tracked);
    let out = deq.forward(&cell, &inputs, z0);
    let actual = gradients(&cell, &inputs, loss(&out.z, &tracked));

    let plain = cell.valid();
    let solved = |cell: &Cell| {
        let z0 = Tensor::zeros([BATCH, DIM], &device);
        let out = deq.forward(cell, &inputs.without_autodiff(), z0);
        loss(&out.z, &device).into_scalar::<f64>()
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
    let device = f64_device().autodiff();
    let mut cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let z = numbers([BATCH, DIM], 8, 1.0, &f64_device());
    let u = numbers([BATCH, DIM], 9, 1.0, &f64_device());
    let auto = values(&FrozenCell::new(&cell, &inputs).linearize(z.clone())(
        u.clone(),
    ));
    cell.by_hand = true;
    let hand = values(&FrozenCell::new(&cell, &inputs).linearize(z)(u));
    assert_close(&hand, &auto, 1e-14, "pullback");

    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()));
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let out = deq.build().unwrap().forward(&cell, &inputs, z0);
    let actual = gradients(&cell, &inputs, loss(&out.z, &device));
    assert_gradients(&actual, &closed_form(&cell, &inputs), 1e-8, "by hand");
}

#[test]
fn two_equilibria_in_sequence_and_one_used_twice_get_the_right_gradient() {
    let device = f64_device().autodiff();
    let first = Cell::new(true, &device);
    let mut second = Cell::new(true, &device);
    second.u = Param::from_tensor(numbers([DIM, DIM], 11, 0.8, &device));
    let inputs = inputs(&device);
    let zeros = || Tensor::<2>::zeros([BATCH, DIM], &device);
    let build = |gradient| config(SolverConfig::anderson(), gradient).build().unwrap();

    let total = |deq: &deq_core::Deq| {
        let one = deq.forward(&first, &inputs, zeros()).z;
        let next = Inputs {
            x: one.clone(),
            e: zeros(),
        };
        let two = deq.forward(&second, &next, zeros()).z;
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
fn evaluation_records_nothing_and_follows_its_own_stop_rule() {
    let device = f64_device().autodiff();
    let cell = Cell::new(true, &device);
    let inputs = inputs(&device);
    let deq = config(SolverConfig::anderson(), implicit(SolverConfig::anderson()))
        .with_eval_stop(Some(tight().with_max_steps(3)))
        .build()
        .unwrap();
    let plain = Tensor::zeros([BATCH, DIM], &f64_device());
    let out = deq.forward(&cell.valid(), &inputs.without_autodiff(), plain.clone());
    assert!(!out.z.is_tracked());
    assert_eq!(out.nfe, 3);
    // Parameters on the autodiff device make it training, whatever the start is.
    let out = deq.forward(&cell, &inputs, plain);
    assert!(out.z.is_tracked());
    assert_eq!(out.nfe, out.solve.unwrap().nfe + 1);
}

#[test]
fn an_adjoint_that_cannot_converge_says_so_and_gives_a_finite_gradient() {
    let device = f64_device().autodiff();
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
    let actual = gradients(&cell, &inputs, loss(&out.z, &device));
    assert!(actual.iter().flatten().all(|g| g.is_finite()));
    assert!(actual[2].iter().any(|g| *g != 0.0));
    let report = out.backward.solve().unwrap();
    assert_eq!(report.status, [SolveStatus::Diverged; BATCH]);
}

#[test]
fn recorded_gradients_of_the_original_hook_are_reproduced() {
    let Some(golden) = fixture("gradient_tanh") else {
        return;
    };
    let device = f64_device().autodiff();
    let tensor = |name: &str| golden.tensor::<2>(name, &device);
    let cell = Cell {
        // Recorded for z W^T + x U^T.
        w: Param::from_tensor(tensor("W").transpose()),
        u: Param::from_tensor(tensor("U").transpose()),
        b: Param::from_tensor(golden.tensor("b", &device)),
        tanh: true,
        by_hand: false,
    };
    let x = tensor("x").require_grad();
    let [batch, dim] = tensor("z_star").dims();
    let zeros = Tensor::<2>::zeros([batch, dim], &device);
    let inputs = Inputs {
        x,
        e: zeros.clone().require_grad(),
    };
    let weight = tensor("loss_weight");
    let transposed = |values: &[f64], rows: usize| -> Vec<f64> {
        let columns = values.len() / rows;
        (0..values.len())
            .map(|k| values[(k % rows) * columns + k / rows])
            .collect()
    };
    let input = inputs.x.dims()[1];
    for (gradient, prefix, tolerance) in [
        (implicit(SolverConfig::anderson()), "grad_exact", 1e-8),
        (GradientConfig::OneStep, "grad_one_step", 1e-8),
    ] {
        let deq = config(SolverConfig::anderson(), gradient).build().unwrap();
        let out = deq.forward(&cell, &inputs, zeros.clone());
        assert_close(&values(&out.z_star), golden.values("z_star"), 1e-10, "z*");
        let loss = (out.z.clone().square() * weight.clone()).sum();
        let actual = gradients(&cell, &inputs, loss);
        let recorded = |name: &str| golden.values(&format!("{prefix}.{name}"));
        assert_close(&actual[0], recorded("x"), tolerance, prefix);
        assert_close(
            &transposed(&actual[2], dim),
            recorded("W"),
            tolerance,
            prefix,
        );
        assert_close(
            &transposed(&actual[3], input),
            recorded("U"),
            tolerance,
            prefix,
        );
        assert_close(&actual[4], recorded("b"), tolerance, prefix);
        if prefix == "grad_exact" {
            assert_close(&actual[1], golden.values("adjoint_u"), tolerance, "u");
        }
    }
}

#[test]
fn misconfigured_layers_say_which_solve_is_wrong() {
    let message = |config: DeqConfig| config.build().unwrap_err().to_string();
    assert_eq!(
        message(DeqConfig::new().with_stop(StopConfig::new().with_max_steps(0))),
        "the forward solve is misconfigured: stop.max_steps is 0, but must be at least 1"
    );
    let stop = StopConfig::new().with_check_every(0);
    let gradient = GradientConfig::Implicit(ImplicitConfig::new().with_stop(stop));
    assert_eq!(
        message(DeqConfig::new().with_gradient(gradient)),
        "the backward solve is misconfigured: stop.check_every is 0, but must be at least 1"
    );
    let gradient = GradientConfig::Unrolled(UnrolledConfig::new(0));
    assert_eq!(
        message(DeqConfig::new().with_gradient(gradient)),
        "gradient.unrolled.steps is 0, but must be at least 1"
    );
}
