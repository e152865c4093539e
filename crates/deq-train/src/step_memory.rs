//! The memory of a training step.

use crate::device::device;
use crate::error::{Stopped, TrainError};
use crate::recipe::Recipe;
use crate::step::{Learner, input};
use crate::task::{MemoryOf, Opening, Task};

/// How the process knows its use of memory: functions of a counting allocator, for models that live
/// on the heap.
#[derive(Clone, Copy, Debug)]
pub struct StepMemory {
    /// Begins a new peak.
    pub reset: fn(),
    /// Bytes in use.
    pub current: fn() -> usize,
    /// The most bytes in use since the last reset.
    pub peak: fn() -> usize,
}

/// The most bytes that a training step of the recipe holds beside model and data: activations,
/// states of the solvers, gradients.
///
/// The step applies the penalty, if there is one. Of two steps the second counts, since the first
/// makes buffers that stay.
///
/// # Errors
///
/// [`TrainError`] if the recipe is wrong, the data cannot be opened, or the device is unknown.
pub fn step_memory<T: Task>(
    recipe: &Recipe<T>,
    device_name: &str,
    meter: &StepMemory,
) -> Result<usize, TrainError> {
    let mut recipe = recipe.clone();
    recipe.task.prepare(recipe.network)?;
    let data = recipe.task.open(&Opening {
        training: true,
        ..Opening::default()
    })?;
    recipe.validate()?;
    let device = device(device_name)?.autodiff();
    let learner = Learner::fresh(&recipe, &device)?;
    let batches = recipe.task.training(&data, &recipe.batch_plan(0))?;
    // Behind the unrolled phase, with a full memory.
    let first = recipe.pretrain_steps;
    let mut memory = MemoryOf::<T>::default();
    let mut bytes = 0;
    for (index, batch) in batches.batches(0..2, &device).enumerate() {
        let step = first + index;
        let batch = batch.map_err(|source| Stopped::Batch { step, source })?;
        let mut input = input::<T>(batch, step);
        input.memory = memory;
        input.penalty = recipe.penalty.as_ref().map(|penalty| penalty.weight);
        (meter.reset)();
        let before = (meter.current)();
        let out = learner.whole_step(input)?;
        bytes = (meter.peak)().saturating_sub(before);
        memory = out.item.memory;
    }
    Ok(bytes)
}
