//! Maps in 16-bit floats, in a process whose tensors are f32.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use burn::module::{Module, Param, RunningState};
use burn::tensor::{DType, Device, Tensor, TensorData};
use deq_core::solvers::{
    BroydenConfig, FixedPointSolver, Iterate, LinearSolverConfig, ReversibleConfig, SolverConfig,
    StopConfig,
};
use deq_core::{
    Deq, DeqConfig, EquilibriumCell, FrozenCell, GradientConfig, ImplicitConfig, Lowered,
    NeumannGradientConfig, PhantomConfig, Precision, Pullback, ReversibleGradientConfig,
    ShineConfig, UnrolledConfig, check,
};
use deq_testkit::{assert_close, values};
use std::sync::Arc;

const BATCH: usize = 3;
const DIM: usize = 4;
const INPUT: usize = 3;
const PRECISIONS: [Precision; 2] = [Precision::Bf16, Precision::F16];

/// `f(z) = tanh(z W + x U + b)` on a state of two parts, with a buffer that is one.
#[derive(Module, Debug)]
struct Cell {
    w: Param<Tensor<2>>,
    u: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
    one: RunningState<Tensor<1>>,
    #[module(skip)]
    by_hand: bool,
}

type State = (Tensor<2>, Tensor<3>);

impl Cell {
    fn new(device: &Device) -> Self {
        Self {
            w: Param::from_tensor(numbers([DIM, DIM], 1, 0.12, device)),
            u: Param::from_tensor(numbers([INPUT, DIM], 2, 0.3, device)),
            b: Param::from_tensor(numbers([1, DIM], 3, 0.1, device).squeeze_dim(0)),
            one: RunningState::new(Tensor::ones([1], device)),
            by_hand: false,
        }
    }

    fn rows(&self, z: State, x: &Tensor<2>) -> Tensor<2> {
        let one = self.one.value().unsqueeze();
        let z = join(z) * one;
        (z.matmul(self.w.val()) + x.clone().matmul(self.u.val()) + self.b.val().unsqueeze()).tanh()
    }
}

fn join((a, b): State) -> Tensor<2> {
    Tensor::cat(vec![a, b.squeeze_dim(1)], 1)
}

fn split(rows: Tensor<2>) -> State {
    let half = DIM / 2;
    let (a, b) = (rows.clone().narrow(1, 0, half), rows.narrow(1, half, half));
    (a, b.unsqueeze_dim(1))
}

impl EquilibriumCell for Cell {
    type State = State;
    type Context = Tensor<2>;

    fn forward(&self, z: State, x: &Tensor<2>) -> State {
        split(self.rows(z, x))
    }

    fn pullback(&self, z: State, x: &Tensor<2>) -> Option<Pullback<State>> {
        if !self.by_hand {
            return None;
        }
        let slope = self.rows(z, x).square().neg() + 1.0;
        let w = self.w.val().inner();
        Some(Box::new(move |u| {
            split((join(u) * slope.clone()).matmul(w.clone().transpose()))
        }))
    }

    fn tangent(&self, z: State, direction: State, x: &Tensor<2>) -> Option<(State, State)> {
        let fz = self.rows(z, x);
        let slope = fz.clone().square().neg() + 1.0;
        let along = slope * join(direction).matmul(self.w.val());
        Some((split(fz), split(along)))
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

fn device() -> Device {
    Device::flex().autodiff()
}

fn input(device: &Device) -> Tensor<2> {
    numbers([BATCH, INPUT], 4, 0.5, device)
}

fn zeros(device: &Device) -> State {
    split(Tensor::zeros([BATCH, DIM], device))
}

/// Steps enough for f32, and no end before: what a 16-bit map can give is reached long before.
fn stop() -> StopConfig {
    StopConfig::new()
        .with_rel_tol(0.0)
        .with_abs_tol(1e-7)
        .with_max_steps(20)
}

fn layer(gradient: &GradientConfig, precision: Option<Precision>) -> Deq {
    let solver = match gradient {
        GradientConfig::Reversible(_) => ReversibleConfig::new().with_damping(0.5).into(),
        GradientConfig::Shine(_) => BroydenConfig::new().into(),
        _ => SolverConfig::anderson(),
    };
    let config = DeqConfig::new()
        .with_solver(solver)
        .with_stop(stop())
        .with_gradient(gradient.clone())
        .with_precision(precision);
    config.build().unwrap()
}

fn every_gradient() -> Vec<GradientConfig> {
    let implicit = |solver: LinearSolverConfig| {
        let stop = stop().with_abs_tol(0.0).with_rel_tol(1e-6);
        ImplicitConfig::new().with_solver(solver).with_stop(stop)
    };
    let phantom = PhantomConfig::new().with_steps(20).with_damping(1.0);
    let shine = ShineConfig::new().with_refine(Some(implicit(SolverConfig::anderson().into())));
    vec![
        GradientConfig::Implicit(implicit(SolverConfig::anderson().into())),
        GradientConfig::Implicit(implicit(LinearSolverConfig::gmres())),
        GradientConfig::OneStep,
        GradientConfig::Neumann(NeumannGradientConfig::new().with_terms(20)),
        GradientConfig::Phantom(phantom.clone()),
        GradientConfig::Phantom(phantom.with_stored_states(Some(4))),
        GradientConfig::Shine(shine),
        GradientConfig::Reversible(ReversibleGradientConfig::new()),
        GradientConfig::Unrolled(UnrolledConfig::new(20)),
        GradientConfig::Unrolled(UnrolledConfig::new(20).with_stored_states(Some(4))),
    ]
}

/// The equilibrium and the gradients with respect to x, W, U and b, all of which are f32, of a loss
/// that weighs the parts of the state so.
fn outcome(deq: &Deq, by_hand: bool, weights: [f64; 2]) -> Vec<(&'static str, Vec<f64>)> {
    let device = device();
    let mut cell = Cell::new(&device);
    cell.by_hand = by_hand;
    let x = input(&device).require_grad();
    let out = deq.forward(&cell, &x, zeros(&device));
    let output = join(out.output);
    assert_eq!(output.dtype(), DType::F32);
    // The buffer is the cell's own, as it was.
    assert_eq!(cell.one.value().dtype(), DType::F32);
    let loss_scale = weights[0].max(weights[1]);
    let (a, b) = split(numbers([BATCH, DIM], 5, 1.0, &device));
    let weight = join((a * weights[0], b * weights[1]));
    let grads = (output.clone().square() * weight).sum().backward();
    let mut outcome = vec![("z", values(&output))];
    let mut push = |name, grad: Option<Vec<f64>>| outcome.push((name, grad.unwrap()));
    let read = |grad: Tensor<2>| {
        assert_eq!(grad.dtype(), DType::F32);
        values(&(grad / loss_scale))
    };
    push("x", x.grad(&grads).map(read));
    push("W", cell.w.val().grad(&grads).map(read));
    push("U", cell.u.val().grad(&grads).map(read));
    let b = cell.b.val().grad(&grads);
    push("b", b.map(|grad| read(grad.unsqueeze())));
    outcome
}

/// By the largest absolute value.
fn distance(actual: &[f64], expected: &[f64]) -> f64 {
    let pairs = actual.iter().zip(expected);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_equilibrium_is_that_of_f32_within_the_rounding_of_the_map() {
    let device = device();
    let cell = Cell::new(&device).valid();
    let x = input(&device).inner();
    let solve = |precision| {
        let deq = layer(&GradientConfig::OneStep, precision);
        deq.forward(&cell, &x, zeros(&x.device()))
    };
    // In the maximum norm, with terms of `z W + x U + b` whose absolute values add up to S: five
    // roundings of relative size r on any way to the argument of tanh (both factors, the product,
    // two sums), which tanh does not enlarge, and two of values below |z| (of z times the buffer,
    // and the result) move f by (5 S + 2 |z|) r at most; its fixed point by 1 / (1 - L) of that.
    let exact = values(&join(solve(None).z));
    let largest = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
    let contraction = largest(values(&cell.w.val().abs().sum_dim(0)));
    let z = largest(exact.iter().map(|z| z.abs()).collect());
    let inputs = x.clone().abs().matmul(cell.u.val().abs()) + cell.b.val().abs().unsqueeze();
    let sum = contraction * z + largest(values(&inputs));
    assert!(contraction < 0.5, "{contraction}");
    for precision in PRECISIONS {
        let rounding = precision.rounding();
        let bound = (5.0 * sum + 2.0 * z) * rounding / (1.0 - contraction);
        let error = distance(&values(&join(solve(Some(precision)).z)), &exact);
        // It is a 16-bit map that was solved.
        assert!(error > 0.01 * rounding, "{precision:?}: {error:e}");
        assert!(error < bound, "{precision:?}: {error:e} exceeds {bound:e}");
    }
}

#[test]
fn every_gradient_is_that_of_f32_within_rounding_and_in_f32() {
    // Gradients are made of the state, the slopes and the adjoint. About twenty roundings enter
    // them, independent of one another, and solves enlarge them by 1 / (1 - L) <= 2.
    let roundings = 20.0_f64.sqrt() * 2.0;
    for (index, gradient) in every_gradient().iter().enumerate() {
        let by_hand = index == 0;
        let exact = outcome(&layer(gradient, None), by_hand, [1.0; 2]);
        // Cotangents that f16 could not tell from 0 are no others, nor are large ones.
        for (precision, loss_scale) in [Precision::Bf16, Precision::F16, Precision::F16]
            .into_iter()
            .zip([1.0, 2.0_f64.powi(-30), 2.0_f64.powi(20)])
        {
            let actual = outcome(&layer(gradient, Some(precision)), by_hand, [loss_scale; 2]);
            for ((name, actual), (_, exact)) in actual.iter().zip(&exact) {
                let what = format!("{gradient:?} in {precision:?}, {name}");
                assert_close(actual, exact, roundings * precision.rounding(), &what);
            }
        }
    }
}

#[test]
fn a_part_of_the_state_that_the_loss_leaves_out_or_hardly_reads_spoils_no_other() {
    // As above.
    let tolerance = 20.0_f64.sqrt() * 2.0 * Precision::F16.rounding();
    let gradients = every_gradient();
    for weights in [[1e-9, 0.0], [0.0, 1e-9], [1.0, 1e-12], [1e-12, 1.0]] {
        // One that is solved for, with and without a pullback, and those that multiply by the
        // cell many times.
        for (index, by_hand) in [(0, false), (0, true), (7, false), (9, false)] {
            let gradient = &gradients[index];
            let exact = outcome(&layer(gradient, None), by_hand, weights);
            let actual = outcome(&layer(gradient, Some(Precision::F16)), by_hand, weights);
            for ((name, actual), (_, exact)) in actual.iter().zip(&exact) {
                let what = format!("{gradient:?} by {weights:?}, {name}");
                assert_close(actual, exact, tolerance, &what);
            }
        }
    }
}

/// Plain iteration that sees f32 only.
#[derive(Debug)]
struct Probe;

impl FixedPointSolver for Probe {
    type State = ();

    fn name(&self) -> &'static str {
        "probe"
    }

    fn init(&self, _first: &Iterate) {}

    fn step(&self, at: &Iterate, _state: &mut ()) -> Tensor<2> {
        assert_eq!(at.z().dtype(), DType::F32);
        assert_eq!(at.residual().dtype(), DType::F32);
        at.z().clone() + at.residual().clone()
    }
}

#[test]
fn a_solver_sees_rows_of_f32_and_the_cell_16_bits() {
    /// Gives its parameter back, in the type in which it sees it.
    #[derive(Module, Debug)]
    struct Constant {
        value: Param<Tensor<2>>,
        #[module(skip)]
        seen: DType,
    }

    impl EquilibriumCell for Constant {
        type State = Tensor<2>;
        type Context = Option<Tensor<2>>;

        fn forward(&self, z: Tensor<2>, context: &Option<Tensor<2>>) -> Tensor<2> {
            let context = context.clone().unwrap();
            for tensor in [&z, &context, &self.value.val()] {
                assert_eq!(tensor.dtype(), self.seen);
            }
            z.zeros_like() + self.value.val() + context
        }
    }

    for precision in PRECISIONS {
        for device in [device(), Device::flex()] {
            let third = Tensor::<2>::full([1, 2], 1.0 / 3.0, &device);
            let cell = Constant {
                value: Param::from_tensor(third.clone()),
                seen: precision.dtype(),
            };
            let deq = layer(&GradientConfig::OneStep, Some(precision));
            let deq = deq.with_solver(Arc::new(Probe)).unwrap();
            let out = deq.forward(&cell, &Some(third.zeros_like()), third.zeros_like());
            assert!(out.solve.unwrap().all_converged());
            let rounded = third.clone().cast(precision.dtype());
            assert_eq!(values(&out.z), values(&rounded));
            assert_eq!(values(&cell.value.val()), values(&third));
        }
    }
}

#[test]
fn a_state_of_f64_gets_f64_back() {
    let device = device();
    let double = |x: Tensor<2>| x.inner().cast(DType::F64).autodiff();
    let cell = Cell::new(&device);
    let cell = Cell {
        w: Param::from_tensor(double(cell.w.val())),
        u: Param::from_tensor(double(cell.u.val())),
        b: Param::from_tensor(cell.b.val().inner().cast(DType::F64).autodiff()),
        one: RunningState::new(cell.one.value().cast(DType::F64)),
        by_hand: false,
    };
    let x = double(input(&device));
    let z0 = || split(double(Tensor::zeros([BATCH, DIM], &device)));
    let gradient = &every_gradient()[0];
    let solve = |precision| {
        let out = layer(gradient, precision).forward(&cell, &x, z0());
        let output = join(out.output);
        assert_eq!(output.dtype(), DType::F64);
        let grads = output.clone().square().sum().backward();
        assert_eq!(cell.w.val().grad(&grads).unwrap().dtype(), DType::F64);
        values(&output)
    };
    let error = distance(&solve(Some(Precision::F16)), &solve(None));
    assert!(error > 1e-6 && error < 1e-2, "{error:e}");
}

/// In a backward solve every sample has a scale of its own.
#[test]
fn a_product_of_a_sample_does_not_depend_on_others() {
    let device = device();
    let mut cell = Cell::new(&device).valid();
    let x = input(&device).inner();
    let z = || numbers([BATCH, DIM], 6, 0.5, &device).inner();
    let sizes = (0..BATCH).map(|sample| 10f64.powi(-4 * sample as i32));
    let sizes = TensorData::new(sizes.collect(), [BATCH, 1]).convert::<f32>();
    let sizes = Tensor::<2>::from_data(sizes, &device.clone().inner());
    let u = || numbers([BATCH, DIM], 7, 1.0, &device).inner();
    for by_hand in [true, false] {
        cell.by_hand = by_hand;
        let (lowered, context) = Lowered::new(&cell, &x, Precision::F16);
        let product = |u: Tensor<2>| {
            let z = split(z());
            let frozen = FrozenCell::new(&lowered, &context, &z);
            frozen.linearize(join(z))(u)
        };
        let (alike, apart) = (product(u()), product(u() * sizes.clone()) / sizes.clone());
        assert_close(
            &values(&apart),
            &values(&alike),
            8.0 * Precision::F16.rounding(),
            &format!("by hand: {by_hand}"),
        );
    }
}

#[test]
fn a_lowered_cell_has_the_products_of_the_cell() {
    let device = device();
    let mut cell = Cell::new(&device);
    cell.by_hand = true;
    let x = input(&device).require_grad();
    for precision in PRECISIONS {
        let (lowered, context) = Lowered::new(&cell, &x, precision);
        assert_eq!(lowered.precision(), precision);
        let z = || split(numbers([BATCH, DIM], 6, 0.5, &device).inner());
        let u = || split(numbers([BATCH, DIM], 7, 1.0, &device).inner());
        // Both products consist of a handful of roundings.
        let few = 8.0 * precision.rounding();
        let error = check::pullback_error(&lowered, &context, z(), u()).unwrap();
        assert!(error < few, "{precision:?}: {error:e}");
        let (_, tangent) = lowered.tangent(z(), u(), &context).unwrap();
        let (_, exact) = cell.tangent(z(), u(), &x).unwrap();
        let (tangent, exact) = (values(&join(tangent)), values(&join(exact)));
        assert_close(&tangent, &exact, few, &format!("tangent in {precision:?}"));
        assert_ne!(tangent, exact);
    }
}

#[test]
fn a_precision_is_written_by_its_name() {
    let config = DeqConfig::new().with_precision(Some(Precision::Bf16));
    let text = serde_json::to_string(&config).unwrap();
    assert!(text.contains(r#""precision":"bf16""#), "{text}");
    assert_eq!(serde_json::from_str::<DeqConfig>(&text).unwrap(), config);
    // As configurations were written before there was a choice.
    let before = text.replace(r#","precision":"bf16""#, "");
    let config = serde_json::from_str::<DeqConfig>(&before).unwrap();
    assert_eq!(config, DeqConfig::new());
    for precision in PRECISIONS {
        let name = serde_json::to_value(precision).unwrap();
        assert_eq!(name, precision.name());
    }
}
