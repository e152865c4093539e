//! Everything that determines a run, as data.

use super::model::VisionModelConfig;
use crate::error::{TrainError, require};
use crate::rounds::warmup_and_cosine;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{ModuleOptimizer, SgdConfig};
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{DeqConfig, GradientConfig, ImplicitConfig};
use deq_data::{ImageSource, Transform, VisionTask};
use deq_jacreg::{JacobianPenaltyConfig, WeightControllerConfig};
use deq_models::{MdeqClassifierConfig, MdeqSegmenterConfig};
use serde::{Deserialize, Serialize};

/// What moves the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with betas 0.9 and 0.999.
    Adam,
    /// Gradient descent with Nesterov momentum of 0.9, as in the original's ImageNet configurations.
    Sgd,
}

/// A run on pictures: data, model, layer, penalty, schedule, seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionRecipe {
    /// What kind of run this is; `vision`.
    pub kind: String,
    /// The preset it started from.
    pub preset: String,
    /// Where the pictures come from.
    pub data: ImageSource,
    /// The names of the classes, once the data have been opened.
    pub classes: Vec<String>,
    /// What happens to training pictures.
    pub train_transform: Transform,
    /// What happens to held-out pictures.
    pub eval_transform: Transform,
    /// The model.
    pub model: VisionModelConfig,
    /// The equilibrium layer.
    pub deq: DeqConfig,
    /// Applications of the cell in the place of the equilibrium, for an explicit weight-tied network.
    pub explicit: Option<usize>,
    /// The Jacobian penalty, if any.
    pub penalty: Option<JacobianPenaltyConfig>,
    /// Moves the weight of the penalty so that a training solve takes so many steps on average, in the place of its schedule.
    pub controller: Option<WeightControllerConfig>,
    /// Pictures in a training batch.
    pub batch: usize,
    /// Rounds; each ends with an evaluation and a checkpoint.
    pub epochs: usize,
    /// Steps of a round, once the data have been opened; before, 0 for a pass over the training pictures.
    pub steps_per_epoch: usize,
    /// The first steps, which unroll the cell instead of solving.
    pub pretrain_steps: usize,
    /// Applications of the cell in a pre-training step.
    pub pretrain_depth: usize,
    /// What moves the weights.
    pub optimizer: OptimizerKind,
    /// Weight decay, added to the gradient as in the original.
    pub weight_decay: f64,
    /// The peak learning rate; it decays to 0 by a cosine.
    pub learning_rate: f64,
    /// Steps of linear warm-up before that.
    pub warmup_steps: usize,
    /// The largest norm of the whole gradient, if it is bounded.
    pub clip: Option<f64>,
    /// The seed of weights, order, augmentation, masks, and penalty draws.
    pub seed: u64,
}

/// The budget and the tolerances of a preset.
struct Solves {
    forward: usize,
    backward: usize,
    jitter: usize,
}

impl Solves {
    /// Broyden's method both ways, as in the original's vision configurations, with relative tolerances of 1e-3.
    fn layer(&self) -> DeqConfig {
        let stop = |steps| StopConfig::new().with_max_steps(steps).with_rel_tol(1e-3);
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
    pub const PRESETS: [&str; 4] = ["mini", "cifar10-tiny", "cifar10-large", "cifar10-large-jr"];

    /// A preset for the data set at hand. `mini` fits every data set and two CPU cores; the others are those of the original.
    ///
    /// # Errors
    ///
    /// [`TrainError::UnknownPreset`] with the names there are, [`TrainError::PresetForOtherTask`] for a classifier where pixels are to be classified.
    pub fn preset(name: &str, data: &ImageSource) -> Result<Self, TrainError> {
        let task = data.task();
        let mini = Self::mini(data);
        let recipe = match name {
            "mini" => mini,
            // Of `cls_mdeq_TINY.yaml`: 50 epochs of batches of 128 without augmentation, Adam with 1e-3 and a decay of 2.5e-6, 18 steps forward
            // and 20 backward, 3,000 steps of pre-training.
            "cifar10-tiny" => Self {
                model: VisionModelConfig::Classifier(MdeqClassifierConfig::cifar10_tiny()),
                deq: Solves {
                    forward: 18,
                    backward: 20,
                    jitter: 0,
                }
                .layer(),
                penalty: None,
                batch: 128,
                epochs: 50,
                steps_per_epoch: 0,
                pretrain_steps: 3000,
                pretrain_depth: 10,
                weight_decay: 2.5e-6,
                train_transform: mini.eval_transform.clone(),
                learning_rate: 1e-3,
                ..mini
            },
            // Of `cls_mdeq_LARGE.yaml`.
            "cifar10-large" => Self {
                model: VisionModelConfig::Classifier(MdeqClassifierConfig::cifar10_large()),
                deq: Solves {
                    forward: 18,
                    backward: 20,
                    jitter: 0,
                }
                .layer(),
                penalty: None,
                batch: 128,
                epochs: 220,
                steps_per_epoch: 0,
                pretrain_steps: 20_000,
                pretrain_depth: 10,
                learning_rate: 1e-3,
                ..mini
            },
            // Of `cls_mdeq_LARGE_reg.yaml`.
            "cifar10-large-jr" => Self {
                model: VisionModelConfig::Classifier(MdeqClassifierConfig::cifar10_large_jr()),
                deq: Solves {
                    forward: 8,
                    backward: 7,
                    jitter: 2,
                }
                .layer(),
                penalty: Some(
                    JacobianPenaltyConfig::new()
                        .with_weight(0.4)
                        .with_frequency(0.02),
                ),
                batch: 96,
                epochs: 220,
                steps_per_epoch: 0,
                pretrain_steps: 16_000,
                pretrain_depth: 8,
                learning_rate: 1e-3,
                ..mini
            },
            _ => {
                return Err(TrainError::UnknownPreset {
                    name: name.to_owned(),
                    known: Self::PRESETS.join(", "),
                });
            }
        };
        if recipe.model.task() != task {
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

    /// Small enough for two cores: the schedule of the original in little, its first steps pre-trained by three unrolled applications.
    fn mini(data: &ImageSource) -> Self {
        // Filled in when the data have been opened.
        let classes = 2;
        let model = match data.task() {
            VisionTask::Classification => {
                VisionModelConfig::Classifier(MdeqClassifierConfig::mini(classes))
            }
            VisionTask::Segmentation => {
                VisionModelConfig::Segmenter(MdeqSegmenterConfig::mini(classes))
            }
        };
        let (train_transform, eval_transform) = transforms(data, model.side_multiple());
        Self {
            kind: "vision".to_owned(),
            preset: "mini".to_owned(),
            data: data.clone(),
            classes: Vec::new(),
            train_transform,
            eval_transform,
            model,
            // About the budgets of the row for CIFAR-10 in Bai et al. 2021, Table 4, 7 and 8; evaluation may take longer, and says how long.
            deq: Solves {
                forward: 8,
                backward: 8,
                jitter: 0,
            }
            .layer()
            .with_eval_stop(Some(
                StopConfig::new().with_max_steps(20).with_rel_tol(1e-3),
            )),
            explicit: None,
            // Weight and frequency of the same row.
            penalty: Some(
                JacobianPenaltyConfig::new()
                    .with_weight(0.5)
                    .with_frequency(0.05),
            ),
            controller: None,
            batch: 32,
            epochs: 4,
            // Shapes are learnt in less than a pass over all that there are.
            steps_per_epoch: match data {
                ImageSource::Shapes => 175,
                _ => 0,
            },
            // Much longer, and the cell has learnt to use its third application as the last one: solves that follow do not converge any more.
            pretrain_steps: 30,
            pretrain_depth: 3,
            optimizer: OptimizerKind::Adam,
            weight_decay: 0.0,
            // Five times the paper's, for a model and a run that are smaller by far.
            learning_rate: 5e-3,
            warmup_steps: 0,
            clip: None,
            seed: 1,
        }
    }

    /// All training steps. 0 before the data have been opened, unless the steps of a round are given.
    pub fn steps(&self) -> usize {
        self.epochs * self.steps_per_epoch
    }

    /// Checks every field that its own type does not check.
    ///
    /// # Errors
    ///
    /// [`TrainError::OutOfRange`] naming the field, or the error of the model, the layer or the penalty.
    pub fn validate(&self) -> Result<(), TrainError> {
        for (field, value) in [
            ("batch", self.batch),
            ("epochs", self.epochs),
            ("steps_per_epoch", self.steps_per_epoch),
            ("pretrain_depth", self.pretrain_depth),
            ("explicit", self.explicit.unwrap_or(1)),
        ] {
            require(value >= 1, field, value as f64, "at least 1")?;
        }
        require(
            self.warmup_steps < self.steps(),
            "warmup_steps",
            self.warmup_steps as f64,
            "below the number of steps",
        )?;
        require(
            self.learning_rate > 0.0 && self.learning_rate <= 1.0,
            "learning_rate",
            self.learning_rate,
            "above 0 and at most 1",
        )?;
        require(
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "weight_decay",
            self.weight_decay,
            "at least 0",
        )?;
        if let Some(clip) = self.clip {
            require(clip > 0.0, "clip", clip, "above 0")?;
        }
        self.train_transform.validate()?;
        self.eval_transform.validate()?;
        self.deq.build()?;
        if let Some(penalty) = &self.penalty {
            penalty.validate()?;
        }
        if let Some(controller) = &self.controller {
            controller.build()?;
            if self.penalty.is_none() {
                return Err(TrainError::ControllerWithoutPenalty);
            }
        }
        Ok(())
    }

    pub(crate) fn schedule(&self) -> Result<ModuleLrScheduler, TrainError> {
        warmup_and_cosine(self.learning_rate, self.warmup_steps, self.steps())
    }

    pub(crate) fn optimizer(&self) -> ModuleOptimizer {
        let decay =
            (self.weight_decay > 0.0).then(|| WeightDecayConfig::new(self.weight_decay as f32));
        match self.optimizer {
            OptimizerKind::Adam => crate::rounds::adam().with_weight_decay(decay).init(),
            OptimizerKind::Sgd => {
                let momentum = MomentumConfig {
                    momentum: 0.9,
                    dampening: 0.0,
                    nesterov: true,
                };
                SgdConfig::new()
                    .with_momentum(Some(momentum))
                    .with_weight_decay(decay)
                    .init()
            }
        }
    }
}

/// What training and evaluation do with the pictures of a data set.
fn transforms(data: &ImageSource, multiple: usize) -> (Transform, Transform) {
    let center = |resize, crop| Transform::CenterCrop { resize, crop };
    let scaled = |width, height| Transform::ScaleCrop {
        width,
        height,
        min_scale: 0.5,
        max_scale: 2.0,
    };
    match data {
        ImageSource::Shapes | ImageSource::Cifar10(_) => {
            (Transform::PadCrop { size: 32, pad: 4 }, center(32, 32))
        }
        ImageSource::ImageFolder(_) => {
            (Transform::RandomResizedCrop { size: 224 }, center(256, 224))
        }
        ImageSource::ShapesSegmentation => (scaled(48, 48), Transform::PadToMultiple { multiple }),
        ImageSource::Segmentation(_) => (scaled(256, 192), Transform::PadToMultiple { multiple }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_survive_json() {
        for name in VisionRecipe::PRESETS {
            let mut recipe = VisionRecipe::preset(name, &ImageSource::Shapes).unwrap();
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
        let wrong = VisionRecipe::preset("cifar10-tiny", &ImageSource::ShapesSegmentation);
        assert!(matches!(
            wrong.unwrap_err(),
            TrainError::PresetForOtherTask { .. }
        ));
        assert!(VisionRecipe::preset("huge", &ImageSource::Shapes).is_err());
    }

    #[test]
    fn a_field_out_of_range_is_named() {
        let mut recipe = VisionRecipe::preset("mini", &ImageSource::ShapesSegmentation).unwrap();
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "steps_per_epoch is 0, but must be at least 1"
        );
        recipe.steps_per_epoch = 10;
        recipe.learning_rate = f64::NAN;
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "learning_rate is NaN, but must be above 0 and at most 1"
        );
    }
}
