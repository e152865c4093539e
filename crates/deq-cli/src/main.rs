//! The `deq` command.

mod args;
mod data;
mod eval;
mod exchange;
mod generate;
mod reproduce;
mod train;
mod vision;

use args::{Cli, Command};
use clap::Parser;
use peak_alloc::PeakAlloc;
use std::process::ExitCode;

/// Counts the heap, so that commands can report the memory of a training step.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn main() -> ExitCode {
    end_when_nobody_reads();
    let result = match Cli::parse().command {
        Command::Train { what } => train::run(&what),
        Command::Reproduce { what } => reproduce::run(&what),
        Command::Data { what } => data::run(&what),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Info(args) => exchange::info(&args),
        Command::Import(args) => exchange::import(&args),
        Command::Export(args) => exchange::export(&args),
        Command::Predict(args) => vision::run_predict(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Ends the program without a word when what it prints is no longer read, as by `deq eval RUN | head -1`: printing panics then.
fn end_when_nobody_reads() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(0);
        }
        report(panic);
    }));
}
