//! Everything that determines a run, as data.

use crate::error::{TrainError, require};
use crate::rounds::warmup_and_cosine;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use deq_core::DeqConfig;
use deq_core::solvers::StopConfig;
use deq_data::{Corpus, Level};
use deq_jacreg::{JacobianPenaltyConfig, WeightControllerConfig};
use deq_models::DeqTransformerLmConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// The handbook compiled into `deq-data`.
    Builtin,
    /// A folder or a file, see [`Corpus::open`].
    Path(PathBuf),
}

impl DataSource {
    /// Reads the text.
    ///
    /// # Errors
    ///
    /// [`TrainError::Data`] naming the file and what would be right.
    pub fn open(&self, level: Level) -> Result<Corpus, TrainError> {
        Ok(match self {
            DataSource::Builtin => Corpus::builtin(level)?,
            DataSource::Path(path) => Corpus::open(path, level)?,
        })
    }
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
    /// The names that [`preset`](Self::preset) knows.
    pub const PRESETS: [&str; 2] = ["tiny", "wt2"];

    /// The preset for a demonstration on the built-in text, `tiny`, or for WikiText-2, `wt2`, both for two CPU cores.
    ///
    /// Both follow the original's schedule in small: unrolled pre-training for a tenth of the steps (the scripts' 32,000 of
    /// 300,000) with two applications, then the equilibrium with Anderson forward and backward within the 12 and 13 steps of
    /// the regularised post-norm script, Adam with warm-up and cosine decay, gradients clipped at 0.25.
    ///
    /// # Errors
    ///
    /// [`TrainError::UnknownPreset`] with the names there are.
    pub fn preset(name: &str) -> Result<Self, TrainError> {
        // The vocabulary's size is filled in when the text has been read.
        let unknown_vocab = 1;
        let solve = |steps, tolerance| {
            StopConfig::new()
                .with_max_steps(steps)
                .with_rel_tol(tolerance)
        };
        // The relative tolerances of the original code, forward and backward. Evaluation may take longer, and says how long.
        let deq = DeqConfig::new()
            .with_stop(solve(12, 1e-3))
            .with_eval_stop(Some(solve(30, 1e-3)))
            .with_gradient(deq_core::GradientConfig::Implicit(
                deq_core::ImplicitConfig::new().with_stop(solve(13, 1e-3)),
            ));
        // The frequency of the WikiText-103 row of Bai et al. 2021, Table 4. Its weight of 1.6 costs these small models 0.1
        // nats more than 0.5 does (docs/penalty.md), the weight of the CIFAR-10 row.
        let penalty = JacobianPenaltyConfig::new()
            .with_weight(0.5)
            .with_frequency(0.35);
        let tiny = Self {
            kind: "lm".to_owned(),
            preset: name.to_owned(),
            data: DataSource::Builtin,
            level: Level::Byte,
            vocabulary: None,
            model: DeqTransformerLmConfig::new(unknown_vocab, 96, 4, 384)
                .with_mem_len(64)
                .with_dropout(0.05),
            network: Network::Equilibrium,
            deq,
            penalty: Some(penalty),
            controller: None,
            batch: 16,
            segment: 64,
            steps: 400,
            pretrain_steps: 80,
            pretrain_depth: 2,
            rounds: 8,
            learning_rate: 3e-3,
            warmup_steps: 40,
            clip: 0.25,
            valid_segments: 20,
            seed: 1,
        };
        match name {
            "tiny" => Ok(tiny),
            "wt2" => Ok(Self {
                level: Level::Word,
                model: DeqTransformerLmConfig::new(unknown_vocab, 128, 4, 512)
                    .with_mem_len(64)
                    .with_dropout(0.05)
                    .with_cutoffs(vec![2_000, 10_000]),
                steps: 3000,
                pretrain_steps: 300,
                rounds: 10,
                learning_rate: 2e-3,
                warmup_steps: 200,
                valid_segments: 20,
                ..tiny
            }),
            _ => Err(TrainError::UnknownPreset {
                name: name.to_owned(),
                known: Self::PRESETS.join(", "),
            }),
        }
    }

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

    /// Linear warm-up, then cosine decay to 0.
    pub(crate) fn schedule(&self) -> Result<ModuleLrScheduler, TrainError> {
        warmup_and_cosine(self.learning_rate, self.warmup_steps, self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::RoundTask;

    #[test]
    fn presets_are_valid_and_survive_json() {
        for name in LmRecipe::PRESETS {
            let mut recipe = LmRecipe::preset(name).unwrap();
            recipe.model.vocab_size = 20_000;
            recipe.validate().unwrap();
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<LmRecipe>(&json).unwrap(), recipe);
            assert_eq!(recipe.steps_after(recipe.rounds), recipe.steps);
        }
        assert_eq!(
            LmRecipe::preset("huge").unwrap_err().to_string(),
            "there is no preset \"huge\": choose one of tiny, wt2"
        );
    }

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
