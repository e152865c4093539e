//! The softmax of scores by content and by distance (Transformer-XL, Dai et al. 2019).

use burn::tensor::{Tensor, activation::softmax};

/// The softmax over keys of scores of which one part is known by key and one by distance.
///
/// Row `i` of the second part moves left by `time - 1 - i`, so that the last key is at distance 0
/// from the last query. What wraps around belongs to keys in the future, which the mask hides.
///
/// # Shapes
///
/// - by_content: by key, `[batch, heads, time, keys]`
/// - by_distance: at the distances `keys - 1, ..., 0`, `[batch, heads, time, keys]`
/// - mask: a constant, 0 where a query sees a key, a large negative number where it does not, as
///   for all keys in the future, `[1, 1, time, keys]`
/// - output: `[batch, heads, time, keys]`
///
/// # Panics
///
/// If the shapes are others, or there are fewer keys than queries.
pub fn relative_softmax(
    by_content: Tensor<4>,
    by_distance: Tensor<4>,
    mask: &Tensor<4>,
) -> Tensor<4> {
    let [_, _, time, keys] = by_content.dims();
    assert!(keys >= time, "{time} queries have only {keys} keys");
    assert_eq!(
        by_content.dims(),
        by_distance.dims(),
        "scores by content and by distance are of one shape"
    );
    assert_eq!(mask.dims(), [1, 1, time, keys], "the shape of the mask");
    #[cfg(feature = "_gpu")]
    if !crate::on_host(&by_content.device())
        && crate::backend::takes(&[&by_content, &by_distance, mask])
    {
        use crate::gpu::attention::SoftmaxBackend;
        use burn::backend::Dispatch;
        let [by_content, by_distance] = [by_content, by_distance].map(Tensor::into_dispatch);
        let mask = mask.clone().into_dispatch();
        return Tensor::from_dispatch(Dispatch::relative_softmax(by_content, by_distance, mask));
    }
    softmax(by_content + relative_shift(by_distance) + mask.clone(), 3)
}

/// Turns scores by distance into scores by key position: row `i` moves left by `time - 1 - i`.
///
/// # Shapes
///
/// - x, output: `[batch, heads, time, keys]`
pub fn relative_shift(x: Tensor<4>) -> Tensor<4> {
    let [batch, heads, time, keys] = x.dims();
    let pad = x.clone().narrow(3, 0, 1).zeros_like();
    Tensor::cat(vec![pad, x], 3)
        .reshape([batch, heads, keys + 1, time])
        .narrow(2, 1, keys)
        .reshape([batch, heads, time, keys])
}

/// The transpose of [`relative_shift`].
///
/// # Shapes
///
/// - x, output: `[batch, heads, time, keys]`
pub fn relative_unshift(x: Tensor<4>) -> Tensor<4> {
    let [batch, heads, time, keys] = x.dims();
    let x = x.reshape([batch, heads, keys, time]);
    let pad = x.clone().narrow(2, 0, 1).zeros_like();
    Tensor::cat(vec![pad, x], 2)
        .reshape([batch, heads, time, keys + 1])
        .narrow(3, 1, keys)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn the_relative_shift_moves_scores_to_the_keys_at_their_distance() {
        let device = Device::flex();
        let (time, keys) = (3, 5);
        let values: Vec<f32> = (0..time * keys).map(|v| v as f32).collect();
        let data = TensorData::new(values.clone(), [1, 1, time, keys]);
        let shifted = relative_shift(Tensor::from_data(data, &device));
        let shifted: Vec<f32> = shifted.into_data().iter::<f32>().collect();
        for i in 0..time {
            // Query i stands at key position i + past; column c holds distance keys - 1 - c.
            for j in 0..=i + keys - time {
                let distance = i + keys - time - j;
                let expected = values[i * keys + keys - 1 - distance];
                assert!((shifted[i * keys + j] - expected).abs() < 1e-6);
            }
        }
    }
}
