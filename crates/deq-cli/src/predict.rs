//! `deq predict`.

use crate::print;
use anyhow::{Result, bail};
use clap::Args;
use deq_train::tasks::images::{PredictOptions, Prediction, predict};
use deq_train::with_causes;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Image files.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Folder of the coloured images of a segmentation. Default: beside each image.
    #[arg(long, value_name = "FOLDER")]
    overlays: Option<PathBuf>,
}

/// A trained model, to be used.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Folder of the run.
    pub(crate) run: PathBuf,
    /// Most steps of a solve. Default: the run's.
    #[arg(long, value_name = "STEPS")]
    pub(crate) max_steps: Option<usize>,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &PredictArgs) -> Result<()> {
    let model = &args.model;
    let options = PredictOptions {
        device: model.device.clone(),
        max_steps: model.max_steps,
        overlays: args.overlays.clone(),
    };
    let mut predictions = Vec::new();
    let mut failed = 0;
    let mut on_image = |_: &Path, outcome| match outcome {
        Ok(prediction) if model.json => predictions.push(prediction),
        Ok(prediction) => print_prediction(&prediction),
        Err(error) => {
            failed += 1;
            eprintln!("{}", with_causes(&error));
        }
    };
    predict(&model.run, &args.images, &options, &mut on_image)?;
    if model.json {
        print::json(&predictions)?;
    }
    let all = args.images.len();
    match failed {
        0 => Ok(()),
        _ => bail!("{failed} of {all} images could not be predicted"),
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
