//! What ends a training and what does not: signals, closed terminals, output that nobody reads.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A training of so many steps that it has to be ended, or of a few.
fn train(folder: &Path, steps: &str) -> Command {
    let line = "the state settles after some steps of the solver\n";
    std::fs::write(folder.join("text.txt"), line.repeat(200)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_deq"));
    let arguments = [
        "train",
        "lm",
        "--preset",
        "tiny",
        "--data",
        "text.txt",
        "--batch",
        "2",
        "--pretrain",
        "1",
        "--rounds",
        "1",
        "--plain",
        "--run",
        "run",
        "--steps",
        steps,
    ];
    command.current_dir(folder).args(arguments);
    command
}

/// Lines of the log.
fn logged(folder: &Path) -> usize {
    let log = std::fs::read_to_string(folder.join("run/metrics.jsonl"));
    log.map_or(0, |text| text.matches('\n').count())
}

/// Waits until the training has logged one more step than before.
fn one_more_step(folder: &Path, child: &mut Child) {
    let (started, before) = (Instant::now(), logged(folder));
    while logged(folder) <= before {
        assert!(child.try_wait().unwrap().is_none(), "training has ended");
        assert!(
            started.elapsed() < Duration::from_secs(300),
            "nothing is logged"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, name: &str) {
    let kill = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
}

#[test]
fn a_closed_terminal_ends_no_training_and_an_interruption_leaves_a_checkpoint() {
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut child = train(folder, "100000")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        one_more_step(folder, &mut child);
        signal(&child, "HUP");
        one_more_step(folder, &mut child);
        one_more_step(folder, &mut child);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            stderr.contains("to go on: deq train lm --run run --resume"),
            "{stderr}"
        );
        let step = logged(folder);
        assert!(
            stderr.contains(&format!("was interrupted at step {step}: ")),
            "{stderr}"
        );
        let checkpoint = folder.join(format!("run/checkpoints/step-{step:07}"));
        assert!(checkpoint.join("optimizer.bpk").is_file(), "{checkpoint:?}");
    }
}

#[test]
fn output_that_nobody_reads_ends_no_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let whole = |command: &mut Command| {
        assert!(command.status().unwrap().success());
        assert!(folder.join("run/report.html").is_file());
        std::fs::remove_dir_all(folder.join("run")).unwrap();
    };
    whole(train(folder, "2").stdout(full()).stderr(full()));
    let mut child = train(folder, "2")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(folder.join("run/report.html").is_file());

    // Other commands end without a word.
    for arguments in [
        &["presets"][..],
        &["config", "lm"],
        &["info", "run"],
        &["eval", "run"],
    ] {
        let deq = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_deq"));
            command
                .current_dir(folder)
                .args(arguments)
                .stderr(Stdio::piped());
            command
        };
        let output = deq().stdout(full()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        let mut child = deq().stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}
