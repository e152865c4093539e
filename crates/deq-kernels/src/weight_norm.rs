//! Weights as length times direction.

use burn::tensor::Tensor;

/// `direction * gain / |direction|`, with one length for every slice along `axis` (Salimans and
/// Kingma 2016).
///
/// The length counts as 1e-15 at least, so that slices of zeros can be divided by it and have a
/// gradient, but in f16, which has no such number.
///
/// # Shapes
///
/// - gain: that of `direction` with size 1 on all axes but `axis`
///
/// # Panics
///
/// If there is no such axis, or the gain has another shape.
pub fn weight_norm<const D: usize>(
    direction: Tensor<D>,
    gain: Tensor<D>,
    axis: usize,
) -> Tensor<D> {
    assert!(axis < D, "a tensor of rank {D} has no axis {axis}");
    let mut lengths = [1; D];
    lengths[axis] = direction.dims()[axis];
    assert_eq!(
        gain.dims(),
        lengths,
        "a length for each slice of the direction"
    );
    #[cfg(feature = "_kernel")]
    if let Some(weight) = by_kernel(&direction, &gain, axis) {
        return weight;
    }
    direction.clone() * (gain / norm_except(direction, axis))
}

/// The Euclidean norm over all axes but one, which stay with size 1; at least 1e-15, as in
/// [`weight_norm`].
///
/// # Panics
///
/// If there is no such axis.
pub fn norm_except<const D: usize>(weight: Tensor<D>, axis: usize) -> Tensor<D> {
    assert!(axis < D, "a tensor of rank {D} has no axis {axis}");
    (0..D)
        .filter(|other| *other != axis)
        .fold(weight.square(), |sum, other| sum.sum_dim(other))
        .clamp_min(1e-30)
        .sqrt()
}

#[cfg(feature = "_kernel")]
fn by_kernel<const D: usize>(
    direction: &Tensor<D>,
    gain: &Tensor<D>,
    axis: usize,
) -> Option<Tensor<D>> {
    use crate::backend::{Way, way, weight_norm::WeightNormBackend};
    use burn::backend::Dispatch;
    let way = way(&[direction, gain])?;
    let shape = direction.dims();
    let slices = *shape.get(axis)?;
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    if outer > 1 && crate::on_host(&direction.device()) {
        return None;
    }
    let direction = direction
        .clone()
        .reshape([outer, slices, inner])
        .into_dispatch();
    let gain = gain.clone().reshape([1, slices, 1]).into_dispatch();
    let weight = match way {
        Way::Plain => Dispatch::weight_norm(direction, gain).0,
        #[cfg(feature = "autodiff")]
        Way::Tracked => {
            use crate::backend::tracked::TrackedBackend;
            Dispatch::tracked_weight_norm(direction, gain)
        }
    };
    Some(Tensor::<3>::from_dispatch(weight).reshape(shape))
}
