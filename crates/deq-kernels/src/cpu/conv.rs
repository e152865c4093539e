//! Convolutions of feature maps `[batch, channels, height, width]`, as matrix products whose
//! right side is read from the padded maps.

use super::dispatch;
use super::gemm::{PackedRows, ROWS, gathered_tile, packed_tile};
use super::winograd::{self, TransformedWeight};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// A convolution without bias, groups or dilation, whose padding is half its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConvShape {
    pub(crate) batch: usize,
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Of the input.
    pub(crate) height: usize,
    /// Of the input.
    pub(crate) width: usize,
}

impl ConvShape {
    fn padding(&self) -> usize {
        self.kernel / 2
    }

    /// Height and width of the output.
    pub(crate) fn output_sides(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| side.div_ceil(self.stride))
    }

    /// Whether it maps pixels one by one.
    fn pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1
    }
}

/// A weight, arranged for [`forward`].
#[derive(Debug)]
pub(crate) enum ForwardWeight {
    /// For products with gathered maps.
    Gathered(PackedRows),
    /// For tiles of pixels.
    Tiled(TransformedWeight),
}

impl ForwardWeight {
    /// `weight` is `[output, input, kernel, kernel]`.
    pub(crate) fn new(weight: &[f32], shape: &ConvShape) -> Self {
        let depth = shape.input * shape.kernel * shape.kernel;
        if winograd::pays(shape) {
            let tap =
                |row: usize, column: usize, place: usize| weight[row * depth + column * 9 + place];
            return Self::Tiled(TransformedWeight::new(shape.output, shape.input, tap));
        }
        Self::Gathered(PackedRows::new(shape.output, depth, |row, values| {
            values.copy_from_slice(&weight[row * depth..][..depth]);
        }))
    }
}

/// `y = w * x`
pub(crate) fn forward(x: &[f32], weight: &ForwardWeight, shape: &ConvShape) -> Vec<f32> {
    let weight = match weight {
        ForwardWeight::Tiled(weight) => return winograd::convolve(x, weight, shape),
        ForwardWeight::Gathered(weight) => weight,
    };
    let [height, width] = shape.output_sides();
    let mut out = vec![0.0; shape.batch * shape.output * height * width];
    if shape.pointwise() {
        let source = Padded::plain(x, shape.input, height * width);
        gather_product(&source, &[0], weight, [1, height * width], &mut out);
        return out;
    }
    let padding = shape.padding();
    let source = Padded::new(
        x,
        [shape.batch, shape.input, shape.height, shape.width],
        [padding, padding],
        shape.stride,
    );
    gather_product(
        &source,
        &taps(&source, shape.kernel),
        weight,
        [height, width],
        &mut out,
    );
    out
}

fn taps(source: &Padded, kernel: usize) -> Vec<usize> {
    (0..kernel * kernel)
        .map(|tap| source.offset(tap / kernel, tap % kernel))
        .collect()
}

/// A weight, arranged for [`input_gradient`].
#[derive(Debug)]
pub(crate) enum TransposedWeight {
    /// For products with gathered cotangents.
    Gathered(Vec<Phase>),
    /// For tiles of pixels.
    Tiled(TransformedWeight),
}

/// Inputs whose rows and columns have the same remainders by the stride meet the same taps.
#[derive(Debug)]
pub(crate) struct Phase {
    remainders: [usize; 2],
    /// Rows and columns of the padded cotangent.
    taps: Vec<[usize; 2]>,
    weight: PackedRows,
}

impl TransposedWeight {
    /// `weight` is `[output, input, kernel, kernel]`.
    pub(crate) fn new(weight: &[f32], shape: &ConvShape) -> Self {
        let (kernel, stride, padding) = (shape.kernel, shape.stride, shape.padding());
        let square = kernel * kernel;
        if winograd::pays(shape) {
            // With its input and output exchanged, and turned by half a circle.
            let tap = |row: usize, column: usize, place: usize| {
                weight[(column * shape.input + row) * 9 + 8 - place]
            };
            return Self::Tiled(TransformedWeight::new(shape.input, shape.output, tap));
        }
        let [before, _] = Self::margins(shape);
        let along = |remainder: usize| {
            (0..kernel)
                .filter(move |k| (remainder + padding + stride * kernel - k).is_multiple_of(stride))
                .map(move |k| (k, (remainder + padding + stride * before - k) / stride))
        };
        let phase = |phase: usize| {
            let remainders = [phase / stride, phase % stride];
            let met: Vec<(usize, [usize; 2])> = along(remainders[0])
                .flat_map(|(ky, dy)| along(remainders[1]).map(move |(kx, dx)| (ky, kx, dy, dx)))
                .map(|(ky, kx, dy, dx)| (ky * kernel + kx, [dy, dx]))
                .collect();
            let weight = PackedRows::new(shape.input, shape.output * met.len(), |row, values| {
                for (output, values) in values.chunks_mut(met.len().max(1)).enumerate() {
                    let weight = &weight[(output * shape.input + row) * square..][..square];
                    for (value, (tap, _)) in values.iter_mut().zip(&met) {
                        *value = weight[*tap];
                    }
                }
            });
            Phase {
                remainders,
                taps: met.into_iter().map(|(_, at)| at).collect(),
                weight,
            }
        };
        Self::Gathered((0..stride * stride).map(phase).collect())
    }

    /// Rows of the cotangent that an input may reach before and behind it.
    fn margins(shape: &ConvShape) -> [usize; 2] {
        let before = (shape.kernel - 1 - shape.padding()).div_ceil(shape.stride);
        [before, shape.padding().div_ceil(shape.stride)]
    }
}

/// The cotangent of `x` from that of `y`.
pub(crate) fn input_gradient(g: &[f32], weight: &TransposedWeight, shape: &ConvShape) -> Vec<f32> {
    let phases = match weight {
        TransposedWeight::Gathered(phases) => phases,
        TransposedWeight::Tiled(weight) => {
            let exchanged = ConvShape {
                input: shape.output,
                output: shape.input,
                ..*shape
            };
            return winograd::convolve(g, weight, &exchanged);
        }
    };
    let sides = shape.output_sides();
    let plane = shape.height * shape.width;
    let mut gradient = vec![0.0; shape.batch * shape.input * plane];
    if shape.pointwise() {
        let source = Padded::plain(g, shape.output, plane);
        gather_product(&source, &[0], &phases[0].weight, [1, plane], &mut gradient);
        return gradient;
    }
    let stride = shape.stride;
    let [before, behind] = TransposedWeight::margins(shape);
    // A last row of inputs without one of the output to itself.
    let behind = behind + usize::from(stride > 1);
    let source = Padded::new(
        g,
        [shape.batch, shape.output, sides[0], sides[1]],
        [before, behind],
        1,
    );
    for phase in phases {
        let [ry, rx] = phase.remainders;
        let [height, width] = [(shape.height, ry), (shape.width, rx)]
            .map(|(side, r)| side.saturating_sub(r).div_ceil(stride));
        let taps: Vec<usize> = phase
            .taps
            .iter()
            .map(|[dy, dx]| source.offset(*dy, *dx))
            .collect();
        if taps.is_empty() || height * width == 0 {
            continue;
        }
        if stride == 1 {
            gather_product(
                &source,
                &taps,
                &phase.weight,
                [height, width],
                &mut gradient,
            );
            continue;
        }
        let mut part = vec![0.0; shape.batch * shape.input * height * width];
        gather_product(&source, &taps, &phase.weight, [height, width], &mut part);
        gradient
            .par_chunks_mut(plane)
            .zip(part.par_chunks(height * width))
            .for_each(|(to, from)| {
                let lines = to.chunks_mut(shape.width).skip(ry).step_by(stride);
                for (to, from) in lines.zip(from.chunks(width)) {
                    for (to, from) in to[rx..].iter_mut().step_by(stride).zip(from) {
                        *to = *from;
                    }
                }
            });
    }
    gradient
}

/// The cotangent of the weight from that of `y`: for every row of the kernel, whose taps lie next
/// to each other, the product
/// `out[output, (tap, input)] = sum_p g[output, p] x[p + tap, input]` over all pixels `p` of `y`.
pub(crate) fn weight_gradient(x: &[f32], g: &[f32], shape: &ConvShape) -> Vec<f32> {
    let (kernel, input, output) = (shape.kernel, shape.input, shape.output);
    let mut gradient = vec![0.0; output * input * kernel * kernel];
    if x.is_empty() || g.is_empty() {
        return gradient;
    }
    let [height, width] = shape.output_sides();
    let plane = height * width;
    let (source, sides) = channels_last(x, shape);
    let offsets: Vec<usize> = (0..shape.batch * height)
        .flat_map(|line| {
            let row = line / height * sides[0] + line % height * shape.stride;
            (0..width).map(move |column| (row * sides[1] + column * shape.stride) * input)
        })
        .collect();
    let g = PackedRows::new(output, shape.batch * plane, |row, values| {
        for (image, values) in values.chunks_exact_mut(plane).enumerate() {
            values.copy_from_slice(&g[(image * output + row) * plane..][..plane]);
        }
    });
    let panels = output.div_ceil(ROWS);
    let columns = kernel * input;
    let panel = ROWS * columns;
    // Panels of one item share what they read of the maps, so there are no more items than needed
    // to keep all threads busy.
    let shares = (4 * rayon::current_num_threads()).div_ceil(kernel);
    let share = panels.div_ceil(shares.min(panels));
    let mut products = vec![0.0; kernel * panels * panel];
    let of_rows = products.par_chunks_mut(panels * panel).enumerate();
    of_rows.for_each(|(row, out)| {
        let shares = out.par_chunks_mut(share * panel).enumerate();
        shares.for_each(|(index, out)| {
            dispatch(WeightProduct {
                maps: &source[row * sides[1] * input..],
                offsets: &offsets,
                g: &g,
                first: index * share,
                columns,
                out,
            });
        });
    });
    gradient
        .par_chunks_mut(input * kernel * kernel)
        .enumerate()
        .for_each(|(output, gradient)| {
            for (row, products) in products.chunks_exact(panels * panel).enumerate() {
                let products = products[output * columns..][..columns].chunks_exact(input);
                for (column, products) in products.enumerate() {
                    let taps = gradient[row * kernel + column..].iter_mut();
                    for (to, from) in taps.step_by(kernel * kernel).zip(products) {
                        *to = *from;
                    }
                }
            }
        });
    gradient
}

/// Channels that are transposed at once: a cache line of them.
const TRANSPOSED: usize = 16;

/// Maps `[batch, channels, height, width]` with their border of zeros in the order `[batch, height,
/// width, channels]`, and height and width with the border.
fn channels_last(x: &[f32], shape: &ConvShape) -> (Vec<f32>, [usize; 2]) {
    let (padding, channels) = (shape.padding(), shape.input);
    let sides = [shape.height, shape.width].map(|side| side + 2 * padding);
    let plane = shape.height * shape.width;
    let line = sides[1] * channels;
    let length = shape.batch * sides[0] * line;
    let mut values = vec![0.0; length + SLACK];
    let lines = values[..length].par_chunks_mut(line).enumerate();
    lines.for_each(|(index, line)| {
        let (image, row) = (index / sides[0], index % sides[0]);
        if row < padding || row >= padding + shape.height {
            return;
        }
        let row = (row - padding) * shape.width;
        let pixels = &mut line[padding * channels..][..shape.width * channels];
        for first in (0..channels).step_by(TRANSPOSED) {
            let count = TRANSPOSED.min(channels - first);
            let mut lines: [&[f32]; TRANSPOSED] = [&[]; TRANSPOSED];
            for (channel, line) in lines[..count].iter_mut().enumerate() {
                let map = (image * channels + first + channel) * plane;
                *line = &x[map + row..][..shape.width];
            }
            for (column, pixel) in pixels.chunks_exact_mut(channels).enumerate() {
                for (to, line) in pixel[first..].iter_mut().zip(&lines[..count]) {
                    *to = line[column];
                }
            }
        }
    });
    (values, sides)
}

/// Pixels whose products are summed at once, so that what is read of the maps stays in the cache
/// for all rows of the item.
const SUMMED: usize = 256;

/// `out[row, column] = sum_p g[row, p] maps[offsets[p] + column]` for some panels of rows.
struct WeightProduct<'a> {
    maps: &'a [f32],
    offsets: &'a [usize],
    g: &'a PackedRows,
    /// The first panel.
    first: usize,
    columns: usize,
    /// Zeros, `[panel][row][column]`.
    out: &'a mut [f32],
}

impl WithSimd for WeightProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (lanes, columns) = (S::F32_LANES, self.columns);
        for (block, offsets) in self.offsets.chunks(SUMMED).enumerate() {
            let panels = self.out.chunks_exact_mut(ROWS * columns).enumerate();
            for (panel, out) in panels {
                let g = &self.g.panel(self.first + panel)[block * SUMMED..][..offsets.len()];
                for column in (0..columns).step_by(2 * lanes) {
                    let (out, left) = (&mut out[column..], columns - column);
                    if left > lanes {
                        let starts = [column, column + lanes];
                        let tile = gathered_tile(simd, g, offsets, self.maps, starts);
                        add_tile(simd, out, [columns, left], &tile);
                    } else {
                        let tile = gathered_tile(simd, g, offsets, self.maps, [column]);
                        add_tile(simd, out, [columns, left], &tile);
                    }
                }
            }
        }
    }
}

/// Adds a tile to rows of `length` numbers, of which `left` follow its first.
#[inline(always)]
fn add_tile<S: Simd, const N: usize>(
    simd: S,
    out: &mut [f32],
    [length, left]: [usize; 2],
    tile: &[[S::f32s; N]; ROWS],
) {
    for (row, values) in tile.iter().enumerate() {
        let row = &mut out[row * length..][..left.min(N * S::F32_LANES)];
        for (to, value) in row.chunks_mut(S::F32_LANES).zip(values) {
            let sum = simd.add_f32s(simd.partial_load_f32s(to), *value);
            simd.partial_store_f32s(to, sum);
        }
    }
}

/// Maps with a border of zeros, cut into the planes that a stride separates.
///
/// Plane `(py, px)` of a map holds what lies at rows `py + stride i` and columns `px + stride j`,
/// so that neighbours in the output read neighbours whatever the stride.
pub(crate) struct Padded<'a> {
    pub(crate) values: Cow<'a, [f32]>,
    channels: usize,
    stride: usize,
    /// Of a plane.
    height: usize,
    pub(crate) width: usize,
}

/// Numbers behind the end, since the last vector may reach over it.
const SLACK: usize = 16;

impl<'a> Padded<'a> {
    /// Maps of one line without a border.
    fn plain(x: &'a [f32], channels: usize, width: usize) -> Self {
        Self {
            values: Cow::Borrowed(x),
            channels,
            stride: 1,
            height: 1,
            width,
        }
    }

    /// Planes of even and odd rows and columns for tiles of 2x2 pixels, each with its border.
    pub(crate) fn tiled(x: &[f32], sides: [usize; 4], [down, across]: [usize; 2]) -> Self {
        Self::planes(x, sides, [1, 2], [down + 1, across + 1])
    }

    fn new(
        x: &[f32],
        [batch, channels, height, width]: [usize; 4],
        [before, behind]: [usize; 2],
        stride: usize,
    ) -> Self {
        let planes = [height, width].map(|side| (before + side + behind).div_ceil(stride));
        Self::planes(
            x,
            [batch, channels, height, width],
            [before, stride],
            planes,
        )
    }

    fn planes(
        x: &[f32],
        [batch, channels, height, width]: [usize; 4],
        [before, stride]: [usize; 2],
        [rows, columns]: [usize; 2],
    ) -> Self {
        let phases = stride * stride;
        let plane = rows * columns;
        let length = batch * channels * phases * plane;
        let mut values = vec![0.0; length + SLACK];
        let planes = values[..length].par_chunks_mut(plane).enumerate();
        planes.for_each(|(index, plane)| {
            let [map, phase] = [index / phases, index % phases];
            let map = &x[map * height * width..][..height * width];
            // The first row and column of the map that belong to this plane.
            let skip = [phase / stride, phase % stride]
                .map(|first| (first + stride * before - before) % stride);
            let to = skip.map(|skip| (before + skip) / stride);
            let lines = plane.chunks_mut(columns).skip(to[0]);
            for (plane, line) in lines.zip(map.chunks(width).skip(skip[0]).step_by(stride)) {
                let plane = &mut plane[to[1]..];
                match stride {
                    1 => plane[..width].copy_from_slice(line),
                    2 => {
                        // In pairs, which the compiler makes vectors of.
                        let (pairs, last) = line[skip[1]..].as_chunks::<2>();
                        for (to, pair) in plane.iter_mut().zip(pairs) {
                            *to = pair[0];
                        }
                        if let [last] = last {
                            plane[pairs.len()] = *last;
                        }
                    }
                    _ => {
                        let line = line.iter().skip(skip[1]).step_by(stride);
                        for (to, from) in plane.iter_mut().zip(line) {
                            *to = *from;
                        }
                    }
                }
            }
        });
        Self {
            values: Cow::Owned(values),
            channels,
            stride,
            height: rows,
            width: columns,
        }
    }

    pub(crate) fn plane(&self) -> usize {
        self.height * self.width
    }

    /// Numbers of one map.
    pub(crate) fn map_length(&self) -> usize {
        self.stride * self.stride * self.plane()
    }

    /// Where row `dy` and column `dx` of the padded map lie from the start of its planes.
    fn offset(&self, dy: usize, dx: usize) -> usize {
        let s = self.stride;
        (dy % s * s + dx % s) * self.plane() + dy / s * self.width + dx / s
    }
}

/// Pixels of one work item.
const PIXELS: usize = 128;

/// Pixels up to which small images share a work item.
const LEAST_PIXELS: usize = 64;

/// Tiles that are packed at once, so that panels of the weight are read once for all of them.
const PACKED: usize = 2;

/// `out[n, row, pixel] = sum_k a[row, k] source[n, k / taps, pixel + taps[k % taps]]`
fn gather_product(
    source: &Padded<'_>,
    taps: &[usize],
    a: &PackedRows,
    [height, width]: [usize; 2],
    out: &mut [f32],
) {
    if out.is_empty() || a.depth() == 0 {
        return;
    }
    let plane = height * width;
    let rows = a.rows();
    let map = source.map_length();
    let image = source.channels * map;
    let offsets: Vec<usize> = (0..source.channels)
        .flat_map(|channel| taps.iter().map(move |tap| channel * map + tap))
        .collect();
    // Every item owns some lines, or a part of a long one, of every row of the output.
    let part = match height {
        1 => PIXELS.min(plane),
        _ => (PIXELS / width).max(1) * width,
    };
    let items = divided(out, rows, plane, part, LEAST_PIXELS);
    items.into_par_iter().for_each(|item| {
        dispatch(GatherProduct {
            maps: &source.values[item.from * image..],
            image,
            pitch: source.width,
            offsets: &offsets,
            a,
            width,
            item,
        });
    });
}

/// What one task writes: some rows of a part of one image, or of several whole images.
pub(crate) struct Item<'a> {
    /// The first image.
    pub(crate) from: usize,
    /// The first pixel of it.
    pub(crate) first: usize,
    /// The first is one of a panel.
    pub(crate) rows: Range<usize>,
    /// The pixels of every row of the first image, then those of the next.
    pub(crate) out: Vec<&'a mut [f32]>,
}

/// Maps `[image][row][plane]`, divided into items that own `part` numbers of every row of an image
/// each, or whole images with `least` numbers a row, but no more of them than a thread's share.
/// Where that leaves threads without work, rows are divided too.
pub(crate) fn divided(
    out: &mut [f32],
    rows: usize,
    plane: usize,
    part: usize,
    least: usize,
) -> Vec<Item<'_>> {
    let batch = out.len() / (rows * plane);
    let threads = rayon::current_num_threads();
    let images = least.div_ceil(plane).min(batch.div_ceil(threads)).max(1);
    let part = if images > 1 { plane } else { part };
    let (groups, parts) = (batch.div_ceil(images), plane.div_ceil(part));
    let shares = threads.div_ceil((groups * parts).max(1));
    // Whole panels of rows.
    let share = rows.div_ceil(ROWS).div_ceil(shares) * ROWS;
    let shares = rows.div_ceil(share);
    let mut items: Vec<Item<'_>> = (0..groups * parts * shares)
        .map(|item| {
            let row = item % shares * share;
            Item {
                from: item / shares / parts * images,
                first: item / shares % parts * part,
                rows: row..rows.min(row + share),
                out: Vec::with_capacity(images * share),
            }
        })
        .collect();
    for (image, out) in out.chunks_mut(rows * plane).enumerate() {
        for (row, out) in out.chunks_mut(plane).enumerate() {
            for (index, out) in out.chunks_mut(part).enumerate() {
                let item = (image / images * parts + index) * shares + row / share;
                items[item].out.push(out);
            }
        }
    }
    items
}

struct GatherProduct<'a> {
    /// From the first image on.
    maps: &'a [f32],
    /// Numbers of an image.
    image: usize,
    pitch: usize,
    offsets: &'a [usize],
    a: &'a PackedRows,
    /// Of a line of the output.
    width: usize,
    item: Item<'a>,
}

impl WithSimd for GatherProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.vectors(S::F32_LANES) {
            Some(vectors) => self.read_as_it_lies(simd, &vectors),
            None => self.read_packed(simd),
        }
    }
}

/// A pixel of an item: its image, its place in what the item writes of it, and the place in the
/// maps that the offsets count from.
#[derive(Clone, Copy)]
struct Pixel {
    image: usize,
    to: usize,
    from: usize,
}

impl GatherProduct<'_> {
    fn pixel(&self, image: usize, to: usize) -> Pixel {
        let pixel = self.item.first + to;
        let from = image * self.image + pixel / self.width * self.pitch + pixel % self.width;
        Pixel { image, to, from }
    }

    fn images(&self) -> usize {
        self.item.out.len() / self.item.rows.len()
    }

    /// The first pixels of vectors that lie within lines; the last of a line overlaps the one
    /// before it where the width is no multiple of a vector's. `None` if a line is shorter.
    fn vectors(&self, lanes: usize) -> Option<Vec<Pixel>> {
        let pixels = self.item.out[0].len();
        let mut starts = Vec::with_capacity(pixels / lanes + 2);
        for line in (0..pixels).step_by(self.width) {
            let width = self.width.min(pixels - line);
            if width < lanes {
                return None;
            }
            starts.extend((0..width / lanes).map(|i| line + i * lanes));
            if !width.is_multiple_of(lanes) {
                starts.push(line + width - lanes);
            }
        }
        let of_image = |image| starts.iter().map(move |start| self.pixel(image, *start));
        Some((0..self.images()).flat_map(of_image).collect())
    }

    #[inline(always)]
    fn read_as_it_lies<S: Simd>(mut self, simd: S, vectors: &[Pixel]) {
        let (a, rows) = (self.a, self.item.rows.clone());
        for pair in vectors.chunks(2) {
            let pair = [pair[0], pair[pair.len() - 1]];
            let from = pair.map(|pixel| pixel.from);
            for (a, first) in a.panels(rows.clone()) {
                let tile = gathered_tile(simd, a, self.offsets, self.maps, from);
                for (row, values) in (first..rows.len()).zip(&tile) {
                    for (value, Pixel { image, to, .. }) in values.iter().zip(pair) {
                        let out = &mut self.item.out[image * rows.len() + row];
                        let out = &mut out[to..to + S::F32_LANES];
                        S::as_mut_simd_f32s(out).0[0] = *value;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn read_packed<S: Simd>(mut self, simd: S) {
        let panel = 2 * S::F32_LANES;
        let (a, rows) = (self.a, self.item.rows.clone());
        let each = self.item.out[0].len();
        let pixels: Vec<Pixel> = (0..self.images())
            .flat_map(|image| (0..each).map(move |to| (image, to)))
            .map(|(image, to)| self.pixel(image, to))
            .collect();
        let length = panel * self.a.depth();
        let mut packed = vec![0.0; length * PACKED.min(pixels.len().div_ceil(panel))];
        let mut line = vec![0.0; panel];
        for pixels in pixels.chunks(PACKED * panel) {
            let tiles = || pixels.chunks(panel);
            for (b, pixels) in packed.chunks_exact_mut(length).zip(tiles()) {
                self.pack(pixels, b.chunks_exact_mut(panel));
            }
            for (a, start) in a.panels(rows.clone()) {
                for (b, pixels) in packed.chunks_exact(length).zip(tiles()) {
                    let (b, _) = S::as_simd_f32s(b);
                    let tile: [[S::f32s; 2]; ROWS] = packed_tile(simd, a, b.as_chunks().0);
                    for (row, values) in (start..rows.len()).zip(&tile) {
                        for (to, value) in line.chunks_exact_mut(S::F32_LANES).zip(values) {
                            S::as_mut_simd_f32s(to).0[0] = *value;
                        }
                        let mut from = line.as_slice();
                        for run in pixels.chunk_by(|a, b| a.image == b.image) {
                            let (values, rest) = from.split_at(run.len());
                            let out = &mut self.item.out[run[0].image * rows.len() + row];
                            out[run[0].to..][..run.len()].copy_from_slice(values);
                            from = rest;
                        }
                    }
                }
            }
        }
    }

    /// What a tile reads, step by step of the inner dimension.
    #[inline(always)]
    fn pack<'b>(&self, pixels: &[Pixel], steps: impl Iterator<Item = &'b mut [f32]>) {
        // Runs of four pixels are copied as one.
        let (runs, rest) = pixels.as_chunks::<4>();
        let in_runs = rest.is_empty() && runs.iter().all(|run| run[3].from == run[0].from + 3);
        for (to, offset) in steps.zip(self.offsets) {
            let maps = &self.maps[*offset..];
            if in_runs {
                for (to, run) in to.as_chunks_mut::<4>().0.iter_mut().zip(runs) {
                    to.copy_from_slice(&maps[run[0].from..run[0].from + 4]);
                }
            } else {
                for (to, pixel) in to.iter_mut().zip(pixels) {
                    *to = maps[pixel.from];
                }
            }
        }
    }
}
