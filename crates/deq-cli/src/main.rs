//! The `deq` command.

mod args;
mod eval;
mod reproduce;
mod train;
mod vision;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train { what } => train::run(&what),
        Command::Reproduce { what } => reproduce::run(&what),
        Command::Eval(args) => eval::run(&args),
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
