//! What a state dict of the original program says about the model that it belongs to.

use super::config::{MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig};
use crate::checkpoint::{Group, StateDict};
use crate::error::ModelError;

/// Names of which every such model has some, to find it by in a file.
const ANCHORS: [&str; 4] = [
    "downsample.0.weight",
    "downsample.3.weight",
    "fullstage.branches.0.blocks.0.conv1.weight",
    "fullstage.branches.0.blocks.0.conv1.weight_v",
];

/// The most branches and blocks that are looked for, the widest of any layer, and the most classes.
const MAX_PARTS: usize = 64;
const MAX_WIDTH: usize = 1 << 14;
const MAX_CLASSES: usize = 1 << 24;

impl MdeqConfig {
    /// Everything that names and shapes can say. The rest is taken from `rest`: groups, halvings of
    /// the stem, dropout.
    fn from_group(file: &Group<'_>, rest: &Self) -> Result<Self, ModelError> {
        let block = |branch: usize, block: usize, part: &str| {
            format!("fullstage.branches.{branch}.blocks.{block}.{part}")
        };
        let weight_norm = file.shape(&block(0, 0, "conv1.weight_v")).is_some();
        let weight = if weight_norm { "weight_v" } else { "weight" };
        let conv = |branch: usize, number: usize, layer: &str| {
            file.shape(&block(branch, number, &format!("{layer}.{weight}")))
        };
        let outputs = |branch: usize, layer: &str| {
            let first = *conv(branch, 0, layer)?.first()?;
            (1..MAX_WIDTH).contains(&first).then_some(first)
        };
        let channels: Vec<usize> = (0..MAX_PARTS)
            .map_while(|branch| outputs(branch, "conv2"))
            .collect();
        let (Some(&finest), Some(inner)) = (channels.first(), outputs(0, "conv1")) else {
            return Err(other(format!(
                "there is no {} of a usual shape",
                block(0, 0, "conv1.weight")
            )));
        };
        let expansion = inner / finest;
        let has = |name: &str| file.shape(name).is_some();
        Ok(Self {
            expansion,
            blocks: (0..MAX_PARTS)
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
    /// - [`ModelError::OtherModel`] if a tensor that every such model has is missing, or the model
    ///   would be far larger than the file.
    /// - [`ModelError::NoSuchWeights`] if the file has no weights of the kind that was asked for.
    pub fn from_state_dict(file: &StateDict, rest: &Self) -> Result<Self, ModelError> {
        let file = Group::find(file, ANCHORS)?;
        let first = |name: &str, most: usize| first_dimension(&file, name, most);
        let backbone = MdeqConfig::from_group(&file, &rest.backbone)?;
        let head_channels = (0..backbone.channels.len())
            .map(|branch| first(&format!("incre_modules.{branch}.0.conv1.weight"), MAX_WIDTH))
            .collect::<Result<_, _>>()?;
        let config = Self {
            num_classes: first("classifier.weight", MAX_CLASSES)?,
            backbone,
            head_channels,
            final_channels: first("final_layer.0.weight", MAX_WIDTH)?,
            ..rest.clone()
        };
        check_size(&file, config.parameters())?;
        Ok(config)
    }
}

impl MdeqSegmenterConfig {
    /// The configuration that a state dict of the original's segmenter reveals, as
    /// [`MdeqClassifierConfig::from_state_dict`].
    ///
    /// # Errors
    ///
    /// As [`MdeqClassifierConfig::from_state_dict`].
    pub fn from_state_dict(file: &StateDict, rest: &Self) -> Result<Self, ModelError> {
        let file = Group::find(file, ANCHORS)?;
        let backbone = MdeqConfig::from_group(&file, &rest.backbone)?;
        let output = "last_layer.3.weight";
        let shape = file.usual_shape(output, MAX_CLASSES).map_err(other)?;
        let final_kernel = match *shape {
            [_, _, _, side] if side < MAX_PARTS => side,
            _ => return Err(other(format!("{output} is {shape:?}, which no model has"))),
        };
        let config = Self {
            num_classes: shape[0],
            backbone,
            final_kernel,
            ..rest.clone()
        };
        check_size(&file, config.parameters())?;
        Ok(config)
    }
}

fn first_dimension(file: &Group<'_>, name: &str, most: usize) -> Result<usize, ModelError> {
    let shape = file.usual_shape(name, most).map_err(other)?;
    Ok(shape[0])
}

fn check_size(file: &Group<'_>, parameters: usize) -> Result<(), ModelError> {
    match file.may_fill(parameters) {
        true => Ok(()),
        false => Err(other(format!(
            "its shapes are those of a model of {parameters} parameters, far larger than the file"
        ))),
    }
}

fn other(reason: String) -> ModelError {
    ModelError::OtherModel {
        model: "an MDEQ",
        reason,
    }
}
