//! The `deq` command.

mod config;
mod data;
mod eval;
mod exchange;
mod generate;
mod memory;
mod predict;
mod print;
mod recipe;
mod report;
mod reproduce;
mod scaling;
mod signals;
mod train;
#[cfg(feature = "remote")]
mod worker;

use anyhow::anyhow;
use clap::{Parser, Subcommand};
use deq_train::{Stopped, device_failure, is_out_of_memory};
use peak_alloc::PeakAlloc;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

/// Counts the heap, so that commands can report the memory of a training step.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Train, evaluate and inspect deep equilibrium models.
#[derive(Parser)]
#[command(name = "deq", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model.
    #[command(subcommand)]
    Train(recipe::TaskArgs),
    /// Print the recipe that training would use, as JSON for --recipe.
    #[command(subcommand)]
    Config(recipe::TaskArgs),
    /// List the recipes that there are.
    Presets(config::PresetsArgs),
    /// Run a claim of the papers again and say whether it holds.
    #[command(subcommand)]
    Reproduce(reproduce::Experiment),
    /// Fetch, describe and check texts.
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Measure the newest checkpoint of a run: quality, evaluations per solve, residual, radius.
    Eval(eval::EvalArgs),
    /// Apply a run on images to images: likeliest classes, or an image coloured by class.
    Predict(predict::PredictArgs),
    /// Go on from a prompt with a trained language model.
    Generate(generate::GenerateArgs),
    /// Draw the curves of one or several runs on one page.
    Report(report::ReportArgs),
    /// Say what a checkpoint file or a run holds.
    Info(exchange::InfoArgs),
    /// Make a run of a checkpoint of the original DEQ-Transformer or MDEQ, or of torchvision's
    /// ResNet (PyTorch or safetensors).
    Import(exchange::ImportArgs),
    /// Write the model of a run as safetensors with the original's names, for PyTorch.
    Export(exchange::ExportArgs),
    /// Host devices of this machine for trainings elsewhere.
    #[cfg(feature = "remote")]
    Worker(worker::WorkerArgs),
}

fn main() -> ExitCode {
    end_when_nobody_reads();
    let command = Cli::parse().command;
    deq_kernels::keep_kernels();
    // Training and evaluation are one parallel operation after the other.
    let work = AssertUnwindSafe(|| deq_kernels::in_pool(|| run(command)));
    let result = catch_unwind(work).unwrap_or_else(|panic| {
        if is_out_of_memory(&*panic) {
            return Err(anyhow!(
                "the device has too little memory for this model and its batches"
            ));
        }
        match device_failure(&*panic) {
            Some(reason) => Err(anyhow!("the device failed: {reason}")),
            None => resume_unwind(panic),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::note(format_args!("error: {error:#}"));
            match error.downcast_ref::<deq_train::TrainError>() {
                Some(deq_train::TrainError::Stopped(
                    Stopped::Interrupted { .. } | Stopped::Trial,
                )) => ExitCode::from(signals::exit_code()),
                _ => ExitCode::from(2),
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Train(args) => train::run(args),
        Command::Config(args) => config::run(args),
        Command::Presets(args) => config::presets(&args),
        Command::Reproduce(experiment) => reproduce::run(&experiment),
        Command::Data(command) => data::run(&command),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Info(args) => exchange::info(&args),
        Command::Import(args) => exchange::import_run(&args),
        Command::Export(args) => exchange::export_run(&args),
        #[cfg(feature = "remote")]
        Command::Worker(args) => worker::run(&args),
    }
}

/// Ends the program without a word when what it prints can no longer be written, as by
/// `deq eval RUN | head -1` or on a closed terminal: printing panics then. Training prints its
/// summary last, when everything is on disk. Panics that become errors are not reported twice.
fn end_when_nobody_reads() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        if deq_data::panic_is_caught()
            || is_out_of_memory(payload)
            || device_failure(payload).is_some()
        {
            return;
        }
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to") {
            std::process::exit(0);
        }
        report(panic);
    }));
}
