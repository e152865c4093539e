//! What a state dict of the original program says about the model that it belongs to.

use super::config::{MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig};
use crate::checkpoint::StateDict;
use crate::error::ModelError;

impl MdeqConfig {
    /// Everything that names and shapes can say. The rest is taken from `rest`: groups, halvings of
    /// the stem, dropout.
    fn from_state_dict(file: &StateDict, rest: &Self) -> Result<Self, ModelError> {
        let block = |branch: usize, block: usize, part: &str| {
            format!("fullstage.branches.{branch}.blocks.{block}.{part}")
        };
        let weight_norm = file.shape(&block(0, 0, "conv1.weight_v")).is_some();
        let weight = if weight_norm { "weight_v" } else { "weight" };
        let conv = |branch: usize, number: usize, layer: &str| {
            file.shape(&block(branch, number, &format!("{layer}.{weight}")))
        };
        let channels: Vec<usize> = (0..)
            .map_while(|branch| Some(*conv(branch, 0, "conv2")?.first()?))
            .collect();
        let inner = conv(0, 0, "conv1").and_then(|shape| shape.first().copied());
        let (Some(&finest), Some(inner)) = (channels.first(), inner) else {
            return Err(missing(&block(0, 0, "conv1.weight")));
        };
        let expansion = inner / finest.max(1);
        let has = |name: &str| file.shape(name).is_some();
        Ok(Self {
            expansion,
            blocks: (0..)
                .take_while(|&number| conv(0, number, "conv1").is_some())
                .count(),
            weight_norm,
            block_affine: has(&block(0, 0, "gn1.weight")),
            fusion_affine: has("fullstage.fuse_layers.0.1.net.gnorm.weight"),
            post_fusion_affine: has("fullstage.post_fuse_layers.0.gnorm.weight"),
            channels,
            ..rest.clone()
        })
    }
}

impl MdeqClassifierConfig {
    /// The configuration that a state dict of the original's classifier reveals, for everything
    /// that names and shapes can say. The rest is taken from `rest`: groups, halvings of the stem,
    /// dropout.
    ///
    /// # Errors
    ///
    /// [`ModelError::OtherModel`] if a tensor that every such model has is missing.
    pub fn from_state_dict(file: &StateDict, rest: &Self) -> Result<Self, ModelError> {
        let first = |name: &str| first_dimension(file, name);
        let backbone = MdeqConfig::from_state_dict(file, &rest.backbone)?;
        let head_channels = (0..backbone.channels.len())
            .map(|branch| first(&format!("incre_modules.{branch}.0.conv1.weight")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            num_classes: first("classifier.weight")?,
            backbone,
            head_channels,
            final_channels: first("final_layer.0.weight")?,
            ..rest.clone()
        })
    }
}

impl MdeqSegmenterConfig {
    /// The configuration that a state dict of the original's segmenter reveals, as
    /// [`MdeqClassifierConfig::from_state_dict`].
    ///
    /// # Errors
    ///
    /// [`ModelError::OtherModel`] if a tensor that every such model has is missing.
    pub fn from_state_dict(file: &StateDict, rest: &Self) -> Result<Self, ModelError> {
        let backbone = MdeqConfig::from_state_dict(file, &rest.backbone)?;
        let output = "last_layer.3.weight";
        let final_kernel = match file.shape(output).as_deref() {
            Some([_, _, _, side]) => *side,
            _ => return Err(missing(output)),
        };
        Ok(Self {
            num_classes: first_dimension(file, output)?,
            backbone,
            final_kernel,
            ..rest.clone()
        })
    }
}

fn first_dimension(file: &StateDict, name: &str) -> Result<usize, ModelError> {
    let shape = file.shape(name);
    let first = shape.and_then(|shape| shape.first().copied());
    first.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> ModelError {
    ModelError::OtherModel {
        model: "an MDEQ",
        reason: format!("there is no {name}"),
    }
}
