//! Cells with known Jacobians, and comparisons.

use burn::module::{Module, ModuleDisplay, Param};
use burn::tensor::{DType, Distribution, Tensor, TensorData};
use deq_core::EquilibriumCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use deq_testkit::{f64_device as device, relative_error as relative};

/// Seeds the device's generator and keeps other tests from drawing until the guard is dropped.
pub(crate) fn seeded(seed: u64) -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    device().seed(seed);
    guard
}

/// Normal numbers drawn with a seed of their own.
pub(crate) fn normal(seed: u64, dims: [usize; 2], scale: f64) -> Tensor<2> {
    let _guard = seeded(seed);
    Tensor::random(dims, Distribution::Normal(0.0, scale), &device())
}

pub(crate) fn tensor<const D: usize>(values: Vec<f64>, dims: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, dims), (&device(), DType::F64))
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    deq_testkit::values(&tensor)
}

/// `tanh(z W^T + c)`, with the context `c`.
#[derive(Module, Debug)]
pub(crate) struct TanhCell {
    pub(crate) weight: Param<Tensor<2>>,
}

impl TanhCell {
    pub(crate) fn new(weight: Tensor<2>) -> Self {
        let weight = Param::from_tensor(weight.inner().autodiff());
        Self { weight }
    }

    /// `J^T v` in closed form, tracked.
    pub(crate) fn transposed_product(
        &self,
        z: &Tensor<2>,
        context: &Tensor<2>,
        v: &Tensor<2>,
    ) -> Tensor<2> {
        let slope = self.forward(z.clone(), context).square().neg() + 1.0;
        (v.clone() * slope).matmul(self.weight.val())
    }
}

impl EquilibriumCell for TanhCell {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, context: &Tensor<2>) -> Tensor<2> {
        (z.matmul(self.weight.val().transpose()) + context.clone()).tanh()
    }

    fn tangent(
        &self,
        z: Tensor<2>,
        direction: Tensor<2>,
        context: &Tensor<2>,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        let fz = self.forward(z, context);
        let slope = fz.clone().square().neg() + 1.0;
        let along = direction.matmul(self.weight.val().transpose());
        Some((fz, along * slope))
    }
}

/// The cell without its tangent, for which differences are taken.
#[derive(Module, Debug)]
pub(crate) struct WithoutTangent<C: Module> {
    pub(crate) cell: C,
}

impl<C: EquilibriumCell + ModuleDisplay> EquilibriumCell for WithoutTangent<C> {
    type State = C::State;
    type Context = C::Context;

    fn forward(&self, z: C::State, context: &C::Context) -> C::State {
        self.cell.forward(z, context)
    }
}

/// `relu(z A + c) B`: piecewise linear.
#[derive(Module, Debug)]
pub(crate) struct ReluCell {
    pub(crate) inner: Param<Tensor<2>>,
    pub(crate) outer: Param<Tensor<2>>,
}

impl ReluCell {
    pub(crate) fn new(inner: Tensor<2>, outer: Tensor<2>) -> Self {
        Self {
            inner: Param::from_tensor(inner.inner().autodiff()),
            outer: Param::from_tensor(outer.inner().autodiff()),
        }
    }

    /// `J^T v` in closed form, tracked.
    pub(crate) fn transposed_product(
        &self,
        z: &Tensor<2>,
        context: &Tensor<2>,
        v: &Tensor<2>,
    ) -> Tensor<2> {
        let before = z.clone().matmul(self.inner.val()) + context.clone();
        let back = v.clone().matmul(self.outer.val().transpose());
        back.mask_fill(before.inner().lower_elem(0.0), 0.0)
            .matmul(self.inner.val().transpose())
    }
}

impl EquilibriumCell for ReluCell {
    type State = Tensor<2>;
    type Context = Tensor<2>;

    fn forward(&self, z: Tensor<2>, context: &Tensor<2>) -> Tensor<2> {
        burn::tensor::activation::relu(z.matmul(self.inner.val()) + context.clone())
            .matmul(self.outer.val())
    }

    fn tangent(
        &self,
        z: Tensor<2>,
        direction: Tensor<2>,
        context: &Tensor<2>,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        let before = z.matmul(self.inner.val()) + context.clone();
        let along = direction
            .matmul(self.inner.val())
            .mask_fill(before.clone().inner().lower_elem(0.0), 0.0);
        let outer = |inner: Tensor<2>| inner.matmul(self.outer.val());
        Some((outer(burn::tensor::activation::relu(before)), outer(along)))
    }
}

/// `z / 2`, in the type of the state.
#[derive(Module, Debug)]
pub(crate) struct Halving;

impl EquilibriumCell for Halving {
    type State = Tensor<2>;
    type Context = ();

    fn forward(&self, z: Tensor<2>, _context: &()) -> Tensor<2> {
        z * 0.5
    }

    fn tangent(
        &self,
        z: Tensor<2>,
        direction: Tensor<2>,
        _context: &(),
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        Some((z * 0.5, direction * 0.5))
    }
}

/// `z A`, the same for every sample.
#[derive(Module, Debug)]
pub(crate) struct LinearCell {
    pub(crate) matrix: Param<Tensor<2>>,
}

impl LinearCell {
    /// From the rows of `A`.
    pub(crate) fn new(rows: &[&[f64]]) -> Self {
        let dim = rows.len();
        let matrix = tensor(rows.concat(), [dim, dim]);
        Self {
            matrix: Param::from_tensor(matrix.autodiff()),
        }
    }
}

impl EquilibriumCell for LinearCell {
    type State = Tensor<2>;
    type Context = ();

    fn forward(&self, z: Tensor<2>, _context: &()) -> Tensor<2> {
        z.matmul(self.matrix.val())
    }
}
