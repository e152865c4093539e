//! The `deq` command.

mod args;
mod data;
mod eval;
mod reproduce;
mod train;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train { what } => train::run(&what),
        Command::Reproduce { what } => reproduce::run(&what),
        Command::Data { what } => data::run(&what),
        Command::Eval(args) => eval::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
