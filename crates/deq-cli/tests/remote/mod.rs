//! Workers on loopback, as processes of their own.

use super::{deq, folder_with_text, records, refused, success};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine that is neither hung nor lost.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    /// What it said on its way to the end, which is a failure with exit code 2.
    fn failure(mut self) -> String {
        let status = until(|| self.0.try_wait().unwrap(), "the training did not end");
        let mut stderr = String::new();
        let mut pipe = self.0.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{stderr}");
        stderr
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks until there is an answer.
fn until<T>(mut ask: impl FnMut() -> Option<T>, otherwise: &str) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{otherwise} within {} seconds", PATIENCE.as_secs());
}

struct Worker {
    process: Process,
    /// As a training names its device.
    name: String,
}

impl Worker {
    /// On a free port, with the token in `token`.
    fn start(folder: &Path) -> Self {
        Self::listening(folder, &["--listen", "127.0.0.1:0"])
    }

    fn listening(folder: &Path, arguments: &[&str]) -> Self {
        let child = deq(folder, &["worker", "--token-file", "token"])
            .args(arguments)
            .env("RUST_LOG", "off")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Process(child);
        let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let Some((_, name)) = line.split_once("hosting flex as ") else {
            panic!("no worker: {line}");
        };
        let name = name.to_owned();
        // What else it says must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, name }
    }

    fn signal(&self, signal: &str) {
        let id = self.process.0.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }
}

fn folder() -> tempfile::TempDir {
    let folder = folder_with_text();
    std::fs::write(folder.path().join("token"), "open sesame\n").unwrap();
    folder
}

/// A training without what amplifies rounding, see the tests of `deq-train`.
fn training_of(task: &[&str], folder: &Path, run: &str, devices: &str) -> Command {
    let arguments = [
        "--pretrain",
        "1",
        "--valid-batches",
        "1",
        "--plain",
        "--set",
        "deq.solver={\"Picard\":{\"damping\":1.0}}",
        "--set",
        "deq.eval_stop=null",
        "--set",
        "optimizer=nesterov",
        "--token-file",
        "token",
        "--run",
        run,
        "--device",
        devices,
    ];
    deq(folder, &[&["train"], task, &arguments].concat())
}

fn training(folder: &Path, run: &str, devices: &str, more: &[&str]) -> Command {
    let text = [
        "lm",
        "--preset",
        "tiny",
        "--data",
        "text.txt",
        "--batch",
        "8",
        "--penalty-frequency",
        "0.8",
        "--set",
        "deq.stop.rel_tol=0.04",
        "--set",
        "task.segment=16",
        "--set",
        "task.model.mem_len=16",
    ];
    let mut command = training_of(&text, folder, run, devices);
    command.args(more);
    command
}

const SHORT: [&str; 4] = ["--steps", "6", "--rounds", "3"];
/// Longer than any test waits, with a checkpoint after every other step.
const LONG: [&str; 4] = ["--steps", "3000", "--rounds", "1500"];

fn train(folder: &Path, run: &str, devices: &str, more: &[&str]) -> Output {
    training(folder, run, devices, more).output().unwrap()
}

fn losses(run: &Path) -> Vec<f64> {
    let records = records(run);
    records
        .iter()
        .map(|r| r["loss"].as_f64().unwrap())
        .collect()
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let error = (found - expected).abs();
        assert!(error < 5e-4 * expected, "{found} for {expected}");
    }
}

#[test]
fn workers_train_as_one_device_does_and_know_their_token() {
    let folder = folder();
    let folder = folder.path();
    let workers = [Worker::start(folder), Worker::start(folder)];
    let both = format!("{},{}", workers[0].name, workers[1].name);
    let mixed = format!("flex,{}", workers[0].name);
    // A port that was free a moment ago.
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let encrypted = Worker::listening(folder, &["--listen", &address, "--key-file", "key"]);
    let encrypted = format!("flex,{}", encrypted.name);
    success(&train(folder, "one", "flex", &SHORT));
    let expected = losses(&folder.join("one"));
    for (run, devices) in [
        ("both", &both),
        ("mixed", &mixed),
        ("encrypted", &encrypted),
    ] {
        success(&train(folder, run, devices, &SHORT));
        assert_close(&losses(&folder.join(run)), &expected);
    }

    std::fs::write(folder.join("other"), "open barley").unwrap();
    for wrong in [&["--token-file", "other"][..], &[]] {
        let arguments = [&["eval", "one", "--device", &both], wrong].concat();
        let message = refused(folder, &arguments);
        let expected = format!("the worker at {} refuses the token", workers[0].name);
        assert!(message.contains(&expected), "{message}");
    }
    let message = refused(folder, &["worker", "--listen", "0.0.0.0:0"]);
    assert!(message.contains("loopback addresses only"), "{message}");
}

/// Batch statistics are those of a part, so that one device would not do for comparison.
#[test]
fn images_on_workers_are_images_on_as_many_local_devices() {
    let folder = folder();
    let folder = folder.path();
    let workers = [Worker::start(folder), Worker::start(folder)];
    let both = format!("{},{}", workers[0].name, workers[1].name);
    let [found, expected] = [("workers", &*both), ("local", "flex,flex")].map(|(run, devices)| {
        let images = [
            "mdeq",
            "--batch",
            "4",
            "--steps",
            "3",
            "--rounds",
            "1",
            "--penalty-frequency",
            "1",
            "--set",
            "deq.stop.max_steps=4",
        ];
        let mut command = training_of(&images, folder, run, devices);
        success(&command.output().unwrap());
        losses(&folder.join(run))
    });
    assert_close(&found, &expected);
}

/// The steps of the newest checkpoint; 0 if there is none.
fn newest(folder: &Path, run: &str) -> usize {
    let checkpoints = std::fs::read_dir(folder.join(run).join("checkpoints"));
    let names = checkpoints.into_iter().flatten().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_prefix("step-")?.parse().ok()
    });
    names.max().unwrap_or(0)
}

/// A long training, new or resumed, that has written a checkpoint.
fn begun(folder: &Path, run: &str, devices: &str, more: &[&str]) -> Process {
    let before = newest(folder, run);
    let child = training(folder, run, devices, &[&LONG[..], more].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let written = || {
        let ended = process.0.try_wait().unwrap();
        assert!(ended.is_none(), "the training ended early: {ended:?}");
        (newest(folder, run) > before).then_some(())
    };
    until(written, "no checkpoint was written");
    process
}

#[test]
fn a_lost_worker_is_named_and_the_run_goes_on_without_it() {
    let folder = folder();
    let folder = folder.path();
    let kept = Worker::start(folder);
    for signal in ["-KILL", "-STOP"] {
        let run = format!("run{signal}");
        let lost = Worker::start(folder);
        let both = format!("{},{}", kept.name, lost.name);
        let training = begun(folder, &run, &both, &[]);
        lost.signal(signal);
        let message = training.failure();
        let expected = format!("the worker at {} was lost", lost.name);
        assert!(message.contains(&expected), "{message}");
        // The other worker lost a client in the middle of a step, and serves the next.
        drop(begun(folder, &run, &kept.name, &["--resume"]));
    }
}

#[test]
fn a_worker_survives_a_training_that_vanishes() {
    let folder = folder();
    let folder = folder.path();
    let worker = Worker::start(folder);
    drop(begun(folder, "vanished", &worker.name, &[]));
    success(&train(folder, "next", &worker.name, &SHORT));
}

#[test]
fn what_is_no_worker_is_told_before_anything_is_written() {
    let folder = folder();
    let folder = folder.path();
    let far = ["train", "lm", "--run", "run", "--device"];
    for (device, expected) in [
        ("remote:gpu1:4000", "is no address of a worker"),
        // Nobody listens on the discard port.
        (
            "flex,remote:ws://127.0.0.1:9",
            "the worker at remote:ws://127.0.0.1:9 cannot be used",
        ),
    ] {
        let message = refused(folder, &[&far[..], &[device]].concat());
        assert!(message.contains(expected), "{message}");
    }
    assert!(!folder.join("run").exists());
}
