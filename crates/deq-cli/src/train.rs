//! `deq train`.

use crate::args::{LmArgs, Trainee};
use crate::data::data_listener;
use crate::eval::{print_json, print_summary};
use anyhow::{Result, bail};
use deq_data::Level;
use deq_jacreg::{JacobianPenaltyConfig, WeightControllerConfig};
use deq_train::lm::{DataSource, LmRecipe, Network, RunFolder, TrainOptions, train};
use deq_train::{Timed, TrainError, train_for};
use std::path::{Path, PathBuf};

pub(crate) fn run(what: &Trainee) -> Result<()> {
    match what {
        Trainee::Lm(args) => lm(args),
        Trainee::Mdeq(args) => crate::vision::run(args),
    }
}

fn lm(args: &LmArgs) -> Result<()> {
    let mut recipe = recipe(args)?;
    let options = TrainOptions {
        device: args.device.clone(),
        run: run_folder(
            args.run.as_ref(),
            args.resume,
            &format!("lm-{}", recipe.preset),
        )?,
        resume: args.resume,
        plain: args.plain || args.json,
        on_data: data_listener()?,
    };
    let resumed = args.resume.then_some(&*options.run);
    fit(&mut recipe, args.minutes, &options.device, resumed)?;
    let summary = train(recipe, &options)?;
    if args.json {
        return print_json(&summary);
    }
    print_summary(&summary);
    println!(
        "curves:                {}",
        RunFolder::new(options.run).report().display()
    );
    Ok(())
}

/// As many steps as fit into so many minutes, if a time is given.
pub(crate) fn fit<R: Timed>(
    recipe: &mut R,
    minutes: Option<f64>,
    device: &str,
    resumed: Option<&Path>,
) -> Result<()> {
    let Some(minutes) = minutes else {
        return Ok(());
    };
    if resumed.is_none() {
        eprintln!("a few steps, to choose how many fit into {minutes} minutes:");
    }
    train_for(recipe, minutes, device, resumed)?;
    eprintln!("training for {} steps", recipe.phases()[0]);
    Ok(())
}

/// The preset with everything that the command line says otherwise.
fn recipe(args: &LmArgs) -> Result<LmRecipe> {
    let default = if args.data.is_some() { "wt2" } else { "tiny" };
    let preset = args.preset.as_deref().unwrap_or(default);
    let mut recipe = LmRecipe::preset(preset)?;
    if let Some(data) = &args.data {
        recipe.data = DataSource::Path(data.clone());
    }
    if let Some(level) = args.level {
        recipe.level = level;
    }
    if let Some(tokenizer) = &args.tokenizer {
        recipe.level = Level::Tokenizer;
        recipe.tokenizer = Some(tokenizer.clone());
    }
    if let Some(steps) = args.steps {
        recipe.scale_steps(steps);
    }
    set(&mut recipe.rounds, args.rounds);
    set(&mut recipe.pretrain_steps, args.pretrain);
    set(&mut recipe.batch, args.batch);
    set(&mut recipe.learning_rate, args.lr);
    set(&mut recipe.seed, args.seed);
    set(&mut recipe.deq.stop.max_steps, args.solver_steps);
    if let Some(width) = args.inner_width {
        recipe.model.d_inner = width;
    }
    let explicit = match (args.explicit, args.layers) {
        (Some(depth), None) => Some(Network::WeightTied { depth }),
        (None, Some(depth)) => Some(Network::Layers { depth }),
        (None, None) => None,
        _ => bail!("--explicit and --layers are two kinds of explicit networks: give one of them"),
    };
    if let Some(network) = explicit {
        recipe.network = network;
        recipe.pretrain_steps = 0;
        recipe.penalty = None;
        if args.penalty.is_some() || args.solver_steps.is_some() {
            bail!("an explicit network has no equilibrium: leave out --penalty and --solver-steps");
        }
    }
    penalty(&mut recipe.penalty, args.penalty, args.penalty_frequency)?;
    if let Some(target) = args.hold_steps {
        let Some(penalty) = &recipe.penalty else {
            bail!("--hold-steps needs a penalty: give --penalty a weight above 0");
        };
        let controller = WeightControllerConfig::new(target).with_weight(penalty.weight);
        recipe.controller = Some(controller);
    }
    Ok(recipe)
}

/// What `--penalty` and `--penalty-frequency` say of the penalty of a preset.
pub(crate) fn penalty(
    penalty: &mut Option<JacobianPenaltyConfig>,
    weight: Option<f64>,
    frequency: Option<f64>,
) -> Result<()> {
    if let Some(weight) = weight {
        // Exactly 0 turns it off; a negative weight is refused by name further down.
        *penalty = if weight.abs() > 0.0 {
            let penalty = penalty.take().unwrap_or_else(JacobianPenaltyConfig::new);
            Some(penalty.with_weight(weight))
        } else {
            None
        };
    }
    if let Some(frequency) = frequency {
        match penalty {
            Some(penalty) => penalty.frequency = frequency,
            None => bail!("--penalty-frequency needs a penalty: give --penalty a weight above 0"),
        }
    }
    Ok(())
}

pub(crate) fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// The folder given, or `runs/NAME`, `runs/NAME-2`, ...: the first free one, or to resume the last one in use.
pub(crate) fn run_folder(given: Option<&PathBuf>, resume: bool, name: &str) -> Result<PathBuf> {
    if let Some(run) = given {
        return Ok(run.clone());
    }
    let numbered = |number: usize| match number {
        1 => name.to_owned(),
        _ => format!("{name}-{number}"),
    };
    let runs = Path::new("runs");
    let free = (1..)
        .find(|&number| !runs.join(numbered(number)).exists())
        .unwrap_or(1);
    match (resume, free) {
        (false, _) => Ok(runs.join(numbered(free))),
        (true, 1) => Err(TrainError::NothingToResume {
            path: runs.join(numbered(1)),
        }
        .into()),
        (true, _) => Ok(runs.join(numbered(free - 1))),
    }
}
