//! Runs as folders: starting, resuming, evaluating.

use super::evaluate::{EvalPlan, evaluate};
use super::exchange::with_weights_of;
use super::gallery;
use super::learner::{VisionInput, VisionLearner, VisionStepOutput};
use super::loader::{PictureLoader, SkippedFiles};
use super::recipe::VisionRecipe;
use crate::checkpoint::{CheckpointStore, Position, is_trainable};
use crate::dashboard::Gauge;
use crate::device::device;
use crate::error::TrainError;
use crate::files;
use crate::records::{EvalRecord, Record, RunLog, read_records};
use crate::report::{ReportHeader, totals, write_report_with};
use crate::rounds::{Display, Loaders, RoundStrategy, RoundTask, launch};
use crate::run_folder::{KEEP, Recipe, RunFolder, load_model};
use burn::data::dataloader::{DataLoader, Progress};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::Learner;
use deq_data::{ImageSource, Loader, LoaderConfig, Spread, Transform, VisionSplits, VisionTask};
use deq_jacreg::WeightControllerConfig;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Recipe for VisionRecipe {
    const KIND: &'static str = "vision";
    const WHAT: &'static str = "configuration of a vision model";
}

impl RoundTask for VisionRecipe {
    type Memory = ();
    type In = VisionInput;
    type Out = VisionStepOutput;
    type Learner = VisionLearner;

    fn rounds(&self) -> usize {
        self.epochs
    }

    fn steps_after(&self, round: usize) -> usize {
        self.steps_per_epoch * round
    }

    fn controller(&self) -> Option<&WeightControllerConfig> {
        self.controller.as_ref()
    }

    fn evaluate(
        &self,
        learner: &VisionLearner,
        loader: &dyn DataLoader<VisionInput>,
        step: usize,
        on_item: &mut dyn FnMut(VisionStepOutput, Progress),
    ) -> Result<EvalRecord, TrainError> {
        evaluate(learner, loader, &self.plan(step, true), on_item)
    }
}

impl VisionRecipe {
    fn plan(&self, step: usize, probe: bool) -> EvalPlan {
        EvalPlan {
            task: self.model.task(),
            classes: self.classes.len(),
            step,
            probe: probe.then(|| self.deq.solver.clone()),
        }
    }

    /// Replaces the equilibrium by a ResNet with about as many parameters, trained on the same terms. One that is a ResNet stays what it is.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the model is misconfigured, the data cannot be opened (the number of classes counts), or are label maps.
    pub fn become_resnet(&mut self) -> Result<(), TrainError> {
        if !self.model.is_equilibrium() {
            return Ok(());
        }
        self.model.validate()?;
        if self.data.task() != VisionTask::Classification {
            return Err(TrainError::ModelForOtherTask {
                data: self.data.to_string(),
            });
        }
        self.model
            .set_classes(self.data.open()?.train.classes().len());
        let small = matches!(self.data, ImageSource::Shapes | ImageSource::Cifar10(_));
        self.model = self.model.resnet_of_equal_size(small);
        (self.penalty, self.controller) = (None, None);
        self.pretrain_steps = 0;
        Ok(())
    }

    /// Opens the data and fills in what depends on them.
    pub(super) fn open(&mut self) -> Result<VisionSplits, TrainError> {
        let data = self.data.open()?;
        self.classes = data.train.classes().to_vec();
        self.model.set_classes(self.classes.len());
        if self.class_weights.is_empty() {
            self.class_weights = data.train.class_weights();
        }
        if self.steps_per_epoch == 0 {
            // A batch larger than the data is refused where batches are made.
            self.steps_per_epoch = (data.train.len() / self.batch.max(1)).max(1);
        }
        self.validate()?;
        Ok(data)
    }

    /// Held-out pictures in a batch: one where files of any size keep theirs, as in the original's segmentation.
    fn held_out_batch(&self) -> usize {
        match (&self.eval_transform, &self.data) {
            (
                Transform::Whole | Transform::PadToMultiple { .. },
                ImageSource::Segmentation(_) | ImageSource::ImageFolder(_),
            ) => 1,
            _ => self.batch,
        }
    }

    /// Batches that the evaluation after a round reads.
    fn valid_batches(&self, held_out: &Loader) -> usize {
        let wanted = self.valid_pictures.div_ceil(self.held_out_batch());
        wanted.min(held_out.batches_per_epoch())
    }

    /// Batches of held-out pictures, the first ones a sample of all.
    pub(super) fn held_out(&self, data: &VisionSplits) -> Result<Loader, TrainError> {
        Ok(Loader::new(
            Arc::new(Spread::new(data.test.clone())),
            self.eval_transform.clone(),
            data.normalization,
            LoaderConfig::evaluation(self.held_out_batch()),
        )?)
    }
}

/// Where and how to train.
#[derive(Clone, Debug)]
pub struct VisionOptions {
    /// The device's name, see [`device`].
    pub device: String,
    /// The folder of the run.
    pub run: PathBuf,
    /// Continue the run in that folder.
    pub resume: bool,
    /// Print progress as lines even on a terminal.
    pub plain: bool,
    /// Threads that make training batches ahead of time.
    pub workers: usize,
}

impl VisionOptions {
    /// A new run in `run`, with a dashboard if standard output is a terminal, and one worker, which makes small pictures faster than two cores train on them.
    pub fn new(device: &str, run: PathBuf) -> Self {
        Self {
            device: device.to_owned(),
            run,
            resume: false,
            plain: false,
            workers: 1,
        }
    }
}

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct VisionEvalOptions {
    /// The device's name, see [`device`].
    pub device: String,
    /// Another place of the same data than the one in the recipe.
    pub data: Option<ImageSource>,
    /// The most steps of a solve, in the place of the recipe's.
    pub max_steps: Option<usize>,
    /// Whether to estimate the spectral radius and to trace a long solve.
    pub probe: bool,
}

/// What a run achieved.
#[derive(Clone, Debug, Serialize)]
pub struct VisionSummary {
    /// The folder of the run.
    pub run: PathBuf,
    /// The evaluation on held-out pictures.
    pub eval: EvalRecord,
    /// The names of the classes.
    pub classes: Vec<String>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Training time in seconds, over all sessions.
    pub training_seconds: f64,
    /// Files that could not be used, with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Trains, or goes on training, and evaluates the result on all held-out pictures. Beside the files of every run the folder gets `predictions.svg`.
///
/// The same recipe and seed on the same machine give the same losses, also across interruptions and whatever the number of workers.
///
/// # Errors
///
/// [`TrainError`] in one sentence that says what to do. Nothing is written before recipe, data and device have been checked.
pub fn train(recipe: VisionRecipe, options: &VisionOptions) -> Result<VisionSummary, TrainError> {
    let Rounds {
        trained,
        data,
        held_out,
        skipped,
    } = run_rounds(recipe, options)?;
    let Trained {
        recipe,
        learner,
        position,
        device,
    } = &trained;
    let folder = RunFolder::new(options.run.clone());
    let records = read_records(&folder.metrics())?;
    let last = records.iter().rev().find_map(|record| match record {
        Record::Eval(eval) => Some(eval.clone()),
        Record::Step(_) => None,
    });
    let all = held_out.batches_per_epoch();
    let eval = match last {
        // Every round ended with an evaluation of all held-out pictures.
        Some(eval) if recipe.valid_batches(&held_out) == all => eval,
        _ => {
            let loader = PictureLoader::new(held_out, all, device, &skipped);
            let plan = recipe.plan(position.step, true);
            evaluate(learner, &loader, &plan, &mut |_, _| ())?
        }
    };
    let summary = VisionSummary {
        run: options.run.clone(),
        eval,
        classes: recipe.classes.clone(),
        parameters: learner.num_params(),
        training_seconds: position.seconds,
        skipped: skipped.list(),
    };
    let pictures = gallery::draw(&trained, &data)?;
    files::write_whole(&folder.path().join("predictions.svg"), pictures.as_bytes())?;
    write_report_with(
        &folder.report(),
        &header(&trained.recipe, &summary, &records),
        &records,
        &format!("<h2>Predictions</h2>\n<figure>{pictures}</figure>\n"),
    )?;
    Ok(summary)
}

/// Training without the evaluation, the pictures and the report that follow it: the seconds that it took.
pub(super) fn train_only(recipe: VisionRecipe, options: &VisionOptions) -> Result<f64, TrainError> {
    Ok(run_rounds(recipe, options)?.trained.position.seconds)
}

/// A model whose rounds are done, with what measures it.
struct Rounds {
    trained: Trained,
    data: VisionSplits,
    held_out: Loader,
    skipped: SkippedFiles,
}

/// All rounds of training that the run still lacks.
fn run_rounds(mut recipe: VisionRecipe, options: &VisionOptions) -> Result<Rounds, TrainError> {
    let plain = device(&options.device)?;
    let data = recipe.open()?;
    let folder = RunFolder::new(options.run.clone());
    let skipped = SkippedFiles::default();
    let config = LoaderConfig {
        workers: options.workers,
        ..LoaderConfig::training(recipe.batch, recipe.seed)
    };
    let batches = Loader::new(
        data.train.clone(),
        recipe.train_transform.clone(),
        data.normalization,
        config,
    )?;
    let held_out = recipe.held_out(&data)?;

    let tracked = plain.clone().autodiff();
    let mut model = VisionLearner::new(&recipe, &tracked)?;
    if let (Some(path), false) = (&recipe.init, options.resume) {
        model.model = with_weights_of(model.model, path)?;
    }
    folder.claim(&recipe, options.resume)?;
    let store = CheckpointStore::open(&folder.checkpoints(), KEEP)?;
    store.clear_partial()?;
    let mut start = Position::default();
    if let Some((checkpoint, position)) = store.newest()? {
        if !is_trainable(&checkpoint) {
            return Err(TrainError::NoOptimizer {
                path: folder.path().to_owned(),
            });
        }
        model = load_model(model, &checkpoint)?;
        start = position;
    }
    let log = RunLog::open(&folder.metrics(), start.step)?;
    let some = recipe.valid_batches(&held_out);
    let valid = PictureLoader::new(held_out.clone(), some, &plain, &skipped);
    if start.round < recipe.epochs {
        let loaders: Loaders<VisionRecipe> = [
            Arc::new(PictureLoader::new(
                batches,
                recipe.steps(),
                &tracked,
                &skipped,
            )),
            Arc::new(valid),
        ];
        let learner = Learner::new(model, recipe.optimizer(), recipe.schedule()?);
        let strategy = RoundStrategy::new(recipe.clone(), tracked, store, (start, ()), log);
        let display = Display {
            run: &options.run,
            plain: options.plain,
            quality: Gauge::accuracy(),
        };
        model = launch(learner, loaders, &Arc::new(strategy), display)?;
    }

    let (_, position) = folder.newest()?;
    let trained = Trained {
        learner: model.valid(),
        recipe,
        position,
        device: plain,
    };
    Ok(Rounds {
        trained,
        data,
        held_out,
        skipped,
    })
}

/// A trained model with its recipe.
pub(super) struct Trained {
    pub(super) recipe: VisionRecipe,
    pub(super) learner: VisionLearner,
    pub(super) position: Position,
    pub(super) device: Device,
}

impl Trained {
    /// The newest checkpoint of a run, with another budget if `max_steps` is given.
    pub(super) fn open(
        run: &Path,
        device_name: &str,
        max_steps: Option<usize>,
    ) -> Result<Self, TrainError> {
        let folder = RunFolder::new(run.to_owned());
        let mut recipe = folder.read::<VisionRecipe>()?;
        let plain = device(device_name)?;
        if let Some(max_steps) = max_steps {
            if recipe.explicit.is_some() || !recipe.model.is_equilibrium() {
                return Err(TrainError::NoEquilibrium {
                    path: run.to_owned(),
                });
            }
            let stop = recipe.deq.eval_stop.as_ref().unwrap_or(&recipe.deq.stop);
            recipe.deq.eval_stop = Some(stop.clone().with_max_steps(max_steps));
        }
        recipe.validate()?;
        let (checkpoint, position) = folder.newest()?;
        let learner = load_model(VisionLearner::new(&recipe, &plain)?, &checkpoint)?.valid();
        Ok(Self {
            recipe,
            learner,
            position,
            device: plain,
        })
    }
}

/// Measures the newest checkpoint of a run on all held-out pictures.
///
/// # Errors
///
/// [`TrainError`] in one sentence that says what to do: no run, no checkpoint, a damaged one, other data.
pub fn evaluate_run(run: &Path, options: &VisionEvalOptions) -> Result<VisionSummary, TrainError> {
    let trained = Trained::open(run, &options.device, options.max_steps)?;
    let Trained {
        mut recipe,
        learner,
        position,
        device,
    } = trained;
    if let Some(data) = &options.data {
        recipe.data = data.clone();
    }
    let data = recipe.data.open()?;
    if data.train.classes() != recipe.classes {
        return Err(TrainError::OtherClasses {
            path: run.to_owned(),
        });
    }
    let skipped = SkippedFiles::default();
    let held_out = recipe.held_out(&data)?;
    let all = held_out.batches_per_epoch();
    let loader = PictureLoader::new(held_out, all, &device, &skipped);
    let plan = recipe.plan(position.step, options.probe);
    let eval = evaluate(&learner, &loader, &plan, &mut |_, _| ())?;
    Ok(VisionSummary {
        run: run.to_owned(),
        eval,
        classes: recipe.classes,
        parameters: learner.num_params(),
        training_seconds: position.seconds,
        skipped: skipped.list(),
    })
}

fn header(recipe: &VisionRecipe, summary: &VisionSummary, records: &[Record]) -> ReportHeader {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let (measure, quality) = summary.eval.quality.main();
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
            &format!("held-out {measure}"),
            format!("{:.2} %", 100.0 * quality),
        ),
        fact("data", recipe.data.to_string()),
        fact("classes", recipe.classes.join(", ")),
        fact("Jacobian penalty", penalty),
        fact("parameters", summary.parameters.to_string()),
        fact("files left out", summary.skipped.len().to_string()),
    ];
    facts.extend(totals(records));
    ReportHeader {
        title: format!("Vision model {:?}", recipe.preset),
        facts,
    }
}
