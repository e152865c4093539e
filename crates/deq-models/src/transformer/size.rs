//! Numbers of a model and of a training step by configuration, without making the model.

use super::lm::DeqTransformerLmConfig;
use crate::memory::StepNumbers;

impl DeqTransformerLmConfig {
    /// The trained numbers of the model.
    pub fn parameters(&self) -> usize {
        let (d, inner) = (self.d_model, self.d_inner);
        let clusters = self.clusters();
        let gates = clusters.bounds.len() - 1;
        let tables = clusters.tables();
        let table_numbers: usize = tables.iter().map(|(rows, width)| rows * width).sum();
        let biases: usize = tables.iter().map(|(rows, _)| rows).sum();
        let own_tables = usize::from(!self.tie_weights);
        let projections = match clusters.projected() {
            true => {
                let of_cluster = |cluster: usize| tables[clusters.place(cluster).0].1 * d;
                let embedding: usize = tables.iter().map(|(_, width)| width * d).sum();
                let output = 0..=if self.tie_projections { 0 } else { gates };
                embedding + output.map(of_cluster).sum::<usize>()
            }
            false => 0,
        };
        let gains = if self.weight_norm { 6 * d + inner } else { 0 };
        let injection = 3 * d * (d + 1);
        let biases = biases + gates + 2 * d + inner + 2 * d;
        table_numbers * (1 + own_tables)
            + gates * clusters.d_embed
            + projections
            + injection
            + self.cell_weights()
            + gains
            + biases
    }

    /// The weights of the cell's linear maps.
    fn cell_weights(&self) -> usize {
        self.d_model * (5 * self.d_model + 2 * self.d_inner)
    }

    /// The numbers that a training step holds on `batch` streams of `time` positions, with a full
    /// memory. `on_host` says whether it runs by the kernels of the CPU.
    ///
    /// Cells without weight normalisation need less than is said here. Tokens are taken to be as
    /// frequent as by Zipf's law, by which more of them are rare than in a text.
    pub fn step_numbers(&self, batch: usize, time: usize, on_host: bool) -> StepNumbers {
        let (d, keys, past) = (self.d_model, self.mem_len + time, self.mem_len);
        let positions = batch * time;
        let narrow = positions * d;
        let wide = positions * self.d_inner;
        let scores = positions * self.n_heads * keys;
        let read = batch * keys * d;
        let matrix = d * self.d_inner;
        let weights = self.cell_weights();
        let mask = |rate: f64, numbers: usize| if rate > 0.0 { numbers } else { 0 };
        let masks = mask(self.dropout, batch * self.d_inner) + mask(self.attention_dropout, scores);
        // Embedded tokens; injections of all positions, here and for the next step; equilibria for
        // the next step; the memory with its keys and values; distances.
        let inputs = narrow + 2 * 3 * read + read + 3 * batch * past * d + 2 * keys * d;
        let (scored, most) = self.scored(positions, on_host);
        let parameters = self.parameters();
        StepNumbers {
            parameters,
            // All but the cell, whose gains and biases are few: tables serve on both sides.
            head: parameters - weights - 3 * d * d,
            state: narrow,
            constants: inputs + time * keys + weights + masks,
            arranged: if on_host { weights } else { 0 },
            shared: 0,
            // The inner activations, or queries, keys and values twice; on GPUs scores by content
            // and by distance stand beside the probabilities.
            evaluation: match on_host {
                true => wide.max(6 * narrow),
                false => wide.max(6 * narrow + 3 * scores),
            },
            // Before and behind the ReLU; exponentials, their quotient and the weights after the
            // mask; keys and values; queries twice, the mixed values, each norm twice.
            tape: 2 * wide + 3 * scores + 2 * read + (7 + usize::from(self.pre_norm)) * narrow,
            reached: 2 * narrow,
            // Probabilities, queries, keys and values, two norms, and where the ReLU is off; on the
            // CPU, a transposed weight while it is arranged.
            point: scores + 5 * narrow + wide / 4 + if on_host { matrix } else { 0 },
            output: narrow + scored,
            output_peak: match on_host {
                true => most,
                // A softmax by Burn's operations.
                false => 3 * most,
            },
            kept: narrow,
            backward: 2 * wide + 2 * narrow + matrix,
            weights: parameters + 3 * matrix,
            // Forward: once before the ReLU, once behind; the scores three times. The tangent: the
            // inner one, scores three times.
            probe: 3 * wide + wide / 4 + 6 * scores + 2 * read + 17 * narrow,
        }
    }

    /// Scores of the output layer that are kept, and the most of one cluster.
    fn scored(&self, positions: usize, on_host: bool) -> (usize, usize) {
        let clusters = self.clusters();
        let vocabulary = clusters.bounds[clusters.bounds.len() - 1];
        // The share of the tokens below a rank.
        let below = |rank: usize| (rank as f64).ln_1p() / (vocabulary as f64).ln_1p();
        let sizes = (0..clusters.bounds.len()).map(|cluster| {
            let (start, size) = clusters.range(cluster);
            if cluster == 0 {
                return positions * (size + clusters.bounds.len() - 1);
            }
            let share = below(start + size) - below(start);
            let rows = (share * positions as f64).ceil() as usize;
            let rows = match on_host {
                true => rows,
                false => rows.next_power_of_two().max(64).min(positions),
            };
            rows * size
        });
        let sizes: Vec<usize> = sizes.collect();
        (sizes.iter().sum(), sizes.into_iter().max().unwrap_or(0))
    }
}
