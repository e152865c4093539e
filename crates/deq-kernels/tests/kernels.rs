//! Every kernel against Burn's own operations, which tensors of f64 take.
//!
//! They round differently. A sum of `n` products of numbers of order 1 is of order `sqrt(n)`, the
//! largest of many some times that, and rounding moves it by about `n` units of 6e-8: 2e-6 of the
//! largest for the longest sums here, of 18,000 products. The tolerance is five times that.

use burn::tensor::activation::{log_softmax, relu, softmax};
use burn::tensor::module::{conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use deq_kernels::{
    Convolution, Gate, GroupNorm, LayerNormJacobian, Linear, NormJacobian, RelativeAttention,
    add_upsampled, combine, convolve, cross_entropy, dots, layer_norm, product, relative_softmax,
    residual, resize_bilinear, row_squares, sum_squares, upsample, weight_norm,
};
use std::cell::Cell;

const TOLERANCE: f32 = 1e-5;

/// The CPU, or what `DEQ_TEST_DEVICE` names.
fn device() -> Device {
    deq_testkit::test_device!()
}

thread_local! {
    /// Where the numbers of this test go on.
    static DRAWN: Cell<u64> = const { Cell::new(1) };
}

/// Numbers of mean 0 and variance 1, the same in every run: differences that a kink enlarges do not
/// come and go.
fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let uniform = || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        let state = DRAWN.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        DRAWN.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    // Box and Muller 1958.
    let normal = |_| {
        let (length, angle) = (1.0 - uniform(), std::f64::consts::TAU * uniform());
        ((-2.0 * length.ln()).sqrt() * angle.cos()) as f32
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(normal).collect();
    Tensor::from_data(TensorData::new(values, shape), &device())
}

/// Maps whose channels lie next to one another, as convolutions on a GPU leave them.
fn channels_last([batch, channels, height, width]: [usize; 4]) -> Tensor<4> {
    random([batch, height, width, channels]).permute([0, 3, 1, 2])
}

/// The same numbers where only Burn's operations are taken: in f64, on the CPU, and tracked.
fn plain<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    let x = x.clone().to_device(&Device::flex());
    x.cast(DType::F64).autodiff()
}

#[track_caller]
fn assert_close<const D: usize>(ours: &Tensor<D>, theirs: &Tensor<D>, what: &str) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let [ours, theirs] = [ours, theirs].map(|x| {
        let x = if x.is_autodiff() {
            x.clone().inner()
        } else {
            x.clone()
        };
        x.into_data().iter::<f32>().collect::<Vec<f32>>()
    });
    let largest = theirs.iter().fold(1e-3_f32, |most, x| most.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE * largest,
            "{what}: number {i} is {a}, and {b} by Burn's operations (largest {largest})"
        );
    }
}

/// Batch, input, output, kernel, stride, height, width: whole vectors, ends of lines, maps narrower
/// than a vector, one channel, strides that leave a row over.
const CONVOLUTIONS: [[usize; 7]; 18] = [
    [2, 3, 5, 3, 1, 8, 8],
    [2, 32, 40, 3, 1, 16, 16],
    [1, 40, 7, 3, 1, 32, 24],
    [2, 3, 5, 3, 1, 28, 28],
    [2, 9, 14, 3, 1, 7, 7],
    [2, 8, 8, 3, 1, 4, 4],
    [3, 2, 3, 3, 1, 1, 1],
    [2, 5, 4, 1, 1, 6, 5],
    [2, 64, 33, 1, 1, 14, 14],
    [2, 9, 14, 3, 2, 28, 14],
    [2, 4, 6, 3, 2, 8, 8],
    [2, 5, 4, 1, 2, 8, 6],
    [1, 3, 4, 7, 2, 30, 14],
    // By tiles of 2x2: even and odd sides, few tiles in a line, channels that fill no panel.
    [2, 17, 20, 3, 1, 32, 32],
    [1, 16, 33, 3, 1, 28, 28],
    [2, 20, 16, 3, 1, 7, 7],
    [1, 16, 16, 3, 1, 15, 17],
    [2, 32, 16, 3, 1, 70, 130],
];

#[test]
fn convolutions_and_their_transposes() {
    for case in CONVOLUTIONS {
        let [batch, input, output, kernel, stride, height, width] = case;
        let weight = random([output, input, kernel, kernel]);
        let conv = Convolution::new(weight.clone(), stride);
        let x = random([batch, input, height, width]);
        let options = ConvOptions::new([stride; 2], [kernel / 2; 2], [1, 1], 1);
        let expected = conv2d(x.clone(), weight.clone(), None, options);
        assert_close(&conv.apply(x.clone()), &expected, &format!("{case:?}"));
        // The arranged weight serves again.
        assert_close(&conv.apply(x), &expected, &format!("{case:?}, again"));

        let sides = [height.div_ceil(stride), width.div_ceil(stride)];
        let g = random([batch, output, sides[0], sides[1]]);
        let options = ConvTransposeOptions::new(
            [stride; 2],
            [kernel / 2; 2],
            [stride + 2 * (kernel / 2) - kernel; 2],
            [1, 1],
            1,
        );
        let expected = conv_transpose2d(g.clone(), weight, None, options);
        if [height, width] == sides.map(|side| side * stride) {
            assert_close(&conv.carry(g), &expected, &format!("transposed {case:?}"));
        }
    }
}

#[test]
fn a_convolution_reads_views_as_they_look() {
    let x = random([2, 12, 9, 3]).swap_dims(1, 3).narrow(2, 1, 8);
    let weight = random([3, 5, 3, 3]).swap_dims(0, 1);
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let expected = conv2d(x.clone(), weight.clone(), None, options);
    assert_close(&Convolution::new(weight, 1).apply(x), &expected, "views");
}

#[test]
fn the_gradients_of_a_convolution() {
    for case in CONVOLUTIONS {
        let [batch, input, output, kernel, stride, height, width] = case;
        let leaves = || {
            let x = random([batch, input, height, width]).autodiff();
            let weight = random([output, input, kernel, kernel]).autodiff();
            (x.require_grad(), weight.require_grad())
        };
        let (x, weight) = leaves();
        let options = ConvOptions::new([stride; 2], [kernel / 2; 2], [1, 1], 1);
        let theirs = conv2d(x.clone(), weight.clone(), None, options);
        let factor = random(theirs.dims()).autodiff();
        let theirs = (theirs * factor.clone()).sum().backward();
        let [x_copy, weight_copy] = [&x, &weight].map(|t| t.clone().detach().require_grad());
        let ours = convolve(x_copy.clone(), weight_copy.clone(), stride);
        let ours = (ours * factor).sum().backward();
        for (what, leaf, copy) in [("input", &x, &x_copy), ("weight", &weight, &weight_copy)] {
            let (ours, theirs) = (copy.grad(&ours), leaf.grad(&theirs));
            let (ours, theirs) = (ours.expect("ours"), theirs.expect("theirs"));
            assert_close(&ours, &theirs, &format!("{what} of {case:?}"));
        }
    }
}

#[test]
fn a_constant_beside_a_tracked_argument_of_a_convolution() {
    let weight = random([4, 3, 3, 3]).autodiff().require_grad();
    let out = convolve(random([1, 3, 5, 5]), weight.clone(), 1);
    let grads = out.sum().backward();
    assert!(weight.grad(&grads).is_some());
}

#[test]
#[should_panic(expected = "the maps have 3 channels, but the weight reads 5")]
fn a_weight_for_other_channels_is_refused() {
    let device = Device::flex();
    let x = Tensor::<4>::zeros([1, 3, 4, 4], &device);
    convolve(x, Tensor::zeros([2, 5, 3, 3], &device), 1);
}

#[test]
#[should_panic(expected = "the maps have 8 channels, but the weight reads 4")]
fn a_convolution_of_other_channels_is_refused() {
    Convolution::new(random([3, 4, 3, 3]), 1).apply(random([2, 8, 4, 4]));
}

#[test]
#[should_panic(expected = "the maps have 4 channels, but the weight reads 3")]
fn a_transposed_convolution_of_other_channels_is_refused() {
    Convolution::new(random([3, 4, 3, 3]), 1).carry(random([2, 4, 4, 4]));
}

/// A group norm of five channels.
fn five_channels_in(groups: usize) -> Tensor<4> {
    let norm = GroupNorm {
        groups,
        epsilon: 1e-5,
        affine: None,
    };
    norm.apply(random([1, 5, 2, 2]))
}

#[test]
#[should_panic(expected = "2 groups do not divide 5 channels")]
fn groups_that_do_not_divide_the_channels_are_refused() {
    five_channels_in(2);
}

#[test]
#[should_panic(expected = "0 groups do not divide 5 channels")]
fn no_groups_are_refused() {
    five_channels_in(0);
}

#[test]
fn group_norms_and_their_jacobians() {
    for shape in [
        [2, 8, 4, 8, 8],
        [1, 6, 2, 3, 5],
        [3, 4, 4, 1, 1],
        [2, 48, 4, 32, 32],
    ] {
        for affine in [false, true] {
            group_norm(shape, affine, random);
            group_norm(shape, affine, channels_last);
        }
    }
}

fn group_norm(
    [batch, channels, groups, height, width]: [usize; 5],
    affine: bool,
    maps: fn([usize; 4]) -> Tensor<4>,
) {
    let scale = random([1, channels, 1, 1]);
    let shift = random([1, channels, 1, 1]);
    let norm = GroupNorm {
        groups,
        epsilon: 1e-5,
        affine: affine.then(|| (scale.clone(), shift.clone())),
    };
    let tracked = GroupNorm {
        affine: affine.then(|| (plain(&scale), plain(&shift))),
        ..norm.clone()
    };
    let shape = [batch, channels, height, width];
    let what = format!("{shape:?} in {groups}, {affine}");
    let [x, before, after, d] = [0; 4].map(|_| maps(shape));
    // A mean that is large beside the deviation.
    let x = x + 3.0;
    // In another order than the rest.
    let d = d + random(shape);
    let jacobians = |ours: &NormJacobian, theirs: &NormJacobian, what: &str| {
        let (tangent, expected) = (ours.tangent(d.clone()), theirs.tangent(plain(&d)));
        assert_close(&tangent, &expected, &format!("tangent, {what}"));
        let (carried, expected) = (ours.carry(d.clone()), theirs.carry(plain(&d)));
        assert_close(&carried, &expected, &format!("cotangent, {what}"));
    };

    let expected = tracked.apply(plain(&x));
    assert_close(&norm.apply(x.clone()), &expected, &what);
    let added = norm.add_to(after.clone(), x.clone());
    assert_close(&added, &(expected.clone() + plain(&after)), &what);
    let (value, jacobian) = norm.linearize(x.clone());
    let (_, plainly) = tracked.linearize(plain(&x));
    assert_close(&value, &expected, &what);
    jacobians(&jacobian, &plainly, &what);

    let expected = relu(expected);
    assert_close(&norm.apply_relu(x.clone()), &expected, &what);
    let (value, jacobian) = norm.linearize_relu(x.clone());
    let (_, plainly) = tracked.linearize_relu(plain(&x));
    assert_close(&value, &expected, &what);
    jacobians(&jacobian, &plainly, &format!("{what}, with its ReLU"));

    for before in [None, Some(before)] {
        let what = format!("{what}, residual {}", before.is_some());
        let seen = before.as_ref().map_or(plain(&x), |b| plain(&x) + plain(b));
        let expected = relu(tracked.apply(seen) + plain(&after));
        let value = norm.apply_residual(x.clone(), before.clone(), after.clone());
        assert_close(&value, &expected, &what);
        let (value, jacobian, gate) =
            norm.linearize_residual(x.clone(), before.clone(), after.clone());
        assert_close(&value, &expected, &what);
        let plain_before = before.as_ref().map(plain);
        let (_, plainly, plain_gate) =
            tracked.linearize_residual(plain(&x), plain_before, plain(&after));
        jacobians(&jacobian, &plainly, &what);
        let (passed, expected) = (gate.pass(d.clone()), plain_gate.pass(plain(&d)));
        assert_close(&passed, &expected, &what);
    }
}

/// Results may be written over arguments that nobody else holds, and over no others.
#[test]
fn results_in_the_place_of_arguments() {
    let shape = [2, 6, 3, 5];
    let column = [1, 6, 1, 1];
    for affine in [None, Some((random(column), random(column)))] {
        let norm = GroupNorm {
            groups: 2,
            epsilon: 1e-5,
            affine,
        };
        let [x, after, d] = [0; 3].map(|_| random(shape));
        let fine = random([2, 6, 6, 10]);
        let (_, jacobian, gate) = norm.linearize_residual(x.clone(), None, after.clone());
        let (_, at_relu) = norm.linearize_relu(x.clone());
        let all = |hold: &dyn Fn(&Tensor<4>) -> Tensor<4>| {
            let (linearized, at) = norm.linearize(hold(&x));
            [
                norm.apply(hold(&x)),
                norm.apply_relu(hold(&x)),
                norm.add_to(hold(&after), hold(&x)),
                norm.apply_residual(hold(&x), Some(hold(&d)), hold(&after)),
                linearized,
                at.tangent(hold(&d)),
                jacobian.carry(hold(&d)),
                at_relu.carry(hold(&d)),
                gate.pass(hold(&d)),
                add_upsampled(hold(&fine), x.clone(), 2),
            ]
            .map(Tensor::into_data)
        };
        let before = [&x, &after, &d, &fine].map(Tensor::to_data);
        let shared = all(&Tensor::clone);
        let own = all(&|x| Tensor::from_data(x.to_data(), &x.device()));
        assert_eq!(shared, own);
        assert_eq!(before, [&x, &after, &d, &fine].map(Tensor::to_data));
    }
}

#[test]
#[should_panic(expected = "what is added around a norm has the shape of the maps")]
fn a_norm_refuses_to_add_maps_of_another_shape() {
    let norm = GroupNorm {
        groups: 1,
        epsilon: 1e-5,
        affine: None,
    };
    norm.add_to(random([1, 2, 1, 1]), random([1, 2, 2, 2]));
}

#[test]
fn no_samples_are_normalised_to_none() {
    let norm = GroupNorm {
        groups: 2,
        epsilon: 1e-5,
        affine: None,
    };
    for x in [random([0, 4, 3, 3]), plain(&random([0, 4, 3, 3]))] {
        let (value, jacobian) = norm.linearize(x);
        assert_eq!(jacobian.carry(value).dims(), [0, 4, 3, 3]);
    }
}

#[test]
fn maps_of_other_resolutions() {
    for (shape, factor) in [
        ([2, 3, 4, 6], 2),
        ([1, 20, 2, 2], 4),
        ([3, 1, 1, 1], 8),
        ([2, 5, 3, 4], 1),
    ] {
        let [batch, channels, height, width] = shape;
        let fine = [batch, channels, factor * height, factor * width];
        for maps in [random, channels_last] {
            let (to, x) = (maps(fine), maps(shape));
            let expected = plain(&to) + upsample(plain(&x), factor);
            assert_close(
                &add_upsampled(to.clone(), x.clone(), factor),
                &expected,
                "upsampled",
            );
            let expected = sum_squares(plain(&to), factor);
            assert_close(&sum_squares(to.clone(), factor), &expected, "summed");
            // One is the transpose of the other.
            let up = (upsample(x.clone(), factor) * to.clone())
                .sum()
                .into_scalar::<f32>();
            let down = (sum_squares(to, factor) * x).sum().into_scalar::<f32>();
            assert!((up - down).abs() < 1e-3, "{up} {down}");
        }
    }
}

#[test]
#[should_panic(expected = "maps of 2 by 2 are not those behind upsampling by 2")]
fn upsampled_maps_of_another_size_are_refused() {
    add_upsampled(random([1, 1, 2, 2]), random([1, 1, 2, 2]), 2);
}

#[test]
#[should_panic(expected = "2 does not divide the sides of maps of 4 by 3")]
fn squares_beyond_the_edge_are_refused() {
    sum_squares(random([1, 1, 4, 3]), 2);
}

#[test]
fn layer_norms_and_their_jacobians() {
    for shape in [[2, 3, 5], [1, 1, 16], [4, 64, 130]] {
        let x = random(shape) - 2.0;
        let d = random(shape);
        let (normed, jacobian) = LayerNormJacobian::at(x.clone(), 1e-5);
        let (expected, plainly) = LayerNormJacobian::at(plain(&x), 1e-5);
        assert_close(&normed, &expected, &format!("{shape:?}"));
        let (ours, theirs) = (jacobian.apply(d.clone()), plainly.apply(plain(&d)));
        assert_close(&ours, &theirs, &format!("Jacobian, {shape:?}"));
    }
}

/// The gradients for all of some maps of a sum with random factors.
fn gradients(
    maps: &[Tensor<4>],
    run: &dyn Fn(&[Tensor<4>]) -> Tensor<4>,
    factor: &Tensor<4>,
) -> Vec<Tensor<4>> {
    let leaves: Vec<Tensor<4>> = maps.iter().map(|x| x.clone().require_grad()).collect();
    let grads = (run(&leaves) * factor.clone()).sum().backward();
    let gradient = |leaf: &Tensor<4>| leaf.grad(&grads).expect("a gradient");
    leaves.iter().map(gradient).collect()
}

/// Tracked tensors have kernels as well.
#[track_caller]
fn assert_gradients(maps: &[Tensor<4>], run: &dyn Fn(&[Tensor<4>]) -> Tensor<4>, what: &str) {
    let factor = random(run(maps).dims());
    let tracked: Vec<Tensor<4>> = maps.iter().map(|x| x.clone().autodiff()).collect();
    let ours = gradients(&tracked, run, &factor.clone().autodiff());
    let plainly: Vec<Tensor<4>> = maps.iter().map(plain).collect();
    let theirs = gradients(&plainly, run, &plain(&factor));
    for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_close(ours, theirs, &format!("gradient {i}, {what}"));
    }
}

#[test]
fn norms_and_their_jacobians_in_automatic_differentiation() {
    for ([batch, channels, height, width], epsilon) in [
        ([2, 8, 8, 8], 1e-5),
        ([1, 6, 3, 5], 1e-5),
        ([3, 48, 32, 32], 1e-5),
        // As if all were equal but for a little.
        ([3, 4, 1, 1], 0.5),
        ([2, 6, 3, 5], 2.0),
    ] {
        for maps in [random, channels_last] {
            let column = [1, channels, 1, 1];
            let shape = [batch, channels, height, width];
            let affine = [random(column), random(column)];
            let three = [0; 3].map(|_| maps(shape));
            let plain_norm = |x: &[Tensor<4>]| {
                let norm = GroupNorm {
                    groups: 2,
                    epsilon,
                    affine: None,
                };
                norm.add_to(x[1].clone(), x[0].clone()) + norm.apply(x[2].clone())
            };
            assert_gradients(&three, &plain_norm, "without scale and shift");
            let scaled = |x: &[Tensor<4>]| {
                let norm = GroupNorm {
                    groups: 2,
                    epsilon,
                    affine: Some((x[3].clone(), x[4].clone())),
                };
                norm.apply_residual(x[0].clone(), Some(x[1].clone()), x[2].clone())
                    + norm.apply_relu(x[2].clone())
            };
            let all: Vec<Tensor<4>> = three.into_iter().chain(affine).collect();
            assert_gradients(&all, &scaled, "with scale, shift and what is around it");
            // A penalty differentiates the Jacobian.
            let moved = |x: &[Tensor<4>]| {
                let norm = GroupNorm {
                    groups: 2,
                    epsilon,
                    affine: Some((x[3].clone(), x[4].clone())),
                };
                let (relu, at_relu) = norm.linearize_relu(x[0].clone());
                let before = Some(x[1].clone());
                let (value, at, gate) = norm.linearize_residual(relu, before, x[2].clone());
                let d = at.tangent(at_relu.tangent(x[1].clone()));
                gate.pass(d.clone() + x[2].clone()) + value * d.clone() + at.carry(d)
            };
            assert_gradients(&all, &moved, "of products with Jacobians");
            let moved = |x: &[Tensor<4>]| {
                let norm = GroupNorm {
                    groups: 2,
                    epsilon,
                    affine: None,
                };
                let (value, at) = norm.linearize(x[0].clone());
                value * at.tangent(x[1].clone())
            };
            assert_gradients(&all[..2], &moved, "of products without scale");
        }
    }
    let rows = |x: &[Tensor<4>]| {
        let [batch, time, channels, _] = x[0].dims();
        let normed = layer_norm(x[0].clone().reshape([batch, time, channels]), 1e-5);
        normed.reshape([batch, time, channels, 1])
    };
    assert_gradients(&[random([2, 5, 33, 1])], &rows, "layer norm");
    let moved = |x: &[Tensor<4>]| {
        let shape = x[0].dims();
        let [batch, time, channels, _] = shape;
        let [x, d] = [&x[0], &x[1]].map(|x| x.clone().reshape([batch, time, channels]));
        let (normed, jacobian) = LayerNormJacobian::at(x, 1e-5);
        (normed * jacobian.apply(d)).reshape(shape)
    };
    let two = [0; 2].map(|_| random([2, 5, 33, 1]));
    assert_gradients(&two, &moved, "the Jacobian of a layer norm");
}

/// Cotangents that are all the same number in memory, or shared, and maps that are everything at
/// once.
#[test]
fn recorded_norms_write_over_nothing_that_is_read_again() {
    let norm = |x: &[Tensor<4>]| GroupNorm {
        groups: 2,
        epsilon: 1e-5,
        affine: x.get(1).map(|scale| (scale.clone(), scale.clone())),
    };
    let everything = |x: &[Tensor<4>]| {
        let norm = norm(x);
        let same = || x[0].clone();
        let (value, at) = norm.linearize_relu(same());
        let (residual, moved, gate) = norm.linearize_residual(same(), Some(same()), same());
        let sum = norm.apply_residual(same(), Some(same()), same()) + norm.apply(same() * 2.0);
        let d = at.tangent(same()) + moved.tangent(same());
        sum.clone() + gate.pass(value.clone()) + residual * value + d.clone() + gate.pass(sum + d)
    };
    for affine in [None, Some(random([1, 6, 1, 1]))] {
        let maps: Vec<Tensor<4>> = [random([2, 6, 3, 5])].into_iter().chain(affine).collect();
        assert_gradients(&maps, &everything, "everything at once");
        let totals = |tracked: Vec<Tensor<4>>| -> Vec<Tensor<4>> {
            let leaves: Vec<Tensor<4>> = tracked.iter().map(|x| x.clone().require_grad()).collect();
            let grads = everything(&leaves).sum().backward();
            let gradient = |leaf: &Tensor<4>| leaf.grad(&grads).expect("a gradient");
            leaves.iter().map(gradient).collect()
        };
        let ours = totals(maps.iter().map(|x| x.clone().autodiff()).collect());
        let theirs = totals(maps.iter().map(plain).collect());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_close(ours, theirs, "the gradient of a sum");
        }
    }
}

#[test]
#[should_panic(expected = "a length for each slice of the direction")]
fn lengths_along_another_axis_are_refused() {
    weight_norm(random([4, 4, 1, 1]), random([1, 4, 1, 1]), 0);
}

#[test]
fn normalised_weights_and_their_gradients() {
    for (shape, axis) in [
        ([16, 16, 1, 1], 0),
        ([5, 7, 3, 3], 0),
        ([300, 3, 1, 1], 1),
        ([2, 3, 4, 5], 3),
    ] {
        let mut column = [1; 4];
        column[axis] = shape[axis];
        let run = |x: &[Tensor<4>]| weight_norm(x[0].clone(), x[1].clone(), axis);
        let both = [random(shape), random(column)];
        let theirs = run(&[plain(&both[0]), plain(&both[1])]);
        assert_close(&run(&both), &theirs, &format!("{shape:?} along {axis}"));
        assert_gradients(&both, &run, &format!("{shape:?} along {axis}"));
    }
    // Slices of zeros have gradients.
    let zeros = [random([2, 3, 1, 1]) * 0.0, random([2, 1, 1, 1])];
    let run = |x: &[Tensor<4>]| weight_norm(x[0].clone(), x[1].clone(), 0) * 1e-15;
    assert_gradients(&zeros, &run, "zeros");
}

#[test]
fn a_norm_of_constants_beside_tracked_scales() {
    let device = device().autodiff();
    let scale = Tensor::<4>::ones([1, 2, 1, 1], &device).require_grad();
    let norm = GroupNorm {
        groups: 1,
        epsilon: 1e-5,
        affine: Some((scale.clone(), Tensor::zeros([1, 2, 1, 1], &device))),
    };
    let x = random([1, 2, 2, 2]).autodiff();
    let grads = norm.apply(x).square().sum().backward();
    // The derivative of the sum of 8 squares whose mean is 1, by factors that are 1.
    let total = scale
        .grad(&grads)
        .expect("a gradient")
        .sum()
        .into_scalar::<f32>();
    assert!((total - 16.0).abs() < 1e-2, "{total}");
}

#[test]
fn maps_of_other_resolutions_in_automatic_differentiation() {
    let run = |x: &[Tensor<4>]| add_upsampled(x[0].clone(), x[1].clone(), 2);
    let maps = [random([2, 3, 4, 6]), channels_last([2, 3, 2, 3])];
    assert_gradients(&maps, &run, "upsampled");
    let run = |x: &[Tensor<4>]| sum_squares(x[0].clone(), 2);
    assert_gradients(&[channels_last([2, 3, 4, 6])], &run, "sums of squares");
    let run = |x: &[Tensor<4>]| resize_bilinear(x[0].clone(), [9, 5]);
    let x = channels_last([2, 3, 4, 2]);
    let resized = run(&[plain(&x)]);
    let value = run(std::slice::from_ref(&x));
    assert_close(&value, &resized, "resized");
    assert_gradients(&[x], &run, "resized");
}

#[test]
#[should_panic(expected = "4 queries have only 2 keys")]
fn a_softmax_of_fewer_keys_than_queries_is_refused() {
    let scores = || random([1, 1, 4, 2]);
    let _ = relative_softmax(scores(), scores(), &scores());
}

#[test]
#[should_panic(expected = "the shape of the maps at a norm")]
fn a_direction_of_another_batch_is_refused() {
    let norm = GroupNorm {
        groups: 1,
        epsilon: 1e-5,
        affine: None,
    };
    let (_, jacobian) = norm.linearize(random([2, 3, 2, 2]));
    let _ = jacobian.tangent(random([1, 3, 2, 2]));
}

#[test]
#[should_panic(expected = "the shape of the maps at a ReLU")]
fn maps_of_another_batch_are_refused_by_a_gate() {
    let (_, gate) = Gate::at(random([2, 3, 2, 2]));
    let _ = gate.pass(random([1, 3, 2, 2]));
}

#[test]
fn softmaxes_by_distance_in_automatic_differentiation() {
    for (time, past) in [(3, 2), (1, 0), (20, 300)] {
        let shape = [2, 3, time, past + time];
        let run = |x: &[Tensor<4>]| {
            let mask = causal(time, past).to_device(&x[0].device().inner());
            let mask = mask.cast(x[0].dtype());
            let mask = if x[0].is_autodiff() {
                mask.autodiff()
            } else {
                mask
            };
            relative_softmax(x[0].clone(), x[1].clone(), &mask)
        };
        let scores = [random(shape), random(shape)];
        let [ours, theirs] = [run(&scores), run(&[plain(&scores[0]), plain(&scores[1])])];
        assert_close(&ours, &theirs, "probabilities");
        assert_gradients(&scores, &run, &format!("{time} after {past}"));
    }
}

#[test]
fn norms_of_16_bit_floats_are_those_of_f32_rounded() {
    let device = Device::flex();
    let random = |shape: [usize; 4]| random(shape).to_device(&device);
    for own in [DType::BF16, DType::F16] {
        let affine = [random([1, 4, 1, 1]), random([1, 4, 1, 1])].map(|x| x.cast(own));
        let norm = |own: DType| GroupNorm {
            groups: 2,
            epsilon: 1e-5,
            affine: Some((affine[0].clone().cast(own), affine[1].clone().cast(own))),
        };
        let (narrow, wide) = (norm(own), norm(DType::F32));
        let x = random([2, 4, 3, 3]).cast(own);
        let d = random([2, 4, 3, 3]).cast(own);
        let f32 = |x: &Tensor<4>| x.clone().cast(DType::F32);
        let same = |narrow: Tensor<4>, wide: Tensor<4>| {
            assert_eq!(narrow.into_data(), wide.cast(own).into_data());
        };
        same(narrow.apply(x.clone()), wide.apply(f32(&x)));
        same(narrow.apply_relu(x.clone()), wide.apply_relu(f32(&x)));
        let [(value, narrow_at), (_, wide_at)] =
            [narrow.linearize(x.clone()), wide.linearize(f32(&x))];
        same(value, wide.apply(f32(&x)));
        same(narrow_at.tangent(d.clone()), wide_at.tangent(f32(&d)));
        same(narrow_at.carry(d.clone()), wide_at.carry(f32(&d)));
        let [(_, narrow_at), (_, wide_at)] = [
            narrow.linearize_relu(x.clone()),
            wide.linearize_relu(f32(&x)),
        ];
        // A scale below 0 gives a zero behind a closed gate its sign, which adding 0 takes away.
        same(
            narrow_at.tangent(d.clone()) + 0.0,
            wide_at.tangent(f32(&d)) + 0.0,
        );
        same(
            narrow_at.carry(d.clone()) + 0.0,
            wide_at.carry(f32(&d)) + 0.0,
        );

        // The derivative of the deviation of equal numbers is 1e5 where epsilon is 1e-5.
        let flat = Tensor::ones([1, 4, 2, 2], (&device, own));
        let flat = flat.autodiff().require_grad();
        let rows = flat.clone().reshape([1, 4, 4]);
        let out = narrow.apply(flat.clone()).sum() + layer_norm(rows, 1e-5).sum();
        let grad = flat.grad(&out.backward()).unwrap();
        assert!(grad.into_data().iter::<f32>().all(f32::is_finite));
    }
}

#[test]
fn linear_maps() {
    for ([batch, time], [input, output]) in [
        ([1, 1], [1, 1]),
        ([2, 3], [5, 7]),
        ([3, 50], [130, 390]),
        ([4, 64], [128, 512]),
    ] {
        for bias in [false, true] {
            let weight = random([input, output]);
            let bias = bias.then(|| random([1, output]));
            let map = Linear::new(weight.clone(), bias.clone());
            let plainly = Linear::new(plain(&weight), bias.as_ref().map(plain));
            let x = random([batch, time, input]);
            let to = random([batch, time, output]);
            let what = format!("{batch}x{time}, {input} to {output}");
            assert_close(&map.apply(x.clone()), &plainly.apply(plain(&x)), &what);
            assert_close(
                &map.apply_relu(x.clone()),
                &plainly.apply_relu(plain(&x)),
                &format!("ReLU of {what}"),
            );
            assert_close(
                &map.add_to(to.clone(), x.clone()),
                &plainly.add_to(plain(&to), plain(&x)),
                &format!("on top, {what}"),
            );
            let transposed = Linear::new(weight.clone().transpose(), None);
            let g = random([batch, time, output]);
            let expected = g.clone().reshape([batch * time, output]);
            let expected = expected.matmul(weight.transpose());
            let ours = transposed.apply(g).reshape([batch * time, input]);
            assert_close(&ours, &expected, &format!("transposed {what}"));
        }
    }
}

#[test]
fn not_a_number_passes_through() {
    let device = device();
    let nan = |shape: [usize; 3]| Tensor::<3>::full(shape, f32::NAN, &device);
    let linear = Linear::new(random([4, 4]), None);
    let normed = layer_norm(nan([1, 2, 4]), 1e-5);
    for x in [linear.apply_relu(nan([1, 2, 4])), normed] {
        assert!(x.into_data().iter::<f32>().all(f32::is_nan));
    }
    let norm = GroupNorm {
        groups: 1,
        epsilon: 1e-5,
        affine: None,
    };
    let maps = norm.apply_relu(Tensor::full([1, 2, 2, 2], f32::NAN, &device));
    assert!(maps.into_data().iter::<f32>().all(f32::is_nan));
}

/// Attention by its formula, position by position.
fn attention(attention: &RelativeAttention, qkv: &Tensor<3>) -> Tensor<3> {
    let [n_heads, d_head] = attention.content_bias.dims();
    let [_, _, time, keys] = attention.mask.dims();
    let [batch, ..] = qkv.dims();
    let width = n_heads * d_head;
    let heads = |x: Tensor<3>| {
        let [batch, time, _] = x.dims();
        x.reshape([batch, time, n_heads, d_head]).swap_dims(1, 2)
    };
    let part = |part: usize| heads(qkv.clone().narrow(2, part * width, width));
    let bias = |bias: &Tensor<2>| bias.clone().reshape([1, n_heads, 1, d_head]);
    let (query, mut key, mut value) = (part(0), part(1), part(2));
    if let Some(memory) = &attention.memory {
        key = Tensor::cat(vec![heads(memory.clone().narrow(2, 0, width)), key], 2);
        value = Tensor::cat(
            vec![heads(memory.clone().narrow(2, width, width)), value],
            2,
        );
    }
    let distances = heads(attention.distances.clone()).swap_dims(2, 3);
    let by_distance = (query.clone() + bias(&attention.position_bias)).matmul(distances);
    // Query i sees key j at the distance i + past - j, which lies in column keys - 1 - distance.
    let rows: Vec<Tensor<4>> = (0..time)
        .map(|i| {
            let seen = i + 1 + keys - time;
            let row = by_distance
                .clone()
                .narrow(2, i, 1)
                .narrow(3, keys - seen, seen);
            let hidden = row.clone().narrow(3, 0, 1).repeat_dim(3, keys - seen + 1);
            Tensor::cat(vec![row, hidden], 3).narrow(3, 0, keys)
        })
        .collect();
    let content = (query + bias(&attention.content_bias)).matmul(key.swap_dims(2, 3));
    let scores = (content + Tensor::cat(rows, 2)).div_scalar((d_head as f64).sqrt());
    let weights = softmax(scores + attention.mask.clone(), 3);
    let weights = match &attention.dropout {
        Some(dropout) => weights * dropout.clone(),
        None => weights,
    };
    let mixed = weights.matmul(value);
    mixed.swap_dims(1, 2).reshape([batch, time, width])
}

fn causal(time: usize, past: usize) -> Tensor<4> {
    let keys = past + time;
    let hidden = (0..time).flat_map(|i| (0..keys).map(move |j| j > i + past));
    let values: Vec<f32> = hidden
        .map(|hidden| if hidden { -1e9 } else { 0.0 })
        .collect();
    let data = TensorData::new(values, [1, 1, time, keys]);
    Tensor::from_data(data, &device())
}

#[test]
fn attention_and_its_cotangents() {
    for ([batch, heads, d_head], [time, past], dropout) in [
        ([1, 1, 4], [1, 0], false),
        ([2, 3, 5], [7, 4], false),
        ([2, 2, 8], [20, 13], true),
        ([4, 10, 13], [50, 64], false),
    ] {
        let (keys, width) = (time + past, heads * d_head);
        let dropped = || {
            let kept = Distribution::Bernoulli(0.8);
            Tensor::random([batch, heads, time, keys], kept, &device()).mul_scalar(1.25)
        };
        let ours = RelativeAttention {
            content_bias: random([heads, d_head]),
            position_bias: random([heads, d_head]),
            memory: (past > 0).then(|| random([batch, past, 2 * width])),
            distances: random([1, keys, width]),
            mask: causal(time, past),
            dropout: dropout.then(dropped),
        };
        let plainly = RelativeAttention {
            content_bias: plain(&ours.content_bias),
            position_bias: plain(&ours.position_bias),
            memory: ours.memory.as_ref().map(plain),
            distances: plain(&ours.distances),
            mask: plain(&ours.mask),
            dropout: ours.dropout.as_ref().map(plain),
        };
        let what = format!("{batch} x {heads} heads of {d_head}, {time} after {past}");
        let qkv = random([batch, time, 3 * width]);
        let leaf = plain(&qkv).require_grad();
        let expected = attention(&plainly, &leaf);
        let mixed = ours.attend(&qkv).expect("there is a kernel");
        assert_close(&mixed, &expected, &what);
        let (again, point) = ours.linearize(&qkv).expect("there is a kernel");
        assert_close(&again, &expected, &what);
        let g = random(mixed.dims());
        let grads = (expected * plain(&g)).sum().backward();
        let expected = leaf.grad(&grads).expect("a gradient");
        assert_close(
            &point.carry(&g),
            &expected,
            &format!("cotangents of {what}"),
        );
        // On a GPU. The transpose of what carries cotangents.
        let d = random(qkv.dims());
        if let Some((again, moved)) = ours.tangent(&qkv, &d) {
            assert_close(&again, &mixed, &what);
            for _ in 0..3 {
                let g = random(mixed.dims());
                let forward = (moved.clone() * g.clone()).sum().into_scalar::<f32>();
                let back = (point.carry(&g) * d.clone()).sum().into_scalar::<f32>();
                let scale = (moved.clone().square().sum() * g.square().sum()).sqrt();
                let distance = (forward - back).abs() / scale.into_scalar::<f32>();
                assert!(distance < TOLERANCE, "tangent of {what}: {forward} {back}");
            }
        }
    }
}

#[test]
fn cross_entropies_and_their_gradients() {
    for [rows, count] in [[1, 1], [3, 5], [7, 1000]] {
        // Scores that a sum of plain exponentials would not hold.
        let scores = (random([rows, count]) * 40.0 + 90.0)
            .autodiff()
            .require_grad();
        let columns: Vec<i32> = (0..rows).map(|row| (row * 31 % count) as i32).collect();
        let ours = cross_entropy(scores.clone(), &columns);
        let indices = TensorData::new(columns.clone(), [rows, 1]);
        let indices = Tensor::<2, Int>::from_data(indices, &device().autodiff());
        let picked = log_softmax(scores.clone(), 1).gather(1, indices);
        let theirs = picked.squeeze_dim::<1>(1).neg();
        let what = format!("{rows} rows of {count}");
        assert_close(&ours, &theirs, &what);
        let untracked = cross_entropy(scores.clone().inner(), &columns);
        assert_close(&untracked, &theirs, &what);
        let factor = random([rows]).autodiff();
        let [ours, theirs] = [ours, theirs].map(|nll| {
            let grads = (nll * factor.clone()).sum().backward();
            scores.grad(&grads).expect("a gradient")
        });
        assert_close(&ours, &theirs, &format!("gradient, {what}"));
    }
}

#[test]
fn no_rows_have_no_cross_entropy_and_a_gradient_of_their_shape() {
    let scores = TensorData::new(Vec::<f32>::new(), [0, 7]);
    let scores = Tensor::<2>::from_data(scores, &device());
    let scores = scores.autodiff().require_grad();
    let grads = cross_entropy(scores.clone(), &[]).backward();
    assert_eq!(scores.grad(&grads).expect("a gradient").dims(), [0, 7]);
}

#[test]
#[should_panic(expected = "column 3 of 3")]
fn a_column_that_is_none_is_named() {
    cross_entropy(random([1, 3]), &[3]);
}

/// The largest distance of `dots`, `combine`, `product`, `row_squares` and `residual` from sums in
/// f64, each beside the sum of the absolute products, of numbers that are rounded by `round`
/// before.
fn distance_of_products(round: fn(f32) -> f32) -> f64 {
    const BATCH: usize = 3;
    const SLOTS: usize = 8;
    const DIM: usize = 64;
    let device = device();
    device.seed(11);
    let normal = Distribution::Normal(0.0, 1.0);
    let vectors = Tensor::<3>::random([BATCH, SLOTS, DIM], normal, &device);
    let x = Tensor::<2>::random([BATCH, DIM], normal, &device);
    let weights = Tensor::<3>::random([BATCH, SLOTS, 1], normal, &device);
    let numbers = |data: TensorData| data.iter::<f64>().collect::<Vec<f64>>();
    let exact = [
        numbers(vectors.to_data()),
        numbers(x.to_data()),
        numbers(weights.to_data()),
    ];
    let rounded = |values: &[f64], shape: &[usize]| {
        let values: Vec<f32> = values.iter().map(|&value| round(value as f32)).collect();
        TensorData::new(values, shape.to_vec())
    };
    let vectors = Tensor::<3>::from_data(rounded(&exact[0], &[BATCH, SLOTS, DIM]), &device);
    let x = Tensor::<2>::from_data(rounded(&exact[1], &[BATCH, DIM]), &device);
    let weights = Tensor::<3>::from_data(rounded(&exact[2], &[BATCH, SLOTS, 1]), &device);
    let [v, x_values, w] = exact;
    let at = |b: usize, s: usize, d: usize| v[(b * SLOTS + s) * DIM + d];
    let mut worst = 0.0_f64;
    let mut check = |ours: Vec<f64>, products: &dyn Fn(usize) -> Vec<f64>| {
        for (i, ours) in ours.into_iter().enumerate() {
            let products = products(i);
            let size: f64 = products.iter().map(|x| x.abs()).sum();
            worst = worst.max((ours - products.iter().sum::<f64>()).abs() / size);
        }
    };
    let with_x = |i: usize| {
        let terms = (0..DIM).map(|d| at(i / SLOTS, i % SLOTS, d) * x_values[i / SLOTS * DIM + d]);
        terms.collect::<Vec<f64>>()
    };
    check(numbers(dots(&vectors, SLOTS, &x).into_data()), &with_x);
    let column = x.clone().unsqueeze_dim::<3>(2);
    check(
        numbers(product(vectors.clone(), column).into_data()),
        &with_x,
    );
    check(
        numbers(combine(&vectors, SLOTS, &weights).into_data()),
        &|i| {
            let (b, d) = (i / DIM, i % DIM);
            (0..SLOTS).map(|s| w[b * SLOTS + s] * at(b, s, d)).collect()
        },
    );
    let square = |i: usize| {
        let row = &x_values[i * DIM..(i + 1) * DIM];
        row.iter().map(|x| x * x).collect::<Vec<f64>>()
    };
    check(numbers(row_squares(&x).into_data()), &square);
    let zeros = x.zeros_like();
    let (of_zeros, squares) = residual(&zeros, &x);
    check(numbers(of_zeros.into_data()), &|i| vec![x_values[i]]);
    for squares in squares.into_iter().flatten() {
        check(numbers(squares.into_data()), &square);
    }
    worst
}

#[test]
#[should_panic(expected = "a point and its value are of one shape")]
fn a_residual_of_two_shapes_is_refused() {
    let _ = residual(&random([2, 3]), &random([1, 3]));
}

/// A sum of 64 products in f32 is off by at most 64 roundings of 6e-8 beside the absolute products,
/// and by some ten of them in practice.
#[test]
fn products_of_solvers_are_f32_on_every_device() {
    let exact = distance_of_products(|x| x);
    assert!(exact < 2e-6, "{exact:e}");
    // What they would be if the device rounded to TF32 first, to 11 bits.
    let rounded = distance_of_products(|x| f32::from_bits((x.to_bits() + 0x0fff) & !0x1fff));
    assert!(rounded > 1e-5, "{rounded:e}");
}

#[test]
#[should_panic(expected = "the positions have 5 channels, but the weight reads 4")]
fn a_linear_map_of_other_channels_is_refused() {
    Linear::new(random([4, 3]), None).apply(random([1, 3, 5]));
}

#[test]
#[should_panic(expected = "what a product is added to has its shape")]
fn a_linear_map_adds_to_positions_of_its_batch() {
    Linear::new(random([4, 3]), None).add_to(random([2, 1, 3]), random([1, 1, 4]));
}

#[test]
#[should_panic(expected = "scale and shift of a norm have a number for each channel")]
fn a_norm_refuses_scales_of_other_channels() {
    let norm = GroupNorm {
        groups: 2,
        epsilon: 1e-5,
        affine: Some((random([1, 6, 1, 1]), random([1, 6, 1, 1]))),
    };
    norm.apply(random([1, 4, 2, 2]));
}

#[test]
#[should_panic(expected = "a kernel of 3 by 1 is not a square with odd sides")]
fn a_kernel_that_is_no_square_is_refused() {
    Convolution::new(random([8, 4, 3, 1]), 1);
}

#[test]
#[should_panic(expected = "a kernel of 2 by 2 is not a square with odd sides")]
fn a_kernel_without_a_middle_is_refused() {
    convolve(random([1, 4, 3, 3]), random([8, 4, 2, 2]), 1);
}

#[test]
#[should_panic(expected = "a stride of 0 goes nowhere")]
fn a_stride_of_nothing_is_refused() {
    Convolution::new(random([8, 4, 3, 3]), 0);
}

#[test]
#[should_panic(expected = "a mask for 6 positions")]
fn attention_refuses_a_mask_for_other_positions() {
    let attention = RelativeAttention {
        content_bias: random([2, 4]),
        position_bias: random([2, 4]),
        memory: None,
        distances: random([1, 3, 8]),
        mask: causal(3, 0),
        dropout: None,
    };
    let _ = attention.attend(&random([2, 6, 24]));
}

#[test]
#[should_panic(expected = "keys and values of the memory, for the batch of the segment")]
fn attention_refuses_a_memory_of_another_batch() {
    let attention = RelativeAttention {
        content_bias: random([2, 4]),
        position_bias: random([2, 4]),
        memory: Some(random([3, 2, 16])),
        distances: random([1, 5, 8]),
        mask: causal(3, 2),
        dropout: None,
    };
    let _ = attention.attend(&random([2, 3, 24]));
}

/// Batches without a sample, maps without a pixel, states without a number.
#[test]
fn of_nothing_comes_nothing() {
    let device = device();
    let empty = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &device);
    let conv = Convolution::new(random([4, 3, 3, 3]), 2);
    for sides in [[0, 3, 6, 4], [2, 3, 0, 0]] {
        let [batch, _, height, width] = sides;
        let coarse = [batch, 4, height / 2, width / 2];
        assert_eq!(conv.apply(empty(sides)).dims(), coarse);
        assert_eq!(conv.carry(empty(coarse)).dims(), sides);
    }
    let linear = Linear::new(random([4, 3]), Some(random([1, 3])));
    let none = Tensor::<3>::zeros([0, 5, 4], &device);
    assert_eq!(linear.apply(none).dims(), [0, 5, 3]);
    let state = Tensor::<2>::zeros([2, 0], &device);
    assert_eq!(row_squares(&state).dims(), [2, 1]);
    let (of_nothing, _) = residual(&state, &state);
    assert_eq!(of_nothing.dims(), [2, 0]);
}

#[test]
fn a_convolution_with_the_same_weight_on_a_tape_is_recorded() {
    let weight = random([6, 4, 3, 3]);
    let plain = Convolution::new(weight.clone(), 1);
    let (x, g) = (random([2, 4, 8, 8]), random([2, 6, 8, 8]));
    let expected = (plain.apply(x.clone()), plain.carry(g.clone()));
    let tracked = weight.autodiff().require_grad();
    let recorded = plain.with_same_weight(tracked.clone());
    let out = recorded.apply(x.clone());
    assert_close(&out.clone().inner(), &expected.0, "the same weight");
    let leaf = x.autodiff().require_grad();
    let grads = ((recorded.apply(leaf.clone()) + out) * g.autodiff())
        .sum()
        .backward();
    assert_close(&leaf.grad(&grads).unwrap(), &expected.1, "the transpose");
    assert!(tracked.grad(&grads).is_some());
}
