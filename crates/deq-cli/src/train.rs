//! `deq train`.

use crate::print;
use crate::recipe::{RecipeArgs, TaskArgs};
use anyhow::{Context, Result};
use deq_train::{
    Recipe, RunFolder, Start, Stopped, Task, TrainError, TrainOptions, train, train_for,
};
use std::path::{Path, PathBuf};

pub(crate) fn run(args: TaskArgs) -> Result<()> {
    match args {
        TaskArgs::Lm(args) => run_task("lm", args.recipe()?, &args.shared),
        TaskArgs::Mdeq(args) => run_task("mdeq", args.recipe()?, &args.shared),
    }
}

fn run_task<T: Task>(
    command: &str,
    (mut recipe, run): (Recipe<T>, PathBuf),
    args: &RecipeArgs,
) -> Result<()> {
    let start = match args.resume {
        true => Start::Resume,
        false => Start::New,
    };
    let options = TrainOptions {
        start,
        plain: args.plain || args.json,
        workers: args.workers,
        stop: Some(crate::signals::stop_flag()?),
        progress: Some(crate::data::progress()),
        ..TrainOptions::new(&args.device, run.clone())
    };
    if let Some(minutes) = args.minutes {
        if !args.resume {
            let text = format!("a few steps, to choose how many fit into {minutes} minutes:");
            print::note(text);
        }
        let resumed = args.resume.then_some(&*run);
        train_for(&mut recipe, minutes, &args.device, resumed)?;
        print::note(format_args!("training for {} steps", recipe.steps));
    }
    let result = train(recipe, &options);
    let summary = match result {
        Ok(summary) => summary,
        Err(error) => return Err(with_command(error, command, &run)),
    };
    if args.json {
        return print::json(&summary);
    }
    print::summary(&summary);
    print::row("curves:", RunFolder::new(run).report().display());
    Ok(())
}

/// The error with the command that goes on, where there is one.
fn with_command(error: TrainError, command: &str, run: &Path) -> anyhow::Error {
    let run = run.display();
    let go_on = match &error {
        TrainError::Stopped(Stopped::Interrupted { .. }) => {
            format!("deq train {command} --run {run} --resume")
        }
        TrainError::Stopped(Stopped::NonFiniteLoss { checkpoint, .. }) if *checkpoint > 0 => {
            format!("deq train {command} --run {run} --resume --lr RATE --penalty WEIGHT")
        }
        _ => return error.into(),
    };
    let result: Result<(), TrainError> = Err(error);
    let context = format!("to go on: {go_on}");
    match result.context(context) {
        Err(error) => error,
        Ok(()) => unreachable!("made of an error"),
    }
}
