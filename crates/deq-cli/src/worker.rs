//! `deq worker`.

use crate::print;
use anyhow::Result;
use clap::Args;
use deq_train::{Devices, WorkerOptions, serve};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct WorkerArgs {
    /// Address to listen on, such as 0.0.0.0:4000 for every network; without a token only a
    /// loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4000")]
    listen: SocketAddr,
    /// File of a token that trainings must know.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Devices to host, separated by commas; all of one kind.
    #[arg(long, default_value = "flex")]
    device: String,
}

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    let options = WorkerOptions {
        devices: Devices::from(&args.device),
        listen: args.listen,
        token_file: args.token_file.clone(),
    };
    Ok(serve(&options, &|address| {
        print::note(format_args!("hosting {} at ws://{address}", args.device));
    })?)
}
