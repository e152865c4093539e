//! The tied output layer: a softmax, or an adaptive softmax over a vocabulary sorted by frequency.

use burn::module::{Module, Param};
use burn::tensor::{
    Device, Distribution, IndexingUpdateOp, Int, Tensor, TensorData, activation::log_softmax,
};

/// Log-probabilities of tokens from hidden states, with the embedding as its weight.
///
/// Without cutoffs a softmax. With cutoffs `c_0 < c_1 < ...` (Grave et al. 2017, "Efficient softmax approximation for GPUs") the head scores
/// the `c_0` most frequent tokens and one entry per further cluster; a token of a cluster has the probability of the cluster times
/// its probability within. Each cluster is evaluated only at the positions whose target lies in it, and these are
/// known on the host, so nothing is read from the device.
#[derive(Module, Debug)]
pub struct OutputLayer {
    /// `[vocab_size]`.
    pub bias: Param<Tensor<1>>,
    /// Scores of the clusters, `[clusters, d_model]`.
    pub cluster_weight: Option<Param<Tensor<2>>>,
    /// `[clusters]`.
    pub cluster_bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    bounds: Vec<usize>,
}

impl OutputLayer {
    pub(crate) fn new(
        vocab_size: usize,
        d_model: usize,
        cutoffs: &[usize],
        std: f64,
        device: &Device,
    ) -> Self {
        let clusters = cutoffs.len();
        let normal = Distribution::Normal(0.0, std);
        Self {
            bias: Param::from_tensor(Tensor::zeros([vocab_size], device)),
            cluster_weight: (clusters > 0)
                .then(|| Param::from_tensor(Tensor::random([clusters, d_model], normal, device))),
            cluster_bias: (clusters > 0)
                .then(|| Param::from_tensor(Tensor::zeros([clusters], device))),
            bounds: cutoffs.iter().copied().chain([vocab_size]).collect(),
        }
    }

    /// Negative log-likelihoods, in nats.
    ///
    /// # Shapes
    ///
    /// - hidden: `[n, d_model]`
    /// - embedding: `[vocab_size, d_model]`
    /// - targets: `n` token ids
    /// - output: `[n]`
    ///
    /// # Panics
    ///
    /// If a target lies outside the vocabulary.
    pub(crate) fn nll(
        &self,
        hidden: Tensor<2>,
        embedding: Tensor<2>,
        targets: &[i32],
    ) -> Tensor<1> {
        let device = hidden.device();
        let (columns, clusters) = self.assign(targets);
        let head = self.head(hidden.clone(), embedding.clone());
        let mut nll = pick(head, columns, &device).neg();
        for (cluster, members) in clusters.into_iter().enumerate() {
            if members.rows.is_empty() {
                continue;
            }
            let rows = indices(members.rows, &device);
            let scores = self.scores(
                hidden.clone().select(0, rows.clone()),
                embedding.clone(),
                cluster + 1,
            );
            let within = pick(log_softmax(scores, 1), members.columns, &device).neg();
            nll = nll.select_assign(0, rows, within, IndexingUpdateOp::Add);
        }
        nll
    }

    /// Log-probabilities of every token, `[n, vocab_size]`.
    pub(crate) fn log_probs(&self, hidden: Tensor<2>, embedding: Tensor<2>) -> Tensor<2> {
        let head = self.head(hidden.clone(), embedding.clone());
        let clusters = self.bounds.len() - 1;
        let first = self.bounds[0];
        let mut parts = vec![head.clone().narrow(1, 0, first)];
        for cluster in 1..=clusters {
            let scores = self.scores(hidden.clone(), embedding.clone(), cluster);
            let gate = head.clone().narrow(1, self.gate(cluster), 1);
            parts.push(log_softmax(scores, 1) + gate);
        }
        Tensor::cat(parts, 1)
    }

    /// The head's column for cluster `cluster`, counted from 1. The original code indexes it from the end, so that cluster 1 reads the last
    /// column; kept, since trained weights depend on it.
    fn gate(&self, cluster: usize) -> usize {
        self.bounds[0] + self.bounds.len() - 1 - cluster
    }

    fn head(&self, hidden: Tensor<2>, embedding: Tensor<2>) -> Tensor<2> {
        let scores = self.scores(hidden.clone(), embedding, 0);
        let scores = match (&self.cluster_weight, &self.cluster_bias) {
            (Some(weight), Some(bias)) => {
                let gates = hidden.matmul(weight.val().transpose()) + bias.val().unsqueeze();
                Tensor::cat(vec![scores, gates], 1)
            }
            _ => scores,
        };
        log_softmax(scores, 1)
    }

    /// Scores of the tokens of a cluster, 0 being the head's own.
    fn scores(&self, hidden: Tensor<2>, embedding: Tensor<2>, cluster: usize) -> Tensor<2> {
        let start = if cluster == 0 {
            0
        } else {
            self.bounds[cluster - 1]
        };
        let size = self.bounds[cluster] - start;
        let weight = embedding.narrow(0, start, size);
        let bias = self.bias.val().narrow(0, start, size);
        hidden.matmul(weight.transpose()) + bias.unsqueeze()
    }

    /// For every target its column of the head, and for every cluster the rows whose target lies in it.
    fn assign(&self, targets: &[i32]) -> (Vec<i32>, Vec<Members>) {
        let vocab_size = self.bounds[self.bounds.len() - 1];
        let mut clusters: Vec<Members> =
            (1..self.bounds.len()).map(|_| Members::default()).collect();
        let columns = targets
            .iter()
            .enumerate()
            .map(|(row, &target)| {
                let token = usize::try_from(target).unwrap_or(usize::MAX);
                assert!(
                    token < vocab_size,
                    "target {target} lies outside the vocabulary of {vocab_size} tokens"
                );
                let cluster = self.bounds.partition_point(|&bound| bound <= token);
                if cluster == 0 {
                    return target;
                }
                let members = &mut clusters[cluster - 1];
                members.rows.push(row as i32);
                members
                    .columns
                    .push(target - self.bounds[cluster - 1] as i32);
                self.gate(cluster) as i32
            })
            .collect();
        (columns, clusters)
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

/// `values[i, columns[i]]`.
fn pick(values: Tensor<2>, columns: Vec<i32>, device: &Device) -> Tensor<1> {
    let columns = indices(columns, device).unsqueeze_dim::<2>(1);
    values.gather(1, columns).squeeze_dim::<1>(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adaptive_softmax_is_a_distribution_and_agrees_with_its_nll() {
        let device = Device::flex();
        let (vocab, width) = (11, 4);
        let layer = OutputLayer::new(vocab, width, &[3, 6], 1.0, &device);
        let normal = Distribution::Normal(0.0, 1.0);
        let hidden = Tensor::<2>::random([vocab, width], normal, &device);
        let embedding = Tensor::<2>::random([vocab, width], normal, &device);
        let log_probs = layer.log_probs(hidden.clone(), embedding.clone());
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
            .nll(hidden, embedding, &targets)
            .into_data()
            .iter::<f32>()
            .collect();
        let picked: Vec<f32> = pick(log_probs, targets, &device)
            .into_data()
            .iter::<f32>()
            .collect();
        for (nll, log_prob) in nll.iter().zip(picked) {
            assert!((nll + log_prob).abs() < 1e-5, "{nll} {log_prob}");
        }
    }

    /// The definition, on the host: `log p(token) = log p(gate) + log p(token | cluster)`, every sum written out.
    fn by_definition(layer: &OutputLayer, h: &[f32], embedding: &[f32], token: usize) -> f64 {
        let numbers = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
        let bias = numbers(layer.bias.val().unsqueeze());
        let dot = |weights: &[f32]| -> f64 {
            let products = h.iter().zip(weights).map(|(a, b)| f64::from(a * b));
            products.sum()
        };
        let score = |token: usize| {
            dot(&embedding[token * h.len()..(token + 1) * h.len()]) + f64::from(bias[token])
        };
        let log_sum = |scores: &[f64]| scores.iter().map(|s| s.exp()).sum::<f64>().ln();

        let bounds = &layer.bounds;
        let mut head: Vec<f64> = (0..bounds[0]).map(score).collect();
        if let (Some(weight), Some(bias)) = (&layer.cluster_weight, &layer.cluster_bias) {
            let (weight, bias) = (numbers(weight.val()), numbers(bias.val().unsqueeze()));
            let gates = weight.chunks(h.len()).zip(bias);
            head.extend(gates.map(|(row, bias)| dot(row) + f64::from(bias)));
        }
        if token < bounds[0] {
            return head[token] - log_sum(&head);
        }
        let cluster = bounds.iter().filter(|&&bound| bound <= token).count();
        // Cluster 1 has the last gate, cluster 2 the one before it.
        let gate = head[head.len() - cluster];
        let scores: Vec<f64> = (bounds[cluster - 1]..bounds[cluster]).map(score).collect();
        gate - log_sum(&head) + score(token) - log_sum(&scores)
    }

    #[test]
    fn likelihoods_equal_the_definition_with_and_without_cutoffs() {
        let device = Device::flex();
        let (vocab, width) = (11, 4);
        let normal = Distribution::Normal(0.0, 1.0);
        for cutoffs in [vec![], vec![4], vec![3, 6]] {
            let mut layer = OutputLayer::new(vocab, width, &cutoffs, 1.0, &device);
            layer.bias = Param::from_tensor(Tensor::random([vocab], normal, &device));
            if !cutoffs.is_empty() {
                let bias = Tensor::random([cutoffs.len()], normal, &device);
                layer.cluster_bias = Some(Param::from_tensor(bias));
            }
            let hidden = Tensor::<2>::random([vocab, width], normal, &device);
            let embedding = Tensor::<2>::random([vocab, width], normal, &device);
            let rows: Vec<f32> = hidden.clone().into_data().iter::<f32>().collect();
            let table: Vec<f32> = embedding.clone().into_data().iter::<f32>().collect();
            // Clusters alternate along the rows, so that the order of the result is tested too.
            let targets: Vec<i32> = (0..vocab as i32).map(|k| (k * 4) % 11).collect();
            let nll = layer.nll(hidden, embedding, &targets).into_data();
            for ((nll, h), &target) in nll.iter::<f64>().zip(rows.chunks(width)).zip(&targets) {
                let expected = -by_definition(&layer, h, &table, target as usize);
                assert!(
                    (nll - expected).abs() < 1e-4 * (1.0 + expected),
                    "cutoffs {cutoffs:?}, token {target}: {nll} {expected}"
                );
            }
        }
    }

    fn nll_of(target: i32) -> Tensor<1> {
        let device = Device::flex();
        let layer = OutputLayer::new(5, 2, &[2], 1.0, &device);
        layer.nll(
            Tensor::ones([1, 2], &device),
            Tensor::ones([5, 2], &device),
            &[target],
        )
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
