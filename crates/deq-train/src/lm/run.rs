//! Runs as folders: starting, resuming, evaluating.

use super::data::{DataListener, kept_vocabulary};
use super::evaluate::{EvalPlan, evaluate};
use super::learner::LmLearner;
use super::loader::SegmentLoader;
use super::recipe::{LmRecipe, Network};
use super::strategy::memory_from_bytes;
use crate::checkpoint::{CheckpointStore, Position, is_trainable, memory_bytes};
use crate::dashboard::Gauge;
use crate::device::device;
use crate::error::TrainError;
use crate::records::{EvalRecord, Record, RunLog, read_records};
use crate::report::{ReportHeader, totals, write_report};
use crate::rounds::{Display, Loaders, RoundStrategy, adam, launch};
use crate::run_folder::{KEEP, Recipe, RunFolder, load_model};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::Learner;
use deq_data::{Corpus, Level, StreamBatcher, Tokens, unigram_perplexity};
use deq_models::LmMemory;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Recipe for LmRecipe {
    const KIND: &'static str = "lm";
    const WHAT: &'static str = "configuration of a language model";
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
pub fn train(recipe: LmRecipe, options: &TrainOptions) -> Result<LmSummary, TrainError> {
    let trained = run_rounds(recipe, options)?;
    let summary = summarize(&trained)?;
    let Trained { recipe, folder, .. } = trained;
    let records = read_records(&folder.metrics())?;
    write_report(
        &folder.report(),
        &header(&recipe, &summary, &records),
        &records,
    )?;
    Ok(summary)
}

/// Training without the evaluation and the report that follow it: the seconds that it took.
pub(super) fn train_only(recipe: LmRecipe, options: &TrainOptions) -> Result<f64, TrainError> {
    Ok(run_rounds(recipe, options)?.folder.newest()?.1.seconds)
}

/// A model whose rounds are done.
struct Trained {
    recipe: LmRecipe,
    model: LmLearner,
    corpus: Corpus,
    folder: RunFolder,
    device: Device,
}

/// All rounds of training that the run still lacks.
fn run_rounds(mut recipe: LmRecipe, options: &TrainOptions) -> Result<Trained, TrainError> {
    let plain = device(&options.device)?;
    let folder = RunFolder::new(options.run.clone());
    let kept = match (options.resume, recipe.level) {
        // A tokenizer stays what it was. Words are those of the text, which must not have changed.
        (true, Level::Tokenizer) if folder.exists() => {
            kept_vocabulary(folder.path(), &folder.read::<LmRecipe>()?)?
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
    folder.claim(&recipe, options.resume)?;
    if kept_vocabulary(folder.path(), &recipe)?.is_none() {
        corpus.vocabulary.save_in(folder.path())?;
    }
    let store = CheckpointStore::open(&folder.checkpoints(), KEEP)?;
    store.clear_partial()?;
    let mut start = (Position::default(), LmMemory::empty());
    if let Some((checkpoint, position)) = store.newest()? {
        if !is_trainable(&checkpoint) {
            return Err(TrainError::NoOptimizer {
                path: folder.path().to_owned(),
            });
        }
        model = load_model(model, &checkpoint)?;
        start = (position, load_memory(&checkpoint, &plain)?);
    }
    let position = start.0;
    let log = RunLog::open(&folder.metrics(), position.step)?;

    if position.round < recipe.rounds {
        let loaders: Loaders<LmRecipe> = [
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
        let learner = Learner::new(model, adam().init(), recipe.schedule()?);
        let strategy = RoundStrategy::new(recipe.clone(), tracked, store, start, log);
        let display = Display {
            run: &options.run,
            plain: options.plain,
            quality: Gauge::perplexity(),
        };
        model = launch(learner, loaders, &Arc::new(strategy), display)?;
    }

    Ok(Trained {
        model: model.valid(),
        recipe,
        corpus,
        folder,
        device: plain,
    })
}

fn load_memory(checkpoint: &Path, device: &Device) -> Result<LmMemory, TrainError> {
    memory_from_bytes(&memory_bytes(checkpoint)?, device).map_err(|reason| {
        TrainError::CorruptCheckpoint {
            path: checkpoint.to_owned(),
            reason,
        }
    })
}

/// Evaluates the whole valid split.
fn summarize(trained: &Trained) -> Result<LmSummary, TrainError> {
    let Trained {
        recipe,
        model,
        corpus,
        folder,
        device,
    } = trained;
    let (_, position) = folder.newest()?;
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
        device,
    )?;
    Ok(LmSummary {
        run: folder.path().to_owned(),
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
    let (checkpoint, position) = folder.newest()?;
    let model = load_model(LmLearner::new(recipe, plain)?, &checkpoint)?;
    Ok((model.valid(), position))
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
    evaluate(model, &loader, plan, |_, _| ())
}

/// Measures the newest checkpoint of a run on a whole split.
///
/// # Errors
///
/// [`TrainError`] in one sentence that says what to do: no run, no checkpoint, a damaged one, other data.
pub fn evaluate_run(run: &Path, options: &EvalOptions) -> Result<LmSummary, TrainError> {
    let folder = RunFolder::new(run.to_owned());
    let mut recipe = folder.read::<LmRecipe>()?;
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
        true => ("test", corpus.require_test()?),
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
            format!("{:.2}", summary.eval.quality.main().1),
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
