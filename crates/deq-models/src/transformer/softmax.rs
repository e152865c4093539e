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
        let mut clusters: Vec<Members> =
            (1..self.bounds.len()).map(|_| Members::default()).collect();
        let columns = targets
            .iter()
            .enumerate()
            .map(|(row, &target)| {
                let cluster = self
                    .bounds
                    .partition_point(|&bound| bound <= target as usize);
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
}
