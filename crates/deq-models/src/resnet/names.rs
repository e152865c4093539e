//! The names of torchvision.

use super::network::ResNet;
use crate::checkpoint::{OriginalNames, OriginalTensor};
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
