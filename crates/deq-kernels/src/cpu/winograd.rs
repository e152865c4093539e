//! Convolutions of 3x3 by Winograd's minimal filtering F(2x2, 3x3): tiles of 2x2 pixels with 16
//! products instead of 36 for every pair of channels (Lavin and Gray, "Fast algorithms for
//! convolutional neural networks", CVPR 2016).
//!
//! ```text
//! Y = A^T ((G g G^T) * (B^T d B)) A      summed over input channels, d the 4x4 pixels of a tile
//! ```
//!
//! All constants are 0, 1 or 1/2, so that rounding errors stay those of a direct sum, a few times
//! larger.

use super::conv::{ConvShape, Item, Padded, divided};
use super::dispatch;
use super::gemm::{PackedRows, ROWS, packed_tile};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Numbers of a transformed tile.
const POINTS: usize = 16;

/// Tiles of a work item, so that their transforms stay in the second-level cache.
const TILES: usize = 32;

/// Whether tiles pay: enough of them to fill vectors, and enough channels to make up for the
/// transforms.
pub(crate) fn pays(shape: &ConvShape) -> bool {
    let tiles = shape.height.div_ceil(2) * shape.width.div_ceil(2);
    shape.kernel == 3 && shape.stride == 1 && tiles >= 16 && shape.input.min(shape.output) >= 16
}

/// A transformed weight, one matrix `[output, input]` for every point of a tile.
#[derive(Debug)]
pub(crate) struct TransformedWeight(Vec<PackedRows>);

impl TransformedWeight {
    /// `tap(output, input, place)` is the weight of one of the nine places.
    pub(crate) fn new(
        output: usize,
        input: usize,
        tap: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let mut transformed = vec![0.0; output * input * POINTS];
        transformed
            .par_chunks_mut(input * POINTS)
            .enumerate()
            .for_each(|(row, values)| {
                for (column, values) in values.chunks_exact_mut(POINTS).enumerate() {
                    values.copy_from_slice(&transform(|place| tap(row, column, place)));
                }
            });
        let matrix = |point: usize| {
            PackedRows::new(output, input, |row, values| {
                for (column, value) in values.iter_mut().enumerate() {
                    *value = transformed[(row * input + column) * POINTS + point];
                }
            })
        };
        Self((0..POINTS).map(matrix).collect())
    }
}

/// `G g G^T`
fn transform(tap: impl Fn(usize) -> f32) -> [f32; POINTS] {
    let along = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    let columns: [[f32; 4]; 3] = std::array::from_fn(|x| along([tap(x), tap(3 + x), tap(6 + x)]));
    let mut out = [0.0; POINTS];
    for y in 0..4 {
        let row = along([columns[0][y], columns[1][y], columns[2][y]]);
        out[4 * y..4 * y + 4].copy_from_slice(&row);
    }
    out
}

/// The convolution of `x`; `shape` says what it maps.
pub(crate) fn convolve(x: &[f32], weight: &TransformedWeight, shape: &ConvShape) -> Vec<f32> {
    let [height, width] = [shape.height, shape.width];
    let [down, across] = [height.div_ceil(2), width.div_ceil(2)];
    // One zero before, and as many behind as the last tile reads.
    let source = Padded::tiled(x, [shape.batch, shape.input, height, width], [down, across]);
    let plane = height * width;
    let mut out = vec![0.0; shape.batch * shape.output * plane];
    let lines = (TILES / across).max(1);
    // As many in every item.
    let lines = down.div_ceil(down.div_ceil(lines));
    let items = divided(&mut out, shape.output, plane, 2 * lines * width, 4 * TILES);
    let image = shape.input * source.map_length();
    items.into_par_iter().for_each(|item| {
        dispatch(Tiles {
            maps: &source.values[item.from * image..],
            image,
            plane: source.plane(),
            pitch: source.width,
            input: shape.input,
            weight,
            across,
            width,
            item,
        });
    });
    out
}

/// Some lines of tiles of one image, or all of several.
struct Tiles<'a> {
    /// Planes of even and odd rows and columns, channel by channel, from the first image on.
    maps: &'a [f32],
    /// Numbers of an image.
    image: usize,
    plane: usize,
    pitch: usize,
    input: usize,
    weight: &'a TransformedWeight,
    /// Tiles of a line.
    across: usize,
    width: usize,
    /// Its rows are output channels.
    item: Item<'a>,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let channels = self.item.rows.clone();
        // Of one image.
        let lines = self.item.out[0].len().div_ceil(2 * self.width);
        let images = self.item.out.len() / channels.len();
        let width = 2 * S::F32_LANES;
        let length = (images * lines * self.across).next_multiple_of(S::F32_LANES);
        let transformed = self.transformed(simd, [images, lines], length);
        let block = self.input * width;
        // The last vector of a line may reach over the end.
        let mut products = vec![0.0; POINTS * ROWS * length + S::F32_LANES];
        let mut rows = Rows::new(self.across + S::F32_LANES);
        let (across, image_width) = (self.across, self.width);
        let mut out = self.item.out;
        for start in (0..channels.len()).step_by(ROWS) {
            for (point, weight) in self.weight.0.iter().enumerate() {
                let a = weight.panel((channels.start + start) / ROWS);
                let b = &transformed[point * self.input * length..][..self.input * length];
                let to = &mut products[point * ROWS * length..][..ROWS * length];
                for (first, b) in (0..length).step_by(width).zip(b.chunks(block)) {
                    let to = &mut to[first..];
                    if b.len() == block {
                        multiply::<S, 2>(simd, a, b, to, length);
                    } else {
                        multiply::<S, 1>(simd, a, b, to, length);
                    }
                }
            }
            for (row, channel) in (start..channels.len()).take(ROWS).enumerate() {
                for image in 0..images {
                    let out = out[image * channels.len() + channel].chunks_mut(2 * image_width);
                    for (line, out) in (image * lines..).zip(out) {
                        let from = &products[row * length + line * across..];
                        rows.read(simd, from, ROWS * length, across);
                        rows.write(out, image_width);
                    }
                }
            }
        }
    }
}

/// The product of a panel of the weight and a block of `N` vectors of tiles, into rows of `length`.
#[inline(always)]
fn multiply<S: Simd, const N: usize>(
    simd: S,
    a: &[[f32; ROWS]],
    b: &[f32],
    to: &mut [f32],
    length: usize,
) {
    let tile: [[S::f32s; N]; ROWS] = packed_tile(simd, a, S::as_simd_f32s(b).0.as_chunks().0);
    for (row, values) in tile.iter().enumerate() {
        let (to, _) = S::as_mut_simd_f32s(&mut to[row * length..][..N * S::F32_LANES]);
        for (to, value) in to.iter_mut().zip(values) {
            *to = *value;
        }
    }
}

impl Tiles<'_> {
    /// `B^T d B` of every tile, `[point][block of tiles][channel][tile]`, where a block fills two
    /// vectors, and the last one if that is enough.
    #[inline(always)]
    fn transformed<S: Simd>(
        &self,
        simd: S,
        [images, lines]: [usize; 2],
        length: usize,
    ) -> Vec<f32> {
        let lanes = S::F32_LANES;
        let (width, point) = (2 * lanes, self.input * length);
        let first = self.item.first / (2 * self.width);
        let mut out = vec![0.0; POINTS * point];
        let mut line_end = vec![0.0; lanes];
        for channel in 0..self.input {
            for line in 0..images * lines {
                let row = first + line % lines;
                let image = line / lines * self.image;
                let planes = &self.maps[image + channel * 4 * self.plane..];
                for tile in (0..self.across).step_by(lanes) {
                    let values = self.tile(simd, &planes[row * self.pitch + tile..]);
                    let tiles = lanes.min(self.across - tile);
                    let at = line * self.across + tile;
                    // Tiles of the block that one lies in.
                    let room = |at: usize| width.min(length - at / width * width);
                    let place = |at: usize| {
                        at / width * width * self.input + channel * room(at) + at % width
                    };
                    // Behind the last tile of a line lies what the next line writes.
                    if at % width + lanes <= room(at) {
                        let to = &mut out[place(at)..];
                        for (index, value) in values.iter().enumerate() {
                            let to = &mut to[index * point..][..lanes];
                            S::as_mut_simd_f32s(to).0[0] = *value;
                        }
                    } else {
                        let here = tiles.min(room(at) - at % width);
                        for (index, value) in values.iter().enumerate() {
                            S::as_mut_simd_f32s(&mut line_end).0[0] = *value;
                            let (values, rest) = line_end[..tiles].split_at(here);
                            let to = &mut out[index * point..];
                            to[place(at)..][..here].copy_from_slice(values);
                            if !rest.is_empty() {
                                to[place(at + here)..][..rest.len()].copy_from_slice(rest);
                            }
                        }
                    }
                }
            }
        }
        out
    }

    /// `B^T d B` of a vector of tiles whose first pixel is the first of `planes`.
    #[inline(always)]
    fn tile<S: Simd>(&self, simd: S, planes: &[f32]) -> [S::f32s; POINTS] {
        let lanes = S::F32_LANES;
        let mut d = [[simd.splat_f32s(0.0); 4]; 4];
        for (y, d) in d.iter_mut().enumerate() {
            for (x, d) in d.iter_mut().enumerate() {
                let from = (y % 2 * 2 + x % 2) * self.plane + y / 2 * self.pitch + x / 2;
                *d = S::as_simd_f32s(&planes[from..from + lanes]).0[0];
            }
        }
        let mut half = [[simd.splat_f32s(0.0); 4]; 4];
        for x in 0..4 {
            half[0][x] = simd.sub_f32s(d[0][x], d[2][x]);
            half[1][x] = simd.add_f32s(d[1][x], d[2][x]);
            half[2][x] = simd.sub_f32s(d[2][x], d[1][x]);
            half[3][x] = simd.sub_f32s(d[1][x], d[3][x]);
        }
        let mut out = [simd.splat_f32s(0.0); POINTS];
        for (out, h) in out.chunks_exact_mut(4).zip(&half) {
            out[0] = simd.sub_f32s(h[0], h[2]);
            out[1] = simd.add_f32s(h[1], h[2]);
            out[2] = simd.sub_f32s(h[2], h[1]);
            out[3] = simd.sub_f32s(h[1], h[3]);
        }
        out
    }
}

/// The two rows of pixels of a line of tiles, even and odd columns apart.
struct Rows([[Vec<f32>; 2]; 2]);

impl Rows {
    fn new(length: usize) -> Self {
        Self(std::array::from_fn(|_| {
            std::array::from_fn(|_| vec![0.0; length])
        }))
    }

    /// `A^T m A` of some tiles, where point `p` of tile `t` lies at `p * stride + t`.
    #[inline(always)]
    fn read<S: Simd>(&mut self, simd: S, products: &[f32], stride: usize, tiles: usize) {
        let lanes = S::F32_LANES;
        for tile in (0..tiles).step_by(lanes) {
            let mut sums = [[simd.splat_f32s(0.0); 2]; 4];
            for (y, sums) in sums.iter_mut().enumerate() {
                let mut m = [simd.splat_f32s(0.0); 4];
                for (x, m) in m.iter_mut().enumerate() {
                    let from = (4 * y + x) * stride + tile;
                    *m = S::as_simd_f32s(&products[from..from + lanes]).0[0];
                }
                sums[0] = simd.add_f32s(simd.add_f32s(m[0], m[1]), m[2]);
                sums[1] = simd.sub_f32s(simd.sub_f32s(m[1], m[2]), m[3]);
            }
            let [upper, lower] = &mut self.0;
            for (x, (upper, lower)) in upper.iter_mut().zip(lower).enumerate() {
                let top = simd.add_f32s(simd.add_f32s(sums[0][x], sums[1][x]), sums[2][x]);
                let bottom = simd.sub_f32s(simd.sub_f32s(sums[1][x], sums[2][x]), sums[3][x]);
                S::as_mut_simd_f32s(&mut upper[tile..tile + lanes]).0[0] = top;
                S::as_mut_simd_f32s(&mut lower[tile..tile + lanes]).0[0] = bottom;
            }
        }
    }

    /// One or two rows of the image.
    #[inline(always)]
    fn write(&self, out: &mut [f32], width: usize) {
        for (out, [even, odd]) in out.chunks_mut(width).zip(&self.0) {
            let pairs = width / 2;
            let (whole, _) = out.as_chunks_mut::<2>();
            for ((out, even), odd) in whole.iter_mut().zip(&even[..pairs]).zip(&odd[..pairs]) {
                *out = [*even, *odd];
            }
            if width % 2 == 1 {
                out[width - 1] = even[pairs];
            }
        }
    }
}
