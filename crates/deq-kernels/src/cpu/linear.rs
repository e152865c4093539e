//! Rows times a matrix, with what follows it in the same pass.

use super::gemm::{ROWS, row_tile};
use super::{PARALLEL, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// A matrix `[depth, columns]`, packed by panels of two vectors of columns.
#[derive(Debug)]
pub(crate) struct PackedColumns {
    /// `[panel][k][column]`, zeros behind the last column.
    values: Vec<f32>,
    depth: usize,
    columns: usize,
}

impl PackedColumns {
    /// Packs the matrix whose entry `(k, column)` is
    /// `matrix[k * strides[0] + column * strides[1]]`.
    pub(crate) fn new(matrix: &[f32], [depth, columns]: [usize; 2], strides: [usize; 2]) -> Self {
        let width = dispatch(Width);
        let mut values = vec![0.0; columns.div_ceil(width) * width * depth];
        let panels = values.chunks_exact_mut((width * depth).max(1)).enumerate();
        for (panel, values) in panels {
            let first = panel * width;
            let count = width.min(columns - first);
            for (k, values) in values.chunks_exact_mut(width).enumerate() {
                for (column, value) in values[..count].iter_mut().enumerate() {
                    *value = matrix[k * strides[0] + (first + column) * strides[1]];
                }
            }
        }
        Self {
            values,
            depth,
            columns,
        }
    }
}

/// Columns of a tile.
struct Width;

impl WithSimd for Width {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        2 * S::F32_LANES
    }
}

/// What is done to a product before it is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Finish<'a> {
    /// Added to every row.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added number by number.
    pub(crate) add: Option<&'a [f32]>,
    /// Negative numbers become 0.
    pub(crate) relu: bool,
}

/// `x W`, finished.
pub(crate) fn linear(x: &[f32], weight: &PackedColumns, finish: Finish<'_>) -> Vec<f32> {
    let (depth, columns) = (weight.depth, weight.columns);
    let rows = x.len() / depth;
    let mut out = vec![0.0; rows * columns];
    let work = rows * columns * depth;
    // Whole tiles, and as many tasks as there are threads to share them.
    let tasks = if work < PARALLEL * 8 {
        1
    } else {
        rayon::current_num_threads()
    };
    let share = rows.div_ceil(tasks).next_multiple_of(ROWS);
    out.par_chunks_mut((share * columns).max(1))
        .zip(x.par_chunks((share * depth).max(1)))
        .enumerate()
        .for_each(|(task, (out, x))| {
            dispatch(Product {
                x,
                weight,
                bias: finish.bias,
                add: finish.add.map(|add| &add[task * share * columns..]),
                relu: finish.relu,
                out,
            });
        });
    out
}

struct Product<'a> {
    x: &'a [f32],
    weight: &'a PackedColumns,
    bias: Option<&'a [f32]>,
    add: Option<&'a [f32]>,
    relu: bool,
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (depth, columns) = (self.weight.depth, self.weight.columns);
        let width = 2 * S::F32_LANES;
        let rows = self.x.len() / depth;
        let zero = simd.splat_f32s(0.0);
        let panels = self.weight.values.chunks_exact(width * depth);
        for (panel, b) in panels.enumerate() {
            let (b, _) = S::as_simd_f32s(b).0.as_chunks::<2>();
            let first = panel * width;
            let count = width.min(columns - first);
            let bias = match self.bias {
                Some(bias) => load(simd, &bias[first..first + count]),
                None => [zero; 2],
            };
            for start in (0..rows).step_by(ROWS) {
                let tile = row_tile(simd, self.x, depth, [start, rows], b);
                for (row, values) in (start..rows).zip(tile) {
                    let at = row * columns + first..row * columns + first + count;
                    let add = match self.add {
                        Some(add) => load(simd, &add[at.clone()]),
                        None => [zero; 2],
                    };
                    let values = [
                        self.finished(simd, values[0], bias[0], add[0]),
                        self.finished(simd, values[1], bias[1], add[1]),
                    ];
                    store(simd, &mut self.out[at], values);
                }
            }
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn finished<S: Simd>(&self, simd: S, value: S::f32s, bias: S::f32s, add: S::f32s) -> S::f32s {
        let value = simd.add_f32s(simd.add_f32s(value, bias), add);
        if self.relu {
            // Keeps a NaN, which `max` would turn into 0.
            let zero = simd.splat_f32s(0.0);
            return simd.select_f32s(simd.less_than_f32s(value, zero), zero, value);
        }
        value
    }
}

/// At most two vectors.
#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> [S::f32s; 2] {
    if values.len() == 2 * S::F32_LANES {
        let (values, _) = S::as_simd_f32s(values);
        return [values[0], values[1]];
    }
    let (first, second) = values.split_at(values.len().min(S::F32_LANES));
    [
        simd.partial_load_f32s(first),
        simd.partial_load_f32s(second),
    ]
}

/// The counterpart of [`load`].
#[inline(always)]
fn store<S: Simd>(simd: S, to: &mut [f32], values: [S::f32s; 2]) {
    if to.len() == 2 * S::F32_LANES {
        let (to, _) = S::as_mut_simd_f32s(to);
        (to[0], to[1]) = (values[0], values[1]);
        return;
    }
    let (first, second) = to.split_at_mut(to.len().min(S::F32_LANES));
    simd.partial_store_f32s(first, values[0]);
    simd.partial_store_f32s(second, values[1]);
}
