//! Kernels for the CPU, on slices of `f32`.
//!
//! Every kernel is dispatched once at run time to the widest vectors that the processor has, and
//! divides its work over the threads of rayon's pool.

#![cfg_attr(
    not(feature = "autodiff"),
    allow(
        dead_code,
        reason = "without it what has derivatives of its own is left out, or has none"
    )
)]

pub(crate) mod attention;
pub(crate) mod conv;
mod gemm;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod pointwise;
mod reduce;
pub(crate) mod resample;
pub(crate) mod softmax;
pub(crate) mod solver;
pub(crate) mod weight_norm;
mod winograd;

use pulp::WithSimd;

/// Runs `op` with the widest vectors that the processor has: AVX-512, AVX2, those of NEON.
fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    vectors().dispatch(op)
}

#[cfg(not(test))]
fn vectors() -> pulp::Arch {
    pulp::Arch::new()
}

#[cfg(test)]
use tests::vectors;

/// Numbers below which threads cost more than they save.
const PARALLEL: usize = 1 << 15;

/// Rows that one task takes, so that it is worth a thread.
fn rows_per_task(size: usize) -> usize {
    (PARALLEL / 2 / size.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Arch;
    use std::cell::Cell;

    thread_local! {
        /// What this thread takes instead of the widest.
        static VECTORS: Cell<Option<Arch>> = const { Cell::new(None) };
    }

    pub(super) fn vectors() -> Arch {
        VECTORS.get().unwrap_or_default()
    }

    /// All that this processor has.
    fn kinds() -> Vec<Arch> {
        let mut kinds = vec![Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            kinds.extend(pulp::x86::V3::try_new().map(Arch::V3));
            kinds.extend(pulp::x86::V4::try_new().map(Arch::V4));
        }
        #[cfg(target_arch = "aarch64")]
        kinds.extend(pulp::aarch64::Neon::try_new().map(Arch::Neon));
        kinds
    }

    /// Numbers between -1 and 1 that look random.
    fn numbers(count: usize) -> Vec<f32> {
        let number = |i: usize| {
            let mut bits = (i as u32).wrapping_mul(0x9e37_79b9);
            for factor in [0x7feb_352d, 0x846c_a68b] {
                bits = (bits ^ bits >> 16).wrapping_mul(factor);
            }
            (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(number).collect()
    }

    fn convolutions() -> Vec<Vec<f32>> {
        // Whole images and parts of them, tiles of pixels and products, lines shorter and longer
        // than vectors, most of them no multiple of one.
        let shapes = [
            [5, 20, 24, 3, 1, 9, 8],
            [3, 16, 17, 3, 1, 21, 35],
            [7, 16, 16, 3, 1, 8, 12],
            [9, 24, 5, 3, 1, 4, 4],
            [3, 4, 7, 3, 2, 9, 11],
            [2, 3, 6, 3, 1, 5, 37],
            [5, 6, 13, 1, 1, 4, 5],
            [1, 8, 9, 1, 1, 17, 19],
            [4, 8, 9, 1, 2, 7, 6],
            [2, 3, 7, 5, 3, 10, 11],
            [2, 1, 7, 7, 2, 15, 9],
        ];
        let mut outcomes = Vec::new();
        for [batch, input, output, kernel, stride, height, width] in shapes {
            let shape = conv::ConvShape {
                batch,
                input,
                output,
                kernel,
                stride,
                height,
                width,
            };
            let sides = shape.output_sides();
            let x = numbers(batch * input * height * width);
            let g = numbers(batch * output * sides[0] * sides[1]);
            let weight = numbers(output * input * kernel * kernel);
            outcomes.extend([
                conv::forward(&x, &conv::ForwardWeight::new(&weight, &shape), &shape),
                conv::input_gradient(&g, &conv::TransposedWeight::new(&weight, &shape), &shape),
                conv::weight_gradient(&x, &g, &shape),
            ]);
        }
        outcomes
    }

    fn products() -> Vec<Vec<f32>> {
        let [rows, depth, columns] = [67, 65, 77];
        let matrix = numbers(depth * columns);
        let (bias, add) = (numbers(columns), numbers(rows * columns));
        let finish = linear::Finish {
            bias: Some(&bias),
            add: Some(&add),
            relu: true,
        };
        let weight = linear::PackedColumns::new(&matrix, [depth, columns], [columns, 1]);
        vec![linear::linear(&numbers(rows * depth), &weight, finish)]
    }

    fn norms() -> Vec<Vec<f32>> {
        let (scale, shift) = (numbers(6), numbers(9));
        let rows = norm::Rows {
            size: 6 * 7,
            plane: 7,
            scale: Some(&scale),
            shift: Some(&shift[3..]),
            cycle: 1,
        };
        let count = 800 * rows.size;
        let all = numbers(5 * count);
        let [x, before, after, d, gate] = [0, 1, 2, 3, 4].map(|i| &all[i * count..][..count]);
        let nothing = || vec![0.0; count];
        let [mut value, mut normed, mut plain] = [(); 3].map(|()| nothing());
        let norm = norm::Normalization {
            x: Some(x),
            before: Some(before),
            after: Some(after),
            rows,
            epsilon: 1e-5,
            relu: true,
        };
        let inverse_deviations = norm.run(&mut normed, Some(&mut value));
        norm.run(&mut plain, None);
        let carry = |direction| {
            let mut result = d.to_vec();
            let carry = norm::Carry {
                d: None,
                normed: &normed,
                inverse_deviations: &inverse_deviations,
                gate: Some(gate),
                rows,
                direction,
            };
            carry.run(&mut result);
            result
        };
        let [forward, transposed] =
            [norm::Direction::Forward, norm::Direction::Transposed].map(carry);
        let tangent = norm::Tangent {
            x,
            d,
            gate: Some(gate),
            rows,
            epsilon: 1e-5,
        };
        let [mut moved, mut apart, mut to_x, mut to_d] = [(); 4].map(|()| nothing());
        tangent.run(&mut moved, Some(&mut apart));
        tangent.carry(Some(after), &mut to_x, &mut to_d);
        let sides = [800, 6, 7];
        let (to_scale, to_shift) = norm::affine_gradients(d, &normed, Some(gate), sides);
        vec![
            value, plain, forward, transposed, moved, apart, to_x, to_d, to_scale, to_shift,
        ]
    }

    fn weights() -> Vec<Vec<f32>> {
        let size = 301;
        let (direction, gain) = (numbers(90 * size), numbers(90));
        let [weight, lengths] = weight_norm::weight_norm(&direction, &gain, size);
        let mut to_direction = numbers(91 * size).split_off(size);
        let to_gain = weight_norm::carry(&mut to_direction, &direction, &gain, &lengths, size);
        vec![weight, lengths, to_direction, to_gain]
    }

    fn attentions() -> Vec<Vec<f32>> {
        let [batch, heads, d_head, time, keys] = [2, 3, 10, 7, 12];
        let width = heads * d_head;
        let biases = numbers(2 * width);
        let memory = numbers(batch * (keys - time) * 2 * width);
        let (distances, mask) = (numbers(keys * width), numbers(time * keys));
        let constants = attention::Constants {
            heads,
            d_head,
            time,
            keys,
            content_bias: &biases[..width],
            position_bias: &biases[width..],
            memory: &memory,
            distances: &distances,
            mask: &mask,
            dropout: &[],
        };
        let qkv = numbers(batch * time * 3 * width);
        let (value, probabilities) = attention::attend(&qkv, constants, true);
        let cotangent = attention::carry(&value, &qkv, &probabilities, constants);
        vec![value, probabilities, cotangent]
    }

    fn rows() -> Vec<Vec<f32>> {
        let [rows, size] = [400, 101];
        let (scores, g) = (numbers(rows * size), numbers(rows));
        let columns: Vec<usize> = (0..rows).map(|row| row % size).collect();
        let mut fine = numbers(40 * 36 * 28);
        resample::add_upsampled(&mut fine, &numbers(40 * 9 * 7), [9, 7], 4);
        let mut open = numbers(100_002).split_off(1);
        pointwise::pass_gate(&mut open, &numbers(100_001));
        vec![
            resample::sum_squares(&fine, [9, 7], 4),
            open,
            softmax::cross_entropy(&scores, &columns),
            softmax::cross_entropy_gradient(&scores, &columns, &g),
            pointwise::tanh_all(&numbers(100_001)),
            fine,
        ]
    }

    fn solver_steps() -> Vec<Vec<f32>> {
        let [batch, slots, dim] = [2, 4, 3 * 4_096 + 5];
        let states = numbers(8 * batch * dim);
        let state = |i: usize| &states[i * batch * dim..][..batch * dim];
        let (vectors, weights) = (numbers(batch * slots * dim), numbers(batch * slots));
        // Small terms, and residuals as of the identity, so that no denominator is nearly 0.
        let terms = || -> Vec<f32> { vectors.iter().map(|value| 0.01 * value).collect() };
        let [mut u, mut v] = [terms(), terms()];
        let broyden = solver::BroydenStep {
            z: [state(0), state(1)],
            residual: [state(0), state(1)],
            u: &mut u,
            v: &mut v,
            slots,
            used: 2,
            dim,
            good: true,
        };
        let mut outcomes = vec![
            broyden.run(),
            solver::dots(&vectors, state(0), [slots, dim], 3),
            solver::combine(&vectors, &weights, [slots, dim], 3),
            solver::squares(state(0), dim),
        ];
        outcomes.extend([u, v]);
        let [mut residuals, mut points] = [0.0, 0.0].map(|zero| vec![zero; vectors.len()]);
        let mut products = vec![0.0; batch * slots * slots];
        let [mut sizes, mut valid] = [0.0, 0.0].map(|zero| vec![zero; batch * slots]);
        for slot in 0..3 {
            let anderson = solver::AndersonStep {
                z: state(slot),
                fz: state(slot + 3),
                residual: state(slot + 5),
                residuals: &mut residuals,
                points: &mut points,
                products: &mut products,
                sizes: &mut sizes,
                valid: &mut valid,
                slot,
                used: slot + 1,
                slots,
                m: slots,
                dim,
                rules: solver::AndersonRules {
                    mixing: 0.9,
                    regularization: 1e-8,
                    relative: true,
                    max_weight: 1e4,
                },
            };
            outcomes.push(anderson.run());
        }
        outcomes
    }

    /// What all kernels say on a pool of so many threads.
    fn outcomes(threads: usize, kind: Arch) -> Vec<Vec<f32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().unwrap();
        pool.broadcast(|_| VECTORS.set(Some(kind)));
        let work = [
            convolutions,
            products,
            norms,
            weights,
            attentions,
            rows,
            solver_steps,
        ];
        pool.install(|| work.into_iter().flat_map(|work| work()).collect())
    }

    /// To eight roundings, since sums are taken in other orders. The kernels are compared with
    /// plain operations elsewhere, with the widest vectors.
    #[test]
    fn vectors_of_every_width_agree() {
        let expected = outcomes(1, Arch::Scalar);
        for kind in kinds() {
            for (k, (expected, got)) in expected.iter().zip(outcomes(2, kind)).enumerate() {
                assert_eq!(expected.len(), got.len(), "outcome {k}, {kind:?}");
                let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
                    assert!(
                        (expected - got).abs() <= 1e-6 * largest,
                        "number {i} of outcome {k} is {expected}, with {kind:?} {got}"
                    );
                }
            }
        }
    }

    #[test]
    fn numbers_do_not_depend_on_the_number_of_threads() {
        let bits =
            |values: &[f32]| -> Vec<u32> { values.iter().map(|value| value.to_bits()).collect() };
        for kind in kinds() {
            let expected = outcomes(1, kind);
            for threads in [2, 5] {
                let got = outcomes(threads, kind);
                for (k, (expected, got)) in expected.iter().zip(got).enumerate() {
                    assert_eq!(bits(expected), bits(&got), "outcome {k}, {threads} threads");
                }
            }
        }
    }

    /// Batches without a sample, and maps without a channel.
    #[test]
    fn nothing_is_convolved_to_nothing() {
        for [batch, input] in [[0, 3], [2, 0]] {
            let shape = conv::ConvShape {
                batch,
                input,
                output: 4,
                kernel: 3,
                stride: 1,
                height: 9,
                width: 7,
            };
            let [x, g, weight] = [batch * input * 63, batch * 4 * 63, 4 * input * 9].map(numbers);
            let y = conv::forward(&x, &conv::ForwardWeight::new(&weight, &shape), &shape);
            assert_eq!(y, vec![0.0; g.len()]);
            let transposed = conv::TransposedWeight::new(&weight, &shape);
            assert_eq!(conv::input_gradient(&g, &transposed, &shape).len(), x.len());
            assert_eq!(
                conv::weight_gradient(&x, &g, &shape),
                vec![0.0; weight.len()]
            );
        }
    }
}
