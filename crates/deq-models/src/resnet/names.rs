//! The names of torchvision.

use super::config::{ResNetBlockKind, ResNetConfig};
use super::network::ResNet;
use crate::checkpoint::{Group, OriginalNames, OriginalTensor, StateDict};
use crate::error::ModelError;
use crate::layers::Names;

impl OriginalNames for ResNet {
    fn original_tensors(&self) -> Vec<OriginalTensor> {
        let mut names = Names::default();
        names.conv_norm(&self.stem, ["conv1", "bn1"], "stem");
        for (stage, blocks) in self.stages.iter().enumerate() {
            for (index, block) in blocks.iter().enumerate() {
                let name = format!("layer{}.{index}", stage + 1);
                let path = format!("stages.{stage}.{index}");
                for (k, layer) in block.layers.iter().enumerate() {
                    let pair = ["conv", "bn"].map(|kind| format!("{name}.{kind}{}", k + 1));
                    let path = format!("{path}.layers.{k}");
                    names.conv_norm(layer, [&pair[0], &pair[1]], &path);
                }
                if let Some(shortcut) = &block.shortcut {
                    let pair = [0, 1].map(|k| format!("{name}.downsample.{k}"));
                    let path = format!("{path}.shortcut");
                    names.conv_norm(shortcut, [&pair[0], &pair[1]], &path);
                }
            }
        }
        names.linear("fc", "classifier");
        names.all
    }
}

const MODEL: &str = "a ResNet";

/// Names that every such network has, to find it by in a file.
const ANCHORS: [&str; 4] = [
    "conv1.weight",
    "layer1.0.conv1.weight",
    "layer1.0.bn1.running_mean",
    "fc.weight",
];

/// The most stages and blocks that are looked for, and the largest of any dimension.
const MAX_STAGES: usize = 8;
const MAX_BLOCKS: usize = 1024;
const MAX_WIDTH: usize = 1 << 14;
const MAX_CLASSES: usize = 1 << 24;

impl ResNetConfig {
    /// The configuration that a state dict of torchvision's reveals.
    ///
    /// # Errors
    ///
    /// - [`ModelError::OtherModel`] if a tensor that every such model has is missing, or the
    ///   network would be far larger than the file.
    /// - [`ModelError::NoSuchWeights`] if the file has no weights of the kind that was asked for.
    pub fn from_state_dict(file: &StateDict) -> Result<Self, ModelError> {
        let file = Group::find(file, ANCHORS)?;
        let other = |reason| ModelError::OtherModel {
            model: MODEL,
            reason,
        };
        let shape = |name: &str, most: usize| file.usual_shape(name, most).map_err(other);
        let has = |name: &str| file.shape(name).is_some();
        let block = |stage: usize, index: usize| format!("layer{stage}.{index}.conv1.weight");
        let stages = (1..=MAX_STAGES)
            .map(|stage| {
                let blocks = (0..MAX_BLOCKS).take_while(|&index| has(&block(stage, index)));
                blocks.count()
            })
            .take_while(|&blocks| blocks > 0)
            .collect();
        let stem = shape("conv1.weight", MAX_WIDTH)?;
        let kind = match has("layer1.0.conv3.weight") {
            true => ResNetBlockKind::Bottleneck,
            false => ResNetBlockKind::Basic,
        };
        let classes = shape("fc.weight", MAX_CLASSES)?[0];
        shape(&block(1, 0), MAX_WIDTH)?;
        let config = Self::new(classes, kind, stages)
            .with_width(stem[0])
            .with_small_images(stem.last() == Some(&3));
        match file.may_fill(config.parameters()) {
            true => Ok(config),
            false => Err(other(format!(
                "its shapes are those of a network of {} parameters, far larger than the file",
                config.parameters()
            ))),
        }
    }
}
