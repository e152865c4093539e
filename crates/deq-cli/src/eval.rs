//! `deq eval`.

use crate::print::{self, PARTS};
use anyhow::{Result, bail};
use clap::Args;
use deq_data::ImageSource;
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{
    Devices, EvalOptions, Recipe, RunFolder, Split, Task, Variant, evaluate_budgets, evaluate_with,
};
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// Folder of the run.
    run: PathBuf,
    /// Another place of the data that the run was trained on, in the form that training takes.
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Measure the test split instead of the valid split.
    #[arg(long)]
    test: bool,
    /// Most steps of a solve; several, separated by commas, make a table and a plot. Default: the
    /// run's.
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    max_steps: Vec<usize>,
    /// Memory lengths of a language model; several, separated by commas, make a table and a plot.
    /// Default: the run's.
    #[arg(long, value_name = "LENGTHS", value_delimiter = ',')]
    memory: Vec<usize>,
    /// Device to run on; several, separated by commas, divide every batch, as in training.
    #[arg(long, default_value = "flex")]
    device: String,
    /// File of the token that remote devices ask for.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    match RunFolder::new(args.run.clone()).kind()?.as_str() {
        ImagesTask::NAME => {
            if !args.memory.is_empty() {
                bail!("--memory is for language models: leave it out");
            }
            let data = args.data.as_ref().map(|data| data.parse::<ImageSource>());
            let data = data.transpose()?;
            let moved = |recipe: &mut Recipe<ImagesTask>| {
                if let Some(data) = &data {
                    recipe.task.data = data.clone();
                }
            };
            eval(args, &moved, &[None], &|_, _| ())
        }
        _ => {
            let moved = |recipe: &mut Recipe<TextTask>| {
                if let Some(data) = &args.data {
                    recipe.task.data = DataSource::Path(data.into());
                }
            };
            let memory = match args.memory.as_slice() {
                [] => vec![None],
                lengths => lengths.iter().copied().map(Some).collect(),
            };
            eval(args, &moved, &memory, &|recipe, length| {
                recipe.task.model.mem_len = length;
            })
        }
    }
}

/// One evaluation, or a table where several lengths of the memory or several budgets are given.
fn eval<T: Task>(
    args: &EvalArgs,
    moved: &dyn Fn(&mut Recipe<T>),
    memory: &[Option<usize>],
    remember: &dyn Fn(&mut Recipe<T>, usize),
) -> Result<()> {
    let mut options = EvalOptions::new(Devices {
        token_file: args.token_file.clone(),
        ..Devices::from(&args.device)
    });
    if args.test {
        options.split = Split::Test;
    }
    let changed = |recipe: &mut Recipe<T>, length: Option<usize>| {
        moved(recipe);
        if let Some(length) = length {
            remember(recipe, length);
        }
    };
    if args.max_steps.len() < 2 && memory.len() < 2 {
        options.max_steps = args.max_steps.first().copied();
        let change = |recipe: &mut Recipe<T>| changed(recipe, memory[0]);
        let summary = evaluate_with::<T>(&args.run, &options, &change)?;
        if args.json {
            return print::json(&summary);
        }
        print::summary(&summary);
        return Ok(());
    }
    let budgets = match args.max_steps.as_slice() {
        [] => {
            let deq = Recipe::<T>::of_run(&args.run)?.deq;
            vec![deq.eval_stop.as_ref().unwrap_or(&deq.stop).max_steps]
        }
        budgets => budgets.to_vec(),
    };
    let variants: Vec<Variant<'_, T>> = memory
        .iter()
        .map(|&length| Variant {
            name: length.map_or("as trained".to_owned(), |length| format!("memory {length}")),
            change: Box::new(move |recipe| changed(recipe, length)),
        })
        .collect();
    let bar = print::progress_bar()?;
    let table = evaluate_budgets(&args.run, &options, &variants, &budgets, &mut |share| {
        bar.set_position((share * PARTS as f64) as u64);
    })?;
    bar.finish_and_clear();
    if args.json {
        return print::json(&table);
    }
    print::budgets(&table);
    Ok(())
}
