//! What attention does between its products of matrices.

use super::{UNITS, cube_each, cubes, largest, like, sum};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, TensorMetadata, backend_extension};
use burn::tensor::Shape;
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// Queries with either bias, keys and values by head.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct ByHead<B: Backend> {
    pub(crate) content: FloatTensor<B>,
    pub(crate) position: FloatTensor<B>,
    pub(crate) key: FloatTensor<B>,
    pub(crate) value: FloatTensor<B>,
}

/// What queries, keys and values are made of; without a memory, anything in its place.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct Merged<B: Backend> {
    pub(crate) qkv: FloatTensor<B>,
    pub(crate) memory: FloatTensor<B>,
    pub(crate) content_bias: FloatTensor<B>,
    pub(crate) position_bias: FloatTensor<B>,
}

/// What moves the scores.
#[derive(Debug, ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct ScoreTangents<B: Backend> {
    pub(crate) by_content: FloatTensor<B>,
    pub(crate) by_distance: FloatTensor<B>,
    pub(crate) by_key: FloatTensor<B>,
}

#[backend_extension(Autodiff: cfg(feature = "autodiff"), Cube, Fusion)]
pub(crate) trait SoftmaxBackend: Backend {
    /// The softmax over keys; the mask is a constant.
    #[fusion(meta = |by_content, _, _| by_content.clone())]
    fn relative_softmax(
        by_content: FloatTensor<Self>,
        by_distance: FloatTensor<Self>,
        mask: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

#[backend_extension(Cube, Fusion)]
pub(crate) trait AttentionBackend: Backend {
    #[fusion(meta = |parts, past, _| by_head(&parts.qkv, &parts.content_bias, *past))]
    fn split_heads(#[extension_type] parts: Merged<Self>, past: usize, scale: f32) -> ByHead<Self>;

    /// Cotangents of queries, keys and values of the segment in one row for every position; those
    /// of the two kinds of queries are added up and scaled.
    #[fusion(meta = |g, _| merged(&g.content))]
    fn merge_heads(#[extension_type] g: ByHead<Self>, scale: f32) -> FloatTensor<Self>;

    #[fusion(meta = |probabilities, _| (probabilities.clone(), probabilities.clone()))]
    fn carry_softmax(
        probabilities: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |probabilities, _| probabilities.clone())]
    fn softmax_tangent(
        probabilities: FloatTensor<Self>,
        #[extension_type] scores: ScoreTangents<Self>,
    ) -> FloatTensor<Self>;
}

type Spec = burn::backend::fusion::custom::TensorSpec;
type ByHeadSpecs =
    <ByHead<CubeBackend> as burn::backend::fusion::custom::ExtensionMetadata>::Metadata;

fn by_head(qkv: &Spec, bias: &Spec, past: usize) -> ByHeadSpecs {
    let [batch, time, _] = qkv.shape.dims();
    let [heads, width] = bias.shape.dims();
    let spec = |positions| Spec::new(Shape::new([batch, heads, positions, width]), qkv.dtype);
    ByHeadSpecs {
        content: spec(time),
        position: spec(time),
        key: spec(past + time),
        value: spec(past + time),
    }
}

fn merged(by_head: &Spec) -> Spec {
    let [batch, heads, time, width] = by_head.shape.dims();
    Spec::new(Shape::new([batch, time, 3 * heads * width]), by_head.dtype)
}

/// The numbers of a tensor line by line, and how far the next line is: padding behind lines is left
/// where it is.
struct Lines {
    tensor: CubeTensor,
    step: usize,
}

impl Lines {
    fn of(tensor: CubeTensor) -> Self {
        if let Some(step) = line_step(&tensor) {
            return Self { tensor, step };
        }
        let tensor = into_contiguous(tensor);
        let step = tensor.shape()[tensor.shape().num_dims() - 1];
        Self { tensor, step }
    }
}

/// The one distance between neighbouring lines, if they are contiguous in themselves.
fn line_step(tensor: &CubeTensor) -> Option<usize> {
    let (shape, strides) = (tensor.shape(), tensor.meta.strides());
    let last = shape.num_dims() - 1;
    if shape[last] != 1 && strides[last] != 1 {
        return None;
    }
    let (mut step, mut expected) = (None, None);
    for axis in (0..last).rev().filter(|&axis| shape[axis] != 1) {
        if expected.is_some_and(|expected| expected != strides[axis]) {
            return None;
        }
        step.get_or_insert(strides[axis]);
        expected = Some(strides[axis] * shape[axis]);
    }
    Some(step.unwrap_or(shape[last]))
}

impl SoftmaxBackend for CubeBackend {
    fn relative_softmax(
        by_content: CubeTensor,
        by_distance: CubeTensor,
        mask: CubeTensor,
    ) -> CubeTensor {
        let [batch, heads, time, keys] = by_content.shape().dims();
        let [by_content, by_distance, mask] = [by_content, by_distance, mask].map(Lines::of);
        let out = like(&by_content.tensor, [batch, heads, time, keys]);
        let rows = batch * heads * time;
        relative_softmax_kernel::launch(
            &out.client.clone(),
            cube_each(rows),
            CubeDim::new_1d(UNITS),
            by_content.tensor.into_buffer_arg(),
            by_distance.tensor.into_buffer_arg(),
            mask.tensor.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            by_content.step,
            by_distance.step,
            mask.step,
            rows,
            time,
            keys,
        );
        out
    }
}

impl AttentionBackend for CubeBackend {
    fn split_heads(parts: Merged<Self>, past: usize, scale: f32) -> ByHead<Self> {
        let [batch, time, _] = parts.qkv.shape().dims();
        let [heads, width] = parts.content_bias.shape().dims();
        let keys = past + time;
        let [qkv, memory] = [parts.qkv, parts.memory].map(Lines::of);
        let [content_bias, position_bias] =
            [parts.content_bias, parts.position_bias].map(into_contiguous);
        let [content, position] = [0; 2].map(|_| like(&qkv.tensor, [batch, heads, time, width]));
        let [key, value] = [0; 2].map(|_| like(&qkv.tensor, [batch, heads, keys, width]));
        let entries = batch * keys * heads * width;
        split_heads_kernel::launch(
            &qkv.tensor.client.clone(),
            cubes(entries),
            CubeDim::new_1d(UNITS),
            qkv.tensor.into_buffer_arg(),
            memory.tensor.into_buffer_arg(),
            content_bias.into_buffer_arg(),
            position_bias.into_buffer_arg(),
            content.clone().into_buffer_arg(),
            position.clone().into_buffer_arg(),
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            qkv.step,
            memory.step,
            entries,
            past,
            time,
            heads,
            width,
            scale,
        );
        ByHead {
            content,
            position,
            key,
            value,
        }
    }

    fn merge_heads(g: ByHead<Self>, scale: f32) -> CubeTensor {
        let [batch, heads, time, width] = g.content.shape().dims();
        let [content, position, key, value] =
            [g.content, g.position, g.key, g.value].map(Lines::of);
        let out = like(&content.tensor, [batch, time, 3 * heads * width]);
        let entries = batch * time * heads * width;
        merge_heads_kernel::launch(
            &out.client.clone(),
            cubes(entries),
            CubeDim::new_1d(UNITS),
            content.tensor.into_buffer_arg(),
            position.tensor.into_buffer_arg(),
            key.tensor.into_buffer_arg(),
            value.tensor.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            content.step,
            position.step,
            key.step,
            value.step,
            entries,
            time,
            heads,
            width,
            scale,
        );
        out
    }

    fn carry_softmax(probabilities: CubeTensor, g: CubeTensor) -> (CubeTensor, CubeTensor) {
        let [batch, heads, time, keys] = probabilities.shape().dims();
        let [probabilities, g] = [probabilities, g].map(Lines::of);
        let [of_scores, of_distances] = [0; 2].map(|_| like(&g.tensor, [batch, heads, time, keys]));
        let rows = batch * heads * time;
        carry_softmax_kernel::launch(
            &g.tensor.client.clone(),
            cube_each(rows),
            CubeDim::new_1d(UNITS),
            probabilities.tensor.into_buffer_arg(),
            g.tensor.into_buffer_arg(),
            of_scores.clone().into_buffer_arg(),
            of_distances.clone().into_buffer_arg(),
            probabilities.step,
            g.step,
            rows,
            time,
            keys,
        );
        (of_scores, of_distances)
    }

    fn softmax_tangent(probabilities: CubeTensor, scores: ScoreTangents<Self>) -> CubeTensor {
        let [batch, heads, time, keys] = probabilities.shape().dims();
        let probabilities = Lines::of(probabilities);
        let [by_content, by_distance, by_key] =
            [scores.by_content, scores.by_distance, scores.by_key].map(Lines::of);
        let out = like(&probabilities.tensor, [batch, heads, time, keys]);
        let rows = batch * heads * time;
        softmax_tangent_kernel::launch(
            &out.client.clone(),
            cube_each(rows),
            CubeDim::new_1d(UNITS),
            probabilities.tensor.into_buffer_arg(),
            by_content.tensor.into_buffer_arg(),
            by_distance.tensor.into_buffer_arg(),
            by_key.tensor.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            probabilities.step,
            by_content.step,
            by_distance.step,
            by_key.step,
            rows,
            time,
            keys,
        );
        out
    }
}

#[cube(launch)]
fn split_heads_kernel(
    qkv: &[f32],           // [batch, time, 3 heads width]
    memory: &[f32],        // [batch, past, 2 heads width]
    content_bias: &[f32],  // [heads, width]
    position_bias: &[f32], // [heads, width]
    content: &mut [f32],   // [batch, heads, time, width]
    position: &mut [f32],  // [batch, heads, time, width]
    key: &mut [f32],       // [batch, heads, past + time, width]
    value: &mut [f32],     // [batch, heads, past + time, width]
    qkv_step: usize,
    memory_step: usize,
    entries: usize,
    past: usize,
    time: usize,
    heads: usize,
    width: usize,
    scale: f32,
) {
    let keys = past + time;
    let model = heads * width;
    let mut i = ABSOLUTE_POS;
    while i < entries {
        let channel = i % model;
        let at = i / model % keys;
        let sample = i / (model * keys);
        let head = sample * heads + channel / width;
        let within = channel % width;
        let to = (head * keys + at) * width + within;
        if at < past {
            let from = (sample * past + at) * memory_step + channel;
            key[to] = memory[from];
            value[to] = memory[from + model];
        } else {
            let line = at - past;
            let from = (sample * time + line) * qkv_step + channel;
            key[to] = qkv[from + model];
            value[to] = qkv[from + 2 * model];
            let to = (head * time + line) * width + within;
            content[to] = (qkv[from] + content_bias[channel]) * scale;
            position[to] = (qkv[from] + position_bias[channel]) * scale;
        }
        i += (CUBE_COUNT_X * CUBE_DIM) as usize;
    }
}

#[cube(launch)]
fn merge_heads_kernel(
    content: &[f32], // [batch, heads, time, width], as all
    position: &[f32],
    key: &[f32],
    value: &[f32],
    out: &mut [f32], // [batch, time, 3 heads width]
    content_step: usize,
    position_step: usize,
    key_step: usize,
    value_step: usize,
    entries: usize,
    time: usize,
    heads: usize,
    width: usize,
    scale: f32,
) {
    let model = heads * width;
    let mut i = ABSOLUTE_POS;
    while i < entries {
        let channel = i % model;
        let at = i / model % time;
        let sample = i / (model * time);
        let line = (sample * heads + channel / width) * time + at;
        let within = channel % width;
        let to = (sample * time + at) * 3 * model + channel;
        let query = content[line * content_step + within] + position[line * position_step + within];
        out[to] = query * scale;
        out[to + model] = key[line * key_step + within];
        out[to + 2 * model] = value[line * value_step + within];
        i += (CUBE_COUNT_X * CUBE_DIM) as usize;
    }
}

#[cube(launch)]
fn relative_softmax_kernel(
    by_content: &[f32],  // [rows, keys]
    by_distance: &[f32], // [rows, keys]
    mask: &[f32],        // [time, keys]
    out: &mut [f32],     // [rows, keys]
    content_step: usize,
    distance_step: usize,
    mask_step: usize,
    rows: usize,
    time: usize,
    keys: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        // A query sees what is not behind its own position, which stands at `keys - shift - 1`.
        let query = row % time;
        let shift = time - 1 - query;
        let seen = keys - shift;
        let start = row * keys;
        let mut most = f32::new(-3.4028235e38);
        let mut j = UNIT_POS as usize;
        while j < seen {
            let score = by_content[row * content_step + j]
                + by_distance[row * distance_step + j + shift]
                + mask[query * mask_step + j];
            out[start + j] = score;
            most = max(most, score);
            j += CUBE_DIM as usize;
        }
        let most = largest(most, &mut scratch);
        let mut total = 0.0f32;
        let mut j = UNIT_POS as usize;
        while j < seen {
            let weight = (out[start + j] - most).exp();
            out[start + j] = weight;
            total += weight;
            j += CUBE_DIM as usize;
        }
        let total = sum(total, &mut scratch);
        let mut j = UNIT_POS as usize;
        while j < keys {
            let mut probability = 0.0f32;
            if j < seen {
                probability = out[start + j] / total;
            }
            out[start + j] = probability;
            j += CUBE_DIM as usize;
        }
        row += CUBE_COUNT_X as usize;
    }
}

#[cube(launch)]
fn carry_softmax_kernel(
    probabilities: &[f32],    // [rows, keys]
    g: &[f32],                // [rows, keys]
    of_scores: &mut [f32],    // [rows, keys]
    of_distances: &mut [f32], // [rows, keys]
    probability_step: usize,
    g_step: usize,
    rows: usize,
    time: usize,
    keys: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let shift = time - 1 - row % time;
        let seen = keys - shift;
        let start = row * keys;
        let mut along = 0.0f32;
        let mut j = UNIT_POS as usize;
        while j < seen {
            along += probabilities[row * probability_step + j] * g[row * g_step + j];
            j += CUBE_DIM as usize;
        }
        let along = sum(along, &mut scratch);
        let mut j = UNIT_POS as usize;
        while j < keys {
            let mut entry = 0.0f32;
            if j < seen {
                let probability = probabilities[row * probability_step + j];
                entry = probability * (g[row * g_step + j] - along);
                of_distances[start + j + shift] = entry;
            } else {
                // Distances that no key of this query has.
                of_distances[start + j - seen] = 0.0f32;
            }
            of_scores[start + j] = entry;
            j += CUBE_DIM as usize;
        }
        row += CUBE_COUNT_X as usize;
    }
}

#[cube(launch)]
fn softmax_tangent_kernel(
    probabilities: &[f32], // [rows, keys]
    by_content: &[f32],    // [rows, keys]
    by_distance: &[f32],   // [rows, keys]
    by_key: &[f32],        // [rows, time]
    out: &mut [f32],       // [rows, keys]
    probability_step: usize,
    content_step: usize,
    distance_step: usize,
    key_step: usize,
    rows: usize,
    time: usize,
    keys: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS as usize);
    let past = keys - time;
    let mut row = CUBE_POS_X as usize;
    while row < rows {
        let shift = time - 1 - row % time;
        let seen = keys - shift;
        let start = row * keys;
        let mut along = 0.0f32;
        let mut j = UNIT_POS as usize;
        while j < seen {
            let mut score =
                by_content[row * content_step + j] + by_distance[row * distance_step + j + shift];
            if j >= past {
                score += by_key[row * key_step + j - past];
            }
            out[start + j] = score;
            along += probabilities[row * probability_step + j] * score;
            j += CUBE_DIM as usize;
        }
        let along = sum(along, &mut scratch);
        let mut j = UNIT_POS as usize;
        while j < keys {
            let mut entry = 0.0f32;
            if j < seen {
                let probability = probabilities[row * probability_step + j];
                entry = probability * (out[start + j] - along);
            }
            out[start + j] = entry;
            j += CUBE_DIM as usize;
        }
        row += CUBE_COUNT_X as usize;
    }
}
