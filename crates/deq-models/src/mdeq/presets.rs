//! The original's configurations by name.
//!
//! Those of locuslab/deq (`MDEQ-Vision/experiments`), whose parameters differ from what the papers
//! say. What belongs to training is told beside each, not stored: solver budgets forward/backward,
//! length of the unrolled pre-training and its number of applications, and the penalty.

use super::config::{MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig};

const SMALL: [usize; 4] = [32, 64, 128, 256];
const LARGE: [usize; 4] = [80, 160, 320, 640];
const XL: [usize; 4] = [88, 176, 352, 704];

impl MdeqConfig {
    fn cifar10(channels: &[usize], dropout: f64) -> Self {
        Self::new(channels.to_vec())
            .with_downsample_times(0)
            .with_dropout(dropout)
            .with_post_fusion_affine(false)
    }
}

impl MdeqClassifierConfig {
    /// A model that trains on two CPU cores on images of 32 by 32: 8 and 16 channels at a half and
    /// a quarter of the image's resolution, 41,386 parameters with 10 classes. Not of the original.
    ///
    /// Unrolled pre-training with 3 applications and budgets of 12/12 suit it.
    pub fn mini(num_classes: usize) -> Self {
        let backbone = MdeqConfig::new(vec![8, 16])
            .with_groups(4)
            .with_downsample_times(1)
            .with_post_fusion_affine(false);
        Self::new(num_classes, backbone, vec![4, 8], 64)
    }

    /// `cls_mdeq_TINY.yaml`: 158,890 parameters, for CIFAR-10 without augmentation.
    ///
    /// Broyden 18/20 with a relative tolerance, 3,000 steps of pre-training with 10 applications,
    /// 50 epochs of Adam at 1e-3, weight decay 2.5e-6, batches of 128.
    pub fn cifar10_tiny() -> Self {
        let backbone = MdeqConfig::cifar10(&[24, 24], 0.25);
        Self::new(10, backbone, vec![8, 16], 200)
    }

    /// `cls_mdeq_LARGE.yaml`: 11.1M parameters (the paper: 10M), for CIFAR-10 with augmentation.
    ///
    /// Broyden 18/20 with a relative tolerance, 20,000 steps of pre-training with 10 applications,
    /// 220 epochs of Adam at 1e-3, batches of 128.
    pub fn cifar10_large() -> Self {
        Self::cifar10_large_with_dropout(0.3)
    }

    /// `cls_mdeq_LARGE_reg.yaml`: [`cifar10_large`](Self::cifar10_large) for training with the
    /// Jacobian penalty, hence less dropout.
    ///
    /// Broyden 8/7 with a relative tolerance, the budget drawn within 2; 16,000 steps of
    /// pre-training with 8 applications; penalty of weight 0.4 on 2 % of the steps until epoch 90
    /// (the paper: 0.5 on 5 %); batches of 96.
    pub fn cifar10_large_jr() -> Self {
        Self::cifar10_large_with_dropout(0.22)
    }

    fn cifar10_large_with_dropout(dropout: f64) -> Self {
        let backbone = MdeqConfig::cifar10(&SMALL, dropout);
        Self::new(10, backbone, vec![14, 28, 56, 112], 1680)
    }

    /// `cls_mdeq_SMALL.yaml`: 16.8M parameters (the paper: 18M), for ImageNet.
    ///
    /// Broyden 26/27 with an absolute tolerance, 510,000 steps of pre-training with 5 applications,
    /// 100 epochs of SGD at 0.05 with momentum 0.9, weight decay 5e-5, batches of 128.
    pub fn imagenet_small() -> Self {
        let backbone = MdeqConfig::new(SMALL.to_vec());
        Self::new(1000, backbone, vec![24, 48, 96, 192], 2048)
    }

    /// `cls_mdeq_SMALL_reg.yaml`: 18.6M parameters (the paper: 17M), for ImageNet with the Jacobian
    /// penalty.
    ///
    /// Broyden 14/14 with an absolute tolerance, the budget drawn within 2; penalty of weight 2.5
    /// on 8 % of the steps, 0.1 more every 50,000, 0.03 during pre-training; SGD at 0.04, weight
    /// decay 2e-5; the rest as [`imagenet_small`](Self::imagenet_small).
    pub fn imagenet_small_jr() -> Self {
        let backbone = MdeqConfig::new(SMALL.to_vec())
            .with_dropout(0.02)
            .with_post_fusion_affine(false);
        Self::new(1000, backbone, vec![28, 56, 112, 224], 2048)
    }

    /// `cls_mdeq_LARGE.yaml`: 67.1M parameters (the paper: 63M), for ImageNet.
    ///
    /// Weight decay 1e-4, pre-training with 4 applications; the rest as
    /// [`imagenet_small`](Self::imagenet_small).
    pub fn imagenet_large() -> Self {
        Self::imagenet_wide(&LARGE)
    }

    /// `cls_mdeq_LARGE_reg.yaml`: 67.1M parameters (the paper: 62M), for ImageNet with the Jacobian
    /// penalty.
    ///
    /// Penalty of weight 3, the rest of it and the budgets as
    /// [`imagenet_small_jr`](Self::imagenet_small_jr); optimizer as
    /// [`imagenet_large`](Self::imagenet_large).
    pub fn imagenet_large_jr() -> Self {
        let mut config = Self::imagenet_wide(&LARGE);
        config.backbone.post_fusion_affine = false;
        config
    }

    /// `cls_mdeq_XL.yaml`: 90.5M parameters, for ImageNet; trained as
    /// [`imagenet_large`](Self::imagenet_large).
    ///
    /// The repository has this file in two versions. This is the one whose blocks widen six times,
    /// as those of [`cityscapes_xl`](MdeqSegmenterConfig::cityscapes_xl), which starts from it.
    pub fn imagenet_xl() -> Self {
        let mut config = Self::imagenet_wide(&XL);
        config.backbone.expansion = 6;
        config
    }

    /// [`imagenet_xl`](Self::imagenet_xl) for training with the Jacobian penalty, changed as
    /// [`imagenet_large_jr`](Self::imagenet_large_jr) is. The repository has no file for it.
    pub fn imagenet_xl_jr() -> Self {
        let mut config = Self::imagenet_xl();
        config.backbone.post_fusion_affine = false;
        config
    }

    fn imagenet_wide(channels: &[usize]) -> Self {
        let backbone = MdeqConfig::new(channels.to_vec());
        Self::new(1000, backbone, vec![32, 64, 128, 256], 2048)
    }
}

impl MdeqSegmenterConfig {
    /// A model that trains on two CPU cores on images of some hundred pixels: three branches, so
    /// that the coarsest sees far enough to tell what a pixel belongs to. Not of the original.
    ///
    /// `downsample_times` of 1 suits small images, 2 photographs. Running statistics follow faster
    /// than in the original, whose runs are longer.
    pub fn mini(num_classes: usize, downsample_times: usize) -> Self {
        let backbone = MdeqConfig::new(vec![12, 24, 48])
            .with_groups(4)
            .with_downsample_times(downsample_times)
            .with_post_fusion_affine(false);
        Self::new(num_classes, backbone).with_batch_norm_momentum(0.1)
    }

    /// `seg_mdeq_SMALL.yaml`: 9.0M parameters, for the 19 classes of Cityscapes, starting from
    /// [`imagenet_small`](MdeqClassifierConfig::imagenet_small).
    ///
    /// Broyden 27/30 with an absolute tolerance, 60,000 steps of pre-training with 3 applications,
    /// 500 epochs of SGD at 0.01 with momentum 0.9, weight decay 2e-4, 12 crops of 1024 by 512.
    pub fn cityscapes_small() -> Self {
        Self::cityscapes(&SMALL, 0.05)
    }

    /// `seg_mdeq_LARGE.yaml`: 56.0M parameters, from random weights; weight decay 3e-4, the rest as
    /// [`cityscapes_small`](Self::cityscapes_small).
    pub fn cityscapes_large() -> Self {
        Self::cityscapes(&LARGE, 0.03)
    }

    /// `seg_mdeq_XL.yaml`: 79.6M parameters; 40,000 steps of pre-training, 16 crops of 1024 by 768,
    /// the rest as [`cityscapes_large`](Self::cityscapes_large), but starting from
    /// [`imagenet_xl`](MdeqClassifierConfig::imagenet_xl).
    pub fn cityscapes_xl() -> Self {
        let mut config = Self::cityscapes(&XL, 0.04);
        config.backbone.expansion = 6;
        config
    }

    fn cityscapes(channels: &[usize], dropout: f64) -> Self {
        Self::new(19, MdeqConfig::new(channels.to_vec()).with_dropout(dropout))
    }
}
