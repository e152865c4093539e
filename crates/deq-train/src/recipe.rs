//! Everything that determines a run, as data.

mod document;

pub(crate) use document::{differences, merge, nearest, to_json};

use crate::checkpoint::Position;
use crate::error::{RecipeError, TrainError, require};
use crate::files;
use crate::presets::Preset;
use crate::run_folder::RunFolder;
use crate::task::{BatchPlan, Task};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::lr_scheduler::LrSchedulerConfig;
use burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::lr_scheduler::sequential::SequentialLrSchedulerConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, ModuleOptimizer, SgdConfig};
use deq_core::{DeqConfig, GradientConfig, ShineConfig};
use deq_jacreg::{JacobianPenaltyConfig, WeightSchedule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// The version of run folders that this crate writes and reads.
pub const FORMAT: u32 = 1;

/// How deep the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The equilibrium of the cell: infinitely deep.
    Equilibrium,
    /// The cell applied a fixed number of times: an explicit network whose layers share weights.
    WeightTied {
        /// The number of applications.
        depth: usize,
    },
    /// An explicit network whose layers have weights of their own: a Transformer-XL of this many
    /// layers for text, a ResNet of this depth for images.
    Layers {
        /// The number of layers.
        depth: usize,
    },
}

impl Network {
    /// Its number of layers; `None` for an equilibrium.
    pub fn depth(self) -> Option<usize> {
        match self {
            Network::Equilibrium => None,
            Network::WeightTied { depth } | Network::Layers { depth } => Some(depth),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::Equilibrium => write!(f, "equilibrium"),
            Network::WeightTied { depth } => write!(f, "explicit, weight-tied, {depth} layers"),
            Network::Layers { depth } => write!(f, "explicit, {depth} layers of their own"),
        }
    }
}

/// What moves the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam with betas 0.9 and 0.999, as in the original's scripts.
    Adam,
    /// Gradient descent with Nesterov's momentum of 0.9, as in the original's ImageNet
    /// configurations.
    Nesterov,
    /// Gradient descent with a momentum of 0.9, as in the original's Cityscapes configurations.
    Momentum,
}

/// A run: task, network, layer, penalty, schedule, seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "T: Task")]
pub struct Recipe<T: Task> {
    /// The version of the run folder, [`FORMAT`].
    pub format: u32,
    /// The task, [`Task::NAME`].
    pub kind: String,
    /// The preset it started from.
    pub preset: String,
    /// What is learnt, and from which data.
    pub task: T,
    /// Equilibrium or explicit network.
    pub network: Network,
    /// The equilibrium layer. Its [`precision`](DeqConfig::precision) is that of training and
    /// evaluation, and in f32 the parameters, the optimizer, the losses, the penalty, and the
    /// unrolled steps of the pre-training.
    pub deq: DeqConfig,
    /// The Jacobian penalty, if any.
    pub penalty: Option<JacobianPenaltyConfig>,
    /// Samples, or streams of text, in a training batch.
    pub batch: usize,
    /// Training steps.
    pub steps: usize,
    /// Rounds that the steps are divided into; each ends with a checkpoint and an evaluation.
    pub rounds: usize,
    /// The first steps, which unroll the cell instead of solving.
    pub pretrain_steps: usize,
    /// Applications of the cell in such a step.
    pub pretrain_depth: usize,
    /// A run, or a checkpoint of the original program, whose weights training begins with, all but
    /// those of a head that does not fit. Default: fresh weights.
    #[serde(default)]
    pub init: Option<PathBuf>,
    /// What moves the weights.
    pub optimizer: Optimizer,
    /// Weight decay, added to the gradient as in the original.
    pub weight_decay: f64,
    /// The peak learning rate; it decays to 0 by a cosine.
    pub learning_rate: f64,
    /// Steps of linear warm-up before that.
    pub warmup_steps: usize,
    /// The largest norm of the whole gradient, if it is bounded.
    pub clip: Option<f64>,
    /// The most held-out batches that the evaluation after a round reads, spread over all; the
    /// last evaluation reads all. Default: all.
    pub valid_batches: Option<usize>,
    /// The seed of weights, order, augmentation, masks, and penalty draws.
    pub seed: u64,
}

/// Fields of a recipe that determine data, model or draws: a resumed run keeps them.
pub(crate) const FIXED: [&str; 8] = [
    "format",
    "kind",
    "network",
    "batch",
    "init",
    "optimizer",
    "seed",
    "task",
];

impl<T: Task> Recipe<T> {
    /// A recipe for a task with the settings of the paper's WikiText-103 runs in small: Anderson
    /// forward and backward within 12 steps, the penalty at its defaults, Adam with a learning rate
    /// of 1e-3, a tenth of the steps as warm-up and a tenth as pre-training with two applications.
    pub fn new(task: T, batch: usize, steps: usize) -> Self {
        let stop = deq_core::solvers::StopConfig::new()
            .with_max_steps(12)
            .with_rel_tol(1e-3);
        let implicit = deq_core::ImplicitConfig::new().with_stop(stop.clone());
        Self {
            format: FORMAT,
            kind: T::NAME.to_owned(),
            preset: "own".to_owned(),
            task,
            network: Network::Equilibrium,
            deq: DeqConfig::new()
                .with_stop(stop)
                .with_gradient(GradientConfig::Implicit(implicit)),
            penalty: Some(JacobianPenaltyConfig::new()),
            batch,
            steps,
            rounds: 10.min(steps.max(1)),
            pretrain_steps: steps / 10,
            pretrain_depth: 2,
            init: None,
            optimizer: Optimizer::Adam,
            weight_decay: 0.0,
            learning_rate: 1e-3,
            warmup_steps: steps / 10,
            clip: Some(0.25),
            valid_batches: None,
            seed: 1,
        }
    }

    /// A preset by name.
    ///
    /// # Errors
    ///
    /// [`RecipeError::UnknownPreset`] with the names there are.
    pub fn preset(name: &str) -> Result<Self, TrainError> {
        let value = Preset::resolve(T::presets(), name)?;
        let mut recipe: Self = document::parse(&value, Path::new(name))?;
        name.clone_into(&mut recipe.preset);
        Ok(recipe)
    }

    /// A recipe from a JSON file: `config.json` of a run, with any field changed.
    ///
    /// # Errors
    ///
    /// [`TrainError`] naming the file, and the field that is missing, unknown or of a wrong type.
    /// Values are checked when training starts.
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        document::parse(&files::read_json(path, "recipe")?, path)
    }

    /// The recipe of the run in a folder.
    ///
    /// # Errors
    ///
    /// [`RunError`](crate::RunError) if there is none, or it is not of this task.
    pub fn of_run(run: &Path) -> Result<Self, TrainError> {
        let folder = RunFolder::new(run.to_owned());
        document::parse(&folder.json()?, &folder.config())
    }

    /// Sets one field by its path in JSON, such as `deq.stop.max_steps`, to a JSON value; text that
    /// is not JSON counts as a string.
    ///
    /// # Errors
    ///
    /// [`RecipeError::UnknownField`] with the nearest name, or [`RecipeError::WrongValue`].
    pub fn set(&mut self, path: &str, value: &str) -> Result<(), TrainError> {
        *self = document::set(self, path, value)?;
        Ok(())
    }

    /// The first training steps made by the end of round `round`, counted from 1.
    pub fn steps_after(&self, round: usize) -> usize {
        (self.steps as u128 * round as u128 / self.rounds.max(1) as u128) as usize
    }

    /// The rounds completed by step `step`.
    pub(crate) fn rounds_before(&self, step: usize) -> usize {
        (0..=self.rounds)
            .rev()
            .find(|&round| self.steps_after(round) <= step)
            .unwrap_or(0)
    }

    /// The round to go on with: the next one, or one that has made its steps but was not evaluated.
    pub(crate) fn round_at(&self, position: &Position) -> usize {
        let done = self.rounds_before(position.step);
        let ended = done > 0 && self.steps_after(done) == position.step;
        match ended && !position.evaluated {
            true => done,
            false => done + 1,
        }
    }

    /// How its batches are made.
    pub(crate) fn batch_plan(&self, workers: usize) -> BatchPlan {
        BatchPlan {
            batch: self.batch,
            seed: self.seed,
            workers,
        }
    }

    /// Training steps, and how many of them are unrolled although the network is an equilibrium.
    pub fn phases(&self) -> [usize; 2] {
        let unrolled = match self.network {
            Network::Equilibrium => self.pretrain_steps.min(self.steps),
            _ => 0,
        };
        [self.steps, unrolled]
    }

    /// The phase of a step, counted from 0, as the penalty knows it; `None` for an explicit
    /// network, which has no penalty.
    pub(crate) fn penalty_phase(&self, step: usize) -> Option<deq_jacreg::Phase> {
        let solved = self.network == Network::Equilibrium;
        solved.then_some(match step < self.pretrain_steps {
            true => deq_jacreg::Phase::Pretraining,
            false => deq_jacreg::Phase::Equilibrium,
        })
    }

    /// Sets the steps of the pre-training, and counts the increments of the penalty from its end if
    /// they were counted from there.
    pub fn set_pretrain_steps(&mut self, steps: usize) {
        let schedule = self.penalty.as_mut().map(|penalty| &mut penalty.schedule);
        if let Some(WeightSchedule::Increment(increment)) = schedule
            && increment.after == self.pretrain_steps
        {
            increment.after = steps;
        }
        self.pretrain_steps = steps;
    }

    /// Makes the network an explicit one, without what only equilibria have: the penalty, unrolled
    /// pre-training, and a type of their own.
    pub fn make_explicit(&mut self, network: Network) {
        self.network = network;
        self.penalty = None;
        self.pretrain_steps = 0;
        self.deq.precision = None;
    }

    /// Trains for about `steps` steps; pre-training, warm-up and the schedule of the penalty keep
    /// their share.
    pub fn scale_steps(&mut self, steps: usize) {
        let before = self.steps.max(1);
        let share = |part: usize| (part as u128 * steps as u128 / before as u128) as usize;
        self.pretrain_steps = share(self.pretrain_steps);
        self.warmup_steps = share(self.warmup_steps);
        let penalty = self.penalty.as_ref();
        self.penalty = penalty.map(|penalty| penalty.with_steps_scaled(before, steps));
        self.rounds = self.rounds.min(steps.max(1));
        self.steps = steps;
    }

    /// Allows a solve in evaluation at most `max_steps` steps, if a number is given.
    pub fn limit_eval_steps(&mut self, max_steps: Option<usize>) {
        if let Some(max_steps) = max_steps {
            let stop = self.deq.eval_stop.as_ref().unwrap_or(&self.deq.stop);
            self.deq.eval_stop = Some(stop.limited_to(max_steps));
        }
    }

    /// Raises the relative tolerances of solves, forward and backward, to twice the rounding of
    /// [`DeqConfig::precision`] where they are below that. Residuals of maps in bf16 were seen to
    /// stop falling at a third to the whole of the rounding, the later in training the higher.
    pub fn raise_tolerances(&mut self) {
        let Some(precision) = self.deq.precision else {
            return;
        };
        let deq = &mut self.deq;
        let backward = match &mut deq.gradient {
            GradientConfig::Implicit(config)
            | GradientConfig::Shine(ShineConfig {
                refine: Some(config),
                ..
            }) => Some(&mut config.stop),
            _ => None,
        };
        let stops = [Some(&mut deq.stop), deq.eval_stop.as_mut(), backward];
        for stop in stops.into_iter().flatten() {
            // 0 leaves it to the absolute tolerance.
            if stop.rel_tol > 0.0 {
                stop.rel_tol = stop.rel_tol.max(2.0 * precision.rounding());
            }
        }
    }

    /// Checks every field that its own type does not check.
    ///
    /// # Errors
    ///
    /// [`RecipeError::OutOfRange`] naming the field, [`RecipeError::PrecisionOfExplicit`], or the
    /// error of the task, the layer or the penalty.
    pub fn validate(&self) -> Result<(), TrainError> {
        let (million, depth) = ((1_000_000, "at most 1,000,000"), (1_000, "at most 1,000"));
        let layers = self.network.depth().unwrap_or(1);
        let valid_batches = self.valid_batches.unwrap_or(1);
        for (field, value, (most, limit)) in [
            ("batch", self.batch, million),
            ("steps", self.steps, (999_999_999_999, "below 10^12")),
            ("rounds", self.rounds, million),
            ("pretrain_depth", self.pretrain_depth, depth),
            ("valid_batches", valid_batches, (usize::MAX, "")),
            ("network.depth", layers, depth),
        ] {
            require(value >= 1, field, value as f64, "at least 1")?;
            require(value <= most, field, value as f64, limit)?;
        }
        let (steps, rounds) = (self.steps as f64, self.rounds as f64);
        let limit = "at most the number of steps";
        require(rounds <= steps, "rounds", rounds, limit)?;
        let (warmup, limit) = (self.warmup_steps as f64, "below the number of steps");
        require(warmup < steps, "warmup_steps", warmup, limit)?;
        let (rate, range) = (self.learning_rate, "above 0 and at most 1");
        require(rate > 0.0 && rate <= 1.0, "learning_rate", rate, range)?;
        let (decay, range) = (self.weight_decay, "a finite number of at least 0");
        let valid = decay.is_finite() && decay >= 0.0;
        require(valid, "weight_decay", decay, range)?;
        let (clip, range) = (self.clip.unwrap_or(1.0), "a finite number above 0");
        let valid = clip.is_finite() && clip > 0.0;
        require(valid, "clip", clip, range)?;
        to_json(self)?;
        self.task.validate()?;
        self.deq.build()?;
        if let (Some(precision), true) = (self.deq.precision, self.network.depth().is_some()) {
            let precision = precision.name();
            return Err(RecipeError::PrecisionOfExplicit { precision }.into());
        }
        if let Some(penalty) = &self.penalty {
            penalty.validate_for(self.deq.longest_solve())?;
        }
        Ok(())
    }

    /// Linear warm-up from a hundredth of the peak, then cosine decay to 0, after `step` steps.
    pub(crate) fn schedule(&self, step: usize) -> Result<ModuleLrScheduler, TrainError> {
        let (peak, warmup) = (self.learning_rate, self.warmup_steps);
        let decay = CosineAnnealingLrSchedulerConfig::new(peak, self.steps - warmup);
        let schedule = match warmup {
            0 => decay.init(),
            _ => {
                let rise = LinearLrSchedulerConfig::new(0.01 * peak, peak, warmup);
                let (rise, decay) = (
                    LrSchedulerConfig::Linear(rise),
                    LrSchedulerConfig::Cosine(decay),
                );
                SequentialLrSchedulerConfig::new(vec![rise, decay], vec![warmup]).init()
            }
        };
        let mut schedule = schedule.map_err(|reason| RecipeError::Schedule { reason })?;
        (0..step).for_each(|_| drop(schedule.step()));
        Ok(schedule)
    }

    pub(crate) fn optimizer(&self) -> ModuleOptimizer {
        let decay =
            (self.weight_decay > 0.0).then(|| WeightDecayConfig::new(self.weight_decay as f32));
        match self.optimizer {
            // The epsilon of PyTorch, which the original trains with.
            Optimizer::Adam => AdamConfig::new()
                .with_beta_2(0.999)
                .with_epsilon(1e-8)
                .with_weight_decay(decay)
                .init(),
            Optimizer::Nesterov | Optimizer::Momentum => {
                let momentum = MomentumConfig {
                    momentum: 0.9,
                    dampening: 0.0,
                    nesterov: self.optimizer == Optimizer::Nesterov,
                };
                SgdConfig::new()
                    .with_momentum(Some(momentum))
                    .with_weight_decay(decay)
                    .init()
            }
        }
    }
}
