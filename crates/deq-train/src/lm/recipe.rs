//! Everything that determines a run, as data.

use super::run::{TrainOptions, train_only};
use crate::budget::{Timed, without_tolerance};
use crate::error::{TrainError, require};
use crate::rounds::warmup_and_cosine;
use crate::run_folder::RunFolder;
use crate::step::validate_penalty;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use deq_core::DeqConfig;
use deq_data::Level;
use deq_jacreg::{JacobianPenaltyConfig, WeightControllerConfig};
use deq_models::DeqTransformerLmConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// The handbook compiled into `deq-data`.
    Builtin,
    /// A folder or a file, see [`deq_data::CorpusReader`].
    Path(PathBuf),
}

/// What stands between embedding and softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The equilibrium of the cell.
    Equilibrium,
    /// The cell applied a fixed number of times: an explicit network whose layers share their weights.
    WeightTied {
        /// The number of applications.
        depth: usize,
    },
    /// A Transformer-XL: layers with weights of their own, nothing injected.
    Layers {
        /// The number of layers.
        depth: usize,
    },
}

/// A language-model run: data, model, layer, penalty, schedule, seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmRecipe {
    /// What kind of run this is; `lm`.
    pub kind: String,
    /// The preset it started from.
    pub preset: String,
    /// Where the text comes from.
    pub data: DataSource,
    /// What a token is.
    pub level: Level,
    /// The `tokenizer.json` that makes the tokens, at the tokenizer level. Default: the one in the folder of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// The fingerprint of the vocabulary, once the text has been read.
    pub vocabulary: Option<u64>,
    /// The model.
    pub model: DeqTransformerLmConfig,
    /// Equilibrium or explicit network.
    pub network: Network,
    /// The equilibrium layer.
    pub deq: DeqConfig,
    /// The Jacobian penalty, if any.
    pub penalty: Option<JacobianPenaltyConfig>,
    /// Moves the weight of the penalty so that a training solve takes so many steps on average, in the place of its schedule.
    #[serde(default)]
    pub controller: Option<WeightControllerConfig>,
    /// Parallel streams of text.
    pub batch: usize,
    /// Tokens per stream and step.
    pub segment: usize,
    /// Training steps.
    pub steps: usize,
    /// Of these, steps of unrolled pre-training at the beginning.
    pub pretrain_steps: usize,
    /// Applications of the cell in a pre-training step.
    pub pretrain_depth: usize,
    /// Rounds that the steps are divided into; each ends with an evaluation and a checkpoint.
    pub rounds: usize,
    /// The peak learning rate of Adam.
    pub learning_rate: f64,
    /// Steps of linear warm-up before the cosine decay to 0.
    pub warmup_steps: usize,
    /// The largest norm of the whole gradient.
    pub clip: f64,
    /// The most segments of the valid split that the evaluation after a round reads; the final one reads all.
    pub valid_segments: usize,
    /// The seed of weights, masks, and penalty draws.
    pub seed: u64,
}

impl LmRecipe {
    /// Checks every field that its own type does not check.
    ///
    /// # Errors
    ///
    /// [`TrainError::OutOfRange`] naming the field, or the error of the model, the layer or the penalty.
    pub fn validate(&self) -> Result<(), TrainError> {
        for (field, value) in [
            ("batch", self.batch),
            ("segment", self.segment),
            ("steps", self.steps),
            ("rounds", self.rounds),
            ("pretrain_depth", self.pretrain_depth),
            ("valid_segments", self.valid_segments),
        ] {
            require(value >= 1, field, value as f64, "at least 1")?;
        }
        require(
            self.rounds <= self.steps,
            "rounds",
            self.rounds as f64,
            "at most the number of steps",
        )?;
        require(
            self.warmup_steps < self.steps,
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
        require(self.clip > 0.0, "clip", self.clip, "above 0")?;
        if let Network::WeightTied { depth } | Network::Layers { depth } = self.network {
            require(depth >= 1, "depth", depth as f64, "at least 1")?;
        }
        self.model.validate()?;
        self.deq.build()?;
        let controller = self.controller.as_ref();
        validate_penalty(self.penalty.as_ref(), controller, &self.deq)
    }

    /// The recipe of the run in a folder.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotARun`] if there is none, [`TrainError::Malformed`] if it is not that of a language model.
    pub fn of_run(run: &Path) -> Result<Self, TrainError> {
        RunFolder::new(run.to_owned()).read()
    }

    /// Allows a solve in evaluation so many steps, if a number is given.
    pub(crate) fn limit_eval_steps(&mut self, max_steps: Option<usize>) {
        if let Some(max_steps) = max_steps {
            let stop = self.deq.eval_stop.as_ref().unwrap_or(&self.deq.stop);
            self.deq.eval_stop = Some(stop.clone().with_max_steps(max_steps));
        }
    }

    /// Linear warm-up, then cosine decay to 0.
    pub(crate) fn schedule(&self) -> Result<ModuleLrScheduler, TrainError> {
        warmup_and_cosine(self.learning_rate, self.warmup_steps, self.steps)
    }
}

impl Timed for LmRecipe {
    fn resolve(&mut self) -> Result<(), TrainError> {
        Ok(())
    }

    fn phases(&self) -> [usize; 2] {
        [self.steps, self.pretrain_steps]
    }

    fn trial(&self, steps: usize, unrolled: usize) -> Self {
        let mut trial = self.clone();
        trial.scale_steps(steps);
        trial.pretrain_steps = unrolled;
        (trial.rounds, trial.valid_segments) = (1, 1);
        trial.deq = without_tolerance(trial.deq);
        trial
    }

    fn scale_steps(&mut self, steps: usize) {
        let share =
            |part: usize| (part as u128 * steps as u128 / self.steps.max(1) as u128) as usize;
        self.pretrain_steps = share(self.pretrain_steps);
        self.warmup_steps = share(self.warmup_steps);
        let penalty = self.penalty.as_ref();
        self.penalty = penalty.map(|penalty| penalty.with_steps_scaled(self.steps, steps));
        self.rounds = self.rounds.min(steps.max(1));
        self.steps = steps;
    }

    fn train_only(&self, run: &Path, device: &str) -> Result<f64, TrainError> {
        let options = TrainOptions {
            plain: true,
            ..TrainOptions::new(device, run.to_owned())
        };
        train_only(self.clone(), &options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_out_of_range_is_named() {
        let mut recipe = LmRecipe::preset("tiny").unwrap();
        recipe.model.vocab_size = 256;
        recipe.learning_rate = 2.0;
        assert_eq!(
            recipe.validate().unwrap_err().to_string(),
            "learning_rate is 2, but must be above 0 and at most 1"
        );
    }

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let mut recipe = LmRecipe::preset("tiny").unwrap();
        (recipe.steps, recipe.warmup_steps, recipe.learning_rate) = (100, 10, 0.01);
        let mut schedule = recipe.schedule().unwrap();
        let rates: Vec<f64> = (0..100).map(|_| schedule.step().base()).collect();
        assert!((rates[0] - 1e-4).abs() < 1e-12);
        assert!((rates[10] - 0.01).abs() < 1e-12);
        assert!(rates[..10].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!(rates[99] < 1e-5);
    }
}
