//! The step of the central differences, masks over the rows of a batch, and their squares.

use burn::tensor::{Bool, DType, Tensor};

/// The smallest size of a state that a step is scaled by; below it, steps no longer shrink with the
/// state.
///
/// At an equilibrium `f(z) = z`, so that rounding in `f` and the range over which `f` bends both
/// scale with `z`, and the step should too. A state of exactly zero leaves no scale. 1e-2 keeps the
/// step well above the rounding of intermediate values of size 1 in f32.
const SMALLEST_SCALE: f64 = 1e-2;

/// Two points on either side of `z` along a direction, one pair per row.
pub(crate) struct CentralDifference {
    /// `z + delta * direction / size`, `[batch, dim]`.
    pub(crate) plus: Tensor<2>,
    /// `z - delta * direction / size`, `[batch, dim]`.
    pub(crate) minus: Tensor<2>,
    /// `size / (2 delta)`, `[batch, 1]`: turns `f(plus) - f(minus)` into the derivative along the
    /// direction.
    pub(crate) factor: Tensor<2>,
}

impl CentralDifference {
    /// Places the points, with a step `relative` times the size of the row of `z`.
    ///
    /// `z` and `direction` hold finite numbers. A zero direction gives `plus = minus = z` and a
    /// factor of 0.
    pub(crate) fn new(z: &Tensor<2>, direction: &Tensor<2>, relative: f64) -> Self {
        let size = direction.clone().abs().max_dim(1);
        let divisor = size.clone().mask_fill(size.clone().equal_elem(0.0), 1.0);
        let delta = z.clone().abs().mean_dim(1).clamp_min(SMALLEST_SCALE) * relative;
        let offset = direction.clone() / divisor * delta.clone();
        Self {
            plus: z.clone() + offset.clone(),
            minus: z.clone() - offset,
            factor: size / (delta * 2.0),
        }
    }
}

/// The step relative to the size of the state, in f64 and f32: the cube root of the machine
/// epsilon, which balances the difference's truncation error, of the order of the square of the
/// step, against rounding, of the order of epsilon over the step. Coarser types have no useful
/// step.
pub(crate) fn relative_step(dtype: DType) -> Option<f64> {
    match dtype {
        DType::F64 => Some(f64::EPSILON.cbrt()),
        DType::F32 => Some(f64::from(f32::EPSILON).cbrt()),
        _ => None,
    }
}

/// The type in which vectors of this one are measured: f32 for 16-bit floats, of which f16 cannot
/// hold the squares of many numbers of order 1.
pub(crate) fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        own => own,
    }
}

/// The sum of the squares of every row in the [`wide`] type, `[batch, 1]`.
pub(crate) fn row_squares(rows: Tensor<2>) -> Tensor<2> {
    let dtype = wide(rows.dtype());
    rows.cast(dtype).square().sum_dim(1)
}

/// Which rows hold finite numbers only, `[batch, 1]`.
pub(crate) fn finite_rows(tensor: &Tensor<2>) -> Tensor<2, Bool> {
    tensor.clone().is_finite().all_dim(1)
}

/// Selects zero for the rows not kept. Gradients do not flow through the others.
pub(crate) fn keep_rows(tensor: Tensor<2>, keep: &Tensor<2, Bool>) -> Tensor<2> {
    let dims = tensor.dims();
    tensor.mask_fill(keep.clone().bool_not().expand(dims), 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use deq_core::random;

    /// The error of `J d` by central differences for `f(z) = tanh(z W)`, relative to the closed
    /// form, with the step times each of the factors.
    fn errors(dtype: DType, factors: &[f64]) -> Vec<f64> {
        let device = Device::flex();
        let draw = |seed, shape: [usize; 2], scale: f64| {
            let values = random::normal(seed, shape[0] * shape[1]);
            let values: Vec<f64> = values.into_iter().map(|v| v * scale).collect();
            Tensor::<2>::from_data(TensorData::new(values, shape), (&device, dtype))
        };
        let w = draw(1, [64, 64], 0.1);
        let (z, d) = (draw(2, [8, 64], 1.0), draw(3, [8, 64], 1.0));
        let f = |z: Tensor<2>| z.matmul(w.clone()).tanh();
        let exact = (f(z.clone()).square().neg() + 1.0) * d.clone().matmul(w.clone());
        let norm = |x: Tensor<2>| x.square().sum().sqrt().into_scalar::<f64>();
        let step = relative_step(dtype).unwrap();
        let error = |factor: &f64| {
            let points = CentralDifference::new(&z, &d, step * factor);
            let difference = (f(points.plus) - f(points.minus)) * points.factor;
            norm(difference - exact.clone()) / norm(exact.clone())
        };
        factors.iter().map(error).collect()
    }

    /// The study behind the step: printed with `--nocapture`, and kept true.
    #[test]
    fn the_step_is_near_the_best_one() {
        let factors = [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3];
        for (dtype, bound) in [(DType::F64, 1e-9), (DType::F32, 1e-4)] {
            let errors = errors(dtype, &factors);
            let table: Vec<String> = errors.iter().map(|error| format!("{error:.0e}")).collect();
            println!("{dtype:?}: {} for steps times {factors:?}", table.join(" "));
            let best = errors.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(errors[3] < bound && errors[3] < 10.0 * best, "{errors:?}");
            assert!(errors[0] > 10.0 * errors[3] && errors[5] > 10.0 * errors[3]);
        }
    }
}
