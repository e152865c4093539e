//! Images in, classes out, an equilibrium of several resolutions in between.

use super::cell::{MdeqCell, MdeqContext};
use super::config::MdeqConfig;
use super::head::{ClassificationHead, SegmentationHead};
use super::stem::MdeqStem;
use crate::checkpoint::{LoadReport, StateDict, load, state_dict};
use crate::error::ModelError;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use deq_core::{Depth, Equilibrium};

/// The part that classifier and segmenter share: stem and cell.
#[derive(Module, Debug)]
pub struct Mdeq {
    /// From the image to the injection.
    pub stem: MdeqStem,
    /// The layer whose fixed point is computed.
    pub cell: MdeqCell,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    side_multiple: usize,
}

impl Mdeq {
    pub(crate) fn new(config: &MdeqConfig, momentum: f64, device: &Device) -> Self {
        Self {
            stem: MdeqStem::new(config, momentum, device),
            cell: MdeqCell::new(config, device),
            dropout: config.dropout,
            side_multiple: config.side_multiple(),
        }
    }

    /// Solves for the feature maps of an image, from zeros.
    fn forward(
        &self,
        images: Tensor<4>,
        depth: Depth<'_>,
    ) -> (Equilibrium<Vec<Tensor<4>>>, MdeqContext) {
        let ([_, _, height, width], multiple) = (images.dims(), self.side_multiple);
        assert!(
            height.is_multiple_of(multiple) && width.is_multiple_of(multiple),
            "the images are {height} by {width}, but their sides must be multiples of {multiple}"
        );
        let injection = self.stem.forward(images);
        let dropout = if injection.device().is_autodiff() {
            self.dropout
        } else {
            0.0
        };
        let z0 = self.cell.zeros(&injection);
        let context = self.cell.context(injection, dropout);
        (depth.reach(&self.cell, &context, z0), context)
    }
}

/// What [`MdeqClassifier::forward`] (`D` = 2) and [`MdeqSegmenter::forward`] (`D` = 4) return.
#[derive(Clone, Debug)]
pub struct MdeqOutput<const D: usize> {
    /// Scores before the softmax, `[batch, classes]` or `[batch, classes, height, width]`.
    pub logits: Tensor<D>,
    /// The equilibrium, a map per branch, and how it was found.
    pub equilibrium: Equilibrium<Vec<Tensor<4>>>,
    /// The context of the solve, tracked in training: what the Jacobian penalty differentiates.
    pub context: MdeqContext,
}

/// The multiscale deep equilibrium model for image classification.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use deq_core::DeqConfig;
/// use deq_models::{Depth, MdeqClassifierConfig, MdeqConfig};
///
/// let device = Device::flex();
/// let backbone = MdeqConfig::new(vec![8, 16]).with_downsample_times(0);
/// let model = MdeqClassifierConfig::new(10, backbone, vec![4, 8], 32).init(&device)?;
/// let images = Tensor::ones([2, 3, 8, 8], &device);
/// let out = model.forward(images, Depth::Equilibrium(&DeqConfig::new().build()?));
/// assert_eq!(out.logits.dims(), [2, 10]);
/// let [fine, coarse] = out.equilibrium.z.as_slice() else { panic!("two branches") };
/// assert_eq!(fine.dims(), [2, 8, 8, 8]);
/// assert_eq!(coarse.dims(), [2, 16, 4, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # References
///
/// - Bai, Koltun, Kolter, "Multiscale Deep Equilibrium Models", NeurIPS 2020.
/// - Bai, Koltun, Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", ICML 2021.
///
/// # Differences from the reference code
///
/// - Running variances average the variance over the batch; PyTorch's average the unbiased
///   estimate, larger by n/(n - 1) for n pixels of a batch.
#[derive(Module, Debug)]
pub struct MdeqClassifier {
    /// Stem and cell.
    pub backbone: Mdeq,
    /// From the equilibrium to classes.
    pub head: ClassificationHead,
}

impl MdeqClassifier {
    /// Classifies images.
    ///
    /// In training (on an autodiff device) batch norms use the statistics of the batch and
    /// variational dropout is on, its masks drawn once for the whole solve.
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`
    /// - output: logits `[batch, classes]`
    ///
    /// # Panics
    ///
    /// If a side of the images is not a multiple of [`MdeqConfig::side_multiple`].
    pub fn forward(&self, images: Tensor<4>, depth: Depth<'_>) -> MdeqOutput<2> {
        let (equilibrium, context) = self.backbone.forward(images, depth);
        MdeqOutput {
            logits: self.head.forward(equilibrium.output.clone()),
            equilibrium,
            context,
        }
    }
}

/// The multiscale deep equilibrium model for semantic segmentation.
///
/// References and differences as for [`MdeqClassifier`].
#[derive(Module, Debug)]
pub struct MdeqSegmenter {
    /// Stem and cell.
    pub backbone: Mdeq,
    /// From the equilibrium to classes.
    pub head: SegmentationHead,
}

impl MdeqSegmenter {
    /// Takes over what a classifier has learnt: every tensor of the same name and shape in the
    /// original, that is stem and cell, running statistics included. The original's segmenters
    /// start so from ImageNet.
    ///
    /// The report tells what was copied (`loaded`), what the classifier does not have (`missing`:
    /// the segmenter's own head), what only the classifier has (`unused`) and what has another
    /// shape (`mismatched`).
    ///
    /// # Errors
    ///
    /// [`ModelError::UnreadableTensor`] if a parameter cannot be read from its device,
    /// [`ModelError::NotFinite`] if one of stem or cell holds numbers that are not finite.
    pub fn with_weights_of(
        self,
        classifier: &MdeqClassifier,
    ) -> Result<(Self, LoadReport), ModelError> {
        let dict = StateDict::from_tensors(state_dict(classifier)?);
        load(self, &dict)
    }

    /// Classifies pixels, at the resolution of the finest branch.
    ///
    /// The original scales the logits up to the image, by
    /// [`resize_bilinear`](crate::resize_bilinear), before it takes loss and predictions. In
    /// training as [`MdeqClassifier::forward`].
    ///
    /// # Shapes
    ///
    /// - images: `[batch, 3, height, width]`
    /// - output: logits `[batch, classes, height / f, width / f]` with f = 2^`downsample_times`
    ///
    /// # Panics
    ///
    /// If a side of the images is not a multiple of [`MdeqConfig::side_multiple`].
    pub fn forward(&self, images: Tensor<4>, depth: Depth<'_>) -> MdeqOutput<4> {
        let (equilibrium, context) = self.backbone.forward(images, depth);
        MdeqOutput {
            logits: self.head.forward(equilibrium.output.clone()),
            equilibrium,
            context,
        }
    }
}
