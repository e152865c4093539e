//! Everything that determines a run, as data.

use super::model::VisionModelConfig;
use super::run::{VisionOptions, train_only};
use crate::budget::{Timed, without_tolerance};
use crate::error::{TrainError, require};
use crate::rounds::warmup_and_cosine;
use crate::run_folder::{Recipe, recipe_from};
use crate::step::validate_penalty;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{ModuleOptimizer, SgdConfig};
use deq_core::DeqConfig;
use deq_data::{ImageSource, Transform, VisionTask};
use deq_jacreg::{JacobianPenaltyConfig, WeightControllerConfig, WeightSchedule};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The most rounds of training for a given time.
const ROUNDS: usize = 10;

/// What moves the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with betas 0.9 and 0.999.
    Adam,
    /// Gradient descent with Nesterov's momentum of 0.9, as in the original's ImageNet configurations.
    Nesterov,
    /// Gradient descent with a plain momentum of 0.9, as in the original's Cityscapes configurations.
    Momentum,
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
    /// A run, or a checkpoint of the original program, whose weights training begins with, all but those of a head that does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
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
    /// The weight of the penalty during these steps, at the last state; 0 for none. Its frequency is that of `penalty`.
    #[serde(default)]
    pub pretrain_penalty: f64,
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
    /// How much a pixel or picture of each class counts in the loss, relative to the others, once the data have been opened: those of the data unless given;
    /// empty if all count the same. The loss is divided by the weights that it adds up, as in PyTorch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_weights: Vec<f32>,
    /// The most held-out pictures, spread over all of them, that the evaluation after a round reads; the final one reads all.
    pub valid_pictures: usize,
    /// The seed of weights, order, augmentation, masks, and penalty draws.
    pub seed: u64,
}

impl VisionRecipe {
    /// A recipe from a JSON file: `config.json` of a run, with any field changed.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`], or [`TrainError::Malformed`] naming the field that is missing or of a wrong type. Values are checked when training starts.
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        recipe_from(crate::files::read_json(path, Self::WHAT)?, path)
    }

    /// Sets the steps of the pre-training, and counts the increments of the penalty from its end if they were counted from there.
    pub fn set_pretrain_steps(&mut self, steps: usize) {
        let schedule = self.penalty.as_mut().map(|penalty| &mut penalty.schedule);
        if let Some(WeightSchedule::Increment(increment)) = schedule
            && increment.after == self.pretrain_steps
        {
            increment.after = steps;
        }
        self.pretrain_steps = steps;
    }

    /// Checks that pictures come out of a transform as the model needs them.
    fn validate_transforms(&self) -> Result<(), TrainError> {
        let multiple = self.model.side_multiple();
        for (field, transform) in [
            ("train_transform", &self.train_transform),
            ("eval_transform", &self.eval_transform),
        ] {
            transform.validate()?;
            let sides = match *transform {
                // As the files are.
                Transform::Whole => [multiple; 2],
                Transform::PadToMultiple { multiple } => [multiple; 2],
                Transform::Resize { width, height } => [width, height],
                Transform::ScaleCrop { width, height, .. } => [width, height],
                Transform::PadCrop { size, .. } => [size; 2],
                Transform::RandomResizedCrop { size } => [size; 2],
                Transform::CenterCrop { crop, .. } => [crop; 2],
            };
            if let Some(side) = sides
                .into_iter()
                .find(|side| !side.is_multiple_of(multiple))
            {
                return Err(TrainError::SideMultiple {
                    field,
                    side,
                    multiple,
                });
            }
        }
        let in_place = matches!(
            self.eval_transform,
            Transform::Whole | Transform::PadToMultiple { .. }
        );
        match (self.model.task(), in_place) {
            (VisionTask::Segmentation, false) => Err(TrainError::MovedPixels),
            _ => Ok(()),
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
            ("valid_pictures", self.valid_pictures),
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
        require(
            self.pretrain_penalty.is_finite() && self.pretrain_penalty >= 0.0,
            "pretrain_penalty",
            self.pretrain_penalty,
            "at least 0",
        )?;
        if let Some(clip) = self.clip {
            require(clip > 0.0, "clip", clip, "above 0")?;
        }
        for weight in &self.class_weights {
            require(
                weight.is_finite() && *weight > 0.0,
                "class_weights",
                f64::from(*weight),
                "above 0",
            )?;
        }
        if self.model.task() != self.data.task() {
            return Err(TrainError::ModelForOtherTask {
                data: self.data.to_string(),
            });
        }
        let (given, classes) = (self.class_weights.len(), self.model.classes());
        if given != 0 && given != classes {
            return Err(TrainError::ClassWeights { given, classes });
        }
        self.model.validate()?;
        self.validate_transforms()?;
        self.deq.build()?;
        let controller = self.controller.as_ref();
        validate_penalty(self.penalty.as_ref(), controller, &self.deq)
    }

    pub(crate) fn schedule(&self) -> Result<ModuleLrScheduler, TrainError> {
        warmup_and_cosine(self.learning_rate, self.warmup_steps, self.steps())
    }

    pub(crate) fn optimizer(&self) -> ModuleOptimizer {
        let decay =
            (self.weight_decay > 0.0).then(|| WeightDecayConfig::new(self.weight_decay as f32));
        match self.optimizer {
            OptimizerKind::Adam => crate::rounds::adam().with_weight_decay(decay).init(),
            OptimizerKind::Nesterov | OptimizerKind::Momentum => {
                let momentum = MomentumConfig {
                    momentum: 0.9,
                    dampening: 0.0,
                    nesterov: self.optimizer == OptimizerKind::Nesterov,
                };
                SgdConfig::new()
                    .with_momentum(Some(momentum))
                    .with_weight_decay(decay)
                    .init()
            }
        }
    }
}

impl Timed for VisionRecipe {
    fn resolve(&mut self) -> Result<(), TrainError> {
        self.open().map(drop)
    }

    fn phases(&self) -> [usize; 2] {
        let solved = self.explicit.is_none() && self.model.is_equilibrium();
        [self.steps(), if solved { self.pretrain_steps } else { 0 }]
    }

    fn trial(&self, steps: usize, unrolled: usize) -> Self {
        let mut trial = self.clone();
        trial.epochs = 1;
        trial.steps_per_epoch = steps;
        (trial.pretrain_steps, trial.warmup_steps) = (unrolled, 0);
        trial.valid_pictures = 1;
        trial.deq = without_tolerance(trial.deq);
        trial
    }

    /// In rounds of equal length, so that a few steps may be left out.
    fn scale_steps(&mut self, steps: usize) {
        let before = self.steps().max(1);
        self.epochs = self.epochs.min(ROUNDS).min(steps.max(1));
        self.steps_per_epoch = (steps / self.epochs).max(1);
        let after = self.steps();
        let share = |part: usize| (part as u128 * after as u128 / before as u128) as usize;
        self.pretrain_steps = share(self.pretrain_steps);
        self.warmup_steps = share(self.warmup_steps);
        let penalty = self.penalty.as_ref();
        self.penalty = penalty.map(|penalty| penalty.with_steps_scaled(before, after));
    }

    fn train_only(&self, run: &Path, device: &str) -> Result<f64, TrainError> {
        let options = VisionOptions {
            plain: true,
            ..VisionOptions::new(device, run.to_owned())
        };
        train_only(self.clone(), &options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_out_of_range_is_named() {
        let mut recipe = VisionRecipe::preset("mini", &ImageSource::ShapesSegmentation).unwrap();
        recipe.steps_per_epoch = 0;
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
        recipe.learning_rate = 0.1;
        recipe.model.set_classes(2);
        recipe.class_weights = vec![1.0, 0.0];
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "class_weights is 0, but must be above 0"
        );
        recipe.train_transform = Transform::PadCrop { size: 36, pad: 4 };
        recipe.class_weights = Vec::new();
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "train_transform makes pictures with a side of 36 pixels, but the model needs multiples of 8"
        );
        recipe.train_transform = Transform::PadCrop { size: 32, pad: 4 };
        recipe.eval_transform = Transform::CenterCrop {
            resize: 48,
            crop: 40,
        };
        assert!(matches!(recipe.validate(), Err(TrainError::MovedPixels)));
        recipe.eval_transform = Transform::Whole;
        recipe.validate().unwrap();
        recipe.class_weights = vec![1.0];
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "1 class weights for 2 classes: give one for each, or none"
        );
    }
}
