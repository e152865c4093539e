//! What describes a multiscale model.

use super::head::{ClassificationHead, SegmentationHead};
use super::model::{Mdeq, MdeqClassifier, MdeqSegmenter};
use crate::error::{ModelError, require_memory};
use burn::config::Config;
use burn::tensor::Device;

/// The most channels of a branch and of a head, and the most classes: so few that parameters can be
/// counted.
const MOST_CHANNELS: usize = 1 << 16;
/// The most branches; the original has four.
const MOST_BRANCHES: usize = 16;

/// Configuration of the part that classifier and segmenter share. The fields are those of the
/// original's YAML files.
#[derive(Config, Debug, PartialEq)]
pub struct MdeqConfig {
    /// Channels of every branch, finest first; at least two branches. Each has half the resolution
    /// of the one before.
    pub channels: Vec<usize>,
    /// Groups of the group norms, an even number that divides the channels of every branch; the
    /// norm behind the fusion has half as many. Default 8, as in all of the original's
    /// configurations.
    #[config(default = 8)]
    pub groups: usize,
    /// How often the stem halves the image before the finest branch: 0, 1 or 2. Default 2, for
    /// photographs; 0 for CIFAR.
    #[config(default = 2)]
    pub downsample_times: usize,
    /// Channels inside a residual block over those outside. Default 5, as in all of the original's
    /// configurations but Cityscapes XL (6).
    #[config(default = 5)]
    pub expansion: usize,
    /// Residual blocks per branch. Default 1, as in all of the original's configurations.
    #[config(default = 1)]
    pub blocks: usize,
    /// Rate of variational dropout of whole channels inside the residual blocks, one mask per
    /// solve. Default 0; the original uses up to 0.3 on CIFAR-10.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// Weight normalisation on the convolutions of the blocks and behind the fusion. Default on, as
    /// in all of the original's configurations.
    #[config(default = true)]
    pub weight_norm: bool,
    /// Whether group norms in blocks have scale and shift. Default on, as in the original.
    #[config(default = true)]
    pub block_affine: bool,
    /// Whether group norms on the ways between branches have scale and shift. Default on, as in the
    /// original.
    #[config(default = true)]
    pub fusion_affine: bool,
    /// Whether group norms behind the fusion have scale and shift. Default on, as in the original;
    /// its configurations for CIFAR-10 and those with the Jacobian penalty turn it off.
    #[config(default = true)]
    pub post_fusion_affine: bool,
}

/// Configuration of [`MdeqClassifier`].
#[derive(Config, Debug, PartialEq)]
pub struct MdeqClassifierConfig {
    /// Classes.
    pub num_classes: usize,
    /// Stem and cell.
    pub backbone: MdeqConfig,
    /// Inner channels of the head's bottleneck for every branch; it puts out four times as many.
    pub head_channels: Vec<usize>,
    /// Channels before the pooling.
    pub final_channels: usize,
    /// Weight of the newest batch in the running statistics. Default 0.1, as in the original.
    #[config(default = 0.1)]
    pub batch_norm_momentum: f64,
}

/// Configuration of [`MdeqSegmenter`].
#[derive(Config, Debug, PartialEq)]
pub struct MdeqSegmenterConfig {
    /// Classes.
    pub num_classes: usize,
    /// Stem and cell.
    pub backbone: MdeqConfig,
    /// Sides of the last convolution: 1 or 3. Default 1, as in all of the original's
    /// configurations.
    #[config(default = 1)]
    pub final_kernel: usize,
    /// Weight of the newest batch in the running statistics. Default 0.01, as in the original: its
    /// batches are small.
    #[config(default = 0.01)]
    pub batch_norm_momentum: f64,
}

impl MdeqConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelError> {
        let branches = self.channels.len();
        require(
            (2..=MOST_BRANCHES).contains(&branches),
            "channels",
            branches as f64,
            "a list of 2 to 16 branches",
        )?;
        require(
            self.groups >= 2 && self.groups.is_multiple_of(2),
            "groups",
            self.groups as f64,
            "an even number above 0",
        )?;
        for (branch, &channels) in self.channels.iter().enumerate() {
            count("channels", channels)?;
            if !channels.is_multiple_of(self.groups) {
                return Err(ModelError::GroupsDoNotDivide {
                    branch,
                    channels,
                    groups: self.groups,
                });
            }
        }
        let times = self.downsample_times;
        require(times <= 2, "downsample_times", times as f64, "0, 1 or 2")?;
        for (field, value) in [("expansion", self.expansion), ("blocks", self.blocks)] {
            require(
                (1..=1024).contains(&value),
                field,
                value as f64,
                "from 1 to 1024",
            )?;
        }
        require(
            (0.0..1.0).contains(&self.dropout),
            "dropout",
            self.dropout,
            "at least 0 and below 1",
        )
    }

    /// The factor by which the sides of an image must be divisible.
    pub fn side_multiple(&self) -> usize {
        1 << (self.downsample_times + self.channels.len().saturating_sub(1))
    }

    /// Whether the stem ends with a 1x1 convolution.
    pub(super) fn has_injection_layer(&self) -> bool {
        self.downsample_times > 0 || self.channels.len() > 2
    }
}

impl MdeqClassifierConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.backbone.validate()?;
        count("num_classes", self.num_classes)?;
        count("final_channels", self.final_channels)?;
        if self.head_channels.len() != self.backbone.channels.len() {
            return Err(ModelError::HeadChannels {
                given: self.head_channels.len(),
                branches: self.backbone.channels.len(),
            });
        }
        for &channels in &self.head_channels {
            count("head_channels", channels)?;
        }
        check_momentum(self.batch_norm_momentum)
    }

    /// Makes the model with random weights on `device`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn init(&self, device: &Device) -> Result<MdeqClassifier, ModelError> {
        self.validate()?;
        require_memory(self.parameters())?;
        Ok(MdeqClassifier {
            backbone: Mdeq::new(&self.backbone, self.batch_norm_momentum, device),
            head: ClassificationHead::new(self, device),
        })
    }
}

impl MdeqSegmenterConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.backbone.validate()?;
        count("num_classes", self.num_classes)?;
        require(
            matches!(self.final_kernel, 1 | 3),
            "final_kernel",
            self.final_kernel as f64,
            "1 or 3",
        )?;
        check_momentum(self.batch_norm_momentum)
    }

    /// Makes the model with random weights on `device`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] naming the first field that is wrong.
    pub fn init(&self, device: &Device) -> Result<MdeqSegmenter, ModelError> {
        self.validate()?;
        require_memory(self.parameters())?;
        Ok(MdeqSegmenter {
            backbone: Mdeq::new(&self.backbone, self.batch_norm_momentum, device),
            head: SegmentationHead::new(self, device),
        })
    }
}

fn require(
    valid: bool,
    field: &'static str,
    value: f64,
    requirement: &'static str,
) -> Result<(), ModelError> {
    match valid {
        true => Ok(()),
        false => Err(ModelError::OutOfRange {
            field,
            value,
            requirement,
        }),
    }
}

fn count(field: &'static str, value: usize) -> Result<(), ModelError> {
    let valid = (1..=MOST_CHANNELS).contains(&value);
    require(valid, field, value as f64, "from 1 to 65536")
}

fn check_momentum(momentum: f64) -> Result<(), ModelError> {
    require(
        (0.0..=1.0).contains(&momentum),
        "batch_norm_momentum",
        momentum,
        "between 0 and 1",
    )
}
