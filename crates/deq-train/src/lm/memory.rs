//! The memory of a training step.

use super::learner::{LmInput, LmLearner};
use super::recipe::LmRecipe;
use crate::device::device;
use crate::error::TrainError;
use burn::train::TrainStep;
use deq_data::Segment;

/// How the process knows its use of memory: functions of a counting allocator, for models that live on the heap.
#[derive(Clone, Copy, Debug)]
pub struct StepMemory {
    /// Begins a new peak.
    pub reset: fn(),
    /// Bytes in use.
    pub current: fn() -> usize,
    /// The most bytes in use since the last reset.
    pub peak: fn() -> usize,
}

/// The most bytes that a training step of the recipe holds beside the model: activations, states of the solvers, gradients.
///
/// The recipe's vocabulary size must be known. The step applies the penalty, if there is one. Of two steps the second counts, since the first makes buffers that stay.
///
/// # Errors
///
/// [`TrainError`] if the recipe is wrong or the device unknown.
pub fn step_memory(
    recipe: &LmRecipe,
    device_name: &str,
    meter: &StepMemory,
) -> Result<usize, TrainError> {
    let mut recipe = recipe.clone();
    if let Some(penalty) = &mut recipe.penalty {
        penalty.frequency = 1.0;
    }
    recipe.validate()?;
    let device = device(device_name)?.autodiff();
    let learner = LmLearner::new(&recipe, &device)?;
    // Behind the unrolled phase, with a full memory.
    let mut memory = deq_models::LmMemory::empty();
    let (batch, len) = (recipe.batch, recipe.segment);
    let mut bytes = 0;
    for step in 0..2 {
        let tokens = (0..batch * len).map(|k| ((k * 7 + step) % recipe.model.vocab_size) as i32);
        let tokens: Vec<i32> = tokens.collect();
        let segment = Segment {
            batch,
            len,
            targets: tokens.clone(),
            inputs: tokens,
            index: step,
            starts_stream: step == 0,
        };
        let mut input = LmInput::new(segment, recipe.pretrain_steps + step, &device);
        input.memory = memory;
        (meter.reset)();
        let before = (meter.current)();
        let out = learner.step(input);
        bytes = (meter.peak)().saturating_sub(before);
        memory = out.item.memory;
    }
    Ok(bytes)
}
