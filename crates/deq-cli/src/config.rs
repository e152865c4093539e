//! `deq config` and `deq presets`.

use crate::print;
use crate::recipe::TaskArgs;
use anyhow::{Result, bail};
use clap::Args;
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{Task, TrainError};
use serde::Serialize;

#[derive(Args)]
pub(crate) struct PresetsArgs {
    /// Print instead what a step of the papers' trainings takes on 1 to 64 devices, on paper.
    #[arg(long)]
    scaling: bool,
    /// Print instead what a training step holds in memory, on paper, and the largest batch on one
    /// card of 11 to 141 GB.
    #[arg(long, conflicts_with = "scaling")]
    memory: bool,
    /// Print the list as JSON on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: TaskArgs) -> Result<()> {
    let shared = match &args {
        TaskArgs::Lm(args) => &args.shared,
        TaskArgs::Mdeq(args) => &args.shared,
    };
    if shared.minutes.is_some() {
        bail!("--minutes chooses the steps by the time of a few: give it to `deq train`");
    }
    match args {
        TaskArgs::Lm(args) => print::json(&args.recipe(None)?.0),
        TaskArgs::Mdeq(args) => print::json(&args.recipe(None)?.0),
    }
}

#[derive(Serialize)]
struct Entry {
    command: &'static str,
    name: &'static str,
    about: String,
}

pub(crate) fn presets(args: &PresetsArgs) -> Result<()> {
    if args.scaling {
        return crate::scaling::run(args.json);
    }
    if args.memory {
        return crate::memory::run(args.json);
    }
    let mut all = list::<TextTask>("deq train lm")?;
    all.extend(list::<ImagesTask>("deq train mdeq")?);
    if args.json {
        return print::json(&all);
    }
    for entry in &all {
        println!(
            "{} --preset {}\n    {}",
            entry.command, entry.name, entry.about
        );
    }
    Ok(())
}

fn list<T: Task>(command: &'static str) -> Result<Vec<Entry>, TrainError> {
    let entry = |preset: &deq_train::Preset| {
        Ok(Entry {
            command,
            name: preset.name,
            about: preset.about()?,
        })
    };
    T::presets().iter().map(entry).collect()
}
