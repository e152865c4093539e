//! The memory of training steps as predicted against what they use. A binary of its own, since it
//! counts every allocation of the process.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{MemoryPlan, Recipe, StepMemory, Task, step_memory, without_tolerance};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const METER: StepMemory = StepMemory {
    reset: || HEAP.reset_peak_usage(),
    current: || HEAP.current_usage(),
    peak: || HEAP.peak_usage(),
};

/// Predicted over measured bytes of a step whose solves use up their budgets.
fn ratio<T: Task>(preset: &str, changes: &[(&str, &str)]) -> f64 {
    let mut recipe = Recipe::<T>::preset(preset).unwrap();
    for (field, value) in changes {
        recipe.set(field, value).unwrap();
    }
    recipe.deq = without_tolerance(recipe.deq);
    // The step that is measured is one behind these.
    recipe.pretrain_steps = 0;
    let measured = step_memory(&recipe, "flex", &METER).unwrap();
    // Fills in what the data determine.
    let mut task = recipe.task.clone();
    task.open(&Default::default()).unwrap();
    recipe.task = task;
    let plan = MemoryPlan::new(&recipe, recipe.batch, true).unwrap();
    let most = plan.largest();
    let ratio = most.bytes as f64 / measured as f64;
    println!(
        "{preset} {changes:?}: {} of {measured} bytes, {ratio:.3}, {}",
        most.bytes, most.name
    );
    if std::env::var_os("PLAN").is_some() { println!("{plan:?}"); }
    ratio
}
