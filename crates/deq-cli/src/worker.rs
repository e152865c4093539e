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
    /// Serve over Iroh, which encrypts, under the identity in this file, which is made if it is
    /// missing. Default: a WebSocket, which does not encrypt.
    #[arg(long, value_name = "FILE", requires = "token_file")]
    key_file: Option<PathBuf>,
    /// Devices to host, separated by commas; all of one kind.
    #[arg(long, default_value = "flex")]
    device: String,
}

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    let options = WorkerOptions {
        devices: Devices::from(&args.device),
        listen: args.listen,
        token_file: args.token_file.clone(),
        key_file: args.key_file.clone(),
    };
    Ok(serve(&options, &|name| {
        print::note(format_args!("hosting {} as {name}", args.device));
    })?)
}
