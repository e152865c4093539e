//! `deq eval`, and how results are printed.

use crate::args::EvalArgs;
use crate::reproduce::{STEPS, progress_bar};
use anyhow::{Result, bail};
use deq_train::lm::{EvalOptions, LmRecipe, LmSummary, evaluate_run, evaluate_table};
use deq_train::{RunFolder, clock, number, status_text};
use serde::Serialize;
use std::time::Duration;

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    if RunFolder::new(args.run.clone()).kind()? == "vision" {
        if !args.memory.is_empty() {
            bail!("--memory is for language models: leave it out");
        }
        return crate::vision::eval(args);
    }
    let mut options = EvalOptions::new(&args.device);
    options.data.clone_from(&args.data);
    options.test = args.test;
    if args.max_steps.len() > 1 || args.memory.len() > 1 {
        return table(args, &options);
    }
    options.max_steps = args.max_steps.first().copied();
    options.mem_len = args.memory.first().copied();
    let summary = evaluate_run(&args.run, &options)?;
    if args.json {
        return print_json(&summary);
    }
    print_summary(&summary);
    Ok(())
}

/// Perplexity for every memory length and budget.
fn table(args: &EvalArgs, options: &EvalOptions) -> Result<()> {
    let recipe = LmRecipe::of_run(&args.run)?;
    let or = |given: &[usize], default| match given {
        [] => vec![default],
        given => given.to_vec(),
    };
    let stop = recipe.deq.eval_stop.as_ref().unwrap_or(&recipe.deq.stop);
    let memory = or(&args.memory, recipe.model.mem_len);
    let budgets = or(&args.max_steps, stop.max_steps);
    let bar = progress_bar()?;
    let table = evaluate_table(&args.run, options, (&memory, &budgets), &mut |share| {
        bar.set_position((share * STEPS as f64) as u64);
    })?;
    bar.finish_and_clear();
    if args.json {
        return print_json(&table);
    }
    print!("{:22}", "perplexity with");
    budgets.iter().for_each(|budget| print!("{budget:>9}"));
    println!("  solver steps");
    for (length, row) in memory.iter().zip(&table.cells) {
        print!("{:22}", format!("memory {length}"));
        row.iter()
            .for_each(|eval| print!("{:9.2}", eval.perplexity()));
        println!();
    }
    println!("curves: {}", table.page.display());
    Ok(())
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

pub(crate) fn print_summary(summary: &LmSummary) {
    let eval = &summary.eval;
    println!("run:                   {}", summary.run.display());
    println!(
        "trained:               {} steps in {}, {} parameters",
        eval.step,
        clock(Duration::from_secs_f64(summary.training_seconds)),
        summary.parameters
    );
    println!(
        "{:<23}{:.2} over {} tokens",
        format!("{} perplexity:", eval.split),
        eval.quality.main().1,
        eval.targets
    );
    println!(
        "unigram perplexity:    {:.2} on the same text",
        summary.unigram_perplexity
    );
    println!("evaluations per solve: {:.2}", eval.nfe_per_solve);
    if let Some(residual) = eval.residual {
        println!("relative residual:     {}", number(residual));
        println!("solves:                {}", status_text(&eval.status));
    }
    if let Some(radius) = eval.spectral_radius {
        println!("spectral radius:       {radius:.3} at the equilibrium of the first segment");
    }
}
