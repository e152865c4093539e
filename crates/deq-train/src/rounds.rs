//! Training in rounds, for any learner: burn-train's events and checkpoints around steps that may carry a memory.

use crate::checkpoint::{CheckpointStore, Position};
use crate::dashboard::{Gauge, LineRenderer, StatusText};
use crate::error::TrainError;
use crate::records::{EvalRecord, Record, RunLog, StepRecord};
use burn::data::dataloader::{DataLoader, Progress};
use burn::module::Module;
use burn::optim::AdamConfig;
use burn::optim::lr_scheduler::LrSchedulerConfig;
use burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::lr_scheduler::sequential::SequentialLrSchedulerConfig;
use burn::tensor::Device;
use burn::train::checkpoint::{CheckpointingAction, CheckpointingStrategy};
use burn::train::logger::InMemoryMetricLogger;
use burn::train::metric::Adaptor;
use burn::train::metric::store::EventStoreClient;
use burn::train::{
    EventProcessorTraining, InferenceStep, Interrupter, ItemLazy, Learner, LearnerEvent,
    LearnerModel, SupervisedLearningStrategy, SupervisedTraining, SupervisedTrainingEventProcessor,
    TrainLoader, TrainStep, TrainingComponents, TrainingItem, TrainingStrategy, ValidLoader,
};
use deq_jacreg::{WeightController, WeightControllerConfig};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What a step reads.
pub(crate) trait RoundInput: Send + 'static {
    /// What is carried from step to step.
    type Memory: Carried;

    /// The training step, counted from 0.
    fn step(&self) -> usize;

    /// Takes the memory of the steps before, and the weight of the penalty if a controller sets it.
    fn prepare(&mut self, memory: &mut Self::Memory, penalty_weight: Option<f64>);
}

/// What a step measured.
pub(crate) trait RoundOutput: ItemLazy + Adaptor<StepRecord> + 'static {
    /// What is carried from step to step.
    type Memory: Carried;

    /// Its numbers.
    fn record(&mut self) -> &mut StepRecord;

    /// What the next step needs.
    fn memory(&self) -> Self::Memory;
}

/// What is carried from step to step, and kept in checkpoints.
pub(crate) trait Carried: Clone + Default + Send + Sync + 'static {
    /// The content of a file; empty for nothing.
    fn to_bytes(&self) -> Vec<u8>;
}

/// Nothing is carried.
impl Carried for () {
    fn to_bytes(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// What is trained, and on what terms.
pub(crate) trait RoundTask: Send + Sync + 'static {
    /// What is carried from step to step.
    type Memory: Carried;
    /// The input of a step.
    type In: RoundInput<Memory = Self::Memory>;
    /// The outcome of a step.
    type Out: RoundOutput<Memory = Self::Memory>;
    /// The model with what it needs to make a step.
    type Learner: LearnerModel
        + TrainStep<Input = Self::In, Output = Self::Out>
        + InferenceStep<Input = Self::In, Output = Self::Out>;

    /// The number of rounds.
    fn rounds(&self) -> usize;

    /// The steps made by the end of round `round`, counted from 1.
    fn steps_after(&self, round: usize) -> usize;

    /// The controller of the penalty's weight, which was checked.
    fn controller(&self) -> Option<&WeightControllerConfig>;

    /// Reads all of `loader` with a model in evaluation mode and hands every output to `on_item`.
    fn evaluate(
        &self,
        learner: &Self::Learner,
        loader: &dyn DataLoader<Self::In>,
        step: usize,
        on_item: &mut dyn FnMut(Self::Out, Progress),
    ) -> Result<EvalRecord, TrainError>;
}

/// Trains round by round. A round is a range of steps, an evaluation, and a checkpoint.
///
/// burn-train's own strategies treat batches as independent and checkpoint between passes over the data. A language model carries its memory from
/// step to step, every DEQ changes phase at a given step, and a run must resume in the middle of a pass; hence a strategy of its own.
pub(crate) struct RoundStrategy<T: RoundTask> {
    pub(crate) task: T,
    pub(crate) device: Device,
    pub(crate) store: CheckpointStore,
    /// Where a resumed run stands, and its memory.
    pub(crate) start: (Position, T::Memory),
    /// The log, and the error that ended training, if one did.
    state: Mutex<StrategyState>,
}

struct StrategyState {
    log: RunLog,
    error: Option<TrainError>,
}

type Events<T> = SupervisedTrainingEventProcessor<<T as RoundTask>::Learner>;

/// What changes while training.
struct Session<T: RoundTask> {
    learner: Learner<T::Learner>,
    memory: T::Memory,
    controller: Option<WeightController>,
    events: Events<T>,
    interrupter: Interrupter,
}

impl<T: RoundTask> Session<T> {
    /// Hands an event to burn-train; a failure there stops training.
    fn train_event(&mut self, event: LearnerEvent<T::Out>) {
        let result = self.events.process_train(event);
        self.interrupter.fail_on_error(result);
    }

    fn valid_event(&mut self, event: LearnerEvent<T::Out>) {
        let result = self.events.process_valid(event);
        self.interrupter.fail_on_error(result);
    }
}

impl<T: RoundTask> SupervisedLearningStrategy<T::Learner> for RoundStrategy<T> {
    fn fit(
        &self,
        components: TrainingComponents<T::Learner>,
        learner: Learner<T::Learner>,
        train: TrainLoader<T::Learner>,
        valid: ValidLoader<T::Learner>,
        starting_epoch: usize,
    ) -> (T::Learner, Events<T>) {
        let train = train.to_device(&self.device);
        let valid = valid.to_device(&self.device.clone().inner());
        let (mut position, memory) = self.start.clone();
        let mut session = Session::<T> {
            learner,
            memory,
            controller: self.controller(position.penalty_weight),
            events: components.event_processor,
            interrupter: components.interrupter,
        };
        session.learner.fork(&self.device);
        let mut checkpointer = components.checkpointer;
        let started = Instant::now();
        let before = position.seconds;

        for round in starting_epoch..=components.num_epochs {
            let steps = self.task.steps_after(round - 1)..self.task.steps_after(round);
            let slice = train.slice(steps.start, steps.end);
            let result = self
                .train_round(round, &mut session, slice)
                .and_then(|()| self.validate(round, &mut session, &valid));
            if let Err(error) = result {
                session.interrupter.stop(Some(&error.to_string()));
                self.lock().error = Some(error);
                break;
            }
            if session.interrupter.should_stop() {
                break;
            }
            position = Position {
                round,
                step: steps.end,
                seconds: before + started.elapsed().as_secs_f64(),
                penalty_weight: session.controller.as_ref().map(WeightController::weight),
            };
            if let Some(checkpointer) = &mut checkpointer {
                self.store.begin(position, session.memory.to_bytes());
                checkpointer.checkpoint(&session.learner, round, &components.event_store);
            }
        }
        // Waits for the last checkpoint to be written.
        drop(checkpointer);
        (session.learner.model(), session.events)
    }
}

impl<T: RoundTask> RoundStrategy<T> {
    /// A strategy that begins at `start` and writes to `log`.
    pub(crate) fn new(
        task: T,
        device: Device,
        store: CheckpointStore,
        start: (Position, T::Memory),
        log: RunLog,
    ) -> Self {
        Self {
            task,
            device,
            store,
            start,
            state: Mutex::new(StrategyState { log, error: None }),
        }
    }

    /// The controller of the task, where a resumed run had left it.
    fn controller(&self, weight: Option<f64>) -> Option<WeightController> {
        let config = self.task.controller()?;
        let controller = config.build().expect("the recipe was validated");
        Some(match weight {
            Some(weight) => controller.resume(weight),
            None => controller,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StrategyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn train_round(
        &self,
        round: usize,
        session: &mut Session<T>,
        loader: TrainLoader<T::Learner>,
    ) -> Result<(), TrainError> {
        session.train_event(LearnerEvent::StartSplit {
            epoch_number: round,
            total_items: loader.num_items(),
        });
        let mut iterator = loader.iter();
        while let Some(input) = iterator.next() {
            let mut input = input.map_err(|error| TrainError::Stopped {
                reason: error.to_string(),
            })?;
            let weight = session.controller.as_ref().map(WeightController::weight);
            input.prepare(&mut session.memory, weight);
            let step = input.step() + 1;
            let mut out = session.learner.train_step(input);
            session.memory = out.item.memory();
            session.learner.lr_step();
            let rate = session.learner.lr_current();
            let record = out.item.record();
            record.learning_rate = rate.base();
            if let (Some(controller), Some(solve)) = (&mut session.controller, &record.forward) {
                // A solve that broke off early was not a short one.
                let status = &solve.status;
                let failed = status.diverged + status.non_finite + status.breakdown;
                controller.update(if failed > 0 { f64::NAN } else { solve.steps });
            }
            let loss = record.loss;
            if !loss.is_finite() {
                return Err(TrainError::NonFiniteLoss { step, loss });
            }
            self.lock().log.append(&Record::Step(record.clone()))?;
            session.learner.optimizer_step(out.grads);
            let progress = iterator.progress();
            let item = TrainingItem::new(out.item, progress, Some(step), Some(rate));
            session.train_event(LearnerEvent::ProcessedItem(item));
            if session.interrupter.should_stop() {
                return Ok(());
            }
        }
        session.train_event(LearnerEvent::EndSplit(round));
        Ok(())
    }

    fn validate(
        &self,
        round: usize,
        session: &mut Session<T>,
        loader: &ValidLoader<T::Learner>,
    ) -> Result<(), TrainError> {
        if session.interrupter.should_stop() {
            return Ok(());
        }
        session.valid_event(LearnerEvent::StartSplit {
            epoch_number: round,
            total_items: loader.num_items(),
        });
        let model = session.learner.model().valid();
        let step = self.task.steps_after(round);
        let record = self
            .task
            .evaluate(&model, loader.as_ref(), step, &mut |out, progress| {
                let iteration = progress.items_processed;
                let item = TrainingItem::new(out, progress, Some(iteration), None);
                session.valid_event(LearnerEvent::ProcessedItem(item));
            })?;
        if !record.loss.is_finite() {
            return Err(TrainError::NonFiniteLoss {
                step: record.step,
                loss: record.loss,
            });
        }
        self.lock().log.append(&Record::Eval(record))?;
        session.valid_event(LearnerEvent::EndSplit(round));
        session.train_event(LearnerEvent::EndEpoch(round));
        Ok(())
    }
}

/// Checkpoints after every round; the store itself drops old ones.
struct EveryRound;

impl CheckpointingStrategy for EveryRound {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}

/// The loaders of training and of evaluation.
pub(crate) type Loaders<T> = [Arc<dyn DataLoader<<T as RoundTask>::In>>; 2];

/// How a run is shown: where its files are, whether as lines even on a terminal, and the number beside the loss.
pub(crate) struct Display<'a> {
    pub(crate) run: &'a Path,
    pub(crate) plain: bool,
    pub(crate) quality: Gauge,
}

/// Trains from where the strategy begins to the last round.
pub(crate) fn launch<T: RoundTask>(
    learner: Learner<T::Learner>,
    [train, valid]: Loaders<T>,
    strategy: &Arc<RoundStrategy<T>>,
    display: Display<'_>,
) -> Result<T::Learner, TrainError> {
    let store = &strategy.store;
    let mut training = SupervisedTraining::new(display.run, train, valid)
        .metrics((
            Gauge::loss(),
            display.quality,
            Gauge::steps(),
            Gauge::residual(),
        ))
        .metrics_text((StatusText::default(),))
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .with_checkpointing_strategy(EveryRound)
        .with_custom_checkpointers(store.part(0), store.part(1), store.part(2))
        .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
        .num_epochs(strategy.task.rounds());
    let round = strategy.start.0.round;
    if round > 0 {
        training = training.checkpoint(round);
    }
    if display.plain || !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        training = training.renderer(Box::new(LineRenderer::new()));
    }
    let result = training.launch(learner);
    if let Some(error) = strategy.lock().error.take() {
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

/// Adam with the betas and the epsilon of the original code.
pub(crate) fn adam() -> AdamConfig {
    AdamConfig::new().with_beta_2(0.999).with_epsilon(1e-8)
}

/// Linear warm-up from a hundredth of the peak over the first of `steps`, then cosine decay to 0.
pub(crate) fn warmup_and_cosine(
    peak: f64,
    warmup: usize,
    steps: usize,
) -> Result<ModuleLrScheduler, TrainError> {
    let decay = CosineAnnealingLrSchedulerConfig::new(peak, steps - warmup);
    let schedule = if warmup == 0 {
        decay.init()
    } else {
        let rise = LinearLrSchedulerConfig::new(0.01 * peak, peak, warmup);
        SequentialLrSchedulerConfig::new(
            vec![
                LrSchedulerConfig::Linear(rise),
                LrSchedulerConfig::Cosine(decay),
            ],
            vec![warmup],
        )
        .init()
    };
    schedule.map_err(|reason| TrainError::Stopped { reason })
}

/// A seed for one step (the finaliser of SplitMix64).
pub(crate) fn step_seed(seed: u64, step: usize) -> u64 {
    let mut x = seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
