//! Training in rounds: burn-train's events around steps that may carry a memory.

use crate::checkpoint::{CheckpointStore, MEMORY, MODEL, OPTIMIZER, Position, RECIPE, RunSums};
use crate::dashboard::{self, Gauge, StatusText};
use crate::device::is_out_of_memory;
use crate::error::{Stopped, TrainError};
use crate::evaluate::{EvalPlan, batch_quality, evaluate, progress};
use crate::events::EventFile;
use crate::files::{self, FileSum};
use crate::parallel::{Team, joined};
use crate::recipe::Recipe;
use crate::records::{Record, RunLog};
use crate::run::TrainOptions;
use crate::run_folder::{RunFolder, not_finite};
use crate::step::{LearnerOf, OutputOf, input};
use crate::task::{BatchOf, Batches, Memory, MemoryOf, Task};
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::tensor::Device;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, NumericEntry};
use burn::train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, SupervisedLearningStrategy,
    SupervisedTraining, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents,
    TrainingItem, TrainingStrategy, ValidLoader,
};
use deq_jacreg::{Observation, PenaltyPolicy};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Trains round by round. A round is a range of steps, a checkpoint, and an evaluation, in this
/// order, so that an evaluation that fails takes no steps with it.
///
/// burn-train's own strategies treat batches as independent and checkpoint between passes over the
/// data. A language model carries its memory from step to step, every DEQ changes phase at a given
/// step, and a run must resume in the middle of a pass; hence a strategy of its own.
pub(crate) struct RoundStrategy<T: Task> {
    pub(crate) recipe: Recipe<T>,
    pub(crate) team: Arc<Team>,
    pub(crate) store: CheckpointStore,
    pub(crate) batches: Box<dyn Batches<BatchOf<T>>>,
    pub(crate) held_out: Arc<dyn Batches<BatchOf<T>>>,
    /// Where training begins, and the memory there.
    pub(crate) start: (Position, MemoryOf<T>),
    pub(crate) optimizer: ModuleOptimizer,
    pub(crate) schedule: ModuleLrScheduler,
    pub(crate) options: TrainOptions,
    pub(crate) folder: RunFolder,
    /// The recipe as it was written.
    pub(crate) recipe_sum: FileSum,
    pub(crate) state: Mutex<StrategyState>,
}

/// The logs, and the error that ended it, if one did.
pub(crate) struct StrategyState {
    pub(crate) log: RunLog,
    pub(crate) events: EventFile,
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
    learner: LearnerOf<T>,
    optimizer: ModuleOptimizer,
    schedule: ModuleLrScheduler,
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
        _train: TrainLoader<LearnerOf<T>>,
        _valid: ValidLoader<LearnerOf<T>>,
        _starting_epoch: usize,
    ) -> (LearnerOf<T>, Events<T>) {
        let plain = self.team.main();
        let tracked = plain.clone().autodiff();
        let (position, memory) = self.start.clone();
        let mut session = Session::<T> {
            learner: learner.model().fork(&tracked),
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            memory: vec![memory],
            policy: self.policy(&position),
            step: position.step,
            events: components.event_processor,
            interrupter: components.interrupter,
        };
        let started = Instant::now();
        let standing = |session: &Session<T>, evaluated: bool| {
            self.team.require_awaited()?;
            let recipe = vec![self.recipe_sum.clone()];
            self.folder.check_recipe(&recipe)?;
            let state = self.lock();
            // A checkpoint that outlives a power failure must find its log there.
            state.log.sync()?;
            let log = state.log.sum();
            let position = Position {
                step: session.step,
                evaluated,
                seconds: position.seconds + started.elapsed().as_secs_f64(),
                penalty: session.policy.as_ref().map(PenaltyPolicy::state),
            };
            Ok::<_, TrainError>((position, RunSums { log, recipe }))
        };
        let save = |session: &Session<T>| {
            let (position, run) = standing(session, false)?;
            // Running statistics take in their last update when a model turns to evaluation, and
            // not when it is recorded.
            drop(session.learner.valid());
            let model = session.learner.clone().into_record().into_bytes();
            let memory = joined(session.memory.clone(), plain);
            let parts = [
                (MODEL, self.store.bytes(model)?),
                (OPTIMIZER, self.store.bytes(session.optimizer.into_bytes())?),
                (MEMORY, memory.to_bytes()),
                (
                    RECIPE,
                    files::json_bytes(&self.folder.config(), &self.recipe)?,
                ),
            ];
            self.store.write(position, run, parts)
        };

        for round in self.recipe.round_at(&position)..=self.recipe.rounds {
            let result = self
                .train_round(round, &mut session, &tracked)
                .and_then(|()| self.require_finite(&session))
                .and_then(|()| save(&session))
                .and_then(|()| match self.validate(round, &mut session)? {
                    // Evaluating changes neither model nor optimizer.
                    true => {
                        let (position, run) = standing(&session, true)?;
                        self.store.amend(position, run)
                    }
                    false => Ok(()),
                });
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
        (session.learner, session.events)
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

    /// A model that is not a number would be evaluated at the points where its solves begin.
    fn require_finite(&self, session: &Session<T>) -> Result<(), TrainError> {
        match not_finite(&session.learner).first() {
            None => Ok(()),
            Some(name) => {
                let what = format!("the parameter {name} became NaN or infinite");
                Err(self.diverged(session.step, what))
            }
        }
    }

    fn non_finite(&self, step: usize, loss: f64) -> TrainError {
        self.diverged(step, format!("the loss became {loss}"))
    }

    fn diverged(&self, step: usize, what: String) -> TrainError {
        match self.store.last_step() {
            Ok(checkpoint) => Stopped::Diverged {
                what,
                step,
                run: self.folder.path().to_owned(),
                checkpoint: checkpoint.unwrap_or(0),
            }
            .into(),
            Err(error) => error,
        }
    }

    fn train_round(
        &self,
        round: usize,
        session: &mut Session<T>,
        device: &Device,
    ) -> Result<(), TrainError> {
        let end = self.recipe.steps_after(round);
        let steps = session.step.min(end)..end;
        let all = steps.len();
        session.train_event(LearnerEvent::StartSplit {
            epoch_number: round,
            total_items: all,
        });
        for (place, batch) in self.batches.batches(steps, device).enumerate() {
            let step = session.step;
            let batch = batch.map_err(|source| {
                let step = step + 1;
                Stopped::Batch { step, source }
            })?;
            let mut input = input::<T>(batch, step);
            let seed = self.recipe.seed;
            input.penalty = match (&mut session.policy, self.recipe.penalty_phase(step)) {
                (Some(policy), Some(phase)) => policy.decide(seed, step, phase),
                _ => None,
            };
            let team = &self.team;
            let mut out = team.train(&session.learner, input, &mut session.memory)?;
            let rate = session.schedule.step();
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
            let learner = session.learner.clone();
            session.learner = session.optimizer.step(rate.clone(), learner, out.grads);
            session.step += 1;
            let progress = progress(place, all);
            let item = TrainingItem::new(out.item, progress, Some(session.step), Some(rate));
            session.train_event(LearnerEvent::ProcessedItem(item));
            let most = self.options.stop_after.unwrap_or(usize::MAX);
            if (most..self.recipe.steps).contains(&session.step) {
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
        if let Some(stop) = &self.options.stop
            && stop.load(Ordering::Relaxed)
        {
            interrupter.stop(None);
        }
        interrupter.should_stop()
    }

    /// The evaluation at the end of a round; `false` if it was interrupted.
    fn validate(&self, round: usize, session: &mut Session<T>) -> Result<bool, TrainError> {
        if self.should_stop(&session.interrupter) {
            return Ok(false);
        }
        let all = self.held_out.per_pass();
        // The last one is what is reported.
        let some = self
            .recipe
            .valid_batches
            .filter(|_| round < self.recipe.rounds);
        let most = some.map_or(all, |most| most.min(all));
        session.valid_event(LearnerEvent::StartSplit {
            epoch_number: round,
            total_items: most,
        });
        let model = session.learner.valid();
        let plan = EvalPlan {
            split: "valid",
            step: session.step,
            probe: Some(self.recipe.deq.solver.clone()),
            team: &self.team,
        };
        let mut on_item = |out, progress: Progress| {
            let iteration = progress.items_processed;
            let item = TrainingItem::new(out, progress, Some(iteration), None);
            session.valid_event(LearnerEvent::ProcessedItem(item));
            match self.should_stop(&session.interrupter) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let (task, batches) = (&self.recipe.task, (&*self.held_out, most));
        let lacking = Stopped::OutOfMemoryEvaluating {
            step: plan.step,
            run: self.folder.path().to_owned(),
        };
        let pass = || evaluate(task, &model, batches, &plan, &mut on_item);
        let Some(record) = within_memory(pass, lacking)?? else {
            return Ok(false);
        };
        if !record.loss.is_finite() {
            // A run resumed from there would end here again.
            self.store.discard(record.step)?;
            return Err(self.non_finite(record.step, record.loss));
        }
        self.lock().record(&Record::Eval(record))?;
        session.valid_event(LearnerEvent::EndSplit(round));
        session.train_event(LearnerEvent::EndEpoch(round));
        Ok(true)
    }
}

/// Does work that may need more memory than the device has, which Burn says by a panic.
fn within_memory<R>(work: impl FnOnce() -> R, lacking: Stopped) -> Result<R, Stopped> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match is_out_of_memory(&*panic) {
        true => lacking,
        false => resume_unwind(panic),
    })
}

/// In the place of the loggers of burn-train, which keep every step: the log of the run has it.
struct NoLogger;

impl MetricLogger for NoLogger {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}

/// In the place of a loader, which burn-train hands from its caller to the strategy and leaves
/// alone.
struct NoLoader;

impl<O> DataLoader<O> for NoLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<O> + 'a> {
        unreachable!("the strategy makes its batches")
    }

    fn num_items(&self) -> usize {
        0
    }

    fn to_device(&self, _device: &Device) -> Arc<dyn DataLoader<O>> {
        Arc::new(Self)
    }

    fn slice(&self, _start: usize, _end: usize) -> Arc<dyn DataLoader<O>> {
        Arc::new(Self)
    }
}

/// Trains from where the strategy begins to the last round.
pub(crate) fn launch<T: Task>(
    learner: LearnerOf<T>,
    strategy: &Arc<RoundStrategy<T>>,
) -> Result<LearnerOf<T>, TrainError> {
    let recipe = &strategy.recipe;
    let (optimizer, schedule) = (strategy.optimizer.clone(), strategy.schedule.clone());
    let learner = Learner::new(learner, optimizer, schedule);
    let position = strategy.start.0;
    let mut training = SupervisedTraining::new(
        strategy.folder.path(),
        Arc::new(NoLoader),
        Arc::new(NoLoader),
    )
    .metrics((
        Gauge::loss(),
        Gauge::quality(&recipe.task.measure()),
        Gauge::steps(),
        Gauge::residual(),
    ))
    .metrics_text((StatusText::default(),))
    .with_metric_logger(NoLogger)
    .with_application_logger(None)
    .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
    .num_epochs(recipe.rounds);
    let done = (position.step > 0).then(|| recipe.round_at(&position) - 1);
    if let Some(done) = done {
        training = training.checkpoint(done);
    }
    let renderer = dashboard::renderer(strategy.options.plain, &training.interrupter(), done);
    let batch = recipe.batch;
    let training = || training.renderer(renderer).launch(learner);
    let result = within_memory(training, Stopped::OutOfMemory { batch })?;
    let mut state = strategy.lock();
    if let Some(error) = state.error.take() {
        return Err(error);
    }
    if let Some(error) = result.error {
        let reason = error.to_string();
        return Err(Stopped::Framework { reason }.into());
    }
    match state.interrupted {
        false => Ok(result.model),
        true => Err(Stopped::Interrupted {
            step: strategy.store.last_step()?.unwrap_or(0),
            run: strategy.folder.path().to_owned(),
        }
        .into()),
    }
}
