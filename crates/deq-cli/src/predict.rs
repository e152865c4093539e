//! `deq predict`.

use crate::print;
use anyhow::{Result, bail};
use clap::Args;
use deq_train::tasks::images::{PredictOptions, Prediction, predict};
use deq_train::with_causes;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct PredictArgs {
    /// Folder of the run.
    run: PathBuf,
    /// Image files.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Folder of the coloured images of a segmentation. Default: beside each image.
    #[arg(long, value_name = "FOLDER")]
    overlays: Option<PathBuf>,
    /// Most steps of a solve. Default: the run's.
    #[arg(long, value_name = "STEPS")]
    max_steps: Option<usize>,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &PredictArgs) -> Result<()> {
    let options = PredictOptions {
        device: args.device.clone(),
        max_steps: args.max_steps,
        overlays: args.overlays.clone(),
    };
    let mut predictions = Vec::new();
    let mut failed = 0;
    predict(
        &args.run,
        &args.images,
        &options,
        &mut |_, outcome| match outcome {
            Ok(prediction) if args.json => predictions.push(prediction),
            Ok(prediction) => print_prediction(&prediction),
            Err(error) => {
                failed += 1;
                eprintln!("{}", with_causes(&error));
            }
        },
    )?;
    if args.json {
        print::json(&predictions)?;
    }
    match failed {
        0 => Ok(()),
        _ => bail!(
            "{failed} of {} images could not be predicted",
            args.images.len()
        ),
    }
}

fn print_prediction(prediction: &Prediction) {
    let solve = match (prediction.steps, prediction.converged) {
        (Some(steps), Some(true)) => format!(" ({steps:.0} steps)"),
        (Some(steps), _) => format!(" ({steps:.0} steps, not converged)"),
        _ => String::new(),
    };
    println!("{}{solve}", prediction.path.display());
    for (class, share) in &prediction.classes {
        println!("  {:6.2} %  {class}", 100.0 * share);
    }
    if let Some(overlay) = &prediction.overlay {
        println!("  written to {}", overlay.display());
    }
}
