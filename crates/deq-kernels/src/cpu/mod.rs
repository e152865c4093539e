//! Kernels for the CPU, on slices of `f32`.
//!
//! Every kernel is dispatched once at run time to the widest vectors that the processor has, and
//! divides its work over the threads of rayon's pool.

#![cfg_attr(
    not(feature = "autodiff"),
    allow(
        dead_code,
        reason = "convolutions and cross entropies are left out without it"
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

    /// Numbers around 0 that look random.
    fn numbers(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7_919 + 13) % 1_009) as f32 / 504.5 - 1.0)
            .collect()
    }

    fn convolutions() -> Vec<Vec<f32>> {
        // Whole images and parts of them, tiles of pixels and products, lines shorter and longer
        // than vectors, and none a multiple of one.
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
        let [rows, depth, columns] = [13, 37, 45];
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
        let (x, d) = (numbers(5 * rows.size), numbers(6 * rows.size));
        let normed = norm::normalize(&x, rows, 1e-5, true, true);
        let carry = |direction| {
            norm::carry(
                &d[rows.size - 1..][..x.len()],
                &normed.normed,
                &normed.inverse_deviations,
                rows,
                direction,
            )
        };
        let carried = [norm::Direction::Forward, norm::Direction::Transposed].map(carry);
        let mut outcomes = vec![normed.value];
        outcomes.extend(carried);
        outcomes
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

    fn sums() -> Vec<Vec<f32>> {
        let [batch, slots, dim] = [3, 4, 101];
        let (vectors, x) = (numbers(batch * slots * dim), numbers(batch * dim));
        let weights = numbers(batch * slots);
        vec![
            solver::dots(&vectors, &x, [slots, dim], 3),
            solver::combine(&vectors, &weights, [slots, dim], 3),
            solver::squares(&x, dim),
            softmax::cross_entropy(&vectors, &vec![5; batch * slots]),
            softmax::cross_entropy_gradient(&vectors, &vec![5; batch * slots], &weights),
            pointwise::tanh_all(&x),
        ]
    }

    /// The kernels are compared with plain operations elsewhere, with the widest vectors.
    #[test]
    fn vectors_of_every_width_agree() {
        let outcomes: Vec<Vec<Vec<f32>>> = kinds()
            .into_iter()
            .map(|kind| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1);
                pool.build().unwrap().install(|| {
                    VECTORS.set(Some(kind));
                    let work = [convolutions, products, norms, attentions, sums];
                    work.into_iter().flat_map(|work| work()).collect()
                })
            })
            .collect();
        for other in &outcomes[1..] {
            for (k, (expected, got)) in outcomes[0].iter().zip(other).enumerate() {
                assert_eq!(expected.len(), got.len(), "outcome {k}");
                let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (i, (expected, got)) in expected.iter().zip(got).enumerate() {
                    let error = (expected - got).abs();
                    assert!(
                        error <= 1e-5 * largest,
                        "number {i} of outcome {k} is {expected}, then {got}"
                    );
                }
            }
        }
    }
}
