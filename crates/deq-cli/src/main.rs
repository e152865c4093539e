//! The `deq` command.

mod args;
mod data;
mod eval;
mod exchange;
mod generate;
mod reproduce;
mod train;

use args::{Cli, Command};
use clap::Parser;
use peak_alloc::PeakAlloc;
use std::process::ExitCode;

/// Counts the heap, so that commands can report the memory of a training step.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train { what } => train::run(&what),
        Command::Reproduce { what } => reproduce::run(&what),
        Command::Data { what } => data::run(&what),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Info(args) => exchange::info(&args),
        Command::Import(args) => exchange::import(&args),
        Command::Export(args) => exchange::export(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
