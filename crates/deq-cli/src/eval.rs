//! `deq eval`.

use crate::print::{self, PARTS};
use crate::recipe::set;
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
            eval(args, &|recipe: &mut Recipe<ImagesTask>, _| {
                set(&mut recipe.task.data, data.clone());
            })
        }
        _ => eval(args, &|recipe: &mut Recipe<TextTask>, memory| {
            let data = args.data.as_ref().map(|data| DataSource::Path(data.into()));
            set(&mut recipe.task.data, data);
            set(&mut recipe.task.model.mem_len, memory);
        }),
    }
}

/// One evaluation, or a table where several lengths of the memory or several budgets are given.
/// `change` applies the place of the data and a length.
fn eval<T: Task>(args: &EvalArgs, change: &dyn Fn(&mut Recipe<T>, Option<usize>)) -> Result<()> {
    let mut options = EvalOptions::new(Devices {
        token_file: args.token_file.clone(),
        ..Devices::from(&args.device)
    });
    if args.test {
        options.split = Split::Test;
    }
    if args.max_steps.len() < 2 && args.memory.len() < 2 {
        options.max_steps = args.max_steps.first().copied();
        let memory = args.memory.first().copied();
        let summary = evaluate_with::<T>(&args.run, &options, &|recipe| change(recipe, memory))?;
        if args.json {
            return print::json(&summary);
        }
        print::summary(&summary);
        return Ok(());
    }
    let variant = |memory: Option<usize>| Variant {
        name: memory.map_or("as trained".to_owned(), |length| format!("memory {length}")),
        change: Box::new(move |recipe| change(recipe, memory)),
    };
    let variants: Vec<Variant<'_, T>> = match args.memory.as_slice() {
        [] => vec![variant(None)],
        lengths => lengths.iter().copied().map(Some).map(variant).collect(),
    };
    let bar = print::progress_bar()?;
    let table = evaluate_budgets(
        &args.run,
        &options,
        &variants,
        &args.max_steps,
        &mut |share| {
            bar.set_position((share * PARTS as f64) as u64);
        },
    )?;
    bar.finish_and_clear();
    if args.json {
        return print::json(&table);
    }
    print::budgets(&table);
    Ok(())
}
