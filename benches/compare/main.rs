//! Our side of `just compare`: one process for one group of workloads.
//!
//! `compare GROUP FOLDER DEVICE` writes weights, inputs and settings into the folder, says on
//! standard output what it can do, and then does what standard input tells it, line by line:
//! `check N` writes what operation `N` puts out, `time N TIMES` takes the time. `README.md` beside
//! this file has the whole of it.

mod generation;
mod images;
mod solver;
mod suite;
mod transformer;
mod vision;

use burn::tensor::Device;
use serde_json::json;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;
use suite::{Failure, Suite};

fn main() -> Result<(), Failure> {
    // As the command does.
    deq_kernels::keep_kernels();
    deq_kernels::in_pool(|| run().map_err(|failure| failure.to_string()))?;
    Ok(())
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [group, folder, device] = arguments.as_slice() else {
        return Err("this is one half of a comparison, to be run by `just compare`".into());
    };
    suite::choose(device)?;
    let suite = match group.as_str() {
        "solver" => solver::suite(),
        "transformer" => transformer::suite(transformer::SMALL),
        "wikitext-103" => transformer::suite(transformer::WIKITEXT_103),
        "generation" => generation::suite(),
        "mdeq-tiny" => vision::cifar_tiny(),
        "mdeq-large" => vision::cifar_large(8),
        "mdeq-large-96" => vision::cifar_large(96),
        "mdeq-imagenet" => vision::imagenet(1),
        "mdeq-imagenet-32" => vision::imagenet(32),
        "resnet18" => vision::resnet18(),
        "resnet101" => vision::resnet101(1),
        "resnet101-32" => vision::resnet101(32),
        "images" => images::suite(Path::new(folder)),
        other => Err(format!("there is no group {other}").into()),
    }?;
    let folder = Path::new(folder);
    suite.write(folder)?;
    let names: Vec<&str> = suite.operations.iter().map(|op| &*op.name).collect();
    answer(&json!({ "operations": names, "threads": threads() }))?;
    serve(&suite, folder)
}

fn serve(suite: &Suite, folder: &Path) -> Result<(), Failure> {
    let device = suite::device();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let mut number = || -> Result<usize, Failure> {
            let word = words.next().ok_or("a number is missing")?;
            Ok(word.parse()?)
        };
        let index = number()?;
        let operation = suite.operations.get(index).ok_or("no such operation")?;
        match command {
            "check" => {
                let path = folder.join(format!("out-{index}.safetensors"));
                let started = Instant::now();
                let outcome = (operation.work)().read();
                // On a card, of compiling and tuning most of all.
                let seconds = started.elapsed().as_secs_f64();
                deq_models::checkpoint::write(&outcome, &path)?;
                answer(&json!({ "file": path, "seconds": seconds }))?;
            }
            "time" => {
                let idle = memory("VmRSS");
                reset_peak();
                let mut seconds = Vec::new();
                let processor = processor_seconds();
                for _ in 0..number()? {
                    let started = Instant::now();
                    let outcome = (operation.work)();
                    device.sync()?;
                    seconds.push(started.elapsed().as_secs_f64());
                    drop(outcome);
                }
                answer(&json!({
                    "seconds": seconds,
                    "processor": processor_seconds() - processor,
                    "idle": idle,
                    "peak": on_card(&device).unwrap_or_else(|| memory("VmHWM")),
                }))?;
            }
            other => return Err(format!("{other} is neither check nor time").into()),
        }
    }
    Ok(())
}

fn answer(value: &serde_json::Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

/// What the threads of Rayon, on which Flex computes, are told to be.
fn threads() -> Option<usize> {
    std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok()
}

/// An entry of the process's status in bytes, or 0 where the system does not tell.
fn memory(entry: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(entry)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// What is reserved on a card in bytes, which never shrinks; `None` for the CPU.
fn on_card(device: &Device) -> Option<u64> {
    let pools = device.memory_pool_usage()?;
    (!deq_kernels::on_host(device)).then_some(pools.bytes_reserved)
}

/// What all threads have used of the processors, or 0 where the system does not tell.
fn processor_seconds() -> f64 {
    /// Linux counts in hundredths for programs, whatever the kernel's own clock.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, which may hold anything, ends with a parenthesis.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let (user, system) = (11, 12);
    let ticks = fields
        .split_whitespace()
        .enumerate()
        .filter(|(index, _)| [user, system].contains(index))
        .filter_map(|(_, field)| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

/// Lets the peak begin anew. Where the system cannot, it is that of the whole process.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
