//! `deq eval`, and how results are printed.

use crate::args::EvalArgs;
use anyhow::{Result, bail};
use deq_train::lm::{EvalOptions, LmSummary, evaluate_run};
use deq_train::{RunFolder, clock, number, status_text};
use serde::Serialize;
use std::time::Duration;

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    if RunFolder::new(args.run.clone()).kind()? == "vision" {
        return crate::vision::eval(args);
    }
    if !args.budgets.is_empty() {
        bail!("--budgets is for runs on pictures: give --max-steps");
    }
    let options = EvalOptions {
        device: args.device.clone(),
        data: args.data.clone(),
        test: args.test,
        max_steps: args.max_steps,
    };
    let summary = evaluate_run(&args.run, &options)?;
    if args.json {
        return print_json(&summary);
    }
    print_summary(&summary);
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
