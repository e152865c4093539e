//! Gradients across an equilibrium: closed form, one-step and phantom.

use crate::Check;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use deq_core::solvers::{LinearSolverConfig, SolverConfig, StopConfig};
use deq_core::{
    CellContext, Deq, DeqConfig, EquilibriumCell, GradientConfig, ImplicitConfig, PhantomConfig,
    TensorMap,
};
use deq_testkit::{Golden, f64_device, relative_error, values};

/// Where no solve is involved but one that ends at rounding.
const TOLERANCE: f64 = 1e-8;

/// `tanh(z W^T + x U^T + b) + e`, where `e` is zero and its gradient the adjoint.
#[derive(Module, Debug)]
pub(crate) struct Cell {
    pub(crate) w: Param<Tensor<2>>,
    pub(crate) u: Param<Tensor<2>>,
    pub(crate) b: Param<Tensor<1>>,
}

/// The inputs of a [`Cell`].
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
    pub(crate) fn recorded(case: &Golden, device: &Device) -> Self {
        Self {
            w: Param::from_tensor(case.tensor("W", device)),
            u: Param::from_tensor(case.tensor("U", device)),
            b: Param::from_tensor(case.tensor("b", device)),
        }
    }

    fn inner(&self, z: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        let recurrent = z.matmul(self.w.val().transpose());
        let injected = x.clone().matmul(self.u.val().transpose());
        (recurrent + injected + self.b.val().unsqueeze()).tanh()
    }
}

impl EquilibriumCell for Cell {
    type State = Tensor<2>;
    type Context = Inputs;

    fn forward(&self, z: Tensor<2>, inputs: &Inputs) -> Tensor<2> {
        self.inner(z, &inputs.x) + inputs.e.clone()
    }

    fn tangent(
        &self,
        z: Tensor<2>,
        direction: Tensor<2>,
        inputs: &Inputs,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        let inner = self.inner(z, &inputs.x);
        let slope = inner.clone().square().neg() + 1.0;
        let along = direction.matmul(self.w.val().transpose());
        Some((inner + inputs.e.clone(), along * slope))
    }
}

/// Kind `gradient`.
pub(crate) fn tanh(case: &Golden) -> Vec<Check> {
    let device = f64_device().autodiff();
    let cell = Cell::recorded(case, &device);
    let weight = case.tensor::<2>("loss_weight", &device);
    let mut checks = Vec::new();
    for (prefix, gradient) in strategies(case) {
        let x = case.tensor::<2>("x", &device).require_grad();
        let e = weight.zeros_like().detach().require_grad();
        let context = Inputs {
            x: x.clone(),
            e: e.clone(),
        };
        let out = layer(gradient).forward(&cell, &context, weight.zeros_like());
        let mut check = |name: String, actual: Vec<f64>, recorded: &str| {
            let error = match case.get(recorded) {
                Some((_, recorded)) => relative_error(&actual, recorded),
                None => f64::NAN,
            };
            checks.push(Check::new(name, error, TOLERANCE));
        };
        if prefix == "grad_exact" {
            check("z*".to_owned(), values(&out.z), "z_star");
        }
        let grads = (out.output.square() * weight.clone()).sum().backward();
        let gradients = [
            ("W", cell.w.val().grad(&grads)),
            ("U", cell.u.val().grad(&grads)),
            ("x", x.grad(&grads)),
        ];
        for (name, gradient) in gradients {
            let actual = gradient.map(|g| values(&g)).unwrap_or_default();
            let name = format!("{prefix}.{name}");
            check(name.clone(), actual, &name);
        }
        let name = format!("{prefix}.b");
        let actual = cell.b.val().grad(&grads).map(|g| values(&g));
        check(name.clone(), actual.unwrap_or_default(), &name);
        if prefix == "grad_exact" {
            let adjoint = e.grad(&grads).map(|g| values(&g)).unwrap_or_default();
            check("adjoint u".to_owned(), adjoint, "adjoint_u");
        }
    }
    checks
}

/// The strategies that the case records, by the prefix of their tensors.
fn strategies(case: &Golden) -> Vec<(String, GradientConfig)> {
    let tight = ImplicitConfig::new()
        .with_solver(LinearSolverConfig::gmres())
        .with_stop(tight());
    let mut strategies = vec![
        ("grad_exact".to_owned(), GradientConfig::Implicit(tight)),
        ("grad_one_step".to_owned(), GradientConfig::OneStep),
    ];
    let mut names: Vec<&str> = case.names().collect();
    names.sort_unstable();
    let phantom = names.into_iter().filter_map(|name| {
        let tag = name.strip_prefix("grad_phantom.")?.strip_suffix(".W")?;
        let (steps, damping) = tag.strip_prefix('k')?.split_once(".tau")?;
        let config = PhantomConfig::new()
            .with_steps(steps.parse().ok()?)
            .with_damping(damping.parse().ok()?);
        Some((
            format!("grad_phantom.{tag}"),
            GradientConfig::Phantom(config),
        ))
    });
    strategies.extend(phantom);
    strategies
}

fn tight() -> StopConfig {
    StopConfig::new()
        .with_rel_tol(0.0)
        .with_abs_tol(1e-14)
        .with_max_steps(500)
}

fn layer(gradient: GradientConfig) -> Deq {
    DeqConfig::new()
        .with_solver(SolverConfig::anderson())
        .with_stop(tight())
        .with_gradient(gradient)
        .build()
        .unwrap_or_else(|error| panic!("the recorded configuration: {error}"))
}
