//! Maps of one resolution for those of another.

#[cfg(feature = "_kernel")]
use crate::backend::{pointwise::PointwiseBackend, takes};
use crate::device::on_host;
#[cfg(feature = "_kernel")]
use burn::backend::Dispatch;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Int, Tensor, TensorData};

/// Nearest upsampling: every pixel becomes a square with sides of `factor` pixels. Linear.
///
/// # Shapes
///
/// - x: `[batch, channels, height, width]`
/// - output: `[batch, channels, factor height, factor width]`
pub fn upsample(x: Tensor<4>, factor: usize) -> Tensor<4> {
    if factor == 1 {
        return x;
    }
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch * channels, height, 1, width, 1])
        .expand([batch * channels, height, factor, width, factor])
        .reshape([batch, channels, height * factor, width * factor])
}

/// `to + upsample(x)`
///
/// # Shapes
///
/// - to, output: `[batch, channels, factor height, factor width]`
/// - x: `[batch, channels, height, width]`
///
/// # Panics
///
/// If the shapes do not fit together.
pub fn add_upsampled(to: Tensor<4>, x: Tensor<4>, factor: usize) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    assert_eq!(
        to.dims(),
        [batch, channels, height * factor, width * factor],
        "maps of {height} by {width} are not those behind upsampling by {factor}"
    );
    if factor == 1 {
        return to + x;
    }
    #[cfg(feature = "_kernel")]
    if takes(&[&to, &x]) {
        let [to, x] = [to, x].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(Dispatch::add_upsampled(to, x, factor));
    }
    to + upsample(x, factor)
}

/// The transpose of nearest upsampling: sums over squares with sides of `factor` pixels.
///
/// # Shapes
///
/// - x: `[batch, channels, height, width]`
/// - output: `[batch, channels, height / factor, width / factor]`
///
/// # Panics
///
/// If the factor does not divide the sides.
pub fn sum_squares(x: Tensor<4>, factor: usize) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    assert!(
        factor > 0 && height.is_multiple_of(factor) && width.is_multiple_of(factor),
        "{factor} does not divide the sides of maps of {height} by {width}"
    );
    if factor == 1 {
        return x;
    }
    #[cfg(feature = "_kernel")]
    if takes(&[&x]) {
        return Tensor::from_dispatch(Dispatch::sum_squares(x.into_dispatch(), factor));
    }
    let (height, width) = (height / factor, width / factor);
    x.reshape([batch * channels, height, factor, width, factor])
        .sum_dim(4)
        .sum_dim(2)
        .reshape([batch, channels, height, width])
}

/// Bilinear interpolation with the corners of both images at the same place, differentiable on
/// every device.
///
/// # Shapes
///
/// - x: `[batch, channels, height, width]`
/// - output: `[batch, channels, size[0], size[1]]`
pub fn resize_bilinear(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    if [height, width] == size {
        return x;
    }
    if on_host(&x.device()) {
        let options = InterpolateOptions::new(InterpolateMode::Bilinear)
            .with_align_corners(true)
            .with_output_size(size);
        return interpolate(x, options);
    }
    // Burn's has no derivative on GPUs.
    resize_along(resize_along(x, 2, size[0]), 3, size[1])
}

/// Linear interpolation along an axis, between the two lines that are nearest to each.
fn resize_along(x: Tensor<4>, axis: usize, size: usize) -> Tensor<4> {
    let sides = x.dims()[axis];
    if sides == size {
        return x;
    }
    let place = |i: usize| match size {
        1 => 0.0,
        _ => (i * (sides - 1)) as f64 / (size - 1) as f64,
    };
    let places: Vec<f64> = (0..size).map(place).collect();
    let device = x.device();
    let line = |offset: f64| {
        let last = sides - 1;
        let lines = places.iter().map(|place| (place + offset).floor() as i64);
        let lines: Vec<i64> = lines.map(|line| line.min(last as i64)).collect();
        let lines = Tensor::<1, Int>::from_data(TensorData::new(lines, [size]), &device);
        x.clone().select(axis, lines)
    };
    let shares: Vec<f64> = places.iter().map(|place| place.fract()).collect();
    let mut shape = [1; 4];
    shape[axis] = size;
    let shares = TensorData::new(shares, shape).convert_dtype(x.dtype());
    let shares = Tensor::<4>::from_data(shares, (&device, x.dtype()));
    let (near, far) = (line(0.0), line(1.0));
    near.clone() + (far - near) * shares
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    /// The way of devices that are not the CPU.
    #[test]
    fn lines_are_interpolated_as_by_burn() {
        let device = Device::flex().autodiff();
        for (sides, size) in [
            ([2, 2], [3, 3]),
            ([4, 3], [9, 16]),
            ([5, 4], [2, 1]),
            ([1, 6], [4, 6]),
        ] {
            let normal = Distribution::Normal(0.0, 1.0);
            let x = Tensor::<4>::random([2, 3, sides[0], sides[1]], normal, &device);
            let x = x.require_grad();
            let ours = resize_along(resize_along(x.clone(), 2, size[0]), 3, size[1]);
            let theirs = resize_bilinear(x.clone(), size);
            let factor = ours.random_like(normal);
            let distance = |a: Tensor<4>, b: Tensor<4>| (a - b).abs().max().into_scalar::<f32>();
            assert!(
                distance(ours.clone(), theirs.clone()) < 1e-5,
                "{sides:?} to {size:?}"
            );
            let [ours, theirs] = [ours, theirs].map(|resized| {
                let grads = (resized * factor.clone()).sum().backward();
                x.grad(&grads).expect("a gradient")
            });
            assert!(
                distance(ours, theirs) < 1e-5,
                "gradient, {sides:?} to {size:?}"
            );
        }
    }
}
