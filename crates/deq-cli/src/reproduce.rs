//! `deq reproduce`.

use crate::print::{self, PARTS};
use crate::recipe::{penalty, set};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use deq_data::{ImageSource, Level};
use deq_experiments::networks::{
    Contender, ExplicitNetwork, Length, NetworkComparison, NetworkComparisonResult,
    compare_networks, megabytes,
};
use deq_experiments::synthetic::{self, SyntheticOptions};
use deq_experiments::{Claim, Comparison, ComparisonResult, Figures, compare};
use deq_jacreg::{JacobianPenaltyConfig, WeightSchedule};
use deq_train::tasks::images::{ImagesTask, preset_for};
use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{Recipe, StepMemory, Task, TrainError, device};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Experiment {
    /// A regression in one dimension with and without the penalty, and with weight decay in its
    /// place.
    JacregSynthetic(SyntheticArgs),
    /// A language model trained with different weights of the penalty and evaluated with different
    /// budgets.
    JacregLm(ReproduceLmArgs),
    /// A multiscale model on images trained with and without the penalty and evaluated with
    /// different budgets.
    JacregVision(ReproduceVisionArgs),
    /// The DEQ-Transformer with and without the penalty, beside a weight-tied network and a
    /// Transformer-XL with as many parameters, for equal time or equal steps.
    DeqLm(DeqLmArgs),
    /// A multiscale model on images with and without the penalty, beside a weight-tied network and
    /// a ResNet with as many parameters, for equal time or equal steps.
    DeqVision(DeqVisionArgs),
}

#[derive(Args)]
pub(crate) struct DeqLmArgs {
    /// Recipe to start from, see `deq presets`. Default: tiny, or one that suits the data.
    #[arg(long)]
    preset: Option<String>,
    /// Folder of text files, or one text file. Default: the built-in handbook.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Layers of the Transformer-XL; their inner width is chosen so that the parameters are equal.
    #[arg(long, default_value_t = 2)]
    layers: usize,
    #[command(flatten)]
    shared: NetworksArgs,
}

#[derive(Args)]
pub(crate) struct DeqVisionArgs {
    /// Images: shapes (generated), cifar10:PATH, or imagefolder:PATH.
    #[arg(long, default_value = "shapes")]
    data: ImageSource,
    /// Recipe to start from, see `deq presets`.
    #[arg(long, default_value = "mini")]
    preset: String,
    /// Layers of the ResNet, 18, 34, 50, 101 or 152; its width brings its parameters nearest to
    /// those of the multiscale model.
    #[arg(long, default_value_t = 18)]
    layers: usize,
    #[command(flatten)]
    shared: NetworksArgs,
}

/// Options of every comparison of networks.
#[derive(Args)]
pub(crate) struct NetworksArgs {
    /// Recipe of the DEQ with its penalty, as `deq config` prints it, with any field changed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["preset", "data"])]
    recipe: Option<PathBuf>,
    /// Minutes of training for each network.
    #[arg(long, default_value_t = 30.0, allow_negative_numbers = true)]
    minutes: f64,
    /// Training steps for each network, instead of an equal time.
    #[arg(long, conflicts_with = "minutes")]
    steps: Option<usize>,
    /// The networks: layers, weight-tied, deq, or deq-jr for the DEQ with its penalty. A DEQ may be
    /// trained by +one-step or +phantom gradients, with +short solves to a larger tolerance, and
    /// +unrolled for half of its steps, as in deq-jr+one-step+short.
    #[arg(long, value_name = "LIST", value_delimiter = ',',
        default_values_t = Contender::DEFAULT)]
    networks: Vec<Contender>,
    /// First seed of weights, order, dropout masks and penalty draws.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds, from the first on, each of which trains every network. Verdicts can hold with three
    /// or more.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Applications of the cell in the weight-tied network.
    #[arg(long, default_value_t = 6)]
    tied_depth: usize,
    /// Folder of the runs and the results, by default named after the comparison in `runs`. Give it
    /// again to go on after an interruption.
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    json: bool,
}

impl NetworksArgs {
    fn compares_layers(&self) -> bool {
        self.networks.contains(&Contender::Layers)
    }
}

/// Options of every comparison of weights.
#[derive(Args)]
pub(crate) struct CompareArgs {
    /// Recipe to start from, as `deq config` prints it, with any field changed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["preset", "data"])]
    recipe: Option<PathBuf>,
    /// Training steps. Default: the preset's.
    #[arg(long)]
    steps: Option<usize>,
    /// Rounds; each ends with an evaluation.
    #[arg(long)]
    rounds: Option<usize>,
    /// Steps of unrolled pre-training.
    #[arg(long)]
    pretrain: Option<usize>,
    /// Weights of the penalty to compare, in the place of a controller. Default: 0 and the
    /// recipe's, with its controller if it has one.
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true)]
    weights: Vec<f64>,
    /// Share of training steps that apply the penalty.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    penalty_frequency: Option<f64>,
    /// Evaluations allowed at inference.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,6,8,12,16,20,30")]
    budgets: Vec<usize>,
    /// First seed of weights, order, dropout masks and penalty draws.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds, from the first on, each of which trains every weight. Verdicts can hold with three or
    /// more.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Steps that training solves of the model without the penalty may take; held-out solves keep
    /// theirs. Default: those of the others; the paper has 30 against 12.
    #[arg(long, value_name = "STEPS")]
    plain_steps: Option<usize>,
    /// Folder of the runs and the results, by default named after the task in `runs`. Give it again
    /// to go on after an interruption.
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct ReproduceVisionArgs {
    /// Images: shapes (generated), cifar10:PATH, or imagefolder:PATH.
    #[arg(long, default_value = "shapes")]
    data: ImageSource,
    /// Recipe to start from, see `deq presets`.
    #[arg(long, default_value = "mini")]
    preset: String,
    #[command(flatten)]
    shared: CompareArgs,
}

#[derive(Args)]
pub(crate) struct ReproduceLmArgs {
    /// Recipe to start from, see `deq presets`. Default: tiny, or one that suits the data.
    #[arg(long)]
    preset: Option<String>,
    /// Folder of text files, or one text file. Default: the built-in handbook.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    shared: CompareArgs,
}

#[derive(Args)]
pub(crate) struct SyntheticArgs {
    /// Seeds, each of which trains six models.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Passes over the 4096 training points; the paper has 50.
    #[arg(long, default_value_t = 50)]
    epochs: usize,
    /// Folder of the results.
    #[arg(long, value_name = "FOLDER", default_value = "runs/jacreg-synthetic")]
    run: PathBuf,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(what: &Experiment) -> Result<()> {
    match what {
        Experiment::JacregSynthetic(args) => jacreg_synthetic(args),
        Experiment::JacregLm(args) => jacreg_lm(args),
        Experiment::JacregVision(args) => jacreg_vision(args),
        Experiment::DeqLm(args) => deq_lm(args),
        Experiment::DeqVision(args) => deq_vision(args),
    }
}

fn jacreg_synthetic(args: &SyntheticArgs) -> Result<()> {
    let options = SyntheticOptions {
        device: args.device.clone(),
        folder: args.run.clone(),
        seeds: args.seeds,
        epochs: args.epochs,
    };
    let bar = print::progress_bar()?;
    let result = synthetic::run(&options, &mut |share, name| {
        bar.set_position((share * PARTS as f64) as u64);
        bar.set_message(name.to_owned());
    })?;
    bar.finish_and_clear();
    if args.json {
        return print::json(&result);
    }
    println!(
        "{:20} {:>15} {:>18} {:>10}",
        "trained with", "spectral radius", "residual after 6", "test loss"
    );
    for (name, [radius, residual, loss]) in synthetic::summary(&result) {
        println!("{name:20} {radius:15.3} {residual:18.2e} {loss:10.4}");
    }
    print_claims(&result.claims);
    println!("images: {}", result.report.display());
    Ok(())
}

/// The recipe of a language model.
fn text(
    file: Option<&Path>,
    preset: Option<&str>,
    data: Option<&PathBuf>,
) -> Result<Recipe<TextTask>, TrainError> {
    if let Some(file) = file {
        return Recipe::from_file(file);
    }
    let level = data.map(|data| Level::default_for(data)).transpose()?;
    let default = match level {
        None | Some(Level::Byte) => "tiny",
        Some(_) => "wt2",
    };
    let mut recipe = Recipe::<TextTask>::preset(preset.unwrap_or(default))?;
    if let (Some(data), Some(level)) = (data, level) {
        recipe.task.data = DataSource::Path(data.clone());
        if preset.is_none() {
            recipe.task.level = level;
        }
    }
    Ok(recipe)
}

fn jacreg_lm(args: &ReproduceLmArgs) -> Result<()> {
    let shared = &args.shared;
    let recipe = text(
        shared.recipe.as_deref(),
        args.preset.as_deref(),
        args.data.as_ref(),
    )?;
    compare_weights(recipe, "a language model", Figures::TEXT, shared)
}

/// The recipe of a model of images.
fn images(
    file: Option<&Path>,
    preset: &str,
    data: &ImageSource,
) -> Result<Recipe<ImagesTask>, TrainError> {
    match file {
        Some(file) => Recipe::from_file(file),
        None => preset_for(preset, data),
    }
}

fn jacreg_vision(args: &ReproduceVisionArgs) -> Result<()> {
    let recipe = images(args.shared.recipe.as_deref(), &args.preset, &args.data)?;
    compare_weights(recipe, "a multiscale model", Figures::IMAGES, &args.shared)
}

fn compare_weights<T: Task>(
    mut recipe: Recipe<T>,
    title: &str,
    figures: Figures,
    args: &CompareArgs,
) -> Result<()> {
    if let Some(steps) = args.steps {
        recipe.scale_steps(steps);
    }
    set(&mut recipe.rounds, args.rounds);
    if let Some(steps) = args.pretrain {
        recipe.set_pretrain_steps(steps);
    }
    set(&mut recipe.seed, args.seed);
    let weights = match (args.weights.as_slice(), &mut recipe.penalty) {
        ([], Some(config)) => vec![0.0, config.weight],
        ([], None) => bail!(
            "the recipe has no penalty to compare with none: give --weights and \
             --penalty-frequency, or a recipe that has one"
        ),
        (given, Some(config)) => {
            // Weights that are compared stay.
            if matches!(config.schedule, WeightSchedule::Controlled(_)) {
                config.schedule = WeightSchedule::Constant;
            }
            given.to_vec()
        }
        (given, none) => {
            if args.penalty_frequency.is_none() {
                bail!(
                    "the recipe has no penalty, which would say how many steps apply one: give \
                     --penalty-frequency"
                );
            }
            *none = Some(JacobianPenaltyConfig::default());
            given.to_vec()
        }
    };
    penalty(&mut recipe.penalty, None, args.penalty_frequency)?;
    let folder = args.run.clone();
    let options = Comparison {
        title: title.to_owned(),
        folder: folder.unwrap_or_else(|| format!("runs/jacreg-{}", T::NAME).into()),
        recipe,
        weights,
        budgets: args.budgets.clone(),
        seeds: args.seeds,
        plain_steps: args.plain_steps,
        figures,
        device: args.device.clone(),
    };
    let result = compare(&options, &mut |what| print::note(format_args!("== {what}")))?;
    if args.json {
        return print::json(&result);
    }
    print_comparison(&result);
    Ok(())
}

fn print_comparison(result: &ComparisonResult) {
    let names = result.variants.iter().map(|variant| variant.name.len());
    let width = names.max().unwrap_or(0).max(16) + 1;
    print!("\n{:width$}", format!("{} with", result.measure.name()));
    result
        .budgets
        .iter()
        .for_each(|budget| print!("{budget:>8}"));
    println!("  evaluations");
    for variant in &result.variants {
        print!("{:width$}", variant.name);
        for budget in 0..result.budgets.len() {
            print!("{:>8}", result.measure.text(variant.mean_quality(budget)));
        }
        println!();
    }
    print_claims(&result.claims);
    println!("curves: {}", result.report.display());
}

fn deq_lm(args: &DeqLmArgs) -> Result<()> {
    let shared = &args.shared;
    let mut recipe = text(
        shared.recipe.as_deref(),
        args.preset.as_deref(),
        args.data.as_ref(),
    )?;
    set(&mut recipe.seed, shared.seed);
    let layers = shared
        .compares_layers()
        .then(|| ExplicitNetwork::transformer_xl(&recipe, args.layers, &shared.device));
    let layers = layers.transpose()?;
    networks(recipe, layers, "The DEQ-Transformer", "runs/deq-lm", shared)
}

fn deq_vision(args: &DeqVisionArgs) -> Result<()> {
    let shared = &args.shared;
    let mut recipe = images(shared.recipe.as_deref(), &args.preset, &args.data)?;
    set(&mut recipe.seed, shared.seed);
    let layers = shared
        .compares_layers()
        .then(|| ExplicitNetwork::resnet(&recipe, args.layers));
    let layers = layers.transpose()?;
    networks(
        recipe,
        layers,
        "The multiscale model",
        "runs/deq-vision",
        shared,
    )
}

fn networks<T: Task>(
    recipe: Recipe<T>,
    layers: Option<ExplicitNetwork<T>>,
    title: &str,
    folder: &str,
    args: &NetworksArgs,
) -> Result<()> {
    let options = NetworkComparison {
        title: title.to_owned(),
        recipe,
        length: match args.steps {
            Some(steps) => Length::Steps(steps),
            None => Length::Minutes(args.minutes),
        },
        contenders: args.networks.clone(),
        seeds: args.seeds,
        tied_depth: args.tied_depth,
        layers,
        device: args.device.clone(),
        folder: args.run.clone().unwrap_or_else(|| folder.into()),
        // The heap is not where a card keeps its tensors.
        memory: deq_kernels::on_host(&device(&args.device)?).then_some(StepMemory {
            reset: || crate::HEAP.reset_peak_usage(),
            current: || crate::HEAP.current_usage(),
            peak: || crate::HEAP.peak_usage(),
        }),
    };
    let result = compare_networks(&options, &mut |what| print::note(format_args!("== {what}")))?;
    if args.json {
        return print::json(&result);
    }
    print_networks(&result);
    Ok(())
}

fn print_networks(result: &NetworkComparisonResult) {
    let measure = &result.measure;
    println!(
        "\n{:32} {:>4} {:>10} {:>10} {:>7} {:>6} {:>8} {:>11} {:>13} {:>9} {:>7}",
        "network",
        "seed",
        measure.name(),
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
            "{:32} {:4} {:>10} {:>10} {:7.1} {:6} {:8.0} {:>11} {:6.1} +{:5.1} {:>9} {:>7}",
            network.name,
            network.seed,
            network.quality_text(measure),
            network
                .parameters
                .map_or(String::new(), |count| count.to_string()),
            network.training_seconds / 60.0,
            network.steps,
            1e3 * network.training_seconds / network.steps.max(1) as f64,
            (network.evaluations).map_or(String::new(), |count| format!("{count:.1}")),
            network.training_evaluations[0],
            network.training_evaluations[1],
            share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
            network.step_bytes.map_or(String::new(), megabytes),
        );
    }
    if !result.memory.is_empty() {
        println!("\ntraining memory by depth: equilibrium, weight-tied");
    }
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
}

fn print_claims(claims: &[Claim]) {
    println!();
    for claim in claims {
        println!("{}: {}", claim.verdict.text(), claim.statement);
        println!("    here: {}", claim.here);
        if !claim.paper.is_empty() {
            println!("    paper: {}", claim.paper);
        }
    }
    println!();
}
