//! Fixed-point problems as data: a map, its solution, and how strongly it contracts.

use burn::tensor::{Device, Tensor, TensorData};

/// A batch of fixed-point problems with a known solution.
pub struct Problem {
    /// A name for messages.
    pub name: &'static str,
    /// The map, `[batch, dim]` to `[batch, dim]`, on any float type.
    pub map: Box<dyn Fn(Tensor<2>) -> Tensor<2> + Send + Sync>,
    /// A start, `[batch, dim]`.
    pub z0: Tensor<2>,
    /// The solution, `[batch, dim]`.
    pub z_star: Tensor<2>,
    /// A Lipschitz constant of the map in the Euclidean norm, below 1; the distance of a point to
    /// the solution is at most its residual over `1 - lipschitz`.
    pub lipschitz: f64,
}

impl Problem {
    /// The distance of each row of `z` to the solution.
    pub fn distances(&self, z: &Tensor<2>) -> Vec<f64> {
        let distance = (z.clone() - self.z_star.clone()).square().sum_dim(1).sqrt();
        crate::values(&distance)
    }
}

/// Contractions of different character, deterministic, in the device's float type.
pub fn problems(device: &Device) -> Vec<Problem> {
    vec![
        affine(
            "affine, random direction",
            12,
            0.9,
            device,
            random_orthogonal,
        ),
        affine("affine, rotation", 8, 0.95, device, rotation),
        affine(
            "affine, symmetric spectrum up to the constant",
            10,
            0.98,
            device,
            spread_diagonal,
        ),
        tanh("tanh", 16, 0.9, device),
        cosine(device),
    ]
}

const BATCH: usize = 4;

fn affine(
    name: &'static str,
    dim: usize,
    lipschitz: f64,
    device: &Device,
    matrix: fn(usize) -> Vec<f64>,
) -> Problem {
    let w = tensor(scaled(matrix(dim), lipschitz), [dim, dim], device);
    let z_star = tensor(noise(BATCH * dim, 3), [BATCH, dim], device);
    // b = z* - z* W makes z* the fixed point.
    let b = z_star.clone() - z_star.clone().matmul(w.clone());
    Problem {
        name,
        map: Box::new(move |z| z.matmul(w.clone()) + b.clone()),
        z0: Tensor::zeros([BATCH, dim], device),
        z_star,
        lipschitz,
    }
}

fn tanh(name: &'static str, dim: usize, lipschitz: f64, device: &Device) -> Problem {
    let w = tensor(
        scaled(random_orthogonal(dim), lipschitz),
        [dim, dim],
        device,
    );
    let z_star = tensor(scaled(noise(BATCH * dim, 5), 0.5), [BATCH, dim], device);
    // b = atanh(z*) - z* W, and tanh has slope at most 1.
    let b = z_star.clone().atanh() - z_star.clone().matmul(w.clone());
    Problem {
        name,
        map: Box::new(move |z| (z.matmul(w.clone()) + b.clone()).tanh()),
        z0: Tensor::zeros([BATCH, dim], device),
        z_star,
        lipschitz,
    }
}

/// `z = cos z` from 0: every iterate stays in [0, 1], where the slope is at most sin 1.
fn cosine(device: &Device) -> Problem {
    let z_star = tensor(vec![0.739_085_133_215_160_6; BATCH * 3], [BATCH, 3], device);
    Problem {
        name: "cosine",
        map: Box::new(|z| z.cos()),
        z0: Tensor::zeros([BATCH, 3], device),
        z_star,
        lipschitz: 1.0_f64.sin(),
    }
}

fn tensor(values: Vec<f64>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn scaled(values: Vec<f64>, factor: f64) -> Vec<f64> {
    values.into_iter().map(|v| v * factor).collect()
}

/// Uniform numbers in (-1, 1) from a fixed linear congruential sequence (Knuth's MMIX constants).
fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// An orthogonal matrix by Gram-Schmidt on noise.
fn random_orthogonal(dim: usize) -> Vec<f64> {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(dim);
    for mut row in noise(dim * dim, 7).chunks(dim).map(<[f64]>::to_vec) {
        for previous in &rows {
            let along: f64 = row.iter().zip(previous).map(|(a, b)| a * b).sum();
            row.iter_mut()
                .zip(previous)
                .for_each(|(a, b)| *a -= along * b);
        }
        let norm = row.iter().map(|a| a * a).sum::<f64>().sqrt();
        row.iter_mut().for_each(|a| *a /= norm);
        rows.push(row);
    }
    rows.concat()
}

/// Blocks that rotate pairs of coordinates by different angles: eigenvalues all around the unit
/// circle.
fn rotation(dim: usize) -> Vec<f64> {
    let mut matrix = vec![0.0; dim * dim];
    for block in 0..dim / 2 {
        let (sin, cos) = (0.7 * (block + 1) as f64).sin_cos();
        let (i, j) = (2 * block, 2 * block + 1);
        matrix[i * dim + i] = cos;
        matrix[i * dim + j] = sin;
        matrix[j * dim + i] = -sin;
        matrix[j * dim + j] = cos;
    }
    matrix
}

/// Eigenvalues spread evenly over [-1, 1].
fn spread_diagonal(dim: usize) -> Vec<f64> {
    let mut matrix = vec![0.0; dim * dim];
    for i in 0..dim {
        matrix[i * dim + i] = -1.0 + 2.0 * i as f64 / (dim - 1) as f64;
    }
    matrix
}
