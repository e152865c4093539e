//! Every kernel against Burn's own operations, which tensors of an autodiff device take.
//!
//! Both round differently. A sum of `n` products of numbers of order 1 is of order `sqrt(n)`, the
//! largest of many some times that, and rounding moves it by about `n` units of 6e-8: 2e-6 of the
//! largest for the longest sums here, of 18,000 products. The tolerance is five times that.

use burn::tensor::activation::{log_softmax, relu, softmax};
use burn::tensor::module::{conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use deq_kernels::{
    Convolution, GroupNorm, Linear, RelativeAttention, combine, convolve, cross_entropy, dots,
    layer_norm, product, residual, row_squares,
};

const TOLERANCE: f32 = 1e-5;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// The same numbers where only Burn's operations are taken.
fn plain<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    x.clone().autodiff()
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
    for [batch, channels, groups, height, width] in [
        [2, 8, 4, 8, 8],
        [1, 6, 2, 3, 5],
        [3, 4, 4, 1, 1],
        [2, 48, 4, 32, 32],
    ] {
        for affine in [false, true] {
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
            // A mean that is large beside the deviation.
            let x = random([batch, channels, height, width]) + 3.0;
            let what = format!("{channels} channels of {height}x{width} in {groups}, {affine}");
            let expected = tracked.apply(plain(&x));
            assert_close(&norm.apply(x.clone()), &expected, &what);
            assert_close(&norm.apply_relu(x.clone()), &relu(expected.clone()), &what);
            let (value, jacobian) = norm.linearize(x.clone());
            let (_, plainly) = tracked.linearize(plain(&x));
            assert_close(&value, &expected, &what);
            let d = random(x.dims());
            assert_close(
                &jacobian.tangent(d.clone()),
                &plainly.tangent(plain(&d)),
                &format!("tangent, {what}"),
            );
            assert_close(
                &jacobian.carry(d.clone()),
                &plainly.carry(plain(&d)),
                &format!("cotangent, {what}"),
            );
        }
    }
}

#[test]
fn layer_norms_and_their_jacobians() {
    for shape in [[2, 3, 5], [1, 1, 16], [4, 64, 130]] {
        let x = random(shape) - 2.0;
        let d = random(shape);
        let (normed, jacobian) = layer_norm(x.clone(), 1e-5);
        let (expected, plainly) = layer_norm(plain(&x), 1e-5);
        assert_close(&normed, &expected, &format!("{shape:?}"));
        let (ours, theirs) = (jacobian.apply(d.clone()), plainly.apply(plain(&d)));
        assert_close(&ours, &theirs, &format!("Jacobian, {shape:?}"));
    }
}

#[test]
fn norms_of_16_bit_floats_are_those_of_f32_rounded() {
    let device = Device::flex();
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

        // The derivative of the deviation of equal numbers is 1e5 where epsilon is 1e-5.
        let flat = Tensor::ones([1, 4, 2, 2], (&device, own));
        let flat = flat.autodiff().require_grad();
        let rows = flat.clone().reshape([1, 4, 4]);
        let out = narrow.apply(flat.clone()).sum() + layer_norm(rows, 1e-5).0.sum();
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
    let device = Device::flex();
    let nan = |shape: [usize; 3]| Tensor::<3>::full(shape, f32::NAN, &device);
    let linear = Linear::new(random([4, 4]), None);
    let (normed, _) = layer_norm(nan([1, 2, 4]), 1e-5);
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
    Tensor::from_data(data, &Device::flex())
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
            Tensor::random([batch, heads, time, keys], kept, &Device::flex()).mul_scalar(1.25)
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
        let indices = Tensor::<2, Int>::from_data(indices, &Device::flex().autodiff());
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
    let scores = Tensor::<2>::from_data(scores, &Device::flex());
    let scores = scores.autodiff().require_grad();
    let grads = cross_entropy(scores.clone(), &[]).backward();
    assert_eq!(scores.grad(&grads).expect("a gradient").dims(), [0, 7]);
}

#[test]
#[should_panic(expected = "column 3 of 3")]
fn a_column_that_is_none_is_named() {
    cross_entropy(random([1, 3]), &[3]);
}

/// The CPU, or what `DEQ_TEST_DEVICE` names.
fn device() -> Device {
    deq_testkit::test_device!()
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
