//! What every group of workloads is made of.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Distribution, Gradients, Int, Tensor, TensorData};
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{Deq, DeqConfig, GradientConfig, ImplicitConfig};
use deq_models::checkpoint::{OriginalNames, Source, state_dict, write};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

pub(crate) type Failure = Box<dyn std::error::Error>;

/// Tensors by name.
pub(crate) type Tensors = Vec<(String, TensorData)>;

/// A group of workloads that share weights and inputs.
pub(crate) struct Suite {
    /// What the other side must know besides: sizes, steps.
    pub(crate) settings: Value,
    /// `weight.NAME` with the original's names, and `input.NAME`.
    pub(crate) tensors: Tensors,
    pub(crate) operations: Vec<Operation>,
}

/// One workload.
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) work: Box<dyn Fn() -> Outcome>,
}

/// What an operation put out, to be read when the time has been taken.
pub(crate) struct Outcome(Box<dyn FnOnce() -> Tensors>);

impl Outcome {
    pub(crate) fn new(read: impl FnOnce() -> Tensors + 'static) -> Self {
        Self(Box::new(read))
    }

    /// One tensor, `output`.
    pub(crate) fn output<const D: usize>(tensor: Tensor<D>) -> Self {
        Self::new(move || vec![("output".to_owned(), tensor.into_data())])
    }

    pub(crate) fn read(self) -> Tensors {
        self.0()
    }
}

impl Suite {
    pub(crate) fn new(settings: Value) -> Self {
        Self {
            settings,
            tensors: Vec::new(),
            operations: Vec::new(),
        }
    }

    pub(crate) fn weights<M: Module + OriginalNames>(&mut self, model: &M) -> Result<(), Failure> {
        let weights = state_dict(model)?.into_iter();
        self.tensors
            .extend(weights.map(|(name, data)| (format!("weight.{name}"), data)));
        Ok(())
    }

    pub(crate) fn input<const D: usize>(&mut self, name: &str, tensor: &Tensor<D>) {
        self.tensors
            .push((format!("input.{name}"), tensor.to_data()));
    }

    pub(crate) fn integers(&mut self, name: &str, values: &[i32], shape: &[usize]) {
        let data = TensorData::new(values.to_vec(), shape.to_vec());
        self.tensors.push((format!("input.{name}"), data));
    }

    pub(crate) fn operation(
        &mut self,
        name: impl Into<String>,
        work: impl Fn() -> Outcome + 'static,
    ) {
        self.operations.push(Operation {
            name: name.into(),
            work: Box::new(work),
        });
    }

    /// Hands weights, inputs and settings over to the other side.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        write(&self.tensors, &folder.join("tensors.safetensors"))?;
        std::fs::write(folder.join("settings.json"), self.settings.to_string())?;
        Ok(())
    }
}

static CHOSEN: OnceLock<Device> = OnceLock::new();

/// Has everything done on the device of that name from here on.
pub(crate) fn choose(name: &str) -> Result<(), Failure> {
    let device = match name {
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::vulkan(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "rocm")]
        "rocm" => Device::rocm(0),
        other => return Err(format!("{other} is not compiled in").into()),
    };
    CHOSEN
        .set(device)
        .map_err(|_| "the device was chosen before".into())
}

/// The device of training; its `inner()` is that of evaluation.
pub(crate) fn device() -> Device {
    let chosen = CHOSEN.get().expect("a device is chosen first");
    let device = chosen.clone().autodiff();
    device.seed(1);
    device
}

pub(crate) fn normal<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, std), device)
}

/// Numbers below `bound`, always the same, spread by Knuth's multiplicative hash.
pub(crate) fn integers(count: usize, bound: u32, salt: u32) -> Vec<i32> {
    let mixed = (0..count as u32).map(|k| (k + salt).wrapping_mul(2_654_435_761) >> 8);
    mixed.map(|value| (value % bound) as i32).collect()
}

pub(crate) fn int_tensor<const D: usize>(
    values: &[i32],
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Solves that use up their steps, whatever the residual.
pub(crate) fn exactly(steps: usize) -> StopConfig {
    StopConfig::new().with_rel_tol(1e-30).with_max_steps(steps)
}

/// A layer with so many evaluations forward and so many products backward, by Broyden's method.
pub(crate) fn layer(solver: SolverConfig, forward: usize, backward: usize) -> Result<Deq, Failure> {
    let adjoint = ImplicitConfig::new()
        .with_solver(SolverConfig::broyden().into())
        .with_stop(exactly(backward));
    let config = DeqConfig::new()
        .with_solver(solver)
        .with_stop(exactly(forward))
        .with_gradient(GradientConfig::Implicit(adjoint));
    Ok(config.build()?)
}

/// Goes backward; puts out `loss` and `grad.NAME` with the original's names.
pub(crate) fn step<M: Module + OriginalNames + 'static>(model: &M, loss: Tensor<1>) -> Outcome {
    let grads = loss.backward();
    let model = model.clone();
    Outcome::new(move || {
        let mut out = gradients(&model, &grads);
        out.push(("loss".to_owned(), loss.into_data()));
        out
    })
}

fn gradients<M: Module + OriginalNames>(model: &M, grads: &Gradients) -> Tensors {
    let mut visitor = Visitor {
        path: Vec::new(),
        grads,
        found: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    let found = visitor.found;
    let mut seen = HashSet::new();
    let originals = model.original_tensors().into_iter();
    originals
        .filter_map(|tensor| {
            let Source::Parameter { path, layout } = tensor.source else {
                return None;
            };
            let gradient = found.get(&path)?.clone();
            // A parameter with several names has one gradient.
            let first = seen.insert(path);
            first.then(|| {
                let name = format!("grad.{}", tensor.name);
                (name, layout.to_original(gradient))
            })
        })
        .collect()
}

struct Visitor<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    found: BTreeMap<String, TensorData>,
}

impl ModuleVisitor for Visitor<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.grads) {
            self.found.insert(self.path.join("."), gradient.into_data());
        }
    }
}
