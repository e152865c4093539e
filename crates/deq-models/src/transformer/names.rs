//! The DEQ-Transformer's names in the original program, `DEQTransformerLM` of locuslab/deq.

use super::linear::NormedLinear;
use super::lm::{DeqTransformerLm, DeqTransformerLmConfig};
use crate::checkpoint::{Group, Layout, OriginalNames, OriginalTensor, Source, StateDict};
use crate::error::ModelError;

const MATRIX: Layout = Layout::Matrix { trailing: 0 };

impl OriginalNames for DeqTransformerLm {
    fn original_tensors(&self) -> Vec<OriginalTensor> {
        let same = |name: &str, path: &str| OriginalTensor::parameter(name, path, Layout::Same);
        let mut all = Vec::new();
        for k in 0..self.embedding.tables.len() {
            all.push(same(
                &format!("word_emb.emb_layers.{k}.weight"),
                &format!("embedding.tables.{k}"),
            ));
        }
        for k in 0..self.embedding.projections.len() {
            all.push(OriginalTensor::parameter(
                format!("word_emb.emb_projs.{k}.weight"),
                format!("embedding.projections.{k}"),
                MATRIX,
            ));
        }
        all.push(OriginalTensor::parameter(
            "inject_conv.weight",
            "injection.weight",
            Layout::Matrix { trailing: 1 },
        ));
        all.push(same("inject_conv.bias", "injection.bias"));
        all.push(OriginalTensor {
            name: "pos_emb.inv_freq".to_owned(),
            source: Source::Constant(self.inverse_frequencies()),
        });

        let attention = &self.cell.attention;
        for (name, path) in [("r_w_bias", "content_bias"), ("r_r_bias", "position_bias")] {
            all.push(same(
                &format!("func.dec_attn.{name}"),
                &format!("cell.attention.{path}"),
            ));
        }
        // Convolutions of width 1 in the attention, linear layers in the feed-forward.
        for (name, path, layer) in [
            ("qkv_net", "qkv", &attention.qkv),
            ("r_net", "position", &attention.position),
            ("o_net", "output", &attention.output),
        ] {
            let name = format!("func.dec_attn.{name}");
            all.extend(normed(layer, &name, &format!("cell.attention.{path}"), 1));
        }
        let feed_forward = &self.cell.feed_forward;
        for (name, path, layer) in [
            ("ff1_net", "inner", &feed_forward.inner),
            ("ff2_net", "outer", &feed_forward.outer),
        ] {
            let name = format!("func.pos_ff.{name}");
            all.extend(normed(
                layer,
                &name,
                &format!("cell.feed_forward.{path}"),
                0,
            ));
        }

        if self.output.cluster_weight.is_some() {
            all.push(same("crit.cluster_weight", "output.cluster_weight"));
            all.push(same("crit.cluster_bias", "output.cluster_bias"));
        }
        for k in 0..self.output.biases.len() {
            let name = format!("crit.out_layers.{k}.weight");
            all.push(match self.output.tables {
                Some(_) => same(&name, &format!("output.tables.{k}")),
                None => same(&name, &format!("embedding.tables.{k}")),
            });
            all.push(same(
                &format!("crit.out_layers.{k}.bias"),
                &format!("output.biases.{k}"),
            ));
        }
        for (k, own) in self.output.projections.iter().enumerate() {
            let name = format!("crit.out_projs.{k}.weight");
            let path = match own {
                Some(_) => format!("output.projections.{k}"),
                None => format!("embedding.projections.{}", self.output.table_of(k)),
            };
            all.push(OriginalTensor::parameter(name, path, MATRIX));
        }
        all
    }
}

impl DeqTransformerLm {
    /// What the original multiplies positions with, a buffer of its state dict.
    fn inverse_frequencies(&self) -> Vec<f64> {
        let [d_model, _] = self.injection.weight.dims();
        (0..d_model.div_ceil(2))
            .map(|k| 10_000_f64.powf(-2.0 * k as f64 / d_model as f64))
            .collect()
    }
}

fn normed(layer: &NormedLinear, name: &str, path: &str, trailing: usize) -> Vec<OriginalTensor> {
    let weight = Layout::Matrix { trailing };
    let mut all = Vec::new();
    if layer.bias.is_some() {
        all.push(OriginalTensor::parameter(
            format!("{name}.bias"),
            format!("{path}.bias"),
            Layout::Same,
        ));
    }
    if layer.gain.is_some() {
        // The original keeps [output, 1] for a linear layer, [output, 1, 1] for a convolution.
        let gains = Layout::Gains {
            trailing: trailing + 1,
        };
        let path_of = |part: &str| format!("{path}.{part}");
        all.push(OriginalTensor::parameter(
            format!("{name}.weight_g"),
            path_of("gain"),
            gains,
        ));
        all.push(OriginalTensor::parameter(
            format!("{name}.weight_v"),
            path_of("weight"),
            weight,
        ));
    } else {
        all.push(OriginalTensor::parameter(
            format!("{name}.weight"),
            format!("{path}.weight"),
            weight,
        ));
    }
    all
}

const MODEL: &str = "a DEQ-Transformer";

/// Names that every such model has, if not all of them, to find it by in a file.
const ANCHORS: [&str; 5] = [
    "word_emb.emb_layers.0.weight",
    "inject_conv.weight",
    "func.dec_attn.r_w_bias",
    "func.dec_attn.r_r_bias",
    "crit.out_layers.0.weight",
];

/// The most clusters that are looked for, and the size that no dimension reaches.
const MAX_CLUSTERS: usize = 64;
const MAX_SIZE: usize = 1 << 24;

impl DeqTransformerLmConfig {
    /// The configuration that a state dict of the original program reveals, for everything that
    /// shapes can say: vocabulary, widths, heads, clusters, ties, weight normalisation. The rest is
    /// taken from `rest`: where layer norms stand, memory, window, dropout.
    ///
    /// # Errors
    ///
    /// - [`ModelError::OtherModel`] if a tensor that every such model has is missing, has another
    ///   number of axes, or the model would be far larger than the file. Where clusters share one
    ///   table (`div_val` 1), their borders are not in the file: those of `rest` are taken, and
    ///   must be as many as the file has clusters.
    /// - [`ModelError::NoSuchWeights`] if the file has no weights of the kind that was asked for.
    /// - [`ModelError::UnreadableTensor`] if tensors that may be tied cannot be read.
    pub fn from_state_dict(file: &StateDict, rest: &Self) -> Result<Self, ModelError> {
        let file = Group::find(file, ANCHORS)?;
        let shape = |name: &str, rank: usize| {
            let shape = file.usual_shape(name, MAX_SIZE).map_err(other)?;
            match shape.len() == rank {
                true => Ok(shape),
                false => Err(other(format!(
                    "{name} is {shape:?}, which is not of rank {rank}"
                ))),
            }
        };
        let table = |k: usize| {
            // A tied table may be stored under either name.
            let own = format!("word_emb.emb_layers.{k}.weight");
            let tied = format!("crit.out_layers.{k}.weight");
            match file.name(&own).is_none() && file.name(&tied).is_some() {
                true => shape(&tied, 2),
                false => shape(&own, 2),
            }
        };
        let mut tables = vec![table(0)?];
        while tables.len() < MAX_CLUSTERS
            && let Ok(next) = table(tables.len())
        {
            tables.push(next);
        }
        let d_embed = tables[0][1];
        let d_model = shape("inject_conv.weight", 3)?[1];
        let normed = file.name("func.pos_ff.ff1_net.weight_v").is_some();
        let inner = match normed {
            true => "func.pos_ff.ff1_net.weight_v",
            false => "func.pos_ff.ff1_net.weight",
        };
        let gates = match file.name("crit.cluster_bias") {
            Some(_) => shape("crit.cluster_bias", 1)?[0],
            None => 0,
        };
        let mut config = rest.clone();
        config.vocab_size = tables.iter().map(|table| table[0]).sum();
        config.d_model = d_model;
        config.d_embed = (d_embed != d_model).then_some(d_embed);
        config.weight_norm = normed;
        config.d_inner = shape(inner, 2)?[0];
        config.n_heads = shape("func.dec_attn.r_w_bias", 2)?[0];
        config.div_val = 1;
        match tables.as_slice() {
            [_] if gates == rest.cutoffs.len() => {}
            [_] => {
                return Err(other(format!(
                    "it has {gates} clusters in one table and does not say where they begin, \
                     but {} cutoffs are configured",
                    rest.cutoffs.len()
                )));
            }
            tables => {
                let mut end = 0;
                config.cutoffs = tables[..tables.len() - 1]
                    .iter()
                    .map(|table| {
                        end += table[0];
                        end
                    })
                    .collect();
                config.div_val = d_embed / tables[1][1].max(1);
            }
        }
        config.validate()?;
        if !file.may_fill(config.rough_size()) {
            return Err(other(format!(
                "a width of {d_model} and an inner width of {} make a model far larger than it",
                config.d_inner
            )));
        }
        config.tie_weights = same_values(&file, "word_emb.emb_layers.0", "crit.out_layers.0")?;
        let (rarest, projections) = (tables.len() - 1, config.cutoffs.len());
        config.tie_projections = projections == 0
            || same_values(
                &file,
                &format!("word_emb.emb_projs.{rarest}"),
                &format!("crit.out_projs.{projections}"),
            )?;
        Ok(config)
    }

    /// Parameters of tables, injection and cell, without what is small beside them.
    fn rough_size(&self) -> usize {
        let clusters = self.clusters();
        let tables = clusters.tables().into_iter();
        let tables = tables.map(|(rows, width)| (rows + self.d_model).saturating_mul(width));
        let squares = self.d_model.saturating_mul(8 * self.d_model);
        let inner = self.d_model.saturating_mul(2 * self.d_inner);
        tables
            .chain([squares, inner])
            .fold(0, usize::saturating_add)
    }
}

fn other(reason: String) -> ModelError {
    ModelError::OtherModel {
        model: MODEL,
        reason,
    }
}

/// Whether the weights of two layers are equal, or one of them is not there.
fn same_values(file: &Group<'_>, one: &str, other: &str) -> Result<bool, ModelError> {
    let one = file.read(&format!("{one}.weight"))?;
    let other = file.read(&format!("{other}.weight"))?;
    Ok(match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    })
}
