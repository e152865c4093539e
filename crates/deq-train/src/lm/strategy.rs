//! The training loop: burn-train's events and checkpoints around steps that carry a memory.

use super::evaluate::{EvalPlan, evaluate};
use super::learner::{LmInput, LmLearner, LmStepOutput};
use super::recipe::LmRecipe;
use crate::checkpoint::{CheckpointStore, Position};
use crate::error::TrainError;
use crate::records::{Record, RunLog};
use burn::module::Module;
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use burn::train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, SupervisedLearningStrategy,
    SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, TrainingItem, ValidLoader,
};
use deq_jacreg::WeightController;
use deq_models::LmMemory;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Trains round by round. A round is a range of steps, an evaluation, and a checkpoint.
///
/// burn-train's own strategies treat batches as independent and checkpoint between passes over the data. A language model carries its memory from
/// step to step, changes phase at a given step, and must resume in the middle of a pass; hence a strategy of its own.
pub(crate) struct StreamStrategy {
    pub(crate) recipe: LmRecipe,
    pub(crate) device: Device,
    pub(crate) store: CheckpointStore,
    /// Where a resumed run stands, and its memory.
    pub(crate) start: (Position, LmMemory),
    /// The log, and the error that ended training, if one did.
    pub(crate) state: Mutex<StrategyState>,
}

pub(crate) struct StrategyState {
    pub(crate) log: RunLog,
    pub(crate) error: Option<TrainError>,
}

type Events = SupervisedTrainingEventProcessor<LmLearner>;

/// What changes while training.
struct Session {
    learner: Learner<LmLearner>,
    memory: LmMemory,
    controller: Option<WeightController>,
    events: Events,
    interrupter: Interrupter,
}

impl Session {
    /// Hands an event to burn-train; a failure there stops training.
    fn train_event(&mut self, event: LearnerEvent<LmStepOutput>) {
        let result = self.events.process_train(event);
        self.interrupter.fail_on_error(result);
    }

    fn valid_event(&mut self, event: LearnerEvent<LmStepOutput>) {
        let result = self.events.process_valid(event);
        self.interrupter.fail_on_error(result);
    }
}

impl SupervisedLearningStrategy<LmLearner> for StreamStrategy {
    fn fit(
        &self,
        components: TrainingComponents<LmLearner>,
        learner: Learner<LmLearner>,
        train: TrainLoader<LmLearner>,
        valid: ValidLoader<LmLearner>,
        starting_epoch: usize,
    ) -> (LmLearner, Events) {
        let train = train.to_device(&self.device);
        let valid = valid.to_device(&self.device.clone().inner());
        let (mut position, memory) = self.start.clone();
        let mut session = Session {
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
            let steps = self.recipe.steps_after(round - 1)..self.recipe.steps_after(round);
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
                self.store.begin(position, memory_to_bytes(&session.memory));
                checkpointer.checkpoint(&session.learner, round, &components.event_store);
            }
        }
        // Waits for the last checkpoint to be written.
        drop(checkpointer);
        (session.learner.model(), session.events)
    }
}

impl StreamStrategy {
    /// The controller of the recipe, where a resumed run had left it.
    fn controller(&self, weight: Option<f64>) -> Option<WeightController> {
        let config = self.recipe.controller.as_ref()?;
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
        session: &mut Session,
        loader: TrainLoader<LmLearner>,
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
            if !input.starts_stream {
                input.memory = std::mem::take(&mut session.memory);
            }
            let step = input.step + 1;
            input.penalty_weight = session.controller.as_ref().map(WeightController::weight);
            let mut out = session.learner.train_step(input);
            session.memory = out.item.memory.clone();
            if let (Some(controller), Some(solve)) =
                (&mut session.controller, &out.item.record.forward)
            {
                controller.update(solve.steps);
            }
            session.learner.lr_step();
            let rate = session.learner.lr_current();
            out.item.record.learning_rate = rate.base();
            let loss = out.item.record.loss;
            if !loss.is_finite() {
                return Err(TrainError::NonFiniteLoss { step, loss });
            }
            session.learner.optimizer_step(out.grads);
            self.lock()
                .log
                .append(&Record::Step(out.item.record.clone()))?;
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
        session: &mut Session,
        loader: &ValidLoader<LmLearner>,
    ) -> Result<(), TrainError> {
        if session.interrupter.should_stop() {
            return Ok(());
        }
        session.valid_event(LearnerEvent::StartSplit {
            epoch_number: round,
            total_items: loader.num_items(),
        });
        let plan = EvalPlan {
            split: "valid",
            step: self.recipe.steps_after(round),
            probe: true,
            solver: self.recipe.deq.solver.clone(),
        };
        let model = session.learner.model().valid();
        let record = evaluate(&model, loader.as_ref(), &plan, |out, progress| {
            let iteration = progress.items_processed;
            let item = TrainingItem::new(out, progress, Some(iteration), None);
            session.valid_event(LearnerEvent::ProcessedItem(item));
            Ok(())
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

/// The memory as a safetensors file, its tensors named by their place; empty for an empty memory.
fn memory_to_bytes(memory: &LmMemory) -> Vec<u8> {
    if memory.is_empty() {
        return Vec::new();
    }
    // f32 holds every narrower float exactly.
    let data: Vec<TensorData> = memory
        .tensors()
        .iter()
        .map(|tensor| match tensor.dtype() {
            DType::F64 => tensor.to_data(),
            _ => tensor.to_data().convert::<f32>(),
        })
        .collect();
    let views = data
        .iter()
        .enumerate()
        .map(|(place, data)| Ok((place.to_string(), view(data)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>();
    views
        .and_then(|views| safetensors::serialize(views, None))
        .expect("sizes follow from shapes")
}

fn view(data: &TensorData) -> Result<TensorView<'_>, SafeTensorError> {
    let dtype = match data.dtype() {
        DType::F64 => Dtype::F64,
        _ => Dtype::F32,
    };
    TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())
}

/// The inverse of `memory_to_bytes`, on `device`.
pub(crate) fn memory_from_bytes(bytes: &[u8], device: &Device) -> Result<LmMemory, String> {
    if bytes.is_empty() {
        return Ok(LmMemory::empty());
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |place: usize| {
        let name = place.to_string();
        let view = file.tensor(&name).map_err(|error| error.to_string())?;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            other => return Err(format!("{name} is {other:?}")),
        };
        let bytes = Bytes::from_bytes_vec(view.data().to_vec());
        let data = TensorData::from_bytes(bytes, view.shape().to_vec(), dtype);
        Ok(Tensor::<3>::from_data(data, device))
    };
    let tensors = (0..file.len()).map(tensor).collect::<Result<_, _>>()?;
    Ok(LmMemory::new(tensors))
}

/// The input type of both loaders.
pub(crate) type Loader = std::sync::Arc<dyn burn::data::dataloader::DataLoader<LmInput>>;

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn the_memory_survives_a_checkpoint() {
        let device = Device::flex();
        let normal = Distribution::Normal(0.0, 1.0);
        let z = Tensor::<3>::random([2, 5, 4], normal, &device);
        let injection = Tensor::<3>::random([2, 5, 12], normal, &device);
        let bytes = memory_to_bytes(&LmMemory::new(vec![z.clone(), injection.clone()]));
        let memory = memory_from_bytes(&bytes, &device).unwrap();
        let [z_back, injection_back] = memory.tensors() else {
            panic!("both tensors come back");
        };
        assert_eq!(z_back.to_data(), z.into_data());
        assert_eq!(injection_back.to_data(), injection.into_data());
        let empty = memory_from_bytes(&[], &device).unwrap();
        assert!(empty.is_empty());
    }
}
