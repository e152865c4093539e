//! `deq reproduce`.

use crate::args::{DeqLmArgs, Experiment, ReproduceLmArgs, ReproduceVisionArgs, SyntheticArgs};
use crate::eval::print_json;
use crate::train::{penalty, set};
use anyhow::Result;
use deq_jacreg::JacobianPenaltyConfig;
use deq_train::Timed;
use deq_train::lm::{DataSource, LmRecipe, StepMemory};
use deq_train::reproduce::networks::{NetworkComparison, compare_networks, megabytes};
use deq_train::reproduce::synthetic::{self, SyntheticOptions};
use deq_train::reproduce::{Claim, Comparison, ComparisonResult, compare};
use deq_train::vision::VisionRecipe;
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) fn run(what: &Experiment) -> Result<()> {
    match what {
        Experiment::JacregSynthetic(args) => jacreg_synthetic(args),
        Experiment::JacregLm(args) => jacreg_lm(args),
        Experiment::JacregVision(args) => jacreg_vision(args),
        Experiment::DeqLm(args) => deq_lm(args),
    }
}

fn jacreg_synthetic(args: &SyntheticArgs) -> Result<()> {
    let options = SyntheticOptions {
        device: args.device.clone(),
        folder: args.folder.clone(),
        seeds: args.seeds,
        epochs: args.epochs,
    };
    let bar = progress_bar()?;
    let result = synthetic::run(&options, &mut |share, name| {
        bar.set_position((share * STEPS as f64) as u64);
        bar.set_message(name.to_owned());
    })?;
    bar.finish_and_clear();
    if args.json {
        return print_json(&result);
    }
    println!(
        "{:20} {:>15} {:>18} {:>10}",
        "trained with", "spectral radius", "residual after 6", "test loss"
    );
    for (name, [radius, residual, loss]) in synthetic::summary(&result) {
        println!("{name:20} {radius:15.3} {residual:18.2e} {loss:10.4}");
    }
    print_claims(&result.claims);
    println!("pictures: {}", result.report.display());
    Ok(())
}

fn jacreg_lm(args: &ReproduceLmArgs) -> Result<()> {
    let default = if args.data.is_some() { "wt2" } else { "tiny" };
    let mut recipe = LmRecipe::preset(args.preset.as_deref().unwrap_or(default))?;
    if let Some(data) = &args.data {
        recipe.data = DataSource::Path(data.clone());
    }
    if let Some(steps) = args.steps {
        recipe.scale_steps(steps);
    }
    recipe.seed = args.seed.unwrap_or(recipe.seed);
    let options = Comparison {
        recipe,
        weights: args.weights.clone(),
        budgets: args.budgets.clone(),
        device: args.device.clone(),
        folder: args.folder.clone(),
    };
    let result = compare(&options, &mut |what| eprintln!("== {what}"))?;
    if args.json {
        return print_json(&result);
    }
    print_comparison(&result);
    Ok(())
}

fn jacreg_vision(args: &ReproduceVisionArgs) -> Result<()> {
    let mut recipe = VisionRecipe::preset(&args.preset, &args.data)?;
    set(&mut recipe.epochs, args.epochs);
    set(&mut recipe.steps_per_epoch, args.steps_per_epoch);
    set(&mut recipe.pretrain_steps, args.pretrain);
    set(&mut recipe.seed, args.seed);
    // The weights that are compared stay.
    recipe.controller = None;
    if recipe.penalty.is_none() {
        recipe.penalty = Some(JacobianPenaltyConfig::new());
    }
    penalty(&mut recipe.penalty, None, args.penalty_frequency)?;
    let options = Comparison {
        recipe,
        weights: args.weights.clone(),
        budgets: args.budgets.clone(),
        device: args.device.clone(),
        folder: args.folder.clone(),
    };
    let result = compare(&options, &mut |what| eprintln!("== {what}"))?;
    if args.json {
        return print_json(&result);
    }
    print_comparison(&result);
    Ok(())
}

fn print_comparison(result: &ComparisonResult) {
    print!("\n{:17}", format!("{} with", result.measure.name()));
    result
        .budgets
        .iter()
        .for_each(|budget| print!("{budget:>8}"));
    println!("  evaluations");
    for variant in &result.variants {
        print!("{:17}", variant.name());
        for value in &variant.quality {
            print!("{:>8}", result.measure.text(*value));
        }
        println!();
    }
    print_claims(&result.claims);
    println!("curves: {}", result.report.display());
}

fn deq_lm(args: &DeqLmArgs) -> Result<()> {
    let default = if args.data.is_some() { "wt2" } else { "tiny" };
    let mut recipe = LmRecipe::preset(args.preset.as_deref().unwrap_or(default))?;
    if let Some(data) = &args.data {
        recipe.data = DataSource::Path(data.clone());
    }
    let options = NetworkComparison {
        recipe,
        minutes: args.minutes,
        tied_depth: args.tied_depth,
        layers: args.layers,
        device: args.device.clone(),
        folder: args.folder.clone(),
        memory: Some(StepMemory {
            reset: || crate::HEAP.reset_peak_usage(),
            current: || crate::HEAP.current_usage(),
            peak: || crate::HEAP.peak_usage(),
        }),
    };
    let result = compare_networks(&options, &mut |what| eprintln!("== {what}"))?;
    if args.json {
        return print_json(&result);
    }
    println!(
        "\n{:16} {:>10} {:>10} {:>7} {:>6} {:>8} {:>11} {:>13} {:>9} {:>7}",
        "network",
        "perplexity",
        "parameters",
        "minutes",
        "steps",
        "ms/step",
        "evaluations",
        "in training",
        "converged",
        "MB/step"
    );
    for network in &result.networks {
        let share = network.converged;
        println!(
            "{:16} {:10.1} {:10} {:7.1} {:6} {:8.0} {:11.1} {:6.1} +{:5.1} {:>9} {:>7}",
            network.name,
            network.perplexity,
            network.parameters,
            network.training_seconds / 60.0,
            network.steps,
            1e3 * network.training_seconds / network.steps as f64,
            network.evaluations,
            network.training_evaluations[0],
            network.training_evaluations[1],
            share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
            network.step_bytes.map_or(String::new(), megabytes),
        );
    }
    println!("\ntraining memory by depth: equilibrium, weight-tied");
    for row in &result.memory {
        println!(
            "{:6} steps {:>6} MB {:>6} MB",
            row.depth,
            megabytes(row.equilibrium),
            megabytes(row.tied)
        );
    }
    print_claims(&result.claims);
    println!("curves: {}", result.report.display());
    Ok(())
}

/// Of a progress bar that is told shares.
pub(crate) const STEPS: u64 = 10_000;

pub(crate) fn progress_bar() -> Result<ProgressBar> {
    let style = "{elapsed_precise} {wide_bar} {percent:>3} %  {msg}  {eta} left";
    let bar = ProgressBar::new(STEPS);
    bar.set_style(ProgressStyle::with_template(style)?);
    Ok(bar)
}

fn print_claims(claims: &[Claim]) {
    println!();
    for claim in claims {
        let verdict = if claim.holds {
            "holds:"
        } else {
            "DOES NOT HOLD:"
        };
        println!("{verdict} {}\n    {}", claim.statement, claim.evidence);
    }
    println!();
}
