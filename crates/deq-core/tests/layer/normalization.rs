//! Normalised weights and dropout masks.

use crate::support::*;
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use deq_core::dropout::DropoutMask;
use deq_core::normalization::{SpectralNorm, WeightNorm, norm_except};
use deq_testkit::{assert_close, finite_difference, values};

#[test]
fn weight_normalisation_keeps_the_weight_and_takes_its_length_from_the_gain() {
    let device = device();
    for axis in [0, 1] {
        let weight = numbers([4, 6], 1, 2.0, &device).reshape([4, 3, 2]);
        let mut norm = WeightNorm::new(weight.clone(), axis);
        assert_close(
            &values(&norm.weight()),
            &values(&weight),
            tolerance(1e-14),
            "weight",
        );
        norm.gain = norm.gain.map(|gain| gain * 3.0);
        norm.direction = norm.direction.map(|direction| direction * 0.1);
        let longer = norm_except(norm.weight(), axis);
        let expected = norm_except(weight * 3.0, axis);
        assert_close(
            &values(&longer),
            &values(&expected),
            tolerance(1e-14),
            "norms",
        );
        assert_eq!(longer.dims()[axis], [4, 3, 2][axis]);
    }
}

#[test]
fn the_gradient_of_a_normalised_weight_is_right() {
    let device = device();
    let plain = plain_device();
    let weight = numbers([3, 4], 1, 2.0, &device);
    let probe = numbers([3, 4], 2, 1.0, &device);
    let step = tolerance(1e-7);
    for bound in [0.5, 100.0] {
        let norm = SpectralNorm::new(weight.clone(), bound);
        let grads = (norm.weight() * probe.clone()).sum().backward();
        let actual = values(&norm.weight.val().grad(&grads).unwrap());
        let of = |w: &[f64]| {
            let weight = Tensor::<2>::from_data(TensorData::new(w.to_vec(), [3, 4]), &plain);
            let norm = SpectralNorm::new(weight, bound);
            (norm.weight() * probe.clone().inner())
                .sum()
                .into_scalar::<f64>()
        };
        // Differences say nothing in f32; there the f64 run stands for it.
        if !single() {
            let expected = finite_difference(of, &values(&weight));
            assert_close(&actual, &expected, step, "spectral norm");
        }
    }
    let norm = WeightNorm::new(weight.clone(), 1);
    let grads = (norm.weight() * probe.clone()).sum().backward();
    let actual = values(&norm.direction.val().grad(&grads).unwrap());
    // A column's gradient is the part of the probe's column across the direction.
    let along = (probe.clone() * weight.clone()).sum_dim(0) / weight.clone().square().sum_dim(0);
    let expected = values(&(probe - weight * along));
    assert_close(&actual, &expected, tolerance(1e-12), "weight norm");
}

#[test]
fn a_slice_of_zeros_stays_one_and_has_a_gradient() {
    let device = device();
    let spread = Tensor::<2>::from_data([[1.0], [0.0], [1.0]], &device);
    let weight = numbers([3, 4], 1, 2.0, &device) * spread;
    let norm = WeightNorm::new(weight.clone(), 0);
    assert_close(
        &values(&norm.weight()),
        &values(&weight),
        tolerance(1e-14),
        "weight",
    );
    let grads = norm.weight().sum().backward();
    for param in [&norm.direction, &norm.gain] {
        let gradient = values(&param.val().grad(&grads).unwrap());
        assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    }
}

#[test]
fn spectral_normalisation_bounds_the_largest_singular_value() {
    let device = device();
    device.seed(4);
    // Singular values 3, 2, 0.5 of a convolution's weight as a [3, 8] matrix.
    let mut entries = vec![0.0; 24];
    entries[1] = 3.0;
    entries[8 + 6] = -2.0;
    entries[16] = 0.5;
    let weight = Tensor::<4>::from_data(TensorData::new(entries.clone(), [3, 2, 2, 2]), &device);
    let bounded = SpectralNorm::new(weight.clone(), 0.9).weight();
    let expected: Vec<f64> = entries.iter().map(|entry| entry * 0.9 / 3.0).collect();
    assert_close(&values(&bounded), &expected, tolerance(1e-12), "bounded");
    let within = SpectralNorm::new(weight, 4.0).weight();
    assert_close(&values(&within), &entries, tolerance(1e-14), "left alone");
}

#[test]
fn the_singular_vector_follows_the_weight_in_training_and_rests_in_evaluation() {
    let device = device();
    device.seed(4);
    let mut norm = SpectralNorm::new(numbers([6, 6], 1, 1.0, &device), 1.0);
    norm.weight = norm
        .weight
        .map(|_| numbers([6, 6], 9, 1.0, &device).detach().require_grad());
    let first = values(&norm.valid().weight());
    assert_eq!(
        values(&norm.valid().weight()),
        first,
        "evaluation changes nothing"
    );
    let moved: Vec<Vec<f64>> = (0..200).map(|_| values(&norm.weight())).collect();
    assert_ne!(moved[0], moved[20]);
    let exact = SpectralNorm::new(norm.weight.val(), 1.0).weight();
    assert_close(
        &moved[199],
        &values(&exact),
        tolerance(1e-9),
        "after 200 steps",
    );
}

/// Of a weight of zeros no vector is singular more than another, and a vector may be orthogonal to
/// all that another weight does.
#[test]
fn a_weight_that_was_zero_or_lay_elsewhere_is_bounded() {
    let device = device();
    let matrix = |entries: [f64; 4]| {
        Tensor::<2>::from_data(TensorData::new(entries.to_vec(), [2, 2]), &device)
    };
    for (before, after) in [
        ([0.0, 0.0, 0.0, 0.0], [10.0, 0.0, 0.0, 10.0]),
        ([3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]),
        ([3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]),
    ] {
        let mut norm = SpectralNorm::new(matrix(before), 0.5);
        assert!(values(&norm.weight()).iter().all(|entry| entry.is_finite()));
        norm.weight = norm.weight.map(|_| matrix(after).detach().require_grad());
        let weight = values(&norm.weight());
        let largest = weight.iter().fold(0.0f64, |most, entry| most.max(*entry));
        assert_close(
            &[largest],
            &[0.5],
            tolerance(1e-12),
            "the largest singular value",
        );
    }
}

#[test]
fn a_dropout_mask_has_the_right_values_rate_and_mean() {
    let device = plain_device();
    device.seed(9);
    let mask = DropoutMask::draw([100, 1, 100], 0.3, &device);
    let applied = values(&mask.apply(Tensor::<3>::ones([100, 2, 100], &device)));
    let kept = 1.0 / 0.7;
    assert!(
        applied
            .iter()
            .all(|v| v.abs() < 1e-12 || (v - kept).abs() < 1e-6)
    );
    assert_eq!(
        applied[..100],
        applied[100..200],
        "shared by both positions"
    );
    let mean = applied.iter().sum::<f64>() / applied.len() as f64;
    // 10,000 decisions with standard deviation 0.65 around 1; four standard errors.
    assert!((mean - 1.0).abs() < 4.0 * 0.0066, "{mean}");
    let none = DropoutMask::draw([1, 1, 1], 0.0, &device);
    assert_eq!(
        values(&none.apply(Tensor::<3>::ones([1, 2, 3], &device))),
        [1.0; 6]
    );
}

#[test]
fn weights_and_masks_go_with_tensors_of_another_type_than_the_device_has() {
    let device = Device::flex();
    let x = Tensor::<2>::ones([3, 5], &device).cast(DType::F64);
    let dropped = DropoutMask::draw([3, 5], 0.5, &device).apply(x.clone());
    assert_eq!(dropped.dtype(), DType::F64);
    let dropped = values(&dropped);
    assert!(
        dropped.iter().all(|entry| [0.0, 2.0].contains(entry)),
        "{dropped:?}"
    );
    let bounded = SpectralNorm::new(x, 0.5).weight();
    // Ones have the singular value sqrt(15).
    let expected = [0.5 / 15.0_f64.sqrt(); 15];
    assert_close(&values(&bounded), &expected, 1e-12, "bounded");
}
