//! What the tests of models share.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Distribution, Tensor};
use deq_core::{Deq, DeqConfig, GradientConfig, Precision, UnrolledConfig};
use deq_testkit::relative_error;

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

/// What [`assert_near_in_16_bits`] compares.
pub(crate) struct Distances {
    /// Relative errors of values: of the map, of the loss.
    pub(crate) values: [f64; 2],
    /// Of derivatives: of the pullback, of the tangent, of a gradient in training.
    pub(crate) derivatives: [f64; 3],
}

/// The relative errors of the loss and of the gradient that `step` gives when the map is in 16
/// bits. Where it is solved for, both are to be finite.
pub(crate) fn trained_in_16_bits(
    precision: Precision,
    step: impl Fn(&Deq) -> (Vec<f64>, Vec<f64>),
) -> [f64; 2] {
    let step = |gradient, precision| {
        let config = DeqConfig::new().with_gradient(gradient);
        step(&config.with_precision(precision).build().unwrap())
    };
    // Two applications of the cell, which no solve that fails to converge sets apart.
    let unrolled = || GradientConfig::Unrolled(UnrolledConfig::new(2));
    let (loss, gradient) = step(unrolled(), None);
    let (loss_16, gradient_16) = step(unrolled(), Some(precision));
    let (solved, solved_gradient) = step(GradientConfig::default(), Some(precision));
    let mut numbers = solved.iter().chain(&solved_gradient);
    assert!(numbers.all(|number| number.is_finite()));
    [
        relative_error(&loss_16, &loss),
        relative_error(&gradient_16, &gradient),
    ]
}

/// Requires a map in 16 bits to be near the map itself, in the median of some random draws.
///
/// Some thirty roundings, independent of one another, lie on any way through a cell, and add up in
/// squares. Derivatives are off by more, since a ReLU within a few roundings of its kink may
/// switch: so large a share of the numbers, and the root of it of their norm. Of a small model one
/// draw may have an important number there; most do not.
pub(crate) fn assert_near_in_16_bits(precision: Precision, draw: impl Fn() -> Distances) {
    let draws: Vec<Distances> = (0..5).map(|_| draw()).collect();
    let median = |of: &dyn Fn(&Distances) -> f64| {
        let mut errors: Vec<f64> = draws.iter().map(of).collect();
        errors.sort_by(f64::total_cmp);
        errors[draws.len() / 2]
    };
    let rounding = precision.rounding();
    for place in 0..2 {
        let error = median(&|draw| draw.values[place]);
        assert!(
            error < 10.0 * rounding,
            "{precision:?}, value {place}: {error:e}"
        );
    }
    for place in 0..3 {
        let error = median(&|draw| draw.derivatives[place]);
        let most = 4.0 * rounding.sqrt();
        assert!(error < most, "{precision:?}, derivative {place}: {error:e}");
    }
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
