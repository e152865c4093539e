//! `deq presets --memory`.

use crate::print;
use anyhow::Result;
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{MemoryPlan, Recipe, Task, TrainError};
use serde::Serialize;

/// Memories of common cards, in gigabytes.
const CARDS: [usize; 6] = [11, 16, 24, 40, 80, 141];

/// What a preset needs.
#[derive(Serialize)]
struct Row {
    preset: &'static str,
    /// A step at the preset's batch.
    plan: MemoryPlan,
    /// The most bytes of a step that solves.
    solved: usize,
    /// The most bytes of any step.
    peak: usize,
    /// The largest batch on one device of each size.
    fits: Vec<Fit>,
}

#[derive(Serialize)]
struct Fit {
    gigabytes: usize,
    batch: usize,
}

pub(crate) fn run(json: bool) -> Result<()> {
    let mut rows = presets::<TextTask>()?;
    rows.extend(presets::<ImagesTask>()?);
    if json {
        return print::json(&rows);
    }
    println!(
        "GB of a training step in f32 at the preset's batch: by what holds them; at the most in"
    );
    println!(
        "a step that solves, and in any, unrolled ones included; the largest batch on one card of"
    );
    println!("so many GB. Pools and fragmentation come on top.\n");
    let cards: String = CARDS.iter().map(|card| format!("{card:>6}")).collect();
    let name = "preset";
    println!(
        "{name:<24} batch  weights  moments  constants  history   tape  output  penalty  solving   \
         peak{cards}"
    );
    for row in rows {
        let plan = &row.plan;
        let [
            weights,
            moments,
            constants,
            history,
            tape,
            output,
            penalty,
            solving,
            peak,
        ] = [
            plan.parameters,
            plan.moments,
            plan.constants,
            plan.history,
            plan.tape,
            plan.output,
            plan.penalty,
            row.solved,
            row.peak,
        ]
        .map(|bytes| bytes as f64 / 1e9);
        let fits: String = row
            .fits
            .iter()
            .map(|fit| format!("{:>6}", fit.batch))
            .collect();
        println!(
            "{:<24} {:>5}  {weights:>7.3}  {moments:>7.3}  {constants:>9.3}  {history:>7.3}  \
             {tape:>5.2}  {output:>6.2}  {penalty:>7.2}  {solving:>7.2}  {peak:>5.2}{fits}",
            row.preset, plan.batch
        );
    }
    Ok(())
}

fn presets<T: Task>() -> Result<Vec<Row>, TrainError> {
    let mut rows = Vec::new();
    for preset in T::presets() {
        let recipe = Recipe::<T>::preset(preset.name)?;
        let Some(plan) = MemoryPlan::new(&recipe, recipe.batch, false) else {
            continue;
        };
        let fit = |&gigabytes: &usize| {
            let batch = MemoryPlan::largest_batch(&recipe, gigabytes * 1_000_000_000)?;
            Some(Fit { gigabytes, batch })
        };
        rows.push(Row {
            preset: preset.name,
            solved: plan.solving(),
            peak: plan.peak(),
            fits: CARDS.iter().filter_map(fit).collect(),
            plan,
        });
    }
    Ok(rows)
}
