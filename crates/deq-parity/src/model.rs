//! What the checks of whole models share: precision, recorded weights, recorded gradients.

use crate::Check;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use deq_core::solvers::{BroydenConfig, SolverConfig, StopConfig};
use deq_core::{Deq, DeqConfig, GradientConfig, ImplicitConfig};
use deq_models::checkpoint::{OriginalNames, Source, StateDict, load};
use deq_testkit::{Golden, f64_device, relative_error, values};
use std::collections::BTreeMap;

/// In which type a recorded case is computed, and how close it must come.
#[derive(Clone, Debug)]
pub struct Precision {
    /// The plain device; its float type is that of every tensor.
    pub device: Device,
    /// The largest relative error where no solve is involved.
    pub direct: f64,
    /// The largest relative error behind a solve.
    pub solved: f64,
    /// The tolerance of a solve, below what the comparison needs.
    pub rel_tol: f64,
    /// The rounding unit of the type.
    pub epsilon: f64,
}

impl Precision {
    /// Double precision.
    pub fn f64() -> Self {
        Self {
            device: f64_device(),
            direct: 1e-8,
            solved: 1e-6,
            rel_tol: 1e-12,
            epsilon: f64::EPSILON,
        }
    }

    /// Single precision on a device. Only for a process that makes no tensor in f64.
    pub fn f32(device: Device) -> Self {
        Self {
            device,
            direct: 1e-3,
            solved: 1e-3,
            rel_tol: 1e-6,
            epsilon: f64::from(f32::EPSILON),
        }
    }

    /// Whether this is double precision.
    pub(crate) fn is_double(&self) -> bool {
        self.rel_tol < 1e-8
    }

    /// A layer whose solves, forward and backward, end below the tolerance.
    pub(crate) fn deq(&self) -> Deq {
        let budget = 400;
        let stop = StopConfig::new()
            .with_rel_tol(self.rel_tol)
            .with_max_steps(budget);
        // As in the original, nothing is forgotten: some of the recorded cells expand, and need
        // hundreds of steps.
        let solver = SolverConfig::Broyden(BroydenConfig::new().with_history(budget));
        let adjoint = ImplicitConfig::new()
            .with_solver(solver.clone().into())
            .with_stop(stop.clone());
        DeqConfig::new()
            .with_solver(solver)
            .with_stop(stop)
            .with_gradient(GradientConfig::Implicit(adjoint))
            .build()
            .unwrap_or_else(|error| panic!("constant settings: {error}"))
    }
}

/// The checks of one case as they come.
pub(crate) struct Checks {
    pub(crate) list: Vec<Check>,
    pub(crate) precision: Precision,
}

impl Checks {
    pub(crate) fn new(precision: &Precision) -> Self {
        Self {
            list: Vec::new(),
            precision: precision.clone(),
        }
    }

    /// A quantity that no solve stands behind.
    pub(crate) fn direct<const D: usize>(
        &mut self,
        quantity: impl Into<String>,
        actual: &Tensor<D>,
        recorded: &[f64],
    ) {
        let tolerance = self.precision.direct;
        self.push(quantity, &values(actual), recorded, tolerance);
    }

    /// A quantity behind a solve.
    pub(crate) fn solved<const D: usize>(
        &mut self,
        quantity: impl Into<String>,
        actual: &Tensor<D>,
        recorded: &[f64],
    ) {
        let tolerance = self.precision.solved;
        self.push(quantity, &values(actual), recorded, tolerance);
    }

    /// A quantity with a tolerance of its own.
    pub(crate) fn push(
        &mut self,
        quantity: impl Into<String>,
        actual: &[f64],
        recorded: &[f64],
        tolerance: f64,
    ) {
        let error = match actual.len() == recorded.len() {
            true => relative_error(actual, recorded),
            false => f64::NAN,
        };
        self.list.push(Check::new(quantity, error, tolerance));
    }

    /// Every recorded gradient under `prefix`, for every parameter of the model. A parameter with
    /// several names, each with a gradient of its own, must have their sum; one without a recorded
    /// gradient must have none, or zero.
    pub(crate) fn gradients<M: Module + OriginalNames>(
        &mut self,
        case: &Golden,
        model: &M,
        prefix: &str,
        loss: Tensor<1>,
    ) {
        let found = gradients(model, &loss.backward());
        let whole = norm(found.values().flat_map(|(_, values)| values));
        let mut expected: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut used = 0;
        for tensor in model.original_tensors() {
            let Source::Parameter { path, layout, .. } = tensor.source else {
                continue;
            };
            let Some((shape, found)) = found.get(&path) else {
                continue;
            };
            let sum = expected
                .entry(path)
                .or_insert_with(|| vec![0.0; found.len()]);
            let Some((recorded_shape, recorded)) = case.get(&format!("{prefix}.{}", tensor.name))
            else {
                continue;
            };
            used += 1;
            let data = TensorData::new(recorded.to_vec(), recorded_shape.to_vec());
            let ours = layout.to_ours(data, shape);
            for (sum, value) in sum.iter_mut().zip(ours.iter::<f64>()) {
                *sum += value;
            }
        }
        let recorded = case
            .names()
            .filter(|name| name.starts_with(&format!("{prefix}.")))
            .count();
        // As many as were recorded, so that none goes unchecked for its name.
        self.push(
            format!("{prefix}: count"),
            &[used as f64],
            &[recorded as f64],
            0.0,
        );
        for (path, (_, gradient)) in &found {
            let Some(expected) = expected.get(path) else {
                self.push(
                    format!("{prefix} {path}: no name"),
                    &[f64::NAN],
                    &[0.0],
                    0.0,
                );
                continue;
            };
            let quantity = format!("{prefix} {path}");
            let tolerance = self.precision.solved;
            let error = relative_error(gradient, expected);
            // A sum over the whole backward pass carries rounding of some units of its largest
            // terms. Gradients that vanish by cancellation consist of nothing else: exactly, those
            // of a bias in front of a batch norm; almost, those in front of a batch norm over two
            // values, which makes -1 and 1 of any two. They are measured against the whole
            // gradient. A recorded one below that rounding has no meaningful sign; ours must only
            // lie below it too.
            let rounding = 10.0 * self.precision.epsilon;
            let vanishes = norm(expected) * tolerance < rounding * whole;
            if !(error > tolerance && vanishes) {
                self.list.push(Check::new(quantity, error, tolerance));
                continue;
            }
            let left = if norm(expected) < rounding * whole {
                norm(gradient)
            } else {
                let difference = gradient.iter().zip(expected).map(|(a, b)| a - b);
                norm(&difference.collect::<Vec<f64>>())
            };
            self.list.push(
                Check::new(quantity, left / whole, rounding)
                    .noted("vanishes but for rounding: against the whole gradient"),
            );
        }
    }
}

fn norm<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    let squares = values.into_iter().map(|value| value * value);
    squares.sum::<f64>().sqrt()
}

/// The model with the recorded weights.
///
/// # Panics
///
/// If a weight is missing, has another shape, or is not used.
pub(crate) fn recorded_weights<M: Module + OriginalNames>(model: M, case: &Golden) -> M {
    let file = state_dict(case);
    let (model, report) = load(model, &file).unwrap_or_else(|error| panic!("{error}"));
    assert!(
        report.is_complete() && report.unused.is_empty(),
        "{}: {report}",
        case.name
    );
    model
}

/// The recorded weights under the original's names.
pub(crate) fn state_dict(case: &Golden) -> StateDict {
    StateDict::from_tensors(case.names().filter_map(|name| {
        let (shape, values) = case.get(name)?;
        let data = TensorData::new(values.to_vec(), shape.to_vec());
        Some((name.strip_prefix("param.")?.to_owned(), data))
    }))
}

/// Shape and gradient of every float parameter by its path; zeros where the loss does not reach.
fn gradients<M: Module>(model: &M, grads: &Gradients) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    struct Visitor<'a> {
        path: Vec<String>,
        grads: &'a Gradients,
        found: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            // What is not trained, such as running statistics, has no gradient.
            if !value.is_require_grad() {
                return;
            }
            let gradient = match value.grad(self.grads) {
                Some(gradient) => values(&gradient),
                None => vec![0.0; value.shape().num_elements()],
            };
            let shape = value.dims().to_vec();
            self.found.insert(self.path.join("."), (shape, gradient));
        }
    }
    let mut visitor = Visitor {
        path: Vec::new(),
        grads,
        found: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}
