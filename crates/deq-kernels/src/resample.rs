//! Maps of one resolution for those of another.

#[cfg(all(feature = "_gpu", feature = "autodiff"))]
use crate::gpu::tracked::TrackedBackend;
#[cfg(feature = "_gpu")]
use crate::gpu::{self, pointwise::PointwiseBackend};
#[cfg(feature = "_gpu")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

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
    #[cfg(feature = "_gpu")]
    if let Some(way) = gpu::way(&[&to, &x]) {
        let [to, x] = [to, x].map(Tensor::into_dispatch);
        return Tensor::from_dispatch(match way {
            gpu::Way::Plain => Dispatch::add_upsampled(to, x, factor),
            #[cfg(feature = "autodiff")]
            gpu::Way::Tracked => Dispatch::tracked_upsampling(to, x, factor),
        });
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
    #[cfg(feature = "_gpu")]
    if gpu::takes(&x) {
        return Tensor::from_dispatch(Dispatch::sum_squares(x.into_dispatch(), factor));
    }
    let (height, width) = (height / factor, width / factor);
    x.reshape([batch * channels, height, factor, width, factor])
        .sum_dim(4)
        .sum_dim(2)
        .reshape([batch, channels, height, width])
}
