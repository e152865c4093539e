//! The models that a recipe can ask for.

use crate::error::TrainError;
use burn::module::Module;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor, TensorData};
use deq_core::Equilibrium;
use deq_data::VisionTask;
use deq_models::checkpoint::{LoadReport, StateDict, load, state_dict};
use deq_models::{
    Depth, MdeqCell, MdeqClassifier, MdeqClassifierConfig, MdeqContext, MdeqSegmenter,
    MdeqSegmenterConfig, ResNet, ResNetConfig,
};
use serde::{Deserialize, Serialize};

/// Which model, and of what size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionModelConfig {
    /// A multiscale equilibrium that classifies pictures.
    Classifier(MdeqClassifierConfig),
    /// A multiscale equilibrium that classifies pixels.
    Segmenter(MdeqSegmenterConfig),
    /// The explicit network that the classifier is compared with.
    Resnet(ResNetConfig),
}

impl VisionModelConfig {
    /// What it predicts.
    pub fn task(&self) -> VisionTask {
        match self {
            VisionModelConfig::Classifier(_) | VisionModelConfig::Resnet(_) => {
                VisionTask::Classification
            }
            VisionModelConfig::Segmenter(_) => VisionTask::Segmentation,
        }
    }

    /// Whether it has an equilibrium.
    pub fn is_equilibrium(&self) -> bool {
        !matches!(self, VisionModelConfig::Resnet(_))
    }

    /// By what the sides of a picture must be divisible.
    pub fn side_multiple(&self) -> usize {
        match self {
            VisionModelConfig::Classifier(config) => config.backbone.side_multiple(),
            VisionModelConfig::Segmenter(config) => config.backbone.side_multiple(),
            VisionModelConfig::Resnet(_) => 1,
        }
    }

    /// Checks every field.
    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        match self {
            VisionModelConfig::Classifier(config) => config.validate()?,
            VisionModelConfig::Segmenter(config) => config.validate()?,
            VisionModelConfig::Resnet(config) => config.validate()?,
        }
        Ok(())
    }

    /// Sets the number of classes.
    pub(crate) fn set_classes(&mut self, classes: usize) {
        match self {
            VisionModelConfig::Classifier(config) => config.num_classes = classes,
            VisionModelConfig::Segmenter(config) => config.num_classes = classes,
            VisionModelConfig::Resnet(config) => config.num_classes = classes,
        }
    }

    /// The model that a checkpoint of another program holds: of the kind of this one, and of the sizes that the file reveals.
    pub(crate) fn sized_by(&self, file: &StateDict) -> Result<Self, TrainError> {
        Ok(match self {
            VisionModelConfig::Classifier(rest) => {
                VisionModelConfig::Classifier(MdeqClassifierConfig::from_state_dict(file, rest)?)
            }
            VisionModelConfig::Segmenter(rest) => {
                VisionModelConfig::Segmenter(MdeqSegmenterConfig::from_state_dict(file, rest)?)
            }
            VisionModelConfig::Resnet(_) => {
                VisionModelConfig::Resnet(ResNetConfig::from_state_dict(file)?)
            }
        })
    }

    /// The number of classes.
    pub(crate) fn classes(&self) -> usize {
        match self {
            VisionModelConfig::Classifier(config) => config.num_classes,
            VisionModelConfig::Segmenter(config) => config.num_classes,
            VisionModelConfig::Resnet(config) => config.num_classes,
        }
    }

    pub(crate) fn init(&self, device: &Device) -> Result<VisionModel, TrainError> {
        Ok(match self {
            VisionModelConfig::Classifier(config) => VisionModel::Classifier(config.init(device)?),
            VisionModelConfig::Segmenter(config) => VisionModel::Segmenter(config.init(device)?),
            VisionModelConfig::Resnet(config) => VisionModel::Resnet(config.init(device)?),
        })
    }

    /// The ResNet-18 of a width that brings its trained parameters nearest to those of this model.
    pub fn resnet_of_equal_size(&self, small_images: bool) -> Self {
        let wanted = match self {
            VisionModelConfig::Classifier(config) => config.parameters(),
            VisionModelConfig::Segmenter(config) => config.parameters(),
            VisionModelConfig::Resnet(config) => config.parameters(),
        };
        VisionModelConfig::Resnet(
            ResNetConfig::resnet18(self.classes())
                .with_small_images(small_images)
                .with_parameters_near(wanted),
        )
    }
}

/// A model of any of these kinds.
#[derive(Module, Debug)]
pub(crate) enum VisionModel {
    Classifier(MdeqClassifier),
    Segmenter(MdeqSegmenter),
    Resnet(ResNet),
}

/// Pictures as a [`VisionModel`] sees them.
pub(crate) struct VisionReading {
    /// Scores before the softmax for every picture or pixel, `[targets, classes]`.
    pub(crate) scores: Tensor<2>,
    /// Evaluations of the cell, or layers.
    pub(crate) nfe: usize,
    /// The equilibrium with the constants of its solve; absent for an explicit network.
    pub(crate) solved: Option<(Equilibrium, MdeqContext)>,
}

impl VisionModel {
    /// Reads pictures `[batch, 3, height, width]`.
    pub(crate) fn read(&self, images: Tensor<4>, depth: Depth<'_>) -> VisionReading {
        let [_, _, height, width] = images.dims();
        match self {
            VisionModel::Classifier(model) => {
                let out = model.forward(images, depth);
                VisionReading {
                    scores: out.logits,
                    nfe: out.equilibrium.nfe,
                    solved: Some((out.equilibrium, out.context)),
                }
            }
            VisionModel::Segmenter(model) => {
                let out = model.forward(images, depth);
                VisionReading {
                    scores: per_pixel(out.logits, [height, width]),
                    nfe: out.equilibrium.nfe,
                    solved: Some((out.equilibrium, out.context)),
                }
            }
            VisionModel::Resnet(model) => VisionReading {
                scores: model.forward(images),
                nfe: 1,
                solved: None,
            },
        }
    }

    /// Takes the weights of a checkpoint that fit.
    pub(crate) fn load(self, file: &StateDict) -> Result<(Self, LoadReport), TrainError> {
        Ok(match self {
            VisionModel::Classifier(model) => {
                let (model, report) = load(model, file)?;
                (VisionModel::Classifier(model), report)
            }
            VisionModel::Segmenter(model) => {
                let (model, report) = load(model, file)?;
                (VisionModel::Segmenter(model), report)
            }
            VisionModel::Resnet(model) => {
                let (model, report) = load(model, file)?;
                (VisionModel::Resnet(model), report)
            }
        })
    }

    /// The weights under the names of the original program, of torchvision for a ResNet.
    pub(crate) fn state_dict(&self) -> Result<Vec<(String, TensorData)>, TrainError> {
        Ok(match self {
            VisionModel::Classifier(model) => state_dict(model)?,
            VisionModel::Segmenter(model) => state_dict(model)?,
            VisionModel::Resnet(model) => state_dict(model)?,
        })
    }

    /// The layer whose equilibrium is computed, if there is one.
    pub(crate) fn cell(&self) -> Option<&MdeqCell> {
        match self {
            VisionModel::Classifier(model) => Some(&model.backbone.cell),
            VisionModel::Segmenter(model) => Some(&model.backbone.cell),
            VisionModel::Resnet(_) => None,
        }
    }
}

/// Scores `[batch, classes, h, w]` scaled up bilinearly to the size of the picture, as `[batch * height * width, classes]`.
fn per_pixel(logits: Tensor<4>, size: [usize; 2]) -> Tensor<2> {
    let [batch, classes, height, width] = logits.dims();
    let logits = if [height, width] == size {
        logits
    } else {
        // Corners aligned, as in the loss and the validation of the original.
        let options = InterpolateOptions::new(InterpolateMode::Bilinear)
            .with_align_corners(true)
            .with_output_size(size);
        interpolate(logits, options)
    };
    let [height, width] = size;
    logits
        .permute([0, 2, 3, 1])
        .reshape([batch * height * width, classes])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PyTorch: `F.interpolate(scores, size=(3, 3), mode="bilinear", align_corners=True)`.
    #[test]
    fn scores_are_scaled_up_with_their_corners_in_place() {
        let device = Device::flex();
        let scores = Tensor::<4>::from_data([[[[0.0, 1.0], [2.0, 3.0]]]], &device);
        let found = per_pixel(scores, [3, 3]).into_data();
        let expected = [0.0_f32, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0];
        assert_eq!(found.try_to_vec::<f32>().unwrap(), expected);
    }
}
