//! Runs as folders: starting, resuming, evaluating.

use super::data::{DataListener, kept_vocabulary};
use super::evaluate::{EvalPlan, evaluate};
use super::learner::LmLearner;
use super::loader::SegmentLoader;
use super::recipe::{LmRecipe, Network};
use super::strategy::{Loader, StrategyState, StreamStrategy, memory_from_bytes};
use crate::checkpoint::{CheckpointStore, Position, is_trainable, memory_bytes, model_bytes};
use crate::dashboard::{Gauge, LineRenderer, StatusText};
use crate::device::device;
use crate::error::TrainError;
use crate::files;
use crate::records::{EvalRecord, Record, RunLog, read_records};
use crate::report::{ReportHeader, totals, write_report};
use burn::module::Module;
use burn::optim::AdamConfig;
use burn::store::ModuleRecord;
use burn::tensor::Device;
use burn::train::checkpoint::{CheckpointingAction, CheckpointingStrategy};
use burn::train::logger::InMemoryMetricLogger;
use burn::train::metric::store::EventStoreClient;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use deq_data::{Corpus, Level, StreamBatcher, Tokens, unigram_perplexity};
use deq_models::LmMemory;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Checkpoints kept: the newest, and the one before it in case the newest is damaged.
const KEEP: usize = 2;

/// The files of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The run in `path`, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The page with the curves.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Whether a run was started here.
    pub fn exists(&self) -> bool {
        self.config().is_file()
    }

    /// The recipe of the run.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotARun`] if there is none, [`TrainError::Malformed`] if it is not that of a language model.
    pub fn recipe(&self) -> Result<LmRecipe, TrainError> {
        if !self.exists() {
            return Err(TrainError::NotARun {
                path: self.path.clone(),
            });
        }
        let path = self.config();
        let value: serde_json::Value = files::read_json(&path, "configuration")?;
        let kind = value.get("kind").and_then(|kind| kind.as_str());
        let malformed = |reason: String| TrainError::Malformed {
            path: path.clone(),
            what: "configuration of a language model",
            reason,
        };
        if kind != Some("lm") {
            let found = kind.unwrap_or("missing");
            return Err(malformed(format!("its kind is {found}, not lm")));
        }
        serde_json::from_value(value).map_err(|error| malformed(error.to_string()))
    }
}

/// Where and how to train.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The device's name, see [`device`].
    pub device: String,
    /// The folder of the run.
    pub run: PathBuf,
    /// Continue the run in that folder.
    pub resume: bool,
    /// Print progress as lines even on a terminal.
    pub plain: bool,
    /// Hears what happens while the text is read.
    pub on_data: DataListener,
}

impl TrainOptions {
    /// A new run in `run`, with a dashboard if standard output is a terminal.
    pub fn new(device: &str, run: PathBuf) -> Self {
        Self {
            device: device.to_owned(),
            run,
            resume: false,
            plain: false,
            on_data: DataListener::default(),
        }
    }
}

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// The device's name, see [`device`].
    pub device: String,
    /// Another place of the same data than the one in the recipe.
    pub data: Option<PathBuf>,
    /// `true` for the test split, `false` for valid.
    pub test: bool,
    /// The most steps of a solve, in the place of the recipe's.
    pub max_steps: Option<usize>,
    /// Positions of the past that attention sees besides the segment, in the place of the recipe's.
    pub mem_len: Option<usize>,
    /// Whether to estimate the spectral radius and trace a long solve too.
    pub probe: bool,
}

impl EvalOptions {
    /// The valid split as the recipe says, with everything measured.
    pub fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            data: None,
            test: false,
            max_steps: None,
            mem_len: None,
            probe: true,
        }
    }
}

/// What a run achieved.
#[derive(Clone, Debug, Serialize)]
pub struct LmSummary {
    /// The folder of the run.
    pub run: PathBuf,
    /// The evaluation on held-out text.
    pub eval: EvalRecord,
    /// The perplexity of the same text under the unigram distribution of the training text.
    pub unigram_perplexity: f64,
    /// Parameters of the model.
    pub parameters: usize,
    /// Training time in seconds, over all sessions.
    pub training_seconds: f64,
}

/// Trains, or goes on training, and evaluates the result on the whole valid split.
///
/// The same recipe and seed on the same machine give the same losses, also across interruptions: masks and probes depend on the seed and the step
/// only, and a checkpoint holds everything else.
///
/// # Errors
///
/// [`TrainError`] in one sentence that says what to do. Nothing is written before recipe, data and device have been checked.
pub fn train(mut recipe: LmRecipe, options: &TrainOptions) -> Result<LmSummary, TrainError> {
    let plain = device(&options.device)?;
    let folder = RunFolder::new(options.run.clone());
    let kept = match (options.resume, recipe.level) {
        // A tokenizer stays what it was. Words are those of the text, which must not have changed.
        (true, Level::Tokenizer) if folder.exists() => {
            kept_vocabulary(&folder.path, &folder.recipe()?)?
        }
        _ => None,
    };
    let corpus = recipe.open_data(kept, &options.on_data)?;
    recipe.model.vocab_size = corpus.vocabulary.len();
    recipe.vocabulary = Some(corpus.vocabulary.fingerprint());
    recipe.validate()?;
    let train_batches = StreamBatcher::new(&corpus.train, recipe.batch, recipe.segment)?;
    let valid_batches = StreamBatcher::new(&corpus.valid, recipe.batch, recipe.segment)?;

    let tracked = plain.clone().autodiff();
    let mut model = LmLearner::new(&recipe, &tracked)?;
    claim(&folder, &recipe, options.resume)?;
    if kept_vocabulary(&folder.path, &recipe)?.is_none() {
        corpus.vocabulary.save_in(&folder.path)?;
    }
    let store = CheckpointStore::open(&folder.checkpoints(), KEEP)?;
    store.clear_partial()?;
    let mut start = (Position::default(), LmMemory::empty());
    if let Some((checkpoint, position)) = store.newest()? {
        if !is_trainable(&checkpoint) {
            return Err(TrainError::NoOptimizer {
                path: folder.path.clone(),
            });
        }
        model = load(model, &checkpoint)?;
        start = (position, load_memory(&checkpoint, &plain)?);
    }
    let position = start.0;
    let log = RunLog::open(&folder.metrics(), position.step)?;

    if position.round < recipe.rounds {
        let loaders: [Loader; 2] = [
            Arc::new(SegmentLoader::training(
                train_batches,
                recipe.steps,
                &tracked,
            )),
            Arc::new(SegmentLoader::evaluation(
                valid_batches.clone(),
                recipe.valid_segments,
                &plain,
            )),
        ];
        let strategy = Arc::new(StreamStrategy {
            recipe: recipe.clone(),
            device: tracked,
            store: store.clone(),
            start,
            state: Mutex::new(StrategyState { log, error: None }),
        });
        model = launch(model, loaders, &strategy, options)?;
    }

    let summary = summarize(&model.valid(), &recipe, &corpus, &folder, &plain)?;
    let records = read_records(&folder.metrics())?;
    write_report(
        &folder.report(),
        &header(&recipe, &summary, &records),
        &records,
    )?;
    Ok(summary)
}

/// Writes the recipe, or compares it with the one of the run to resume.
fn claim(folder: &RunFolder, recipe: &LmRecipe, resume: bool) -> Result<(), TrainError> {
    match (folder.exists(), resume) {
        (true, false) => Err(TrainError::RunExists {
            path: folder.path.clone(),
        }),
        (false, true) => Err(TrainError::NothingToResume {
            path: folder.path.clone(),
        }),
        (false, false) => {
            files::create_folder(&folder.path)?;
            files::write_json(&folder.config(), recipe)
        }
        (true, true) => match first_difference(&folder.recipe()?, recipe) {
            None => Ok(()),
            Some((field, there, here)) => Err(TrainError::OtherConfig {
                path: folder.path.clone(),
                field,
                there,
                here,
            }),
        },
    }
}

/// The path and the two values of the first field in which the recipes differ.
fn first_difference(there: &LmRecipe, here: &LmRecipe) -> Option<(String, String, String)> {
    fn differ(
        path: &str,
        there: &serde_json::Value,
        here: &serde_json::Value,
    ) -> Option<(String, String, String)> {
        use serde_json::Value::Object;
        match (there, here) {
            (Object(a), Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
                let null = serde_json::Value::Null;
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                differ(
                    &path,
                    a.get(key).unwrap_or(&null),
                    b.get(key).unwrap_or(&null),
                )
            }),
            _ if there == here => None,
            _ => Some((path.to_owned(), there.to_string(), here.to_string())),
        }
    }
    let json = |recipe| serde_json::to_value(recipe).unwrap_or_default();
    differ("", &json(there), &json(here))
}

fn load(model: LmLearner, checkpoint: &Path) -> Result<LmLearner, TrainError> {
    let corrupt = |error: burn::store::RecordError| TrainError::CorruptCheckpoint {
        path: checkpoint.to_owned(),
        reason: error.to_string(),
    };
    let record = ModuleRecord::from_bytes(model_bytes(checkpoint)?).map_err(corrupt)?;
    model.try_load_record(record).map_err(corrupt)
}

fn load_memory(checkpoint: &Path, device: &Device) -> Result<LmMemory, TrainError> {
    memory_from_bytes(&memory_bytes(checkpoint)?, device).map_err(|reason| {
        TrainError::CorruptCheckpoint {
            path: checkpoint.to_owned(),
            reason,
        }
    })
}

/// Checkpoints after every round; the store itself drops old ones.
struct EveryRound;

impl CheckpointingStrategy for EveryRound {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}

fn launch(
    model: LmLearner,
    [train, valid]: [Loader; 2],
    strategy: &Arc<StreamStrategy>,
    options: &TrainOptions,
) -> Result<LmLearner, TrainError> {
    let recipe = &strategy.recipe;
    let store = &strategy.store;
    // Betas of Adam as in the original code; its epsilon, too.
    let optimizer = AdamConfig::new()
        .with_beta_2(0.999)
        .with_epsilon(1e-8)
        .init();
    let learner = Learner::new(model, optimizer, recipe.schedule()?);
    let mut training = SupervisedTraining::new(&options.run, train, valid)
        .metrics((
            Gauge::loss(),
            Gauge::perplexity(),
            Gauge::steps(),
            Gauge::residual(),
        ))
        .metrics_text((StatusText::default(),))
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .with_checkpointing_strategy(EveryRound)
        .with_custom_checkpointers(store.part(0), store.part(1), store.part(2))
        .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
        .num_epochs(recipe.rounds);
    let round = strategy.start.0.round;
    if round > 0 {
        training = training.checkpoint(round);
    }
    if options.plain || !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        training = training.renderer(Box::new(LineRenderer::new()));
    }
    let result = training.launch(learner);
    let mut state = strategy
        .state
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = state.error.take() {
        return Err(error);
    }
    if let Some(error) = result.error {
        return Err(TrainError::Stopped {
            reason: error.to_string(),
        });
    }
    if let Some(interruption) = result.interrupted {
        let reason = interruption.reason.unwrap_or("interrupted".to_owned());
        return Err(TrainError::Stopped {
            reason: format!("{reason}; run the same command with --resume to go on"),
        });
    }
    Ok(result.model)
}

/// Evaluates the whole valid split and appends the record to the log.
fn summarize(
    model: &LmLearner,
    recipe: &LmRecipe,
    corpus: &Corpus,
    folder: &RunFolder,
    plain: &Device,
) -> Result<LmSummary, TrainError> {
    let (_, position) = newest(folder)?;
    let eval = measure(
        model,
        recipe,
        &corpus.valid,
        &EvalPlan {
            split: "valid",
            step: position.step,
            probe: true,
            solver: recipe.deq.solver.clone(),
        },
        plain,
    )?;
    Ok(LmSummary {
        run: folder.path.clone(),
        eval,
        unigram_perplexity: unigram_perplexity(
            &corpus.train,
            &corpus.valid,
            corpus.vocabulary.len(),
        ),
        parameters: model.num_params(),
        training_seconds: position.seconds,
    })
}

/// The newest checkpoint's model in evaluation mode on a plain device, and where training stood.
pub(crate) fn newest_model(
    folder: &RunFolder,
    recipe: &LmRecipe,
    plain: &Device,
) -> Result<(LmLearner, Position), TrainError> {
    let (checkpoint, position) = newest(folder)?;
    let model = load(LmLearner::new(recipe, plain)?, &checkpoint)?;
    Ok((model.valid(), position))
}

fn newest(folder: &RunFolder) -> Result<(PathBuf, Position), TrainError> {
    let none = || TrainError::NoCheckpoint {
        path: folder.path.clone(),
    };
    if !folder.checkpoints().is_dir() {
        return Err(none());
    }
    CheckpointStore::open(&folder.checkpoints(), KEEP)?
        .newest()?
        .ok_or_else(none)
}

fn measure(
    model: &LmLearner,
    recipe: &LmRecipe,
    tokens: &Tokens,
    plan: &EvalPlan,
    plain: &Device,
) -> Result<EvalRecord, TrainError> {
    let batches = StreamBatcher::new(tokens, recipe.batch, recipe.segment)?;
    let loader = SegmentLoader::evaluation(batches, usize::MAX, plain);
    evaluate(model, &loader, plan, |_, _| Ok(()))
}

/// Measures the newest checkpoint of a run on a whole split.
///
/// # Errors
///
/// [`TrainError`] in one sentence that says what to do: no run, no checkpoint, a damaged one, other data.
pub fn evaluate_run(run: &Path, options: &EvalOptions) -> Result<LmSummary, TrainError> {
    let folder = RunFolder::new(run.to_owned());
    let mut recipe = folder.recipe()?;
    let plain = device(&options.device)?;
    if let Some(data) = &options.data {
        recipe.data = super::recipe::DataSource::Path(data.clone());
    }
    recipe.limit_eval_steps(options.max_steps);
    recipe.model.mem_len = options.mem_len.unwrap_or(recipe.model.mem_len);
    let kept = kept_vocabulary(run, &recipe)?;
    let corpus = recipe.open_data(kept, &DataListener::default())?;
    if recipe.vocabulary != Some(corpus.vocabulary.fingerprint()) {
        return Err(TrainError::OtherVocabulary {
            path: run.to_owned(),
        });
    }
    recipe.validate()?;
    let (model, position) = newest_model(&folder, &recipe, &plain)?;
    let (split, tokens) = match options.test {
        true => ("test", &corpus.test),
        false => ("valid", &corpus.valid),
    };
    let plan = EvalPlan {
        split,
        step: position.step,
        probe: options.probe,
        solver: recipe.deq.solver.clone(),
    };
    let eval = measure(&model, &recipe, tokens, &plan, &plain)?;
    Ok(LmSummary {
        run: run.to_owned(),
        eval,
        unigram_perplexity: unigram_perplexity(&corpus.train, tokens, corpus.vocabulary.len()),
        parameters: model.num_params(),
        training_seconds: position.seconds,
    })
}

fn header(recipe: &LmRecipe, summary: &LmSummary, records: &[Record]) -> ReportHeader {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let network = match recipe.network {
        Network::Equilibrium => "equilibrium".to_owned(),
        Network::WeightTied { depth } => format!("explicit, weight-tied, {depth} layers"),
        Network::Layers { depth } => format!("Transformer-XL, {depth} layers"),
    };
    let data = match &recipe.data {
        super::recipe::DataSource::Builtin => "built-in handbook".to_owned(),
        super::recipe::DataSource::Path(path) => path.display().to_string(),
    };
    let penalty = match &recipe.penalty {
        Some(penalty) => format!(
            "weight {} on {:.0} % of the steps",
            penalty.weight,
            100.0 * penalty.frequency
        ),
        None => "none".to_owned(),
    };
    let mut facts = vec![
        fact(
            "held-out perplexity",
            format!("{:.2}", summary.eval.perplexity),
        ),
        fact(
            "unigram perplexity",
            format!("{:.2}", summary.unigram_perplexity),
        ),
        fact("data", format!("{data}, {} level", recipe.level)),
        fact("network", network),
        fact("Jacobian penalty", penalty),
        fact("parameters", summary.parameters.to_string()),
    ];
    facts.extend(totals(records));
    ReportHeader {
        title: format!("Language model {:?}", recipe.preset),
        facts,
    }
}
