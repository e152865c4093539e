//! `deq train`.

use crate::print;
use crate::recipe::{RecipeArgs, TaskArgs};
use anyhow::Result;
use deq_train::{
    Devices, DevicesError, Network, Recipe, RunError, RunFolder, Start, Stopped, Task, TrainError,
    TrainOptions, affordable_steps, train,
};
use std::path::PathBuf;

pub(crate) fn run(args: TaskArgs) -> Result<()> {
    match args {
        TaskArgs::Lm(args) => run_task("lm", &|steps| args.recipe(steps), &args.shared),
        TaskArgs::Mdeq(args) => run_task("mdeq", &|steps| args.recipe(steps), &args.shared),
    }
}

/// Trains what `build` makes of the options, and of the number of steps if the minutes chose it.
fn run_task<T: Task>(
    command: &str,
    build: &dyn Fn(Option<usize>) -> Result<(Recipe<T>, PathBuf)>,
    args: &RecipeArgs,
) -> Result<()> {
    let (mut recipe, run) = build(None)?;
    let devices = Devices {
        token_file: args.token_file.clone(),
        ..Devices::from(&args.device)
    };
    let options = TrainOptions {
        start: match args.resume {
            true => Start::Resume,
            false => Start::New,
        },
        plain: args.plain || args.json,
        workers: args.workers,
        stop: Some(crate::signals::stop_flag()?),
        progress: Some(crate::data::progress()),
        ..TrainOptions::new(devices, run.clone())
    };
    say_what_runs(&args.device);
    if let Some(minutes) = args.minutes {
        // A resumed run keeps the steps that it was started with.
        if !args.resume {
            // Before time is spent on the trial.
            if RunFolder::new(run.clone()).exists() {
                return Err(RunError::Exists { path: run }.into());
            }
            print::note(format_args!(
                "a few steps, to choose how many fit into {minutes} minutes:"
            ));
            let steps = affordable_steps(&recipe, minutes, &options)?;
            (recipe, _) = build(Some(steps))?;
        }
        print::note(format_args!("training for {} steps", recipe.steps));
    }
    let network = recipe.network;
    let summary = train(recipe, &options).inspect_err(|error| {
        let line = format!("deq train {command} --run {} --resume", run.display());
        say_how_to_go_on(error, line, network, args);
    })?;
    if args.json {
        return print::json(&summary);
    }
    print::summary(&summary);
    print::row("curves:", RunFolder::new(run).report().display());
    Ok(())
}

/// Says which device was chosen, and why a card is slow at first.
fn say_what_runs(name: &str) {
    // Training says what is wrong with a device.
    let Ok(device) = deq_train::device(name) else {
        return;
    };
    if name == "auto" {
        print::note(format_args!("device: {}", deq_train::best_device()));
    }
    if !deq_kernels::on_host(&device) {
        print::note(
            "the first steps compile and tune kernels, which takes minutes the first time and is \
             kept for the next",
        );
    }
}

/// Says the command that goes on, where there is one.
fn say_how_to_go_on(error: &TrainError, mut line: String, network: Network, args: &RecipeArgs) {
    let (mut device, mut more) = (args.device.as_str(), "");
    match error {
        TrainError::Stopped(Stopped::Interrupted { .. }) => {}
        TrainError::Devices(DevicesError::Lost { .. } | DevicesError::BrokenOff { .. }) => {
            device = "DEVICES";
        }
        TrainError::Stopped(Stopped::Diverged {
            checkpoint: 1.., ..
        }) => {
            more = match network {
                Network::Equilibrium => " --lr RATE --penalty WEIGHT",
                _ => " --lr RATE",
            };
        }
        _ => return,
    }
    // What a run does not keep.
    if device != "flex" {
        line += &format!(" --device {device}");
    }
    if let Some(token) = &args.token_file {
        line += &format!(" --token-file {}", token.display());
    }
    print::note(format_args!("to go on: {line}{more}"));
}
