//! The model: a multiscale equilibrium, or the ResNet that it is compared with.

use super::batches::{IGNORED, ImagesBatch};
use super::confusion::Confusion;
use crate::error::TrainError;
use crate::task::{Reading, TaskModel};
use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use deq_core::Depth;
use deq_models::checkpoint::{LoadReport, StateDict, load, state_dict};
use deq_models::{MdeqCell, MdeqClassifier, MdeqSegmenter, ResNet, resize_bilinear};
use std::ops::Range;
use std::sync::Arc;

/// The largest number of images at whose equilibria the spectral radius is estimated.
const PROBED: usize = 16;
/// The largest number of pixels in them, unless the first one has more: large images take long and
/// differ less from each other.
const PROBED_PIXELS: usize = 1 << 18;

/// A model that classifies images or their pixels.
#[derive(Module, Debug)]
pub struct ImagesModel {
    network: ImagesNetwork,
    /// One per class, or none if all count the same.
    #[module(skip)]
    class_weights: Arc<[f32]>,
}

/// A network of any kind.
#[derive(Module, Debug)]
pub(super) enum ImagesNetwork {
    Classifier(MdeqClassifier),
    Segmenter(MdeqSegmenter),
    Resnet(ResNet),
}

impl ImagesModel {
    /// A network whose training loss weighs classes so, or all alike if there are no weights.
    pub(super) fn new(network: ImagesNetwork, class_weights: &[f32]) -> Self {
        Self {
            network,
            class_weights: class_weights.into(),
        }
    }

    /// Takes the weights of a checkpoint that fit.
    pub(super) fn load(self, file: &StateDict) -> Result<(Self, LoadReport), TrainError> {
        let (network, report) = match self.network {
            ImagesNetwork::Classifier(model) => {
                let (model, report) = load(model, file)?;
                (ImagesNetwork::Classifier(model), report)
            }
            ImagesNetwork::Segmenter(model) => {
                let (model, report) = load(model, file)?;
                (ImagesNetwork::Segmenter(model), report)
            }
            ImagesNetwork::Resnet(model) => {
                let (model, report) = load(model, file)?;
                (ImagesNetwork::Resnet(model), report)
            }
        };
        Ok((Self { network, ..self }, report))
    }

    /// The weights under the names of the original program, of torchvision for a ResNet.
    pub(super) fn state_dict(&self) -> Result<Vec<(String, TensorData)>, TrainError> {
        Ok(match &self.network {
            ImagesNetwork::Classifier(model) => state_dict(model)?,
            ImagesNetwork::Segmenter(model) => state_dict(model)?,
            ImagesNetwork::Resnet(model) => state_dict(model)?,
        })
    }
}

impl TaskModel for ImagesModel {
    type Batch = ImagesBatch;
    type Memory = ();
    type Cell = MdeqCell;
    /// Scores before the softmax for every target, `[targets, classes]`.
    type Output = Tensor<2>;
    type Tally = Confusion;

    fn read(&self, batch: &ImagesBatch, (): &(), depth: Depth<'_>) -> Reading<Self> {
        let images = batch.images.clone();
        let [_, _, height, width] = images.dims();
        match &self.network {
            ImagesNetwork::Classifier(model) => {
                let out = model.forward(images, depth);
                Reading::solved(out.logits, (), out.equilibrium, out.context)
            }
            ImagesNetwork::Segmenter(model) => {
                let out = model.forward(images, depth);
                let scores = per_pixel(out.logits, [height, width]);
                Reading::solved(scores, (), out.equilibrium, out.context)
            }
            ImagesNetwork::Resnet(model) => {
                let blocks = model.stages.iter().flatten();
                Reading {
                    output: model.forward(images),
                    memory: (),
                    // Stem and classifier count as layers of their own.
                    nfe: 2 + blocks.map(|block| block.layers.len()).sum::<usize>(),
                    solved: None,
                }
            }
        }
    }

    fn cell(&self) -> Option<&MdeqCell> {
        match &self.network {
            ImagesNetwork::Classifier(model) => Some(&model.backbone.cell),
            ImagesNetwork::Segmenter(model) => Some(&model.backbone.cell),
            ImagesNetwork::Resnet(_) => None,
        }
    }

    fn loss(&self, scores: &Tensor<2>, batch: &ImagesBatch) -> Tensor<1> {
        mean_nll(scores.clone(), &batch.targets, &self.class_weights)
    }

    /// All targets alike, so that the loss compares with that of runs with other weights.
    fn held_out_loss(&self, scores: &Tensor<2>, batch: &ImagesBatch) -> Tensor<1> {
        mean_nll(scores.clone(), &batch.targets, &[])
    }

    fn targets(&self, batch: &ImagesBatch) -> usize {
        let targets = batch.targets.iter();
        targets.filter(|target| **target != IGNORED).count()
    }

    fn tally(&self, scores: &Tensor<2>, batch: &ImagesBatch) -> Confusion {
        let found = likeliest(scores.clone());
        if matches!(self.network, ImagesNetwork::Segmenter(_)) {
            let [_, classes] = scores.dims();
            return Confusion::new(classes, &found, &batch.targets);
        }
        // Of whole images the share that is right is all that is asked for, and there may be
        // thousands of classes: class 1 is all that are right.
        let right = found
            .iter()
            .zip(&batch.targets)
            .map(|(a, b)| i32::from(a == b));
        let counted = |target: &i32| if *target == IGNORED { IGNORED } else { 1 };
        let targets: Vec<i32> = batch.targets.iter().map(counted).collect();
        Confusion::new(2, &right.collect::<Vec<_>>(), &targets)
    }

    fn probed(&self, batch: &ImagesBatch) -> ImagesBatch {
        let [count, _, height, width] = batch.images.dims();
        let fitting = PROBED_PIXELS / (height * width);
        let kept = count.min(PROBED).min(fitting.max(1));
        self.part(batch, 0..kept, &batch.images.device())
    }

    fn samples(&self, batch: &ImagesBatch) -> Option<usize> {
        Some(batch.images.dims()[0])
    }

    fn part(&self, batch: &ImagesBatch, rows: Range<usize>, device: &Device) -> ImagesBatch {
        let [count, ..] = batch.images.dims();
        let each = batch.targets.len() / count;
        let images = batch.images.clone().narrow(0, rows.start, rows.len());
        ImagesBatch {
            images: images.to_device(device),
            targets: batch.targets[rows.start * each..rows.end * each].to_vec(),
        }
    }

    fn loss_weight(&self, batch: &ImagesBatch) -> f64 {
        let weight = |target: &i32| f64::from(weight_of(*target, &self.class_weights));
        batch.targets.iter().map(weight).sum()
    }
}

/// How much a target counts in the training loss.
fn weight_of(target: i32, class_weights: &[f32]) -> f32 {
    match usize::try_from(target) {
        Ok(class) => class_weights.get(class).copied().unwrap_or(1.0),
        Err(_) => 0.0,
    }
}

/// The class of the highest score, for each row of `[targets, classes]`.
pub(super) fn likeliest(scores: Tensor<2>) -> Vec<i32> {
    scores.argmax(1).into_data().iter::<i32>().collect()
}

/// Scores `[batch, classes, h, w]` scaled up bilinearly to the size of the image, as
/// `[batch * height * width, classes]`.
fn per_pixel(logits: Tensor<4>, size: [usize; 2]) -> Tensor<2> {
    let [batch, classes, ..] = logits.dims();
    let [height, width] = size;
    // Corners aligned, as in the loss and the validation of the original.
    resize_bilinear(logits, size)
        .permute([0, 2, 3, 1])
        .reshape([batch * height * width, classes])
}

/// The mean negative log-likelihood of the targets that are not ignored, each weighted by its class
/// if there are weights; 0 without any. As in PyTorch the sum is divided by that of the weights.
fn mean_nll(scores: Tensor<2>, targets: &[i32], class_weights: &[f32]) -> Tensor<1> {
    let device = scores.device();
    let count = targets.len();
    let classes: Vec<i32> = targets.iter().map(|target| (*target).max(0)).collect();
    let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, [count, 1]), &device);
    let likelihood = log_softmax(scores, 1).gather(1, classes).reshape([count]);
    if class_weights.is_empty() && !targets.contains(&IGNORED) {
        return likelihood.mean().neg();
    }
    let weight = |target: &i32| weight_of(*target, class_weights);
    let weights: Vec<f32> = targets.iter().map(weight).collect();
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), &device);
    let sum = (likelihood * weights).sum().neg();
    match total > 0.0 {
        true => sum / total,
        false => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deq_models::{MdeqClassifierConfig, MdeqSegmenterConfig, ResNetConfig};

    /// PyTorch: `F.interpolate(scores, size=(3, 3), mode="bilinear", align_corners=True)`.
    #[test]
    fn scores_are_scaled_up_with_their_corners_in_place() {
        let device = Device::flex();
        let scores = Tensor::<4>::from_data([[[[0.0, 1.0], [2.0, 3.0]]]], &device);
        let found = per_pixel(scores, [3, 3]).into_data();
        let expected = [0.0_f32, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0];
        assert_eq!(found.try_to_vec::<f32>().unwrap(), expected);
    }

    fn resnet(device: &Device, class_weights: &[f32]) -> ImagesModel {
        let network = ResNetConfig::resnet18(2).with_width(1).init(device);
        ImagesModel::new(ImagesNetwork::Resnet(network.unwrap()), class_weights)
    }

    fn scores(device: &Device) -> Tensor<2> {
        Tensor::from_data([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]], device)
    }

    /// The loss of two scores.
    fn of(right: f64, wrong: f64) -> f64 {
        (1.0 + (wrong - right).exp()).ln()
    }

    fn batch(images: Tensor<4>, targets: Vec<i32>) -> ImagesBatch {
        ImagesBatch { images, targets }
    }

    #[test]
    fn ignored_targets_count_neither_in_the_loss_nor_in_the_accuracy() {
        let device = Device::flex();
        let scores = scores(&device);
        let nll = |targets: &[i32]| mean_nll(scores.clone(), targets, &[]).into_scalar::<f64>();
        let both = (of(2.0, 0.0) + of(0.0, 1.0)) / 2.0;
        assert!((nll(&[0, 0, IGNORED]) - both).abs() < 1e-6);
        assert!((nll(&[0, 0, 1]) - (2.0 * both + of(-5.0, 5.0)) / 3.0).abs() < 1e-6);
        assert!(nll(&[IGNORED; 3]).abs() < 1e-30);

        let model = resnet(&device, &[]);
        let batch = batch(Tensor::zeros([3, 3, 1, 1], &device), vec![0, 0, IGNORED]);
        assert_eq!(model.targets(&batch), 2);
        assert_eq!(likeliest(scores.clone()), [0, 1, 0]);
        assert!((model.tally(&scores, &batch).accuracy() - 0.5).abs() < 1e-12);
    }

    /// PyTorch: `F.cross_entropy(scores, targets, weight=[2, 0.5])` divides by the sum of the
    /// weights.
    #[test]
    fn classes_count_by_their_weights_in_training_only() {
        let device = Device::flex();
        let (model, scores) = (resnet(&device, &[2.0, 0.5]), scores(&device));
        let batch = batch(Tensor::zeros([3, 3, 1, 1], &device), vec![0, 1, IGNORED]);
        let weighted = (2.0 * of(2.0, 0.0) + 0.5 * of(1.0, 0.0)) / 2.5;
        let found = model.loss(&scores, &batch).into_scalar::<f64>();
        assert!((found - weighted).abs() < 1e-6);
        let alike = (of(2.0, 0.0) + of(1.0, 0.0)) / 2.0;
        let found = model.held_out_loss(&scores, &batch).into_scalar::<f64>();
        assert!((found - alike).abs() < 1e-6);
    }

    #[test]
    fn every_network_scores_every_target_and_says_how_deep_it_was() {
        let device = Device::flex();
        let images = Tensor::<4>::ones([2, 3, 16, 16], &device);
        let read = |network: ImagesNetwork, targets: usize| {
            let batch = batch(images.clone(), vec![0; targets]);
            let model = ImagesModel::new(network, &[]);
            let reading = model.read(&batch, &(), Depth::Unrolled(3));
            assert_eq!(reading.output.dims(), [targets, 5]);
            assert_eq!(model.cell().is_some(), reading.solved.is_some());
            reading.nfe
        };
        let classifier = MdeqClassifierConfig::mini(5).init(&device).unwrap();
        assert_eq!(read(ImagesNetwork::Classifier(classifier), 2), 3);
        let segmenter = MdeqSegmenterConfig::mini(5, 1).init(&device).unwrap();
        assert_eq!(read(ImagesNetwork::Segmenter(segmenter), 2 * 256), 3);
        let resnet = ResNetConfig::resnet50(5).with_width(1).init(&device);
        assert_eq!(read(ImagesNetwork::Resnet(resnet.unwrap()), 2), 50);
    }

    #[test]
    fn few_pixels_are_probed() {
        let device = Device::flex();
        let network = MdeqSegmenterConfig::mini(2, 1).init(&device).unwrap();
        let model = ImagesModel::new(ImagesNetwork::Segmenter(network), &[]);
        let probed = |count: usize, side: usize| {
            let images = Tensor::zeros([count, 3, side, side], &device);
            let probed = model.probed(&batch(images, vec![0; count * side * side]));
            let [kept, ..] = probed.images.dims();
            assert_eq!(probed.targets.len(), kept * side * side);
            kept
        };
        assert_eq!(probed(20, 8), 16);
        assert_eq!(probed(3, 8), 3);
        // Four images of 256 x 256 have as many pixels as are wanted; one of 1024 x 1024 has more.
        assert_eq!(probed(6, 256), 4);
        assert_eq!(probed(2, 1024), 1);
    }
}
