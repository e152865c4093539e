//! Training, resuming, evaluating.

use crate::checkpoint::{CheckpointStore, MEMORY, Position};
use crate::device::device;
use crate::devices::Devices;
use crate::error::{RunError, Stopped, TrainError, require};
use crate::evaluate::{EvalPlan, evaluate as pass};
use crate::events::EventFile;
use crate::exchange::with_weights_of;
use crate::files;
use crate::parallel::Team;
use crate::recipe::{Network, Recipe};
use crate::records::{EvalRecord, Record, RunLog, read_records};
use crate::report::{totals, write_report};
use crate::rounds::{RoundStrategy, StrategyState, launch};
use crate::run_folder::{RunFolder, load_model, load_optimizer};
use crate::step::{Learner, LearnerOf};
use crate::task::{BatchOf, Batches, Memory, MemoryOf, Opening, Reading, Split, Task};
use burn::module::Module;
use burn::tensor::Device;
use deq_core::Depth;
use deq_models::require_memory;
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// Whether a training begins or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// In a folder that holds no run.
    New,
    /// From the newest checkpoint of the run in the folder. The recipe may differ from the run's in
    /// what changes neither data nor model nor draws: learning rate, penalty, budgets, steps, and
    /// where the same data lie. What differs is logged.
    Resume,
    /// [`New`](Self::New) in a folder that holds no run, otherwise from the newest checkpoint of a
    /// run with the very same recipe, but for where its data lie.
    NewOrSame,
}

/// Called with progress, as a sentence.
pub type OnProgress = Arc<dyn Fn(&str) + Send + Sync>;

/// Where and how to train.
#[derive(Clone)]
pub struct TrainOptions {
    /// The devices, one or several that divide every batch. A run goes on with other ones.
    pub devices: Devices,
    /// The folder of the run.
    pub run: PathBuf,
    /// Whether to begin or to go on.
    pub start: Start,
    /// Print progress as lines even on a terminal.
    pub plain: bool,
    /// Threads that make training batches ahead of time, where a task uses them. Default 1, which
    /// makes small images faster than two cores train on them.
    pub workers: usize,
    /// The training step after which to stop as if interrupted, with a checkpoint; for budgets of
    /// time on shared machines. Default: none.
    pub stop_after: Option<usize>,
    /// Interrupts training when it is set, with a checkpoint. Default: nothing does.
    pub stop: Option<Arc<AtomicBool>>,
    /// Called with progress while large data are read, and with what a resumed run changes; ignored
    /// by default.
    pub progress: Option<OnProgress>,
}

impl TrainOptions {
    /// A new run in `run`, with a dashboard if standard output is a terminal.
    pub fn new(devices: impl Into<Devices>, run: PathBuf) -> Self {
        Self {
            devices: devices.into(),
            run,
            start: Start::New,
            plain: false,
            workers: 1,
            stop_after: None,
            stop: None,
            progress: None,
        }
    }
}

impl std::fmt::Debug for TrainOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainOptions")
            .field("devices", &self.devices)
            .field("run", &self.run)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// The devices, one or several that divide every batch.
    pub devices: Devices,
    /// The split. Default: valid.
    pub split: Split,
    /// The most steps of a solve. Default: the recipe's.
    pub max_steps: Option<usize>,
    /// Whether to estimate the spectral radius and to trace a long solve too. Default: yes.
    pub probe: bool,
}

impl EvalOptions {
    /// The valid split as the recipe says, with everything measured.
    pub fn new(devices: impl Into<Devices>) -> Self {
        Self {
            devices: devices.into(),
            split: Split::Valid,
            max_steps: None,
            probe: true,
        }
    }
}

/// What a run achieved.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The folder of the run.
    pub run: PathBuf,
    /// The task.
    pub kind: String,
    /// The evaluation on held-out data.
    pub eval: EvalRecord,
    /// Parameters of the model.
    pub parameters: usize,
    /// Training time in seconds with the evaluations after the rounds, over all sessions.
    pub training_seconds: f64,
    /// What else the task has to say, by name.
    pub facts: Vec<(String, String)>,
    /// Files of the data that could not be used, with the reason.
    pub left_out: Vec<(PathBuf, String)>,
}

/// A trained model with its recipe, in evaluation mode.
pub struct Trained<T: Task> {
    /// The recipe.
    pub recipe: Recipe<T>,
    /// The model.
    pub model: T::Model,
    /// The folder of the run.
    pub run: PathBuf,
    /// Training steps made.
    pub step: usize,
    /// Training time in seconds with the evaluations after the rounds, over all sessions.
    pub seconds: f64,
    /// The device of the model.
    pub device: Device,
    learner: LearnerOf<T>,
}

impl<T: Task> Trained<T> {
    fn new(
        (recipe, learner): (Recipe<T>, LearnerOf<T>),
        run: &Path,
        position: Position,
        device: Device,
    ) -> Self {
        let learner = learner.valid();
        Self {
            recipe,
            model: learner.model.clone(),
            run: run.to_owned(),
            step: position.step,
            seconds: position.seconds,
            device,
            learner,
        }
    }

    /// The newest checkpoint of a run, with another budget for solves if `max_steps` is given.
    ///
    /// # Errors
    ///
    /// [`RunError`] if there is no run or no checkpoint, it is damaged or of another task, or
    /// `max_steps` is given for an explicit network.
    pub fn open(run: &Path, device: &str, max_steps: Option<usize>) -> Result<Self, TrainError> {
        Self::open_as(limited(run, max_steps)?, run, &self::device(device)?)
    }

    /// The newest checkpoint of a run, used as another recipe says.
    fn open_as(recipe: Recipe<T>, run: &Path, device: &Device) -> Result<Self, TrainError> {
        recipe.validate()?;
        let newest = RunFolder::new(run.to_owned()).newest()?;
        let learner = load_model(Learner::fresh(&recipe, device)?, &newest)?;
        let device = device.clone();
        Ok(Self::new((recipe, learner), run, newest.position, device))
    }

    /// How deep the model is in evaluation.
    pub fn depth(&self) -> Depth<'_> {
        let plan = &self.learner.plan;
        plan.depth(None, &plan.deq).1
    }

    /// Reads a batch.
    pub fn read(&self, batch: &BatchOf<T>, memory: &MemoryOf<T>) -> Reading<T::Model> {
        self.learner.read(batch, memory)
    }

    /// Evaluates all of some batches.
    fn measure(
        &self,
        batches: HeldOut<T>,
        (split, probe): (Split, bool),
        team: &Team,
    ) -> Result<EvalRecord, TrainError> {
        let plan = EvalPlan {
            split: split.name(),
            step: self.step,
            probe: probe.then(|| self.recipe.deq.solver.clone()),
            team,
        };
        let (task, learner) = (&self.recipe.task, &self.learner);
        let mut on_item = |_, _| ControlFlow::Continue(());
        let batches = (&*batches, batches.per_pass());
        let record = pass(task, learner, batches, &plan, &mut on_item)?;
        Ok(record.expect("nothing stops the evaluation"))
    }

    fn summary(&self, data: &T::Data, split: Split, eval: EvalRecord) -> Summary {
        Summary {
            run: self.run.clone(),
            kind: T::NAME.to_owned(),
            eval,
            parameters: self.model.num_params(),
            training_seconds: self.seconds,
            facts: self.recipe.task.facts(data, split),
            left_out: self.recipe.task.left_out(data),
        }
    }
}

/// Trains, or goes on training, evaluates the result on the whole valid split, and writes the
/// report.
///
/// The same recipe and seed on the same machine give the same losses, also across interruptions and
/// whatever the number of workers: masks and probes depend on seed and step alone, and a checkpoint
/// holds everything else.
///
/// # Errors
///
/// [`TrainError`] in one sentence that says what to do. Nothing is written before recipe, data and
/// device have been checked.
pub fn train<T: Task>(recipe: Recipe<T>, options: &TrainOptions) -> Result<Summary, TrainError> {
    let options = options.clone();
    Team::open(&options.devices)?.watch(move |team| train_with(recipe, &options, team))
}

fn train_with<T: Task>(
    recipe: Recipe<T>,
    options: &TrainOptions,
    team: &Arc<Team>,
) -> Result<Summary, TrainError> {
    let (trained, data, held_out) = run_rounds(recipe, options, team)?;
    let folder = RunFolder::new(options.run.clone());
    let mut records = read_records(&folder.metrics())?;
    // An evaluation before a change of the recipe may have had other settings.
    let unchanged = |record: &&Record| !matches!(record, Record::Change(_));
    let mut latest = records.iter().rev().take_while(unchanged);
    let logged = latest.find_map(Record::as_eval);
    let last = |eval: &&EvalRecord| eval.step == trained.step;
    let eval = match logged.filter(last).cloned() {
        // The last round ended with an evaluation of everything.
        Some(eval) => eval,
        // Nothing was left to train, and the recipe has changed.
        None => {
            let eval = trained.measure(held_out, (Split::Valid, true), team)?;
            records.push(Record::Eval(eval.clone()));
            eval
        }
    };
    let summary = trained.summary(&data, Split::Valid, eval);
    let gallery = trained.recipe.task.gallery(&trained, &data)?;
    let title = format!("{}: {}", T::NAME, trained.recipe.preset);
    let facts = facts(&trained.recipe, &summary, &records);
    write_report(&folder.report(), (&title, &facts), &records, &gallery)?;
    Ok(summary)
}

/// Trains without the report that follows it, and returns the seconds it took, evaluations
/// included.
///
/// # Errors
///
/// As [`train`].
pub fn train_only<T: Task>(recipe: Recipe<T>, options: &TrainOptions) -> Result<f64, TrainError> {
    let options = options.clone();
    Team::open(&options.devices)?
        .watch(move |team| Ok(run_rounds(recipe, &options, team)?.0.seconds))
}

type HeldOut<T> = Arc<dyn Batches<BatchOf<T>>>;
type Rounds<T> = (Trained<T>, <T as Task>::Data, HeldOut<T>);

/// Makes all steps of training that the run still lacks, and returns the model with the data and
/// batches that measure it.
fn run_rounds<T: Task>(
    mut recipe: Recipe<T>,
    options: &TrainOptions,
    team: &Arc<Team>,
) -> Result<Rounds<T>, TrainError> {
    let plain = team.main().clone();
    let workers = options.workers;
    require(workers <= 1024, "workers", workers as f64, "at most 1,024")?;
    let folder = RunFolder::new(options.run.clone());
    let resume = match (options.start, folder.exists()) {
        (Start::Resume | Start::NewOrSame, true) => true,
        (Start::Resume, false) => {
            let path = options.run.clone();
            return Err(RunError::NothingToResume { path }.into());
        }
        (Start::New | Start::NewOrSame, _) => {
            folder.require_vacant()?;
            false
        }
    };
    recipe.task.prepare(recipe.network)?;
    let data = recipe.task.open(&Opening {
        run: resume.then_some(&*options.run),
        training: true,
        progress: options.progress.as_deref(),
    })?;
    recipe.validate()?;
    let plan = recipe.batch_plan(workers);
    let batches = recipe.task.training(&data, &plan)?;
    let held_out: HeldOut<T> = recipe.task.held_out(&data, Split::Valid, &plan)?.into();

    let tracked = plain.clone().autodiff();
    let mut learner = Learner::fresh(&recipe, &tracked)?;
    team.require_suitable(&recipe, &learner, &*held_out)?;
    // Weights, gradients and the two moments of Adam.
    require_memory(learner.num_params().saturating_mul(4))?;
    // Also if a run was ended before its first checkpoint.
    if let Some(path) = &recipe.init
        && !folder.holds_checkpoints()?
    {
        learner.model = with_weights_of(&recipe.task, learner.model, path)?;
    }
    files::create_folder(folder.path())?;
    let _lock = folder.lock()?;
    if !resume {
        // Another training may have begun and ended here since the folder was looked at.
        folder.require_vacant()?;
    }
    let store = CheckpointStore::open(&folder.checkpoints())?;
    store.clear_partial()?;
    let newest = match resume {
        true => store.newest()?,
        false => None,
    };
    if let Some(newest) = &newest {
        folder.check_recipe(&newest.run.recipe)?;
    }
    // An imported model has weights, but no steps behind it.
    let trainable = newest.as_ref().filter(|newest| newest.is_trainable());
    let step = trainable.map_or(0, |newest| newest.position.step);
    let changes = match resume {
        true => {
            let same = options.start == Start::NewOrSame;
            folder.changes(&recipe, step, (newest.as_ref(), same))?
        }
        false => Vec::new(),
    };
    if let Some(newest) = &newest {
        learner = load_model(learner, newest)?;
    }
    let mut start = (Position::default(), MemoryOf::<T>::default());
    let mut optimizer = recipe.optimizer();
    if let Some(newest) = trainable {
        optimizer = load_optimizer(&recipe, &learner, newest)?;
        let memory = MemoryOf::<T>::from_bytes(&newest.read(MEMORY)?, &plain);
        let memory = memory.map_err(|reason| newest.corrupt(reason))?;
        start = (newest.position, memory);
    }
    if changes
        .iter()
        .any(|change| change.field == "penalty.weight")
    {
        // A controller begins at the new weight, and not where it had come from the old one.
        start.0.penalty = None;
    }
    let known = newest.as_ref().map(|newest| newest.run.log.clone());
    let mut log = RunLog::open(&folder.metrics(), &known.unwrap_or_default())?;
    let recipe_sum = folder.write_recipe(&recipe, &store)?;
    recipe.task.keep(&data, folder.path())?;
    for change in changes {
        if let Some(progress) = &options.progress {
            let (field, from, to) = (&change.field, &change.from, &change.to);
            progress(&format!("{field} was {from} and is {to} from here on"));
        }
        log.append(&Record::Change(change))?;
    }

    if let Some(most) = options.stop_after
        && (most..recipe.steps).contains(&step)
    {
        let run = options.run.clone();
        return Err(Stopped::Interrupted { step, run }.into());
    }
    if step < recipe.steps || !start.0.evaluated {
        let strategy = RoundStrategy {
            recipe: recipe.clone(),
            team: team.clone(),
            store,
            batches,
            held_out: held_out.clone(),
            start,
            optimizer,
            schedule: recipe.schedule(step)?,
            options: options.clone(),
            folder: folder.clone(),
            recipe_sum,
            state: Mutex::new(StrategyState {
                log,
                events: EventFile::begin(folder.path(), step)?,
                interrupted: false,
                error: None,
            }),
        };
        learner = launch(learner, &Arc::new(strategy))?;
    }
    let position = folder.newest()?.position;
    let trained = Trained::new((recipe, learner), folder.path(), position, plain);
    Ok((trained, data, held_out))
}

/// The recipe of a run, with another budget for solves if `max_steps` is given.
fn limited<T: Task>(run: &Path, max_steps: Option<usize>) -> Result<Recipe<T>, TrainError> {
    let mut recipe = Recipe::<T>::of_run(run)?;
    if max_steps.is_some() && recipe.network != Network::Equilibrium {
        let path = run.to_owned();
        return Err(RunError::NoEquilibrium { path }.into());
    }
    recipe.limit_eval_steps(max_steps);
    Ok(recipe)
}

/// Measures the newest checkpoint of a run on a whole split.
///
/// # Errors
///
/// [`TrainError`] in one sentence that says what to do: no run, no checkpoint, a damaged one, other
/// data.
pub fn evaluate<T: Task>(run: &Path, options: &EvalOptions) -> Result<Summary, TrainError> {
    evaluate_with::<T>(run, options, &|_| ())
}

/// [`evaluate`] with a recipe that is changed first: other data of the same kind, a longer memory.
///
/// # Errors
///
/// As [`evaluate`].
pub fn evaluate_with<T: Task>(
    run: &Path,
    options: &EvalOptions,
    change: &dyn Fn(&mut Recipe<T>),
) -> Result<Summary, TrainError> {
    let mut recipe = limited(run, options.max_steps)?;
    change(&mut recipe);
    let (run, split, probe) = (run.to_owned(), options.split, options.probe);
    Team::open(&options.devices)?.watch(move |team| {
        let data = recipe.task.open(&Opening {
            run: Some(&run),
            ..Opening::default()
        })?;
        let trained = Trained::open_as(recipe, &run, team.main())?;
        let plan = trained.recipe.batch_plan(1);
        let task = &trained.recipe.task;
        let held_out: HeldOut<T> = task.held_out(&data, split, &plan)?.into();
        team.require_suitable(&trained.recipe, &trained.learner, &*held_out)?;
        let eval = trained.measure(held_out, (split, probe), team)?;
        Ok(trained.summary(&data, split, eval))
    })
}

/// What the report says besides the curves.
fn facts<T: Task>(
    recipe: &Recipe<T>,
    summary: &Summary,
    records: &[Record],
) -> Vec<(String, String)> {
    let quality = &summary.eval.quality;
    let network = recipe.network.to_string();
    let penalty = match (&recipe.penalty, recipe.network) {
        (Some(penalty), Network::Equilibrium) => {
            let share = 100.0 * penalty.frequency;
            format!(
                "weight {} on {share:.0} % of the training steps",
                penalty.weight
            )
        }
        _ => "none".to_owned(),
    };
    let mut facts = vec![(
        format!("held-out {}", quality.measure.name()),
        quality.text(),
    )];
    facts.extend(summary.facts.iter().cloned());
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    fact("network", network);
    fact("Jacobian penalty", penalty);
    fact("parameters", summary.parameters.to_string());
    if let Some(precision) = recipe.deq.precision {
        fact("cell evaluated in", precision.name().to_owned());
    }
    if !summary.left_out.is_empty() {
        fact("files left out", summary.left_out.len().to_string());
    }
    facts.extend(totals(records));
    facts
}

/// What an import makes.
pub(crate) fn write_run<T: Task>(
    (recipe, data): (&Recipe<T>, &T::Data),
    model: T::Model,
    run: &Path,
) -> Result<(), TrainError> {
    let mut learner = Learner::fresh(recipe, &model.devices()[0])?;
    learner.model = model;
    files::create_folder(run)?;
    recipe.task.keep(data, run)?;
    RunFolder::new(run.to_owned()).write_imported(learner, recipe)
}
