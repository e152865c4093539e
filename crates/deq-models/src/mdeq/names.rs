//! The names of the original program, `MDEQClsNet` and `MDEQSegNet` of locuslab/deq.

use super::block::ResidualBlock;
use super::fusion::ConvGroupNorm;
use super::head::Bottleneck;
use super::model::{Mdeq, MdeqClassifier, MdeqSegmenter};
use super::ops::NormedConv;
use crate::checkpoint::{OriginalNames, OriginalTensor};
use crate::layers::Names;
use burn::nn::GroupNorm;

impl OriginalNames for MdeqClassifier {
    fn original_tensors(&self) -> Vec<OriginalTensor> {
        let mut names = Names::default();
        backbone(&mut names, &self.backbone);
        let head = &self.head;
        for (i, branch) in head.branches.iter().enumerate() {
            let (name, path) = (format!("incre_modules.{i}.0"), format!("head.branches.{i}"));
            bottleneck(&mut names, branch, &name, &path);
        }
        for (i, merge) in head.merges.iter().enumerate() {
            let (name, path) = (format!("downsamp_modules.{i}"), format!("head.merges.{i}"));
            names.conv_norm(merge, [&format!("{name}.0"), &format!("{name}.1")], &path);
        }
        names.conv_norm(&head.last, ["final_layer.0", "final_layer.1"], "head.last");
        names.linear("classifier", "head.classifier");
        names.all
    }
}

impl OriginalNames for MdeqSegmenter {
    fn original_tensors(&self) -> Vec<OriginalTensor> {
        let mut names = Names::default();
        backbone(&mut names, &self.backbone);
        names.conv_norm(&self.head.mix, ["last_layer.0", "last_layer.1"], "head.mix");
        names.conv(&self.head.output, "last_layer.3", "head.output");
        names.all
    }
}

fn backbone(names: &mut Names, model: &Mdeq) {
    let stem = &model.stem;
    let path = |rest: &str| format!("backbone.{rest}");
    let [first, second] =
        [["0", "1"], ["3", "4"]].map(|pair| pair.map(|k| format!("downsample.{k}")));
    names.conv_norm(&stem.conv1, [&first[0], &first[1]], &path("stem.conv1"));
    names.conv_norm(&stem.conv2, [&second[0], &second[1]], &path("stem.conv2"));
    if let Some(injection) = &stem.injection {
        names.conv_norm(injection, ["stage0.0", "stage0.1"], &path("stem.injection"));
    }
    for (i, branch) in model.cell.branches.iter().enumerate() {
        for (b, block) in branch.blocks.iter().enumerate() {
            let rest = format!("branches.{i}.blocks.{b}");
            let name = format!("fullstage.{rest}");
            residual_block(names, block, &name, &path(&format!("cell.{rest}")));
        }
    }
    for (to, target) in model.cell.fusion.iter().enumerate() {
        for (from, way) in target.paths.iter().enumerate() {
            for (step, layer) in way.steps.iter().enumerate() {
                let mut name = format!("fullstage.fuse_layers.{to}.{from}.net");
                // Ways down have one step per halving, ways up a single one.
                if from < to {
                    name = format!("{name}.{step}");
                }
                let path = path(&format!("cell.fusion.{to}.paths.{from}.steps.{step}"));
                conv_group_norm(names, layer, &name, &path);
            }
        }
    }
    for (to, target) in model.cell.fusion.iter().enumerate() {
        let name = format!("fullstage.post_fuse_layers.{to}");
        let path = path(&format!("cell.fusion.{to}.post"));
        conv_group_norm(names, &target.post, &name, &path);
    }
}

fn residual_block(names: &mut Names, block: &ResidualBlock, name: &str, path: &str) {
    for (conv, layer) in [("conv1", &block.conv1), ("conv2", &block.conv2)] {
        normed_conv(
            names,
            layer,
            &format!("{name}.{conv}"),
            &format!("{path}.{conv}"),
        );
    }
    let norms = [&block.norm1, &block.norm2, &block.norm3];
    for (k, norm) in (1..).zip(norms) {
        group_norm(
            names,
            norm,
            &format!("{name}.gn{k}"),
            &format!("{path}.norm{k}"),
        );
    }
}

fn conv_group_norm(names: &mut Names, layer: &ConvGroupNorm, name: &str, path: &str) {
    normed_conv(
        names,
        &layer.conv,
        &format!("{name}.conv"),
        &format!("{path}.conv"),
    );
    group_norm(
        names,
        &layer.norm,
        &format!("{name}.gnorm"),
        &format!("{path}.norm"),
    );
}

fn normed_conv(names: &mut Names, conv: &NormedConv, name: &str, path: &str) {
    let weight = format!("{path}.weight");
    if conv.gain.is_none() {
        names.same(format!("{name}.weight"), weight);
        return;
    }
    names.same(format!("{name}.weight_g"), format!("{path}.gain"));
    names.same(format!("{name}.weight_v"), weight);
}

fn group_norm(names: &mut Names, norm: &GroupNorm, name: &str, path: &str) {
    if norm.affine {
        names.same(format!("{name}.weight"), format!("{path}.gamma"));
        names.same(format!("{name}.bias"), format!("{path}.beta"));
    }
}

fn bottleneck(names: &mut Names, layer: &Bottleneck, name: &str, path: &str) {
    for (k, conv) in (1..).zip([&layer.conv1, &layer.conv2, &layer.conv3]) {
        names.conv(conv, &format!("{name}.conv{k}"), &format!("{path}.conv{k}"));
        names.running_statistics(&format!("{name}.bn{k}"), &format!("{path}.norm{k}"));
    }
    if let Some(shortcut) = &layer.shortcut {
        let name = format!("{name}.downsample");
        let names_of = [&*format!("{name}.0"), &format!("{name}.1")];
        names.conv_norm(shortcut, names_of, &format!("{path}.shortcut"));
    }
}
