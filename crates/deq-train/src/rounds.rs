//! Training in rounds: burn-train's events and checkpoints around steps that may carry a memory.

use crate::checkpoint::{CheckpointStore, Position, RunSums};
use crate::dashboard::{self, Gauge, LineRenderer, StatusText};
use crate::device::is_out_of_memory;
use crate::error::{Stopped, TrainError};
use crate::evaluate::{EvalPlan, batch_quality, evaluate};
use crate::events::EventFile;
use crate::files::FileSum;
use crate::parallel::{Team, joined};
use crate::recipe::Recipe;
use crate::records::{Record, RunLog};
use crate::run_folder::RunFolder;
use crate::step::{InputOf, LearnerOf, OutputOf};
use crate::task::{Memory, MemoryOf, Task};
use burn::data::dataloader::DataLoader;
use burn::module::Module;
use burn::train::checkpoint::{CheckpointingAction, CheckpointingStrategy};
use burn::train::logger::InMemoryMetricLogger;
use burn::train::metric::store::EventStoreClient;
use burn::train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, SupervisedLearningStrategy,
    SupervisedTraining, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents,
    TrainingItem, TrainingStrategy, ValidLoader,
};
use deq_jacreg::{Observation, PenaltyPolicy};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Trains round by round. A round is a range of steps, an evaluation, and a checkpoint.
///
/// burn-train's own strategies treat batches as independent and checkpoint between passes over the
/// data. A language model carries its memory from step to step, every DEQ changes phase at a given
/// step, and a run must resume in the middle of a pass; hence a strategy of its own.
pub(crate) struct RoundStrategy<T: Task> {
    pub(crate) recipe: Recipe<T>,
    pub(crate) team: Arc<Team>,
    pub(crate) store: CheckpointStore,
    /// Where training begins, and the memory there.
    pub(crate) start: (Position, MemoryOf<T>),
    /// The step after which training is interrupted.
    pub(crate) stop_after: Option<usize>,
    /// Interrupts training when it is set.
    pub(crate) stop: Option<Arc<AtomicBool>>,
    pub(crate) folder: RunFolder,
    /// The recipe as it was written.
    pub(crate) recipe_sum: FileSum,
    pub(crate) state: Mutex<StrategyState>,
}

/// The logs, where training stands, and the error that ended it, if one did.
pub(crate) struct StrategyState {
    pub(crate) log: RunLog,
    pub(crate) events: EventFile,
    pub(crate) checkpoint: usize,
    /// Whether it was told to stop; burn-train forgets it when its dashboard ends.
    pub(crate) interrupted: bool,
    pub(crate) error: Option<TrainError>,
}

impl StrategyState {
    fn record(&mut self, record: &Record) -> Result<(), TrainError> {
        self.log.append(record)?;
        self.events.append(record)
    }
}

type Events<T> = SupervisedTrainingEventProcessor<LearnerOf<T>>;

/// What changes while training.
struct Session<T: Task> {
    learner: Learner<LearnerOf<T>>,
    /// Of every part of a batch.
    memory: Vec<MemoryOf<T>>,
    policy: Option<PenaltyPolicy>,
    /// Steps made.
    step: usize,
    events: Events<T>,
    interrupter: Interrupter,
}

impl<T: Task> Session<T> {
    /// Hands an event to burn-train; a failure there stops training.
    fn train_event(&mut self, event: LearnerEvent<OutputOf<T>>) {
        let result = self.events.process_train(event);
        self.interrupter.fail_on_error(result);
    }

    fn valid_event(&mut self, event: LearnerEvent<OutputOf<T>>) {
        let result = self.events.process_valid(event);
        self.interrupter.fail_on_error(result);
    }
}

impl<T: Task> SupervisedLearningStrategy<LearnerOf<T>> for RoundStrategy<T> {
    fn fit(
        &self,
        components: TrainingComponents<LearnerOf<T>>,
        learner: Learner<LearnerOf<T>>,
        train: TrainLoader<LearnerOf<T>>,
        valid: ValidLoader<LearnerOf<T>>,
        _starting_epoch: usize,
    ) -> (LearnerOf<T>, Events<T>) {
        let plain = self.team.main();
        let tracked = plain.clone().autodiff();
        let train = train.to_device(&tracked);
        let valid = valid.to_device(plain);
        let (position, memory) = self.start.clone();
        let mut session = Session::<T> {
            learner,
            memory: vec![memory],
            policy: self.policy(&position),
            step: position.step,
            events: components.event_processor,
            interrupter: components.interrupter,
        };
        session.learner.fork(&tracked);
        let mut checkpointer = components.checkpointer;
        let started = Instant::now();
        let mut save = |session: &Session<T>, evaluated: bool| {
            let known = std::slice::from_ref(&self.recipe_sum);
            self.folder.check_recipe(known)?;
            let position = Position {
                step: session.step,
                evaluated,
                seconds: position.seconds + started.elapsed().as_secs_f64(),
                penalty: session.policy.as_ref().map(PenaltyPolicy::state),
            };
            let mut state = self.lock();
            state.checkpoint = session.step;
            let run = RunSums {
                log: state.log.sum(),
                recipe: known.to_vec(),
            };
            // Running statistics take in their last update when a model turns to evaluation, and
            // not when it is recorded.
            drop(session.learner.model().valid());
            let memory = joined(session.memory.clone(), plain);
            self.store.begin(position, memory.to_bytes(), run);
            if let Some(checkpointer) = &mut checkpointer {
                checkpointer.checkpoint(&session.learner, session.step, &components.event_store);
            }
            Ok(())
        };

        for round in self.recipe.round_at(&position)..=self.recipe.rounds {
            let end = self.recipe.steps_after(round);
            let slice = train.slice(session.step.min(end), end);
            let result = self
                .train_round(round, &mut session, slice)
                .and_then(|()| self.validate(round, &mut session, &valid))
                .and_then(|evaluated| save(&session, evaluated));
            if let Err(error) = result {
                session.interrupter.stop(Some(&error.to_string()));
                self.lock().error = Some(error);
                break;
            }
            if session.interrupter.should_stop() {
                self.lock().interrupted = true;
                break;
            }
        }
        // Waits for the last checkpoint to be written.
        drop(checkpointer);
        (session.learner.model(), session.events)
    }
}

impl<T: Task> RoundStrategy<T> {
    /// The policy of the penalty, where a resumed run had left it.
    fn policy(&self, position: &Position) -> Option<PenaltyPolicy> {
        let config = self.recipe.penalty.as_ref()?;
        let policy = config.policy().expect("the recipe was validated");
        Some(match position.penalty {
            Some(state) => policy.resume(state),
            None => policy,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StrategyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn non_finite(&self, step: usize, loss: f64) -> TrainError {
        let (run, checkpoint) = (self.folder.path().to_owned(), self.lock().checkpoint);
        let stopped = Stopped::NonFiniteLoss {
            step,
            loss,
            run,
            checkpoint,
        };
        stopped.into()
    }

    fn train_round(
        &self,
        round: usize,
        session: &mut Session<T>,
        loader: TrainLoader<LearnerOf<T>>,
    ) -> Result<(), TrainError> {
        session.train_event(LearnerEvent::StartSplit {
            epoch_number: round,
            total_items: loader.num_items(),
        });
        let mut iterator = loader.iter();
        while let Some(input) = iterator.next() {
            let step = session.step;
            let mut input = input.map_err(|error| Stopped::Batch {
                step: step + 1,
                source: error.into(),
            })?;
            input.step = step;
            let seed = self.recipe.seed;
            input.penalty = match (&mut session.policy, self.recipe.penalty_phase(step)) {
                (Some(policy), Some(phase)) => policy.decide(seed, step, phase),
                _ => None,
            };
            let model = session.learner.model();
            let mut out = self.team.train(&model, input, &mut session.memory)?;
            drop(model);
            session.learner.lr_step();
            let rate = session.learner.lr_current();
            let record = &mut out.item.record;
            record.learning_rate = rate.base();
            record.quality = batch_quality(&self.recipe.task, record.loss, &out.item.tally);
            if let (Some(policy), Some(solve)) = (&mut session.policy, &record.forward) {
                policy.observe(Observation::solve(solve.steps, &solve.status));
            }
            if !record.loss.is_finite() {
                return Err(self.non_finite(step + 1, record.loss));
            }
            self.lock().record(&Record::Step(record.clone()))?;
            session.learner.optimizer_step(out.grads);
            session.step += 1;
            let progress = iterator.progress();
            let item = TrainingItem::new(out.item, progress, Some(session.step), Some(rate));
            session.train_event(LearnerEvent::ProcessedItem(item));
            let enough = self.stop_after.is_some_and(|most| session.step >= most);
            if enough && session.step < self.recipe.steps {
                session.interrupter.stop(None);
            }
            if self.should_stop(&session.interrupter) {
                return Ok(());
            }
        }
        session.train_event(LearnerEvent::EndSplit(round));
        Ok(())
    }

    /// Whether training is to stop, by this library's means or burn-train's.
    fn should_stop(&self, interrupter: &Interrupter) -> bool {
        let asked = self.stop.as_ref();
        if asked.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            interrupter.stop(None);
        }
        interrupter.should_stop()
    }

    /// The evaluation at the end of a round; `false` if it was interrupted.
    fn validate(
        &self,
        round: usize,
        session: &mut Session<T>,
        loader: &ValidLoader<LearnerOf<T>>,
    ) -> Result<bool, TrainError> {
        if self.should_stop(&session.interrupter) {
            return Ok(false);
        }
        session.valid_event(LearnerEvent::StartSplit {
            epoch_number: round,
            total_items: loader.num_items(),
        });
        let model = session.learner.model().valid();
        let plan = EvalPlan::new(&self.recipe, "valid", session.step, &self.team);
        let task = &self.recipe.task;
        let record = evaluate(
            task,
            &model,
            loader.as_ref(),
            &plan,
            &mut |out, progress| {
                let iteration = progress.items_processed;
                let item = TrainingItem::new(out, progress, Some(iteration), None);
                session.valid_event(LearnerEvent::ProcessedItem(item));
                match self.should_stop(&session.interrupter) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            },
        )?;
        let Some(record) = record else {
            return Ok(false);
        };
        if !record.loss.is_finite() {
            return Err(self.non_finite(record.step, record.loss));
        }
        self.lock().record(&Record::Eval(record))?;
        session.valid_event(LearnerEvent::EndSplit(round));
        session.train_event(LearnerEvent::EndEpoch(round));
        Ok(true)
    }
}

/// A checkpoint whenever the strategy asks for one; the store itself drops old ones.
struct Always;

impl CheckpointingStrategy for Always {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}

/// The loaders of training and of evaluation.
pub(crate) type Loaders<T> = [Arc<dyn DataLoader<InputOf<T>>>; 2];

/// Trains from where the strategy begins to the last round.
pub(crate) fn launch<T: Task>(
    learner: Learner<LearnerOf<T>>,
    [train, valid]: Loaders<T>,
    strategy: &Arc<RoundStrategy<T>>,
    plain: bool,
) -> Result<LearnerOf<T>, TrainError> {
    let (store, recipe) = (&strategy.store, &strategy.recipe);
    let position = strategy.start.0;
    let mut training = SupervisedTraining::new(strategy.folder.path(), train, valid)
        .metrics((
            Gauge::loss(),
            Gauge::quality(&recipe.task.measure()),
            Gauge::steps(),
            Gauge::residual(),
        ))
        .metrics_text((StatusText::default(),))
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .with_checkpointing_strategy(Always)
        .with_custom_checkpointers(
            store.model_part(),
            store.optimizer_part(),
            store.schedule_part(recipe.schedule(position.step)?),
        )
        .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
        .num_epochs(recipe.rounds);
    let done = (position.step > 0).then(|| recipe.round_at(&position) - 1);
    if let Some(done) = done {
        training = training.checkpoint(done);
    }
    training = match dashboard::renderer(plain, &training.interrupter(), done) {
        Some(renderer) => training.renderer(renderer),
        None => training.renderer(Box::new(LineRenderer::new())),
    };
    let training = AssertUnwindSafe(|| training.launch(learner));
    let result = catch_unwind(training).map_err(|panic| {
        if !is_out_of_memory(&*panic) {
            resume_unwind(panic);
        }
        Stopped::OutOfMemory {
            batch: recipe.batch,
        }
    })?;
    let mut state = strategy.lock();
    if let Some(error) = state.error.take().or_else(|| store.take_error()) {
        return Err(error);
    }
    if let Some(error) = result.error {
        let reason = error.to_string();
        return Err(Stopped::Framework { reason }.into());
    }
    match state.interrupted {
        false => Ok(result.model),
        true => Err(Stopped::Interrupted {
            step: state.checkpoint,
            run: strategy.folder.path().to_owned(),
        }
        .into()),
    }
}
