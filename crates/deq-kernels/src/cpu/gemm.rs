//! Register tiles of a matrix product, and the packed layouts they read.
//!
//! `C = A B` is cut into tiles of [`ROWS`] rows by two vectors of columns, which stay in registers
//! while one runs over the inner dimension (Goto and van de Geijn, "Anatomy of high-performance
//! matrix multiplication", ACM TOMS 2008). `A` is packed into panels of [`ROWS`] rows, so that it
//! is read in order.

use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a tile: with two vectors of columns, twelve accumulators of the sixteen registers that
/// AVX2 has.
pub(crate) const ROWS: usize = 6;

/// `A`, packed by panels of rows.
#[derive(Debug)]
pub(crate) struct PackedRows {
    /// `[panel][k][row]`
    values: Vec<f32>,
    rows: usize,
    depth: usize,
}

impl PackedRows {
    /// Packs a matrix of which `fill(row, values)` writes one row.
    pub(crate) fn new(rows: usize, depth: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let mut values = vec![0.0; rows.div_ceil(ROWS) * ROWS * depth];
        values
            .par_chunks_mut((ROWS * depth).max(1))
            .enumerate()
            .for_each(|(panel, packed)| {
                let mut entries = vec![0.0; depth];
                for row in 0..ROWS.min(rows - panel * ROWS) {
                    fill(panel * ROWS + row, &mut entries);
                    for (column, entry) in packed.chunks_exact_mut(ROWS).zip(&entries) {
                        column[row] = *entry;
                    }
                }
            });
        Self {
            values,
            rows,
            depth,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// One of the panels.
    pub(crate) fn panel(&self, panel: usize) -> &[[f32; ROWS]] {
        let length = ROWS * self.depth;
        self.values[panel * length..][..length].as_chunks().0
    }

    /// The panels of some rows, the first of which is one of a panel: each one array of [`ROWS`]
    /// entries per step of the inner dimension, and the place of its first row among them.
    pub(crate) fn panels(
        &self,
        rows: Range<usize>,
    ) -> impl Iterator<Item = (&[[f32; ROWS]], usize)> {
        let first = rows.start / ROWS;
        (0..rows.len())
            .step_by(ROWS)
            .enumerate()
            .map(move |(panel, row)| (self.panel(first + panel), row))
    }
}

/// A tile of `N` vectors of columns whose right side is read as it lies: vector `j` of step `k`
/// starts at `starts[j] + offsets[k]`.
#[inline(always)]
pub(crate) fn gathered_tile<S: Simd, const N: usize>(
    simd: S,
    a: &[[f32; ROWS]],
    offsets: &[usize],
    values: &[f32],
    starts: [usize; N],
) -> [[S::f32s; N]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    let columns = starts.map(|start| &values[start..]);
    for (a, offset) in a.iter().zip(offsets) {
        let mut b = [simd.splat_f32s(0.0); N];
        for (b, columns) in b.iter_mut().zip(columns) {
            *b = S::as_simd_f32s(&columns[*offset..offset + S::F32_LANES]).0[0];
        }
        add_product(simd, a, b, &mut sums);
    }
    sums
}

/// A tile whose right side lies in lines of `length`, read from column `first` on.
#[inline(always)]
fn lines_tile<S: Simd>(
    simd: S,
    a: &[[f32; ROWS]],
    b: &[f32],
    length: usize,
    first: usize,
) -> [[S::f32s; 2]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    for (a, line) in a.iter().zip(b.chunks_exact(length)) {
        let (b, _) = S::as_simd_f32s(&line[first..first + 2 * S::F32_LANES]);
        add_product(simd, a, [b[0], b[1]], &mut sums);
    }
    sums
}

/// A tile whose right side is packed, `N` vectors a step.
#[inline(always)]
pub(crate) fn packed_tile<S: Simd, const N: usize>(
    simd: S,
    a: &[[f32; ROWS]],
    b: &[[S::f32s; N]],
) -> [[S::f32s; N]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    for (a, b) in a.iter().zip(b) {
        add_product(simd, a, *b, &mut sums);
    }
    sums
}

#[inline(always)]
fn add_product<S: Simd, const N: usize>(
    simd: S,
    a: &[f32; ROWS],
    b: [S::f32s; N],
    sums: &mut [[S::f32s; N]; ROWS],
) {
    for (sums, a) in sums.iter_mut().zip(a) {
        let a = simd.splat_f32s(*a);
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = simd.mul_add_e_f32s(a, b, *sum);
        }
    }
}

/// A tile of `x B`, whose rows of `x`, of length `depth`, are read as they lie. Rows from the last
/// on are repeated.
#[inline(always)]
pub(crate) fn row_tile<S: Simd>(
    simd: S,
    x: &[f32],
    depth: usize,
    [start, rows]: [usize; 2],
    b: &[[S::f32s; 2]],
) -> [[S::f32s; 2]; ROWS] {
    let mut a: [&[f32]; ROWS] = [&[]; ROWS];
    for (row, a) in a.iter_mut().enumerate() {
        let row = (start + row).min(rows - 1);
        *a = &x[row * depth..][..depth];
    }
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    let b = &b[..depth];
    for k in 0..depth {
        let b = b[k];
        for (sums, a) in sums.iter_mut().zip(&a) {
            let a = simd.splat_f32s(a[k]);
            sums[0] = simd.mul_add_e_f32s(a, b[0], sums[0]);
            sums[1] = simd.mul_add_e_f32s(a, b[1], sums[1]);
        }
    }
    sums
}

/// The length of a line that tiles may fill to its end.
#[inline(always)]
fn padded<S: Simd>(_: S, columns: usize) -> usize {
    columns.next_multiple_of(2 * S::F32_LANES)
}

/// Lines of [`padded`] length.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) values: Vec<f32>,
    pub(crate) length: usize,
}

impl Lines {
    #[inline(always)]
    pub(crate) fn zeros<S: Simd>(simd: S, rows: usize, columns: usize) -> Self {
        let length = padded(simd, columns);
        Self {
            values: vec![0.0; rows * length],
            length,
        }
    }

    /// The lines `line(row)`, each `columns` long.
    #[inline(always)]
    pub(crate) fn copied<'a, S: Simd>(
        simd: S,
        columns: usize,
        lines: impl ExactSizeIterator<Item = &'a [f32]>,
    ) -> Self {
        let mut copy = Self::zeros(simd, lines.len(), columns);
        for (to, from) in copy.values.chunks_exact_mut(copy.length).zip(lines) {
            to[..columns].copy_from_slice(from);
        }
        copy
    }

    /// The transpose of `lines`, each `rows` long.
    #[inline(always)]
    pub(crate) fn transposed<'a, S: Simd>(
        simd: S,
        rows: usize,
        lines: impl ExactSizeIterator<Item = &'a [f32]>,
    ) -> Self {
        let mut copy = Self::zeros(simd, rows, lines.len());
        for (column, line) in lines.enumerate() {
            for (row, value) in line[..rows].iter().enumerate() {
                copy.values[row * copy.length + column] = *value;
            }
        }
        copy
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.length..][..self.length]
    }
}

/// `out += A B`, with `A` of `rows` rows given entry by entry.
#[inline(always)]
pub(crate) fn product<S: Simd>(
    simd: S,
    rows: usize,
    a: impl Fn(usize, usize) -> f32,
    b: &Lines,
    out: &mut Lines,
) {
    let depth = b.values.len() / b.length;
    let width = 2 * S::F32_LANES;
    let mut panel = vec![[0.0; ROWS]; depth];
    for start in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - start);
        for (k, column) in panel.iter_mut().enumerate() {
            for (row, value) in column[..count].iter_mut().enumerate() {
                *value = a(start + row, k);
            }
        }
        for first in (0..out.length).step_by(width) {
            let sums = lines_tile(simd, &panel, &b.values, b.length, first);
            let lines = out.values.chunks_exact_mut(out.length).skip(start);
            for (line, sums) in lines.zip(&sums[..count]) {
                let (line, _) = S::as_mut_simd_f32s(&mut line[first..first + width]);
                for (to, sum) in line.iter_mut().zip(sums) {
                    *to = simd.add_f32s(*to, *sum);
                }
            }
        }
    }
}
