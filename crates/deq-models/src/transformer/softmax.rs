//! The tied output layer: a softmax, or an adaptive softmax over a vocabulary sorted by frequency.

use super::embedding::{Clusters, TokenEmbedding};
use burn::module::{Module, Param};
use burn::tensor::{
    Device, Distribution, IndexingUpdateOp, Int, Tensor, TensorData, activation::log_softmax,
};
use deq_kernels::{cross_entropy, on_host};

/// Log-probabilities of tokens from hidden states, with the embedding as its weight.
///
/// Without cutoffs a softmax. With cutoffs `c_0 < c_1 < ...` (Grave et al. 2017, "Efficient softmax
/// approximation for GPUs") the head scores the `c_0` most frequent tokens and one entry per
/// further cluster; a token of a cluster has the probability of the cluster times its probability
/// within. Each cluster is evaluated only at the positions whose target lies in it, and these are
/// known on the host, so nothing is read from the device.
///
/// Where the vectors of tokens are not as wide as the model, hidden states are projected to their
/// width first.
#[derive(Module, Debug)]
pub struct OutputLayer {
    /// One for each table of the embedding, `[tokens]`.
    pub biases: Vec<Param<Tensor<1>>>,
    /// Scores of the clusters, `[clusters, d_embed]`.
    pub cluster_weight: Option<Param<Tensor<2>>>,
    /// `[clusters]`.
    pub cluster_bias: Option<Param<Tensor<1>>>,
    /// Tables of its own, as those of the embedding; none if they are shared with it.
    pub tables: Option<Vec<Param<Tensor<2>>>>,
    /// If vectors are projected, one for each cluster, the head first, `[width, d_model]`; none
    /// where it is shared with the embedding.
    pub projections: Vec<Option<Param<Tensor<2>>>>,
    #[module(skip)]
    clusters: Clusters,
}

/// What an [`OutputLayer`] shares with the embedding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ties {
    pub(crate) tables: bool,
    /// Of all clusters but the head, which keeps its own, as in the original's scripts.
    pub(crate) projections: bool,
}

impl OutputLayer {
    pub(crate) fn new(clusters: Clusters, ties: Ties, std: f64, device: &Device) -> Self {
        let gates = clusters.bounds.len() - 1;
        let normal = Distribution::Normal(0.0, std);
        let random = |shape: [usize; 2]| Param::from_tensor(Tensor::random(shape, normal, device));
        let tables = clusters.tables();
        let projections = match clusters.projected() {
            true => (0..=gates)
                .map(|cluster| {
                    let (_, width) = tables[clusters.place(cluster).0];
                    let own = cluster == 0 || !ties.projections;
                    own.then(|| random([width, clusters.d_model]))
                })
                .collect(),
            false => Vec::new(),
        };
        Self {
            biases: tables
                .iter()
                .map(|&(rows, _)| Param::from_tensor(Tensor::zeros([rows], device)))
                .collect(),
            cluster_weight: (gates > 0).then(|| random([gates, clusters.d_embed])),
            cluster_bias: (gates > 0).then(|| Param::from_tensor(Tensor::zeros([gates], device))),
            tables: (!ties.tables).then(|| {
                tables
                    .iter()
                    .map(|&(rows, width)| random([rows, width]))
                    .collect()
            }),
            projections,
            clusters,
        }
    }

    /// Negative log-likelihoods of hidden states `[batch, time, d_model]`, `[batch * time]`.
    pub(crate) fn nll_of(
        &self,
        hidden: Tensor<3>,
        embedding: &TokenEmbedding,
        targets: &[i32],
    ) -> Tensor<1> {
        let [batch, time, d_model] = hidden.dims();
        assert_eq!(
            targets.len(),
            batch * time,
            "one target per position is needed"
        );
        self.nll(hidden.reshape([batch * time, d_model]), embedding, targets)
    }

    /// Log-probabilities of every token for hidden states `[batch, time, d_model]`, `[batch * time,
    /// vocab_size]`.
    pub(crate) fn log_probs_of(&self, hidden: Tensor<3>, embedding: &TokenEmbedding) -> Tensor<2> {
        let [batch, time, d_model] = hidden.dims();
        self.log_probs(hidden.reshape([batch * time, d_model]), embedding)
    }

    /// Negative log-likelihoods, in nats.
    ///
    /// # Shapes
    ///
    /// - hidden: `[n, d_model]`
    /// - targets: `n` token ids
    /// - output: `[n]`
    ///
    /// # Panics
    ///
    /// If a target lies outside the vocabulary.
    fn nll(&self, hidden: Tensor<2>, embedding: &TokenEmbedding, targets: &[i32]) -> Tensor<1> {
        let shapes = match on_host(&hidden.device()) {
            true => Shapes::Exact,
            false => Shapes::Few,
        };
        self.nll_in(shapes, hidden, embedding, targets)
    }

    fn nll_in(
        &self,
        shapes: Shapes,
        hidden: Tensor<2>,
        embedding: &TokenEmbedding,
        targets: &[i32],
    ) -> Tensor<1> {
        let device = hidden.device();
        let (columns, clusters) = self.assign(targets);
        let mut nll = cross_entropy(self.head(hidden.clone(), embedding), &columns);
        for (cluster, mut members) in clusters.into_iter().enumerate() {
            let count = members.rows.len();
            if count == 0 {
                continue;
            }
            let size = shapes.rows_for(count, targets.len());
            members.rows.resize(size, 0);
            members.columns.resize(size, 0);
            let rows = indices(members.rows, &device);
            let seen = hidden.clone().select(0, rows.clone());
            let scores = self.scores(seen, embedding, cluster + 1);
            let mut within = cross_entropy(scores, &members.columns);
            if size > count {
                let mut counts = vec![1.0_f32; count];
                counts.resize(size, 0.0);
                let counts = TensorData::new(counts, [size]);
                within = within.clone() * Tensor::from_data(counts, (&device, within.dtype()));
            }
            nll = nll.select_assign(0, rows, within, IndexingUpdateOp::Add);
        }
        nll
    }

    /// Log-probabilities of every token, `[n, vocab_size]`.
    fn log_probs(&self, hidden: Tensor<2>, embedding: &TokenEmbedding) -> Tensor<2> {
        let head = log_softmax(self.head(hidden.clone(), embedding), 1);
        let clusters = self.clusters.bounds.len() - 1;
        let first = self.clusters.bounds[0];
        let mut parts = vec![head.clone().narrow(1, 0, first)];
        for cluster in 1..=clusters {
            let scores = self.scores(hidden.clone(), embedding, cluster);
            let gate = head.clone().narrow(1, self.gate(cluster), 1);
            parts.push(log_softmax(scores, 1) + gate);
        }
        Tensor::cat(parts, 1)
    }

    /// The head's column for cluster `cluster`, counted from 1. The original code indexes it from
    /// the end, so that cluster 1 reads the last column; kept, since trained weights depend on it.
    fn gate(&self, cluster: usize) -> usize {
        self.clusters.bounds[0] + self.clusters.bounds.len() - 1 - cluster
    }

    /// Scores of the head's tokens and of the clusters.
    fn head(&self, hidden: Tensor<2>, embedding: &TokenEmbedding) -> Tensor<2> {
        let (weight, bias) = self.rows(embedding, 0);
        let (weight, bias) = match (&self.cluster_weight, &self.cluster_bias) {
            // The gates are further rows of the head's weight, and read what its tokens read.
            (Some(gates), Some(gate_bias)) => (
                Tensor::cat(vec![weight, gates.val()], 0),
                Tensor::cat(vec![bias, gate_bias.val()], 0),
            ),
            _ => (weight, bias),
        };
        let seen = self.projected(hidden, embedding, 0);
        seen.matmul(weight.transpose()) + bias.unsqueeze()
    }

    /// Scores of the tokens of a cluster, 0 being the head's own.
    fn scores(&self, hidden: Tensor<2>, embedding: &TokenEmbedding, cluster: usize) -> Tensor<2> {
        let (weight, bias) = self.rows(embedding, cluster);
        let projected = self.projected(hidden, embedding, cluster);
        projected.matmul(weight.transpose()) + bias.unsqueeze()
    }

    /// The table of the embedding that a cluster reads.
    pub(crate) fn table_of(&self, cluster: usize) -> usize {
        self.clusters.place(cluster).0
    }

    /// Vectors `[tokens, width]` and biases `[tokens]` of the tokens of a cluster.
    fn rows(&self, embedding: &TokenEmbedding, cluster: usize) -> (Tensor<2>, Tensor<1>) {
        let (table, start) = self.clusters.place(cluster);
        let (_, size) = self.clusters.range(cluster);
        let tables = self.tables.as_ref().unwrap_or(&embedding.tables);
        (
            tables[table].val().narrow(0, start, size),
            self.biases[table].val().narrow(0, start, size),
        )
    }

    /// Hidden states at the width of a cluster's vectors.
    fn projected(
        &self,
        hidden: Tensor<2>,
        embedding: &TokenEmbedding,
        cluster: usize,
    ) -> Tensor<2> {
        let projection = match self.projections.get(cluster) {
            Some(Some(own)) => own.val(),
            Some(None) => embedding.projections[self.table_of(cluster)].val(),
            None => return hidden,
        };
        hidden.matmul(projection.transpose())
    }

    /// For every target its column of the head, and for every cluster the rows whose target lies in
    /// it.
    fn assign(&self, targets: &[i32]) -> (Vec<i32>, Vec<Members>) {
        let vocab_size = self.clusters.bounds[self.clusters.bounds.len() - 1];
        let mut clusters: Vec<Members> = (1..self.clusters.bounds.len())
            .map(|_| Members::default())
            .collect();
        let columns = targets
            .iter()
            .enumerate()
            .map(|(row, &target)| {
                let token = usize::try_from(target).unwrap_or(usize::MAX);
                assert!(
                    token < vocab_size,
                    "target {target} lies outside the vocabulary of {vocab_size} tokens"
                );
                let cluster = self
                    .clusters
                    .bounds
                    .partition_point(|&bound| bound <= token);
                if cluster == 0 {
                    return target;
                }
                let members = &mut clusters[cluster - 1];
                members.rows.push(row as i32);
                members
                    .columns
                    .push(target - self.clusters.bounds[cluster - 1] as i32);
                self.gate(cluster) as i32
            })
            .collect();
        (columns, clusters)
    }
}

/// How many rows a cluster is evaluated at.
#[derive(Clone, Copy, Debug)]
enum Shapes {
    /// Those whose target lies in it, and no other.
    Exact,
    /// Up to twice as many, the others without weight, so that few shapes occur in a training: a
    /// GPU tunes its kernels anew for shapes that it has not seen.
    Few,
}

impl Shapes {
    /// Rows to evaluate where `count` of `all` are needed.
    fn rows_for(self, count: usize, all: usize) -> usize {
        match self {
            Self::Exact => count,
            Self::Few => count.next_power_of_two().max(64).min(all),
        }
    }
}

#[derive(Default)]
struct Members {
    rows: Vec<i32>,
    columns: Vec<i32>,
}

fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `values[i, columns[i]]`.
    fn pick(values: Tensor<2>, columns: Vec<i32>, device: &Device) -> Tensor<1> {
        let columns = indices(columns, device).unsqueeze_dim::<2>(1);
        values.gather(1, columns).squeeze_dim::<1>(1)
    }

    #[test]
    fn the_adaptive_softmax_is_a_distribution_and_agrees_with_its_nll() {
        let device = Device::flex();
        let (vocab, width) = (11, 4);
        for clusters in divisions(vocab, width, &[3, 6]) {
            agrees(&clusters, &device);
        }
    }

    /// Every way of dividing the vocabulary, with the embedding as wide as the model or half as
    /// wide.
    fn divisions(vocab: usize, d_model: usize, cutoffs: &[usize]) -> Vec<Clusters> {
        let bounds: Vec<usize> = cutoffs.iter().copied().chain([vocab]).collect();
        [(1, d_model), (1, d_model / 2), (2, d_model)]
            .map(|(div_val, d_embed)| Clusters {
                bounds: bounds.clone(),
                d_embed,
                d_model,
                div_val,
            })
            .to_vec()
    }

    fn agrees(clusters: &Clusters, device: &Device) {
        let (vocab, width) = (11, clusters.d_model);
        let ties = Ties {
            tables: true,
            projections: true,
        };
        let layer = OutputLayer::new(clusters.clone(), ties, 1.0, device);
        let embedding = TokenEmbedding::new(clusters, 1.0, device);
        let normal = Distribution::Normal(0.0, 1.0);
        let hidden = Tensor::<2>::random([vocab, width], normal, device);
        let log_probs = layer.log_probs(hidden.clone(), &embedding);
        let sums: Vec<f32> = log_probs
            .clone()
            .exp()
            .sum_dim(1)
            .into_data()
            .iter::<f32>()
            .collect();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{sums:?}");

        let targets: Vec<i32> = (0..vocab as i32).rev().collect();
        let nll: Vec<f32> = layer
            .nll(hidden, &embedding, &targets)
            .into_data()
            .iter::<f32>()
            .collect();
        let picked: Vec<f32> = pick(log_probs, targets, device)
            .into_data()
            .iter::<f32>()
            .collect();
        for (nll, log_prob) in nll.iter().zip(picked) {
            assert!((nll + log_prob).abs() < 1e-5, "{nll} {log_prob}");
        }
    }

    /// The definition, on the host: `log p(token) = log p(gate) + log p(token | cluster)`, every
    /// sum written out.
    fn by_definition(
        layer: &OutputLayer,
        embedding: &TokenEmbedding,
        h: &[f32],
        token: usize,
    ) -> f64 {
        let numbers = |tensor: Tensor<2>| tensor.into_data().iter::<f64>().collect::<Vec<_>>();
        let clusters = &layer.clusters;
        // Scores of a cluster's tokens, and of the gates if it is the head.
        let scores = |cluster: usize| -> Vec<f64> {
            let (table, start) = clusters.place(cluster);
            let weight = embedding.tables[table].val();
            let [_, width] = weight.dims();
            let weight = numbers(weight);
            let bias = numbers(layer.biases[table].val().unsqueeze());
            let seen: Vec<f64> = match layer.projections.get(cluster) {
                None => h.iter().map(|&x| f64::from(x)).collect(),
                Some(own) => {
                    let shared = &embedding.projections;
                    let projection = own.as_ref().unwrap_or_else(|| &shared[table]);
                    numbers(projection.val())
                        .chunks(h.len())
                        .map(|row| row.iter().zip(h).map(|(p, &x)| p * f64::from(x)).sum())
                        .collect()
                }
            };
            let dot = |row: &[f64]| row.iter().zip(&seen).map(|(a, b)| a * b).sum::<f64>();
            let rows = start..start + clusters.range(cluster).1;
            let mut scores: Vec<f64> = rows
                .map(|row| dot(&weight[row * width..(row + 1) * width]) + bias[row])
                .collect();
            if let (0, Some(weight), Some(bias)) =
                (cluster, &layer.cluster_weight, &layer.cluster_bias)
            {
                let (weight, bias) = (numbers(weight.val()), numbers(bias.val().unsqueeze()));
                let gates = weight.chunks(width).zip(bias);
                scores.extend(gates.map(|(row, bias)| dot(row) + bias));
            }
            scores
        };
        let log_sum = |scores: &[f64]| scores.iter().map(|s| s.exp()).sum::<f64>().ln();

        let head = scores(0);
        let bounds = &clusters.bounds;
        if token < bounds[0] {
            return head[token] - log_sum(&head);
        }
        let cluster = bounds.iter().filter(|&&bound| bound <= token).count();
        // Cluster 1 has the last gate, cluster 2 the one before it.
        let gate = head[head.len() - cluster];
        let within = scores(cluster);
        gate - log_sum(&head) + within[token - bounds[cluster - 1]] - log_sum(&within)
    }

    #[test]
    fn likelihoods_equal_the_definition_however_the_vocabulary_is_divided() {
        let device = Device::flex();
        let (vocab, width) = (11, 4);
        let normal = Distribution::Normal(0.0, 1.0);
        let shared = [true, false].map(|projections| Ties {
            tables: true,
            projections,
        });
        let all = [vec![], vec![4], vec![3, 6]]
            .into_iter()
            .flat_map(|cutoffs| divisions(vocab, width, &cutoffs));
        for (clusters, ties) in all.flat_map(|c| shared.map(|ties| (c.clone(), ties))) {
            let mut layer = OutputLayer::new(clusters.clone(), ties, 1.0, &device);
            for bias in layer.biases.iter_mut().chain(&mut layer.cluster_bias) {
                let values = Tensor::random(bias.val().shape(), normal, &device);
                *bias = Param::from_tensor(values);
            }
            let hidden = Tensor::<2>::random([vocab, width], normal, &device);
            let embedding = TokenEmbedding::new(&clusters, 1.0, &device);
            let rows: Vec<f32> = hidden.clone().into_data().iter::<f32>().collect();
            // Clusters alternate along the rows, so that the order of the result is tested too.
            let targets: Vec<i32> = (0..vocab as i32).map(|k| (k * 4) % 11).collect();
            let nll = layer.nll(hidden, &embedding, &targets).into_data();
            for ((nll, h), &target) in nll.iter::<f64>().zip(rows.chunks(width)).zip(&targets) {
                let expected = -by_definition(&layer, &embedding, h, target as usize);
                assert!(
                    (nll - expected).abs() < 1e-4 * (1.0 + expected),
                    "{clusters:?}, {ties:?}, token {target}: {nll} {expected}"
                );
            }
        }
    }

    #[test]
    fn rows_that_only_fill_up_a_shape_change_no_likelihood_and_no_gradient() {
        let device = Device::flex().autodiff();
        let (vocab, width, count) = (11, 4, 150);
        let clusters = &divisions(vocab, width, &[3, 6])[2];
        let ties = Ties {
            tables: true,
            projections: true,
        };
        let layer = OutputLayer::new(clusters.clone(), ties, 1.0, &device);
        let embedding = TokenEmbedding::new(clusters, 1.0, &device);
        let hidden = Tensor::<2>::random([count, width], Distribution::Normal(0.0, 1.0), &device);
        let hidden = hidden.require_grad();
        // 60 targets in the second cluster and 30 in the third, of 150 rows.
        let targets: Vec<i32> = (0..count as i32)
            .map(|k| [0, 4, 1, 5, 10][k as usize % 5])
            .collect();
        let [exact, few] = [Shapes::Exact, Shapes::Few].map(|shapes| {
            let nll = layer.nll_in(shapes, hidden.clone(), &embedding, &targets);
            let grads = nll.clone().sum().backward();
            let of_table = embedding.tables[1].val().grad(&grads);
            let of_hidden = hidden.grad(&grads);
            [
                nll.inner().unsqueeze::<2>(),
                of_hidden.expect("it is tracked"),
                of_table.expect("the second cluster is read"),
            ]
            .map(|x| x.into_data())
        });
        assert_eq!(Shapes::Few.rows_for(60, count), 64);
        assert_eq!(Shapes::Few.rows_for(100, count), 128);
        assert_eq!(Shapes::Few.rows_for(140, count), count);
        // Sums over other rows are taken in another order, of at most 150 products.
        let numbers = |data: &TensorData| data.iter::<f64>().collect::<Vec<_>>();
        for (a, b) in exact.iter().zip(&few) {
            let (a, b) = (numbers(a), numbers(b));
            let largest = a.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
            assert_eq!(a.len(), b.len());
            assert!(
                a.iter()
                    .zip(&b)
                    .all(|(a, b)| (a - b).abs() < 1e-5 * largest)
            );
        }
    }

    fn nll_of(target: i32) -> Tensor<1> {
        let device = Device::flex();
        let clusters = &divisions(5, 2, &[2])[0];
        let ties = Ties {
            tables: true,
            projections: true,
        };
        let layer = OutputLayer::new(clusters.clone(), ties, 1.0, &device);
        let embedding = TokenEmbedding::new(clusters, 1.0, &device);
        layer.nll(Tensor::ones([1, 2], &device), &embedding, &[target])
    }

    #[test]
    #[should_panic(expected = "target 5 lies outside the vocabulary of 5 tokens")]
    fn a_target_behind_the_vocabulary_is_named() {
        nll_of(5);
    }

    #[test]
    #[should_panic(expected = "target -1 lies outside the vocabulary of 5 tokens")]
    fn a_negative_target_is_named() {
        nll_of(-1);
    }
}
