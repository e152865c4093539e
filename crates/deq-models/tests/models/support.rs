//! What the tests of models share.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Distribution, Tensor};
use deq_core::Precision;

/// Moves every float tensor of a model away from values that hide mistakes, such as scales of 1.
pub(crate) struct Disturb;

impl ModuleMapper for Disturb {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // Upwards, so that running variances stay positive.
        param.map(|value| {
            let trained = value.is_require_grad();
            let noise = value.random_like(Distribution::Uniform(0.0, 0.3));
            // From data, since only a leaf can require a gradient.
            let device = value.device();
            let moved = Tensor::from_data((value + noise).into_data(), &device);
            moved.set_require_grad(trained)
        })
    }
}

/// How far the values and the derivatives of a map in 16 bits are from those of the map, relative.
///
/// Some thirty roundings, independent of one another, lie on any way through a cell, and add up in
/// squares. Derivatives are off by more, since a ReLU within a few roundings of its kink may
/// switch: so large a share of the numbers, and the root of it of their norm.
pub(crate) fn tolerances(precision: Precision) -> (f64, f64) {
    let rounding = precision.rounding();
    (10.0 * rounding, 4.0 * rounding.sqrt())
}

/// Numbers in parameters that an optimizer changes, of a model on an autodiff device.
pub(crate) fn trained_numbers<M: Module>(model: &M) -> usize {
    struct Count(usize);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.val().is_require_grad() {
                self.0 += param.val().shape().num_elements();
            }
        }
    }
    let mut count = Count(0);
    model.visit(&mut count);
    count.0
}
