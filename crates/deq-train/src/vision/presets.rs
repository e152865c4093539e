//! Recipes to start from.

use super::model::VisionModelConfig;
use super::recipe::{OptimizerKind, VisionRecipe};
use crate::error::TrainError;
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{DeqConfig, GradientConfig, ImplicitConfig};
use deq_data::{ImageSource, Transform, VisionTask};
use deq_jacreg::{IncrementConfig, JacobianPenaltyConfig, WeightControllerConfig, WeightSchedule};
use deq_models::{MdeqClassifierConfig, MdeqSegmenterConfig};

/// The tolerance of every preset of the original, relative or absolute.
const TOLERANCE: f64 = 1e-3;

/// Probes of the penalty in the original's vision models; one in the paper.
const VECTORS: usize = 2;

/// The steps and tolerances of a preset.
struct Solves {
    forward: usize,
    backward: usize,
    jitter: usize,
    /// Whether the tolerance is one on the residual itself, not relative to the state: solves of pictures then practically always use up their steps.
    absolute: bool,
}

impl Solves {
    fn relative(forward: usize, backward: usize) -> Self {
        Self {
            forward,
            backward,
            jitter: 0,
            absolute: false,
        }
    }

    fn absolute(forward: usize, backward: usize) -> Self {
        Self {
            absolute: true,
            ..Self::relative(forward, backward)
        }
    }

    /// The budget drawn anew at every training step, as in the original's configurations with the penalty.
    fn drawn(self) -> Self {
        Self { jitter: 2, ..self }
    }

    /// Broyden's method both ways, as in the original's vision configurations.
    fn layer(&self) -> DeqConfig {
        let stop = |steps| {
            let stop = StopConfig::new().with_max_steps(steps);
            match self.absolute {
                true => stop.with_rel_tol(0.0).with_abs_tol(TOLERANCE),
                false => stop.with_rel_tol(TOLERANCE),
            }
        };
        let backward = ImplicitConfig::new().with_stop(stop(self.backward));
        DeqConfig::new()
            .with_solver(SolverConfig::broyden())
            .with_stop(stop(self.forward))
            .with_gradient(GradientConfig::Implicit(backward))
            .with_budget_jitter(self.jitter)
    }
}

impl VisionRecipe {
    /// The names that [`preset`](Self::preset) knows.
    pub const PRESETS: [&str; 13] = [
        "mini",
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

    /// A preset for the data set at hand. `mini` fits every data set and two CPU cores.
    ///
    /// The others are the YAML files of locuslab/deq (`MDEQ-Vision/experiments`), values and all; see the functions of their names at [`MdeqClassifierConfig`] and
    /// [`MdeqSegmenterConfig`]. There is no file for `imagenet-xl-jr`: it is `imagenet-xl` with the penalty and the budgets of `imagenet-large-jr`.
    ///
    /// What the original does with those files and this crate does otherwise: the budget of a solve is drawn from two steps less up to its full length on every step, there from two less up to one more on
    /// penalised steps only; the learning rate ends at 0, there at 1e-6. Batches are those of all the original's GPUs together.
    /// `cityscapes-small` and `cityscapes-xl` start there from a classifier of ImageNet: set `init`.
    ///
    /// # Errors
    ///
    /// [`TrainError::UnknownPreset`] with the names there are, [`TrainError::PresetForOtherTask`] for a classifier where pixels are to be classified, or the
    /// other way around.
    pub fn preset(name: &str, data: &ImageSource) -> Result<Self, TrainError> {
        let family = name.split('-').next().unwrap_or(name);
        let recipe = match family {
            _ if !Self::PRESETS.contains(&name) => {
                return Err(TrainError::UnknownPreset {
                    name: name.to_owned(),
                    known: Self::PRESETS.join(", "),
                });
            }
            "mini" => mini(data),
            "cifar10" => cifar10(name, data),
            "imagenet" => imagenet(name, data),
            _ => cityscapes(name, data),
        };
        if recipe.model.task() != data.task() {
            return Err(TrainError::PresetForOtherTask {
                preset: name.to_owned(),
                data: data.to_string(),
            });
        }
        Ok(Self {
            preset: name.to_owned(),
            ..recipe
        })
    }
}

/// Small enough for two cores: the schedule of the original in little, its first steps pre-trained by three unrolled applications.
fn mini(data: &ImageSource) -> VisionRecipe {
    // Filled in when the data have been opened.
    let classes = 2;
    let model = match data.task() {
        VisionTask::Classification => {
            VisionModelConfig::Classifier(MdeqClassifierConfig::mini(classes))
        }
        VisionTask::Segmentation => {
            // Generated pictures are small.
            let downsample_times = match data {
                ImageSource::ShapesSegmentation => 1,
                _ => 2,
            };
            VisionModelConfig::Segmenter(MdeqSegmenterConfig::mini(classes, downsample_times))
        }
    };
    let (train_transform, eval_transform) = transforms(data, model.side_multiple());
    // Pixels take longer to learn than pictures, and label maps are few.
    let (batch, epochs, steps_per_epoch, pretrain_steps) = match data {
        ImageSource::Shapes => (32, 4, 175, 30),
        ImageSource::ShapesSegmentation => (16, 10, 150, 600),
        ImageSource::Segmentation(_) => (6, 10, 150, 600),
        ImageSource::Cifar10(_) | ImageSource::ImageFolder(_) => (32, 4, 0, 30),
    };
    // More than the 7 and 8 of the row for CIFAR-10 in Bai et al. 2021, Table 4, so that solves can end by their tolerance. In the longer training of segmenters no
    // constant weight of the penalty is right throughout, so that it is moved to hold the steps of a solve below their budget.
    let (forward, controller) = match data.task() {
        VisionTask::Classification => (12, None),
        VisionTask::Segmentation => (16, Some(WeightControllerConfig::new(14.0).with_weight(1.0))),
    };
    VisionRecipe {
        kind: "vision".to_owned(),
        preset: "mini".to_owned(),
        data: data.clone(),
        classes: Vec::new(),
        train_transform,
        eval_transform,
        model,
        init: None,
        // Evaluation may take longer, and says how long.
        deq: Solves::relative(forward, 12).layer().with_eval_stop(Some(
            StopConfig::new().with_max_steps(20).with_rel_tol(1e-3),
        )),
        explicit: None,
        // Not the weight of 0.5 on 5 % of the steps of that row, which is for 200 epochs: in 700 steps it leaves solves that do not converge.
        penalty: Some(
            JacobianPenaltyConfig::new()
                .with_weight(1.0)
                .with_frequency(0.4),
        ),
        controller,
        batch,
        epochs,
        // Shapes are learnt in less than a pass over all that there are; folders of labelled pixels may hold but a few batches.
        steps_per_epoch,
        // Much longer, and the cell has learnt to use its third application as the last one: solves that follow do not converge any more, but for those of segmenters,
        // whose controller brings them back.
        pretrain_steps,
        pretrain_depth: 3,
        pretrain_penalty: 0.0,
        optimizer: OptimizerKind::Adam,
        weight_decay: 0.0,
        // Up to five times the paper's, for a model and a run that are smaller by far.
        learning_rate: 5e-3,
        warmup_steps: 0,
        clip: None,
        class_weights: Vec::new(),
        valid_pictures: usize::MAX,
        seed: 1,
    }
}

fn cifar10(name: &str, data: &ImageSource) -> VisionRecipe {
    let mini = mini(data);
    let tiny = VisionRecipe {
        model: VisionModelConfig::Classifier(MdeqClassifierConfig::cifar10_tiny()),
        // Without augmentation.
        train_transform: mini.eval_transform.clone(),
        deq: Solves::relative(18, 20).layer(),
        penalty: None,
        batch: 128,
        epochs: 50,
        steps_per_epoch: 0,
        pretrain_steps: 3000,
        pretrain_depth: 10,
        weight_decay: 2.5e-6,
        learning_rate: 1e-3,
        ..mini.clone()
    };
    let large = VisionRecipe {
        model: VisionModelConfig::Classifier(MdeqClassifierConfig::cifar10_large()),
        train_transform: mini.train_transform,
        epochs: 220,
        pretrain_steps: 20_000,
        weight_decay: 0.0,
        ..tiny.clone()
    };
    match name {
        "cifar10-tiny" => tiny,
        "cifar10-large" => large,
        _ => VisionRecipe {
            model: VisionModelConfig::Classifier(MdeqClassifierConfig::cifar10_large_jr()),
            deq: Solves::relative(8, 7).drawn().layer(),
            penalty: Some(
                JacobianPenaltyConfig::new()
                    .with_weight(0.4)
                    .with_frequency(0.02)
                    .with_vectors(VECTORS)
                    // Until epoch 90 of CIFAR-10.
                    .with_stop_after(Some(90 * (50_000 / 96))),
            ),
            batch: 96,
            pretrain_steps: 16_000,
            pretrain_depth: 8,
            ..large
        },
    }
}

fn imagenet(name: &str, data: &ImageSource) -> VisionRecipe {
    let small = VisionRecipe {
        model: VisionModelConfig::Classifier(MdeqClassifierConfig::imagenet_small()),
        deq: Solves::absolute(26, 27).layer(),
        penalty: None,
        batch: 128,
        epochs: 100,
        steps_per_epoch: 0,
        pretrain_steps: 510_000,
        pretrain_depth: 5,
        optimizer: OptimizerKind::Nesterov,
        learning_rate: 0.05,
        weight_decay: 5e-5,
        ..mini(data)
    };
    let large = VisionRecipe {
        model: VisionModelConfig::Classifier(MdeqClassifierConfig::imagenet_large()),
        pretrain_depth: 4,
        weight_decay: 1e-4,
        ..small.clone()
    };
    let with_penalty = |weight, recipe: VisionRecipe| VisionRecipe {
        pretrain_penalty: 0.03,
        deq: Solves::absolute(14, 14).drawn().layer(),
        penalty: Some(
            JacobianPenaltyConfig::new()
                .with_weight(weight)
                .with_frequency(0.08)
                .with_vectors(VECTORS)
                .with_schedule(WeightSchedule::Increment(
                    IncrementConfig::new(50_000).with_after(recipe.pretrain_steps),
                )),
        ),
        ..recipe
    };
    let xl = VisionRecipe {
        model: VisionModelConfig::Classifier(MdeqClassifierConfig::imagenet_xl()),
        ..large.clone()
    };
    match name {
        "imagenet-small" => small,
        "imagenet-small-jr" => VisionRecipe {
            model: VisionModelConfig::Classifier(MdeqClassifierConfig::imagenet_small_jr()),
            learning_rate: 0.04,
            weight_decay: 2e-5,
            ..with_penalty(2.5, small)
        },
        "imagenet-large" => large,
        "imagenet-large-jr" => VisionRecipe {
            model: VisionModelConfig::Classifier(MdeqClassifierConfig::imagenet_large_jr()),
            ..with_penalty(3.0, large)
        },
        "imagenet-xl" => xl,
        _ => VisionRecipe {
            model: VisionModelConfig::Classifier(MdeqClassifierConfig::imagenet_xl_jr()),
            ..with_penalty(3.0, xl)
        },
    }
}

fn cityscapes(name: &str, data: &ImageSource) -> VisionRecipe {
    let small = VisionRecipe {
        model: VisionModelConfig::Segmenter(MdeqSegmenterConfig::cityscapes_small()),
        train_transform: scale_crop(1024, 512),
        deq: Solves::absolute(27, 30).layer(),
        penalty: None,
        controller: None,
        batch: 12,
        epochs: 500,
        steps_per_epoch: 0,
        pretrain_steps: 60_000,
        pretrain_depth: 3,
        optimizer: OptimizerKind::Momentum,
        learning_rate: 0.01,
        weight_decay: 2e-4,
        ..mini(data)
    };
    let large = VisionRecipe {
        model: VisionModelConfig::Segmenter(MdeqSegmenterConfig::cityscapes_large()),
        weight_decay: 3e-4,
        ..small.clone()
    };
    let mut recipe = match name {
        "cityscapes-small" => small,
        "cityscapes-large" => large,
        _ => VisionRecipe {
            model: VisionModelConfig::Segmenter(MdeqSegmenterConfig::cityscapes_xl()),
            train_transform: scale_crop(1024, 768),
            batch: 16,
            pretrain_steps: 40_000,
            ..large
        },
    };
    recipe.eval_transform = Transform::PadToMultiple {
        multiple: recipe.model.side_multiple(),
    };
    recipe
}

/// Scaled by half to twice, then a rectangle.
fn scale_crop(width: usize, height: usize) -> Transform {
    Transform::ScaleCrop {
        width,
        height,
        min_scale: 0.5,
        max_scale: 2.0,
    }
}

/// What training and evaluation do with the pictures of a data set.
fn transforms(data: &ImageSource, multiple: usize) -> (Transform, Transform) {
    let center = |resize, crop| Transform::CenterCrop { resize, crop };
    let pad = Transform::PadToMultiple { multiple };
    match data {
        ImageSource::Shapes | ImageSource::Cifar10(_) => {
            (Transform::PadCrop { size: 32, pad: 4 }, center(32, 32))
        }
        ImageSource::ImageFolder(_) => {
            (Transform::RandomResizedCrop { size: 224 }, center(256, 224))
        }
        ImageSource::ShapesSegmentation => (scale_crop(48, 48), pad),
        // At least half of a picture of 480 by 360 either way: what a pixel is shows in what lies around it.
        ImageSource::Segmentation(_) => {
            let crop = Transform::ScaleCrop {
                width: 256,
                height: 192,
                min_scale: 0.5,
                max_scale: 1.0,
            };
            (crop, pad)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_survive_json() {
        for name in VisionRecipe::PRESETS {
            let data = match name.starts_with("cityscapes") {
                true => ImageSource::ShapesSegmentation,
                false => ImageSource::Shapes,
            };
            let mut recipe = VisionRecipe::preset(name, &data).unwrap();
            assert_eq!(recipe.preset, name);
            recipe.steps_per_epoch = 1000;
            recipe.validate().unwrap();
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<VisionRecipe>(&json).unwrap(), recipe);
        }
        for data in ["shapes-segmentation", "segmentation:x", "imagefolder:x"] {
            let mut recipe = VisionRecipe::preset("mini", &data.parse().unwrap()).unwrap();
            recipe.steps_per_epoch = 1000;
            recipe.validate().unwrap();
        }
        for (name, data) in [
            ("cifar10-tiny", ImageSource::ShapesSegmentation),
            ("cityscapes-xl", ImageSource::Shapes),
        ] {
            let wrong = VisionRecipe::preset(name, &data).unwrap_err();
            assert!(matches!(wrong, TrainError::PresetForOtherTask { .. }));
        }
        let message = VisionRecipe::preset("huge", &ImageSource::Shapes).unwrap_err();
        assert!(message.to_string().contains("imagenet-small-jr"));
    }

    /// Table 4 of Bai et al. 2021 and the files differ; these are the files'.
    #[test]
    fn the_penalty_is_that_of_the_files() {
        let of = |name: &str, data: &ImageSource| {
            let recipe = VisionRecipe::preset(name, data).unwrap();
            let penalty = recipe.penalty.map(|p| (p.weight, p.frequency));
            (penalty, recipe.deq.stop.max_steps, recipe.deq.budget_jitter)
        };
        let shapes = &ImageSource::Shapes;
        assert_eq!(of("cifar10-large", shapes), (None, 18, 0));
        assert_eq!(of("cifar10-large-jr", shapes), (Some((0.4, 0.02)), 8, 2));
        assert_eq!(of("imagenet-small-jr", shapes), (Some((2.5, 0.08)), 14, 2));
        assert_eq!(of("imagenet-large-jr", shapes), (Some((3.0, 0.08)), 14, 2));
        assert_eq!(of("imagenet-xl", shapes), (None, 26, 0));
        assert_eq!(of("imagenet-xl-jr", shapes), (Some((3.0, 0.08)), 14, 2));
        let weight_at = |name: &str, step| {
            let penalty = VisionRecipe::preset(name, shapes).unwrap().penalty.unwrap();
            penalty.build().unwrap().weight_at(step)
        };
        // Increments are counted from the end of the pre-training.
        assert!((weight_at("imagenet-small-jr", 559_999) - 2.5).abs() < 1e-12);
        assert!((weight_at("imagenet-small-jr", 560_000) - 2.6).abs() < 1e-12);
        assert!((weight_at("cifar10-large-jr", 46_799) - 0.4).abs() < 1e-12);
        assert!(weight_at("cifar10-large-jr", 46_800) <= 0.0);
        let pixels = &ImageSource::ShapesSegmentation;
        assert_eq!(of("cityscapes-large", pixels), (None, 27, 0));
    }
}
