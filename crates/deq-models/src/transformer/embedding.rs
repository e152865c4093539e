//! Token embeddings, plain or adaptive.

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Int, Tensor};

/// How the vocabulary is divided, and how wide the vectors of each part are.
#[derive(Clone, Debug)]
pub(crate) struct Clusters {
    /// Where each cluster ends; the last one at the vocabulary's size.
    pub(crate) bounds: Vec<usize>,
    pub(crate) d_embed: usize,
    pub(crate) d_model: usize,
    pub(crate) div_val: usize,
}

impl Clusters {
    /// First token and number of tokens of a cluster, 0 being the most frequent.
    pub(crate) fn range(&self, cluster: usize) -> (usize, usize) {
        let start = match cluster {
            0 => 0,
            _ => self.bounds[cluster - 1],
        };
        (start, self.bounds[cluster] - start)
    }

    /// Clusters with a table of their own: all, or one for the whole vocabulary if all vectors have
    /// the same width.
    pub(crate) fn tables(&self) -> Vec<(usize, usize)> {
        match self.div_val {
            1 => vec![(self.bounds[self.bounds.len() - 1], self.d_embed)],
            div => (0..self.bounds.len())
                .map(|k| (self.range(k).1, self.d_embed / div.pow(k as u32)))
                .collect(),
        }
    }

    /// Whether vectors need a projection to the width of the model.
    pub(crate) fn projected(&self) -> bool {
        self.div_val > 1 || self.d_embed != self.d_model
    }

    /// The table that a cluster reads, and its first row there.
    pub(crate) fn place(&self, cluster: usize) -> (usize, usize) {
        match self.div_val {
            1 => (0, self.range(cluster).0),
            _ => (cluster, 0),
        }
    }
}

/// Vectors of tokens: one table, or the adaptive input representation of Baevski and Auli (2019),
/// where each further cluster of rarer tokens has vectors narrower by a factor `div_val` and a
/// projection to the width of the model.
#[derive(Module, Debug)]
pub struct TokenEmbedding {
    /// One table for all tokens, or one for each cluster, `[tokens, width]`.
    pub tables: Vec<Param<Tensor<2>>>,
    /// One for each table if its width is not that of the model or `div_val` is above 1, `[width,
    /// d_model]`.
    pub projections: Vec<Param<Tensor<2>>>,
    #[module(skip)]
    bounds: Vec<usize>,
    #[module(skip)]
    scale: f64,
}

impl TokenEmbedding {
    pub(crate) fn new(clusters: &Clusters, std: f64, device: &Device) -> Self {
        let normal = Distribution::Normal(0.0, std);
        let random = |shape: [usize; 2]| Param::from_tensor(Tensor::random(shape, normal, device));
        let tables = clusters.tables();
        Self {
            projections: match clusters.projected() {
                true => tables
                    .iter()
                    .map(|&(_, width)| random([width, clusters.d_model]))
                    .collect(),
                false => Vec::new(),
            },
            tables: tables
                .into_iter()
                .map(|(rows, width)| random([rows, width]))
                .collect(),
            bounds: clusters.bounds.clone(),
            scale: (clusters.d_model as f64).sqrt(),
        }
    }

    /// Vectors of tokens times the square root of `d_model`, as in Vaswani et al. (2017).
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, time]`
    /// - output: `[batch, time, d_model]`
    ///
    /// # Panics
    ///
    /// If a token lies outside the vocabulary, on a device that checks indices, as the CPU does.
    /// GPUs do not: there its vector is anything.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, time] = tokens.dims();
        let tokens = tokens.reshape([batch * time]);
        let vectors = match self.tables.as_slice() {
            [table] => self.project(0, table.val().select(0, tokens)),
            // Every cluster is read at every position, from its first row where the token is not
            // its own: tokens live on the device, and sorting them out on the host would wait for
            // it. The narrow tables make this cheap.
            tables => {
                let last = tables.len() - 1;
                let parts = tables.iter().enumerate().map(|(k, table)| {
                    let start = if k == 0 { 0 } else { self.bounds[k - 1] } as i64;
                    let before = || tokens.clone().lower_elem(start);
                    let behind = || tokens.clone().greater_equal_elem(self.bounds[k] as i64);
                    // A token outside the vocabulary is left to the first or the last table, which
                    // does not have its row.
                    let outside = match k {
                        0 => behind(),
                        _ if k == last => before(),
                        _ => before().bool_or(behind()),
                    };
                    let rows = tokens.clone().sub_scalar(start);
                    let rows = rows.mask_fill(outside.clone(), 0);
                    let vectors = self.project(k, table.val().select(0, rows));
                    vectors.mask_fill(outside.unsqueeze_dim::<2>(1), 0.0)
                });
                parts
                    .reduce(|sum, part| sum + part)
                    .expect("there is at least one table")
            }
        };
        let [_, d_model] = vectors.dims();
        vectors
            .mul_scalar(self.scale)
            .reshape([batch, time, d_model])
    }

    fn project(&self, table: usize, vectors: Tensor<2>) -> Tensor<2> {
        match self.projections.get(table) {
            Some(projection) => vectors.matmul(projection.val()),
            None => vectors,
        }
    }
}
