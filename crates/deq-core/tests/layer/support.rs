//! The cell of these tests, its closed-form gradients, and the settings that they share.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::solvers::{
    AndersonConfig, BroydenConfig, LinearSolverConfig, PicardConfig, ReversibleConfig,
    SolverConfig, StopConfig,
};
use deq_core::{
    CellContext, Deq, DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig,
    NeumannGradientConfig, PhantomConfig, Pullback, ReversibleGradientConfig, ShineConfig,
    TensorMap, UnrolledConfig,
};
use deq_testkit::{assert_close, f64_device, solve_dense, values};

pub(crate) const BATCH: usize = 3;
pub(crate) const DIM: usize = 5;
pub(crate) const INPUT: usize = 4;

/// `f(z) = act(z W + x U + b) + e` with `act` tanh or the identity.
#[derive(Module, Debug)]
pub(crate) struct Cell {
    pub(crate) w: Param<Tensor<2>>,
    pub(crate) u: Param<Tensor<2>>,
    pub(crate) b: Param<Tensor<1>>,
    #[module(skip)]
    pub(crate) tanh: bool,
    #[module(skip)]
    pub(crate) by_hand: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) x: Tensor<2>,
    pub(crate) e: Tensor<2>,
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
    pub(crate) fn new(tanh: bool, device: &Device) -> Self {
        Self {
            w: Param::from_tensor(numbers([DIM, DIM], 1, 0.35, device)),
            u: Param::from_tensor(numbers([INPUT, DIM], 2, 1.0, device)),
            b: Param::from_tensor(numbers([1, DIM], 3, 0.5, device).squeeze_dim(0)),
            tanh,
            by_hand: false,
        }
    }

    pub(crate) fn linear(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
        z.matmul(self.w.val()) + inputs.x.clone().matmul(self.u.val()) + self.b.val().unsqueeze()
    }
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Inputs;

    fn forward(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
        let y = self.linear(z, inputs);
        let y = if self.tanh { y.tanh() } else { y };
        y + inputs.e.clone()
    }

    fn pullback(&self, z: Tensor<2>, inputs: &Inputs) -> Option<Pullback<Tensor<2>>> {
        if !self.by_hand {
            return None;
        }
        let y = self.linear(z, inputs).tanh();
        let slope = y.square().neg() + 1.0;
        let w = self.w.val().inner();
        Some(Box::new(move |u| {
            (u * slope.clone()).matmul(w.clone().transpose())
        }))
    }

    fn tangent(
        &self,
        z: Tensor<2>,
        direction: Tensor<2>,
        inputs: &Inputs,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        if !self.by_hand {
            return None;
        }
        let y = self.linear(z, inputs).tanh();
        let along = (y.clone().square().neg() + 1.0) * direction.matmul(self.w.val());
        Some((y + inputs.e.clone(), along))
    }
}

/// Fixed numbers in (-scale, scale).
pub(crate) fn numbers(shape: [usize; 2], seed: u64, scale: f64, device: &Device) -> Tensor<2> {
    let count = shape[0] * shape[1];
    let values: Vec<f64> = (0..count)
        .map(|i| ((i as f64 + 1.0) * 1.618 * (seed as f64 + 2.3)).sin() * scale)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub(crate) fn inputs(device: &Device) -> Inputs {
    Inputs {
        x: numbers([BATCH, INPUT], 4, 1.0, device).require_grad(),
        e: Tensor::zeros([BATCH, DIM], device).require_grad(),
    }
}

pub(crate) fn loss_weight(device: &Device) -> Tensor<2> {
    numbers([BATCH, DIM], 5, 1.0, device)
}

/// Where the tests run: in f64 on the CPU, or in f32 on what `DEQ_TEST_DEVICE` names.
pub(crate) fn plain_device() -> Device {
    match single() {
        true => deq_testkit::test_device!(),
        false => f64_device(),
    }
}

pub(crate) fn device() -> Device {
    plain_device().autodiff()
}

/// Whether the tests run in f32, where solves end at about 1e-6 and comparisons behind one at 1e-3.
pub(crate) fn single() -> bool {
    std::env::var("DEQ_TEST_DEVICE").is_ok_and(|device| device != "flex")
}

/// A tolerance derived for f64; in f32 its counterpart.
pub(crate) fn tolerance(f64_tolerance: f64) -> f64 {
    match single() {
        true => f64_tolerance.max(1e-3),
        false => f64_tolerance,
    }
}

pub(crate) fn tight() -> StopConfig {
    StopConfig::new()
        .with_abs_tol(if single() { 3e-6 } else { 1e-13 })
        .with_rel_tol(0.0)
        .with_max_steps(500)
}

pub(crate) fn config(forward: SolverConfig, gradient: GradientConfig) -> DeqConfig {
    DeqConfig::new()
        .with_solver(forward)
        .with_stop(tight())
        .with_gradient(gradient)
}

pub(crate) fn implicit(solver: impl Into<LinearSolverConfig>) -> GradientConfig {
    GradientConfig::Implicit(
        ImplicitConfig::new()
            .with_solver(solver.into())
            .with_stop(tight()),
    )
}

pub(crate) fn all_solvers() -> [SolverConfig; 3] {
    [
        PicardConfig::new().into(),
        AndersonConfig::new().into(),
        BroydenConfig::new().with_history(60).into(),
    ]
}

/// Gradients with respect to x, e, W, U, b.
pub(crate) fn gradients(cell: &Cell, inputs: &Inputs, loss: Tensor<1>) -> [Vec<f64>; 5] {
    let grads = loss.backward();
    [
        values(&inputs.x.grad(&grads).expect("x is tracked")),
        values(&inputs.e.grad(&grads).expect("e is tracked")),
        values(&cell.w.val().grad(&grads).expect("W is tracked")),
        values(&cell.u.val().grad(&grads).expect("U is tracked")),
        values(&cell.b.val().grad(&grads).expect("b is tracked")),
    ]
}

pub(crate) const NAMES: [&str; 5] = ["x", "e", "W", "U", "b"];

pub(crate) fn assert_gradients(
    actual: &[Vec<f64>; 5],
    expected: &[Vec<f64>; 5],
    tolerance: f64,
    what: &str,
) {
    for ((actual, expected), name) in actual.iter().zip(expected).zip(NAMES) {
        assert_close(
            actual,
            expected,
            self::tolerance(tolerance),
            &format!("{what}, d{name}"),
        );
    }
}

pub(crate) fn loss(z: &Tensor<2>, device: &Device) -> Tensor<1> {
    (z.clone().square() * loss_weight(device)).sum()
}

/// The gradients by the implicit function theorem, with a dense solve per sample.
pub(crate) fn closed_form(cell: &Cell, inputs: &Inputs) -> [Vec<f64>; 5] {
    let plain = cell.valid();
    let context = inputs.without_autodiff();
    let device = context.x.device();
    let deq = config(SolverConfig::anderson(), GradientConfig::OneStep);
    let z0 = Tensor::zeros([BATCH, DIM], &device);
    let z = deq.build().unwrap().forward(&plain, &context, z0).output;

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

pub(crate) fn all_linear_solvers() -> Vec<LinearSolverConfig> {
    let mut solvers = vec![
        LinearSolverConfig::gmres(),
        LinearSolverConfig::bicgstab(),
        LinearSolverConfig::neumann(),
    ];
    solvers.extend(all_solvers().map(LinearSolverConfig::from));
    solvers
}

/// The layer with tight tolerances, and its gradients for the loss of these tests from a start at
/// zero.
pub(crate) fn gradients_of(deq: &Deq, cell: &Cell, inputs: &Inputs) -> [Vec<f64>; 5] {
    let z0 = Tensor::zeros([BATCH, DIM], &inputs.x.device());
    let out = deq.forward(cell, inputs, z0);
    gradients(cell, inputs, loss(&out.output, &inputs.x.device()))
}

/// One configuration of every strategy; all but the one-step gradient are exact to 1e-6 on these
/// cells.
pub(crate) fn every_gradient() -> Vec<GradientConfig> {
    let phantom = PhantomConfig::new().with_steps(60).with_damping(1.0);
    let refined = ImplicitConfig::new().with_stop(tight());
    vec![
        implicit(SolverConfig::anderson()),
        implicit(LinearSolverConfig::gmres()),
        GradientConfig::OneStep,
        GradientConfig::Neumann(NeumannGradientConfig::new().with_terms(60)),
        GradientConfig::Phantom(phantom.clone()),
        GradientConfig::Phantom(phantom.with_stored_states(Some(4))),
        GradientConfig::Shine(ShineConfig::new().with_refine(Some(refined))),
        GradientConfig::Reversible(ReversibleGradientConfig::new()),
        GradientConfig::Unrolled(UnrolledConfig::new(60)),
        GradientConfig::Unrolled(UnrolledConfig::new(60).with_stored_states(Some(4))),
    ]
}

/// A forward solver with which that strategy works.
pub(crate) fn solver_for(gradient: &GradientConfig) -> SolverConfig {
    match gradient {
        GradientConfig::Reversible(_) => ReversibleConfig::new().with_damping(0.5).into(),
        GradientConfig::Shine(_) => BroydenConfig::new().with_history(500).into(),
        _ => SolverConfig::anderson(),
    }
}
