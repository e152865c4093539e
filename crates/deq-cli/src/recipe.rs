//! What a command line says of a recipe: the same options for every task.

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use deq_data::{ImageSource, Level};
use deq_jacreg::{JacobianPenaltyConfig, WeightControllerConfig, WeightSchedule};
use deq_train::tasks::images::{ImagesTask, default_preset, preset_for};
use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{Network, Recipe, RunError, RunFolder, Task, TrainError};
use std::path::{Path, PathBuf};

/// What is trained.
#[derive(Subcommand)]
pub(crate) enum TaskArgs {
    /// A DEQ-Transformer language model.
    Lm(Box<LmArgs>),
    /// A multiscale DEQ that classifies or segments images.
    Mdeq(Box<MdeqArgs>),
}

/// Options of every task.
#[derive(Args)]
pub(crate) struct RecipeArgs {
    /// Recipe to start from, see `deq presets`. Default: one that fits the data.
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Recipe to start from as a file: what `deq config` prints, or config.json of a run.
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    pub(crate) recipe: Option<PathBuf>,
    /// Set a field of the recipe by its path, as in deq.stop.max_steps=20; the last word of all.
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(crate) set: Vec<String>,
    /// Begin with the weights of a run or of a checkpoint file of the original, all but those of a
    /// head that does not fit.
    #[arg(long, value_name = "PATH")]
    pub(crate) init: Option<PathBuf>,
    /// Folder of the run. Default: the first free one of its name in runs, or with --resume the
    /// newest.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) run: Option<PathBuf>,
    /// Go on from the last checkpoint of the run, with its recipe but for the options given; more
    /// --steps than it has made train it further.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Device to train on: flex (the CPU), wgpu, vulkan, metal, cuda or rocm if compiled in, or
    /// auto for the best of them that works here. Several, separated by commas, divide every batch:
    /// cuda:0,cuda:1, cuda:all, or remote:ws://HOST:PORT for a device of `deq worker`.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// File of the token that remote devices ask for.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Training steps; pre-training, warm-up and the schedule of the penalty keep their share.
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Train for about so many minutes, evaluations not counted: the number of steps comes from the
    /// time of a few. With --resume the run keeps the steps that it was started with.
    #[arg(long, allow_negative_numbers = true, conflicts_with = "steps")]
    pub(crate) minutes: Option<f64>,
    /// Rounds that the steps are divided into; each ends with a checkpoint and an evaluation.
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Steps of unrolled pre-training.
    #[arg(long)]
    pub(crate) pretrain: Option<usize>,
    /// Images, or parallel streams of text, in a batch.
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Peak learning rate.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) lr: Option<f64>,
    /// Weight of the Jacobian penalty; 0 turns it off.
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub(crate) penalty: Option<f64>,
    /// Share of the training steps that apply the penalty.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) penalty_frequency: Option<f64>,
    /// Move the weight of the penalty so that a training solve takes so many steps on average; it
    /// begins at --penalty.
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    pub(crate) hold_steps: Option<f64>,
    /// Most steps of a forward solve in training.
    #[arg(long, value_name = "STEPS")]
    pub(crate) solver_steps: Option<usize>,
    /// Type in which equilibria evaluate their layer: f32, bf16 or f16. Solvers, weights, penalty
    /// and pre-training stay in f32, as everything is by default. Relative tolerances below
    /// twice the rounding of the type are raised to that, 8e-3 for bf16 and 1e-3 for f16.
    #[arg(long, value_name = "TYPE")]
    pub(crate) precision: Option<LayerType>,
    /// Train an explicit network instead: this many applications of the same layer.
    #[arg(long, value_name = "LAYERS")]
    pub(crate) tied: Option<usize>,
    /// Train an explicit network instead, with weights of its own in each of so many layers: a
    /// Transformer-XL for text; for images the ResNet of this depth with about as many parameters.
    #[arg(long, value_name = "LAYERS", conflicts_with = "tied")]
    pub(crate) layers: Option<usize>,
    /// Held-out batches that the evaluation after a round reads; the last one reads all.
    #[arg(long, value_name = "BATCHES")]
    pub(crate) valid_batches: Option<usize>,
    /// Seed of weights, order, augmentation, dropout masks and penalty draws.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Threads that make batches of images ahead of time.
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: usize,
    /// Print progress as lines even on a terminal.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Print the summary as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `--precision` names.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LayerType {
    F32,
    Bf16,
    F16,
}

impl LayerType {
    /// As a recipe writes it.
    fn json(self) -> &'static str {
        match self {
            LayerType::F32 => "null",
            LayerType::Bf16 => "bf16",
            LayerType::F16 => "f16",
        }
    }
}

#[derive(Args)]
pub(crate) struct LmArgs {
    /// Folder of text files, with train.txt, valid.txt and test.txt or others, or one text file.
    /// Default: the built-in handbook.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// What a token is: byte, word or tokenizer (the tokenizer.json in the folder of the data).
    /// Default: what suits the data, which for plain text is byte, or the preset's if one is given.
    #[arg(long)]
    level: Option<Level>,
    /// Read the text by this tokenizer.json.
    #[arg(long, value_name = "FILE", conflicts_with = "level")]
    tokenizer: Option<PathBuf>,
    /// Width inside the feed-forward layer.
    #[arg(long, value_name = "WIDTH")]
    inner_width: Option<usize>,
    #[command(flatten)]
    pub(crate) shared: RecipeArgs,
}

#[derive(Args)]
pub(crate) struct MdeqArgs {
    /// Images: shapes, shapes-segmentation (both generated), cifar10:PATH, imagefolder:PATH or
    /// segmentation:PATH. Default: shapes.
    #[arg(long)]
    data: Option<ImageSource>,
    /// Let pixels of all classes count the same in the loss. Default: those of rare classes count
    /// more, as the data set says.
    #[arg(long)]
    equal_classes: bool,
    #[command(flatten)]
    pub(crate) shared: RecipeArgs,
}

impl LmArgs {
    /// The recipe, with so many `steps` if `--steps` is not given, and the folder of its run.
    pub(crate) fn recipe(&self, steps: Option<usize>) -> Result<(Recipe<TextTask>, PathBuf)> {
        let given = self.shared.preset.as_deref();
        // A text by itself says what its tokens are, and they say which model suits it.
        let level = match (&self.data, given, &self.tokenizer) {
            (Some(data), None, None) => Some(Level::default_for(data)?),
            _ => None,
        };
        let level = self.level.or(level);
        let words = self.data.is_some() && level.is_none_or(|level| level != Level::Byte);
        let preset = given.unwrap_or(if words { "wt2" } else { "tiny" });
        let fresh = || {
            let mut recipe = Recipe::<TextTask>::preset(preset)?;
            set(&mut recipe.task.level, level);
            Ok(recipe)
        };
        self.shared.build("lm", (preset, steps), &fresh, &|recipe| {
            let task = &mut recipe.task;
            if let Some(data) = &self.data {
                task.data = DataSource::Path(data.clone());
            }
            set(&mut task.level, self.level);
            if let Some(tokenizer) = &self.tokenizer {
                task.level = Level::Tokenizer;
                task.tokenizer = Some(tokenizer.clone());
            }
            set(&mut task.model.d_inner, self.inner_width);
            Ok(())
        })
    }
}

impl MdeqArgs {
    /// The recipe, with so many `steps` if `--steps` is not given, and the folder of its run.
    pub(crate) fn recipe(&self, steps: Option<usize>) -> Result<(Recipe<ImagesTask>, PathBuf)> {
        let source = self.data.clone().unwrap_or(ImageSource::Shapes);
        let preset = self.shared.preset.as_deref();
        let preset = preset.unwrap_or_else(|| default_preset(&source));
        let fresh = || preset_for(preset, &source);
        self.shared
            .build("mdeq", (preset, steps), &fresh, &|recipe| {
                if let Some(data) = &self.data {
                    recipe.task.data = data.clone();
                }
                if self.equal_classes {
                    recipe.task.class_weights = Some(Vec::new());
                }
                Ok(())
            })
    }
}

impl RecipeArgs {
    /// The recipe to start from with everything that the options say otherwise, and the folder of
    /// its run. `own` applies the options of the task.
    fn build<T: Task>(
        &self,
        command: &str,
        (preset, steps): (&str, Option<usize>),
        fresh: &dyn Fn() -> Result<Recipe<T>, TrainError>,
        own: &dyn Fn(&mut Recipe<T>) -> Result<()>,
    ) -> Result<(Recipe<T>, PathBuf)> {
        let given = self.recipe.as_deref().map(Recipe::<T>::from_file);
        let given = given.transpose()?;
        let (preset, network) = match &given {
            Some(recipe) => (recipe.preset.as_str(), recipe.network),
            None => (preset, Network::Equilibrium),
        };
        let name = match self.explicit().unwrap_or(network) {
            Network::WeightTied { depth } => format!("{command}-{preset}-tied-{depth}"),
            Network::Layers { depth } => format!("{command}-{preset}-layers-{depth}"),
            Network::Equilibrium => format!("{command}-{preset}"),
        };
        let run = run_folder(self.run.as_deref(), self.resume, &name)?;
        let mut recipe = match (given, self.resume) {
            (Some(recipe), _) => recipe,
            (None, false) => fresh()?,
            (None, true) if !run.exists() => {
                return Err(RunError::NothingToResume { path: run }.into());
            }
            (None, true) => Recipe::of_run(&run)?,
        };
        if let (Some(preset), true) = (&self.preset, self.resume)
            && *preset != recipe.preset
        {
            bail!(
                "{} was started from the preset {}, not {preset}: leave out --preset",
                run.display(),
                recipe.preset
            );
        }
        own(&mut recipe)?;
        let goes_on = self.resume && RunFolder::new(run.clone()).is_under_way()?;
        self.apply(&mut recipe, steps, goes_on)?;
        Ok((recipe, run))
    }

    /// Applies the options. `goes_on` says that steps have been made by the recipe.
    fn apply<T: Task>(
        &self,
        recipe: &mut Recipe<T>,
        steps: Option<usize>,
        goes_on: bool,
    ) -> Result<()> {
        match (self.steps.or(steps), goes_on) {
            // What is past stays as it was.
            (Some(steps), true) => recipe.steps = steps,
            (Some(steps), false) => recipe.scale_steps(steps),
            (None, _) => {}
        }
        set(&mut recipe.rounds, self.rounds);
        if let Some(steps) = self.pretrain {
            recipe.set_pretrain_steps(steps);
        }
        set(&mut recipe.batch, self.batch);
        set(&mut recipe.learning_rate, self.lr);
        set(&mut recipe.seed, self.seed);
        let evaluated = recipe.deq.stop.max_steps;
        set(&mut recipe.deq.stop.max_steps, self.solver_steps);
        if let Some(precision) = self.precision {
            recipe.set("deq.precision", precision.json())?;
            recipe.raise_tolerances();
        }
        if self.valid_batches.is_some() {
            recipe.valid_batches = self.valid_batches;
        }
        if self.init.is_some() {
            recipe.init.clone_from(&self.init);
        }
        self.network(recipe)?;
        penalty(&mut recipe.penalty, self.penalty, self.penalty_frequency)?;
        if let Some(target) = self.hold_steps {
            let Some(penalty) = &mut recipe.penalty else {
                bail!("--hold-steps needs a penalty: give --penalty a weight above 0");
            };
            penalty.schedule = WeightSchedule::Controlled(match &penalty.schedule {
                WeightSchedule::Controlled(controller) => WeightControllerConfig {
                    target,
                    ..controller.clone()
                },
                _ => WeightControllerConfig::new(target),
            });
        }
        for field in &self.set {
            let Some((path, value)) = field.split_once('=') else {
                bail!("--set {field} has no value: write FIELD=VALUE");
            };
            recipe.set(path, value)?;
        }
        // Evaluation without steps of its own keeps those that training had.
        let is_set = self
            .set
            .iter()
            .any(|field| field.starts_with("deq.eval_stop"));
        if self.solver_steps.is_some() && recipe.deq.eval_stop.is_none() && !is_set {
            let stop = recipe.deq.stop.limited_to(evaluated);
            recipe.deq.eval_stop = Some(stop);
        }
        Ok(())
    }

    /// The explicit network that is asked for.
    fn explicit(&self) -> Option<Network> {
        let tied = self.tied.map(|depth| Network::WeightTied { depth });
        tied.or(self.layers.map(|depth| Network::Layers { depth }))
    }

    /// Makes the network an explicit one, if one is asked for.
    fn network<T: Task>(&self, recipe: &mut Recipe<T>) -> Result<()> {
        let network = self.explicit().unwrap_or(recipe.network);
        if network == Network::Equilibrium {
            return Ok(());
        }
        let of_equilibria = [
            ("--penalty", self.penalty.is_some()),
            ("--penalty-frequency", self.penalty_frequency.is_some()),
            ("--hold-steps", self.hold_steps.is_some()),
            ("--solver-steps", self.solver_steps.is_some()),
            ("--pretrain", self.pretrain.is_some()),
            ("--precision", self.precision.is_some()),
        ];
        if let Some((option, _)) = of_equilibria.iter().find(|(_, given)| *given) {
            bail!("an explicit network has no equilibrium: leave out {option}");
        }
        recipe.make_explicit(network);
        Ok(())
    }
}

/// What `--penalty` and `--penalty-frequency` say of the penalty of a preset.
pub(crate) fn penalty(
    penalty: &mut Option<JacobianPenaltyConfig>,
    weight: Option<f64>,
    frequency: Option<f64>,
) -> Result<()> {
    match weight {
        // Any other number, if it is one at all, is judged with the rest of the recipe.
        Some(0.0) => *penalty = None,
        Some(weight) => {
            let mut config = penalty.take().unwrap_or_default();
            config.weight = weight;
            // A weight that is given stays, unless --hold-steps moves it from there.
            if matches!(config.schedule, WeightSchedule::Controlled(_)) {
                config.schedule = WeightSchedule::Constant;
            }
            *penalty = Some(config);
        }
        None => {}
    }
    match (frequency, penalty) {
        (Some(frequency), Some(penalty)) => penalty.frequency = frequency,
        (Some(_), None) => {
            bail!("--penalty-frequency needs a penalty: give --penalty a weight above 0")
        }
        (None, _) => {}
    }
    Ok(())
}

pub(crate) fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// The folder given, or `runs/NAME`, `runs/NAME-2`, ...: the first free one, or to resume the one
/// that was written last.
fn run_folder(given: Option<&Path>, resume: bool, name: &str) -> Result<PathBuf> {
    if let Some(run) = given {
        return Ok(run.to_owned());
    }
    let runs = Path::new("runs");
    let first = runs.join(name);
    if !resume {
        let mut numbered = (2..).map(|number| runs.join(format!("{name}-{number}")));
        let free = |run: &PathBuf| !run.exists();
        let found = Some(first.clone()).filter(free);
        return Ok(found.or_else(|| numbered.find(free)).unwrap_or(first));
    }
    let is_ours = |run: &PathBuf| {
        let file = run.file_name().and_then(|file| file.to_str());
        let number = file.and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
        *run == first || number.is_some_and(|number| number.parse::<usize>().is_ok())
    };
    let written = |run: &PathBuf| {
        let file = std::fs::metadata(RunFolder::new(run.clone()).metrics());
        file.and_then(|file| file.modified()).ok()
    };
    let there = std::fs::read_dir(runs).into_iter().flatten().flatten();
    let there = there.map(|entry| entry.path()).filter(is_ours);
    let newest = there.filter(|run| run.is_dir()).max_by_key(written);
    newest.ok_or_else(|| RunError::NothingToResume { path: first }.into())
}
