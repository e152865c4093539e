//! What describes the task: where the images are, what happens to them, which model.

use super::error::ImagesError;
use crate::error::{RecipeError, RunError, TrainError, require};
use crate::presets::{Preset, presets};
use crate::recipe::{Network, Recipe};
use crate::task::Task;
use deq_data::{ImageSource, Transform, VisionTask};
use deq_models::checkpoint::StateDict;
use deq_models::{
    MdeqClassifierConfig, MdeqSegmenterConfig, ResNetBlockKind, ResNetConfig, require_memory,
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Which multiscale equilibrium, and of what size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagesModelConfig {
    /// Classifies images.
    Classifier(MdeqClassifierConfig),
    /// Classifies pixels.
    Segmenter(MdeqSegmenterConfig),
}

/// Images or their pixels, classified by a multiscale equilibrium or a ResNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImagesTask {
    /// Where the images come from, as text such as `cifar10:FOLDER`; see [`ImageSource`].
    #[serde(with = "source_as_text")]
    pub data: ImageSource,
    /// What happens to training images.
    pub train_transform: Transform,
    /// What happens to held-out images.
    pub eval_transform: Transform,
    /// The equilibrium model.
    pub model: ImagesModelConfig,
    /// The ResNet that [`Network::Layers`] means, chosen when such a network is asked for. A width
    /// of 0 stands for the one that brings its parameters nearest to those of `model`.
    #[serde(default)]
    pub resnet: Option<ResNetConfig>,
    /// How much an image or pixel of each class counts in the training loss, relative to the
    /// others; an empty list if all count the same. Default: `data_weights`.
    #[serde(default)]
    pub class_weights: Option<Vec<f32>>,
    /// What the data say that each class should count, once they have been opened; empty if all
    /// count the same.
    #[serde(default)]
    pub data_weights: Vec<f32>,
    /// The names of the classes, once the data have been opened.
    #[serde(default)]
    pub classes: Vec<String>,
    /// The fingerprint of the data, once they have been opened.
    #[serde(default)]
    pub fingerprint: Option<u64>,
}

/// Reads or calls what both kinds of models have.
macro_rules! either {
    ($model:expr, $config:ident => $value:expr) => {
        match $model {
            ImagesModelConfig::Classifier($config) => $value,
            ImagesModelConfig::Segmenter($config) => $value,
        }
    };
}

impl ImagesModelConfig {
    /// What it predicts.
    pub fn task(&self) -> VisionTask {
        match self {
            ImagesModelConfig::Classifier(_) => VisionTask::Classification,
            ImagesModelConfig::Segmenter(_) => VisionTask::Segmentation,
        }
    }

    /// The trained numbers of the model.
    pub fn parameters(&self) -> usize {
        either!(self, config => config.parameters())
    }

    /// By what the sides of an image must be divisible.
    pub fn side_multiple(&self) -> usize {
        either!(self, config => config.backbone.side_multiple())
    }

    /// The number of classes.
    pub(super) fn classes(&mut self) -> &mut usize {
        either!(self, config => &mut config.num_classes)
    }

    /// The model that a checkpoint holds: of the kind of this one, and of the sizes that the file
    /// reveals.
    pub(super) fn sized_by(&self, file: &StateDict) -> Result<Self, TrainError> {
        Ok(match self {
            ImagesModelConfig::Classifier(rest) => {
                ImagesModelConfig::Classifier(MdeqClassifierConfig::from_state_dict(file, rest)?)
            }
            ImagesModelConfig::Segmenter(rest) => {
                ImagesModelConfig::Segmenter(MdeqSegmenterConfig::from_state_dict(file, rest)?)
            }
        })
    }
}

impl ImagesTask {
    /// The ResNet of a network of layers: the one there is if it has this depth, or else one whose
    /// width is not known yet.
    pub(super) fn resnet(&self, network: Network) -> Result<ResNetConfig, TrainError> {
        let none = |choices| RecipeError::NoSuchNetwork {
            task: Self::NAME,
            network,
            choices,
        };
        if self.model.task() == VisionTask::Segmentation {
            return Err(none("for label maps there are equilibrium and weight_tied").into());
        }
        let layers = network.depth().unwrap_or(0);
        if let Some(resnet) = &self.resnet
            && depth(resnet) == layers
        {
            return Ok(resnet.clone());
        }
        // He et al. 2016, Table 1.
        let (kind, stages) = match layers {
            18 => (ResNetBlockKind::Basic, [2, 2, 2, 2]),
            34 => (ResNetBlockKind::Basic, [3, 4, 6, 3]),
            50 => (ResNetBlockKind::Bottleneck, [3, 4, 6, 3]),
            101 => (ResNetBlockKind::Bottleneck, [3, 4, 23, 3]),
            152 => (ResNetBlockKind::Bottleneck, [3, 8, 36, 3]),
            _ => return Err(none("a ResNet has a depth of 18, 34, 50, 101 or 152").into()),
        };
        let small = matches!(self.data, ImageSource::Shapes | ImageSource::Cifar10(_));
        Ok(ResNetConfig::new(self.classes.len(), kind, stages.to_vec())
            .with_small_images(small)
            .with_width(0))
    }

    /// Held-out images in a batch: one where files of any size keep theirs, as in the original's
    /// segmentation.
    pub(super) fn held_out_batch(&self, batch: usize) -> usize {
        match &self.data {
            ImageSource::Segmentation(_) | ImageSource::ImageFolder(_) if self.keeps_pixels() => 1,
            _ => batch,
        }
    }

    /// Whether held-out pixels stay where they are.
    fn keeps_pixels(&self) -> bool {
        let eval = &self.eval_transform;
        matches!(eval, Transform::Whole | Transform::PadToMultiple { .. })
    }

    /// Requires the data of a run, wherever they lie: to go on training the same files, for
    /// anything else the same classes and colours.
    pub(super) fn require_data_of(&self, run: &Path, training: bool) -> Result<(), TrainError> {
        let before = Recipe::<Self>::of_run(run)?.task;
        let path = run.to_owned();
        if before.classes != self.classes {
            return Err(ImagesError::OtherClasses { path }.into());
        }
        let what = if before.data.normalization() != self.data.normalization() {
            format!("they were of the kind of {}", before.data)
        } else if training && before.fingerprint != self.fingerprint {
            "files were added, removed or changed".to_owned()
        } else {
            return Ok(());
        };
        Err(RunError::OtherData {
            path,
            data: self.data.to_string(),
            what,
        }
        .into())
    }

    /// Checks the model itself, and that there is memory for it.
    pub(super) fn validate_model(&self) -> Result<(), TrainError> {
        either!(&self.model, config => config.validate()?);
        Ok(require_memory(self.model.parameters())?)
    }

    pub(super) fn validate_kind(&self) -> Result<(), ImagesError> {
        let data = self.data.to_string();
        match self.model.task() == self.data.task() {
            true => Ok(()),
            false => Err(ImagesError::ModelForOtherTask { data }),
        }
    }

    pub(super) fn validate_weights(&self) -> Result<(), TrainError> {
        let weights = self.class_weights.as_deref().unwrap_or_default();
        for weight in weights {
            let valid = weight.is_finite() && *weight > 0.0;
            require(valid, "task.class_weights", f64::from(*weight), "above 0")?;
        }
        let (given, classes) = (weights.len(), self.classes.len());
        // The classes are known once the data have been opened.
        match given == 0 || classes == 0 || given == classes {
            true => Ok(()),
            false => Err(ImagesError::ClassWeights { given, classes }.into()),
        }
    }

    /// What the sides of an image must be multiples of.
    pub(super) fn side_multiple(&self) -> usize {
        match self.resnet {
            Some(_) => 1,
            None => self.model.side_multiple(),
        }
    }

    /// That an image of this size is one that the model takes; `field` names the transform it came
    /// from.
    pub(super) fn validate_sides(
        field: &'static str,
        sides: [usize; 2],
        multiple: usize,
    ) -> Result<(), ImagesError> {
        match sides
            .into_iter()
            .find(|side| !side.is_multiple_of(multiple))
        {
            None => Ok(()),
            Some(side) => Err(ImagesError::SideMultiple {
                field,
                side,
                multiple,
            }),
        }
    }

    /// Checks that images come out of a transform as the model needs them.
    pub(super) fn validate_transforms(&self) -> Result<(), TrainError> {
        let multiple = self.side_multiple();
        for (field, transform) in [
            ("task.train_transform", &self.train_transform),
            ("task.eval_transform", &self.eval_transform),
        ] {
            transform.validate()?;
            let sides = match *transform {
                // As the files are.
                Transform::Whole => [multiple; 2],
                Transform::PadToMultiple { multiple: size }
                | Transform::PadCrop { size, .. }
                | Transform::RandomResizedCrop { size }
                | Transform::CenterCrop { crop: size, .. } => [size; 2],
                Transform::Resize { width, height }
                | Transform::ScaleCrop { width, height, .. } => [width, height],
            };
            Self::validate_sides(field, sides, multiple)?;
        }
        match (self.model.task(), self.keeps_pixels()) {
            (VisionTask::Segmentation, false) => Err(ImagesError::MovedPixels.into()),
            _ => Ok(()),
        }
    }
}

pub(super) const PRESETS: &[Preset] = presets!["images";
    "mini",
    "mini-shapes-segmentation",
    "mini-cifar10",
    "mini-folder",
    "mini-segmentation",
    "cifar10-tiny",
    "cifar10-large",
    "cifar10-large-jr",
    "imagenet-small",
    "imagenet-small-jr",
    "imagenet-large",
    "imagenet-large-jr",
    "imagenet-xl",
    "imagenet-xl-jr",
    "cityscapes-small",
    "cityscapes-large",
    "cityscapes-xl",
];

/// The preset that trains on these data on two CPU cores.
pub fn default_preset(data: &ImageSource) -> &'static str {
    match data {
        ImageSource::Shapes => "mini",
        ImageSource::ShapesSegmentation => "mini-shapes-segmentation",
        ImageSource::Cifar10(_) => "mini-cifar10",
        ImageSource::ImageFolder(_) => "mini-folder",
        ImageSource::Segmentation(_) => "mini-segmentation",
    }
}

/// A preset for the data at hand; `mini` stands for the [default](default_preset) one. Transforms
/// and steps are those of the preset, whose images may be of another size and number.
///
/// All but `mini` and its variants have the values of the YAML files of locuslab/deq
/// (`MDEQ-Vision/experiments`), as every preset's `source` says.
///
/// # Errors
///
/// [`RecipeError::UnknownPreset`](crate::RecipeError) with the names there are, or
/// [`ImagesError::PresetForOtherTask`] for a classifier where pixels are to be classified, or the
/// other way around.
pub fn preset_for(name: &str, data: &ImageSource) -> Result<Recipe<ImagesTask>, TrainError> {
    let fitting = default_preset(data);
    let mut recipe = Recipe::<ImagesTask>::preset(if name == "mini" { fitting } else { name })?;
    if recipe.task.model.task() != data.task() {
        return Err(ImagesError::PresetForOtherTask {
            preset: name.to_owned(),
            data: data.to_string(),
            fitting,
        }
        .into());
    }
    recipe.task.data.clone_from(data);
    Ok(recipe)
}

/// The layers of a ResNet that its name counts: stem, convolutions of the blocks, classifier.
pub(super) fn depth(resnet: &ResNetConfig) -> usize {
    let layers = match resnet.kind {
        ResNetBlockKind::Basic => 2,
        ResNetBlockKind::Bottleneck => 3,
    };
    let blocks = resnet.stages.iter().copied().fold(0, usize::saturating_add);
    blocks.saturating_mul(layers).saturating_add(2)
}

/// An [`ImageSource`] as it is given by a user.
mod source_as_text {
    use deq_data::ImageSource;
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(
        source: &ImageSource,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match source.path().is_some_and(|path| path.to_str().is_none()) {
            true => Err(ser::Error::custom("path contains invalid UTF-8 characters")),
            false => serializer.collect_str(source),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<ImageSource, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(preset: &str) -> ImagesTask {
        Recipe::<ImagesTask>::preset(preset).unwrap().task
    }

    #[test]
    fn a_resnet_has_a_depth_that_is_known_and_whole_images() {
        let layers = |depth| Network::Layers { depth };
        let task = task("mini");
        for known in [18, 34, 50, 101, 152] {
            assert_eq!(depth(&task.resnet(layers(known)).unwrap()), known);
        }
        let wrong = task.resnet(layers(20)).unwrap_err().to_string();
        assert!(wrong.contains("18, 34, 50, 101 or 152"), "{wrong}");
        let pixels = self::task("mini-segmentation").resnet(layers(18));
        let pixels = pixels.unwrap_err();
        assert!(pixels.to_string().contains("for label maps"), "{pixels}");
    }
}
