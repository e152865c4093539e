//! The names of torchvision.

use super::config::{ResNetBlockKind, ResNetConfig};
use super::network::ResNet;
use crate::checkpoint::{OriginalNames, OriginalTensor, StateDict};
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

impl ResNetConfig {
    /// The configuration that a state dict of torchvision's reveals.
    ///
    /// # Errors
    ///
    /// [`ModelError::OtherModel`] if a tensor that every such model has is missing.
    pub fn from_state_dict(file: &StateDict) -> Result<Self, ModelError> {
        let shape = |name: &str| {
            let shape = file.shape(name).filter(|shape| !shape.is_empty());
            shape.ok_or_else(|| ModelError::OtherModel {
                model: "a ResNet",
                reason: format!("there is no {name}"),
            })
        };
        let has = |name: &str| file.shape(name).is_some();
        let block = |stage: usize, index: usize| format!("layer{stage}.{index}.conv1.weight");
        let stages = (1..)
            .map(|stage| (0..).take_while(|&i| has(&block(stage, i))).count())
            .take_while(|&blocks| blocks > 0)
            .collect();
        let stem = shape("conv1.weight")?;
        let kind = match has("layer1.0.conv3.weight") {
            true => ResNetBlockKind::Bottleneck,
            false => ResNetBlockKind::Basic,
        };
        let config = Self::new(shape("fc.weight")?[0], kind, stages)
            .with_width(stem[0])
            .with_small_images(stem.last() == Some(&3));
        shape(&block(1, 0)).and(Ok(config))
    }
}
