//! The command as a user meets it: outcomes, exit codes, messages, files.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[cfg(feature = "remote")]
mod remote;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn deq(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deq"));
    command.current_dir(folder).args(arguments);
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    deq(folder, arguments).output().unwrap()
}

/// A folder with a text large enough to train on.
fn folder_with_text() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..400)
        .map(|n| {
            format!(
                "the state {} settles after {} steps of the solver\n",
                n,
                (7 * n) % 31
            )
        })
        .collect();
    std::fs::write(folder.path().join("text.txt"), lines).unwrap();
    folder
}

/// A run small enough for a test: two pre-training steps, then the equilibrium with the penalty.
const SMALL: [&str; 18] = [
    "train",
    "lm",
    "--preset",
    "tiny",
    "--data",
    "text.txt",
    "--batch",
    "2",
    "--steps",
    "9",
    "--pretrain",
    "2",
    "--penalty-frequency",
    "0.8",
    "--hold-steps",
    "5",
    "--plain",
    "--run",
];

fn small(folder: &Path, name: &str, more: &[&str]) -> Command {
    let mut command = deq(folder, &SMALL);
    command.arg(name).args(["--rounds", "3"]).args(more);
    command
}

fn success(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

/// Everything but the times of every record.
fn records(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            record.as_object_mut().unwrap().remove("seconds");
            record
        })
        .collect()
}

#[test]
fn a_run_leaves_everything_a_user_needs_and_can_be_evaluated() {
    let folder = folder_with_text();
    let output = small(folder.path(), "run", &[]).output().unwrap();
    success(&output);
    let stdout = String::from_utf8_lossy(&output.stdout);
    for line in [
        "valid perplexity:",
        "unigram perplexity:",
        "evaluations per solve:",
    ] {
        assert!(stdout.contains(line), "{stdout}");
    }
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(
        progress.contains("steps per solve") && progress.contains("left"),
        "{progress}"
    );

    let run_folder = folder.path().join("run");
    let config = std::fs::read_to_string(run_folder.join("config.json")).unwrap();
    assert!(config.contains("\"d_model\": 96"));
    assert!(
        std::fs::read_to_string(run_folder.join("report.html"))
            .unwrap()
            .contains("<svg")
    );
    let records = records(&run_folder);
    let steps = || records.iter().filter(|record| record["event"] == "step");
    assert_eq!((steps().count(), records.len()), (9, 12));
    assert_eq!(records[0]["phase"], "unrolled");
    assert_eq!(records[11]["event"], "eval");
    assert!(records[11]["spectral_radius"].is_f64());
    assert!(steps().any(|step| step["penalty"]["value"].is_f64()));
    assert!(
        steps()
            .skip(2)
            .all(|step| step["backward"]["nfe"].as_u64() > Some(0))
    );

    let divided = ["--device", "flex,flex"];
    let output = deq(folder.path(), &["eval", "run", "--test", "--json"])
        .args(divided)
        .output()
        .unwrap();
    success(&output);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["eval"]["split"], "test");
    assert_eq!(result["eval"]["step"], 9);
    for field in ["nfe_per_solve", "residual", "spectral_radius"] {
        assert!(result["eval"][field].is_f64(), "{field}: {result}");
    }
    assert!(result["eval"]["quality"]["value"].is_f64(), "{result}");
}

#[test]
fn a_killed_run_resumes_with_the_losses_of_an_uninterrupted_one() {
    let folder = folder_with_text();
    success(&small(folder.path(), "whole", &[]).output().unwrap());

    let mut child = small(folder.path(), "killed", &[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint = folder.path().join("killed/checkpoints/step-0000003");
    let started = Instant::now();
    while !checkpoint.exists() {
        assert!(
            started.elapsed() < Duration::from_secs(300),
            "no checkpoint was written"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // In the middle of the next round, whose steps are logged but in no checkpoint.
    std::thread::sleep(Duration::from_millis(300));
    child.kill().unwrap();
    child.wait().unwrap();

    let output = small(folder.path(), "killed", &["--resume"])
        .output()
        .unwrap();
    success(&output);
    let records = |name: &str| records(&folder.path().join(name));
    assert_eq!(records("killed"), records("whole"));
    let weights: Vec<f64> = records("whole")
        .iter()
        .filter_map(|record| record["penalty"]["weight"].as_f64())
        .collect();
    assert!(
        weights.len() > 2 && weights.windows(2).all(|pair| pair[0] < pair[1]),
        "solves take more than five steps, so the weight grows: {weights:?}"
    );

    // A finished run resumes to the same summary.
    success(
        &small(folder.path(), "killed", &["--resume"])
            .output()
            .unwrap(),
    );
    assert_eq!(records("killed"), records("whole"));
}

#[test]
fn a_finished_run_goes_on_with_more_steps_and_says_what_changed() {
    let folder = folder_with_text();
    let path = folder.path();
    success(&small(path, "run", &[]).output().unwrap());
    let further = [
        "train", "lm", "--run", "run", "--resume", "--steps", "12", "--lr", "0.001",
    ];
    success(&run(path, &[&further[..], &["--plain"]].concat()));
    let records = records(&path.join("run"));
    let steps = records.iter().filter(|record| record["event"] == "step");
    assert_eq!(steps.count(), 12);
    let changed: Vec<&str> = records
        .iter()
        .filter(|record| record["event"] == "change")
        .map(|record| record["field"].as_str().unwrap())
        .collect();
    assert_eq!(changed, ["learning_rate", "steps"]);
    // The text may have moved; another text in its place is refused.
    std::fs::rename(path.join("text.txt"), path.join("moved.txt")).unwrap();
    let moved = [
        "train",
        "lm",
        "--run",
        "run",
        "--resume",
        "--data",
        "moved.txt",
        "--plain",
    ];
    success(&run(path, &moved));
    let text = std::fs::read_to_string(path.join("moved.txt")).unwrap();
    std::fs::write(path.join("moved.txt"), text.replace("state", "shape")).unwrap();
    let message = refused(path, &moved);
    assert!(
        message.contains("are not those that run was trained on"),
        "{message}"
    );
}

#[test]
fn a_recipe_is_printed_changed_and_used() {
    let folder = folder_with_text();
    let path = folder.path();
    let config = |more: &[&str]| -> serde_json::Value {
        let output = run(
            path,
            &[&["config", "lm", "--data", "text.txt"], more].concat(),
        );
        success(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let set = [
        "--set",
        "deq.stop.max_steps=5",
        "--set",
        "task.model.mem_len=8",
    ];
    let recipe = config(&set);
    assert_eq!(recipe["deq"]["stop"]["max_steps"], 5);
    std::fs::write(path.join("recipe.json"), recipe.to_string()).unwrap();
    assert_eq!(config(&["--recipe", "recipe.json"]), recipe);
    let precision = |more: &[&str]| config(more)["deq"]["precision"].clone();
    assert_eq!(precision(&["--precision", "bf16"]), "bf16");
    let low = ["--set", "deq.stop.rel_tol=0.001"];
    let deq = |more: &[&str]| config(&[&["--precision", "bf16"], more].concat())["deq"].clone();
    let (raised, lowered) = (deq(&[]), deq(&low));
    for stop in [
        &raised["stop"],
        &raised["eval_stop"],
        &raised["gradient"]["Implicit"]["stop"],
    ] {
        assert_eq!(stop["rel_tol"], 0.0078125);
    }
    assert_eq!(lowered["stop"]["rel_tol"], 0.001);
    let of_set = ["--precision", "f32", "--set", "deq.precision=f16"];
    assert_eq!(precision(&of_set), "f16");
    assert!(precision(&[]).is_null() && precision(&of_set[..2]).is_null());
    let refused = |more: &[&str]| refused(path, &[&["config", "lm"], more].concat());
    let message = refused(&["--set", "deq.stop.max_step=5"]);
    assert!(message.contains("did you mean \"max_steps\"?"), "{message}");
    let mut wrong = recipe.clone();
    wrong["penalty"]["wieght"] = 1.into();
    std::fs::write(path.join("wrong.json"), wrong.to_string()).unwrap();
    let message = refused(&["--recipe", "wrong.json"]);
    assert!(message.contains("wieght"), "{message}");
    let output = run(path, &["presets"]);
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        list.contains("lm --preset tiny") && list.contains("mdeq --preset mini"),
        "{list}"
    );
    let output = run(path, &["presets", "--memory", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for row in rows.as_array().unwrap() {
        let batches = row["fits"].as_array().unwrap().iter();
        let batches: Vec<u64> = batches.map(|fit| fit["batch"].as_u64().unwrap()).collect();
        assert!(batches.is_sorted() && batches.len() == 6, "{row}");
        assert!(row["peak"].as_u64() > row["plan"]["parameters"].as_u64());
    }
}

/// Runs a command that must fail with exit code 2 and one sentence, and returns the sentence.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn bad_input_gives_one_sentence_exit_code_2_and_no_output() {
    let folder = folder_with_text();
    let path = folder.path();
    std::fs::write(path.join("empty.txt"), "").unwrap();
    let cases: [(&[&str], &str); 21] = [
        (&["train", "lm", "--data", "missing"], "there is no missing"),
        (
            &["train", "lm", "--data", "empty.txt"],
            "empty.txt is empty",
        ),
        (
            &["train", "lm", "--preset", "huge"],
            "choose one of tiny, wt2",
        ),
        (&["train", "lm", "--device", "tpu"], "choose one of flex"),
        (
            &["train", "lm", "--device", "rocm"],
            "build with the cargo feature rocm",
        ),
        (&["train", "lm", "--lr", "5"], "learning_rate is 5"),
        (&["train", "lm", "--penalty", "-1"], "penalty.weight is -1"),
        (
            &["train", "lm", "--penalty", "nan"],
            "penalty.weight is NaN",
        ),
        (
            &["train", "lm", "--penalty", "0", "--hold-steps", "8"],
            "--hold-steps needs a penalty",
        ),
        (&["train", "lm", "--hold-steps", "-1"], "target is -1"),
        (
            &["train", "lm", "--tied", "2", "--precision", "bf16"],
            "an explicit network has no equilibrium: leave out --precision",
        ),
        (
            &["train", "lm", "--layers", "2", "--set", "deq.precision=f16"],
            "set deq.precision to null",
        ),
        (&["train", "lm", "--resume"], "there is no run to resume"),
        (&["eval", "nowhere"], "nowhere is not a run"),
        (
            &["reproduce", "jacreg-synthetic", "--seeds", "0"],
            "seeds is 0, but must be at least 1",
        ),
        (
            &["reproduce", "jacreg-synthetic", "--device", "tpu"],
            "choose one of flex",
        ),
        (
            &["reproduce", "jacreg-lm", "--weights", "1,-2"],
            "a weight is -2, but must be",
        ),
        (
            &["reproduce", "jacreg-lm", "--budgets", "0"],
            "a budget is 0, but must be at least 1",
        ),
        (
            &["reproduce", "jacreg-lm", "--seed", "18446744073709551615"],
            "must be below 2^64 for the last run too",
        ),
        (
            &["reproduce", "deq-lm", "--minutes", "0"],
            "minutes is 0, but must be above 0",
        ),
        (
            &["reproduce", "deq-vision", "--layers", "20"],
            "has no network \"explicit, 20 layers of their own\"",
        ),
    ];
    for (arguments, expected) in cases {
        let message = refused(path, arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    let left: Vec<PathBuf> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_comparison_begins_with_an_equilibrium_and_its_penalty() {
    let folder = folder_with_text();
    let path = folder.path();
    for (name, option) in [("tied.json", "--tied"), ("plain.json", "--penalty")] {
        let value = if option == "--tied" { "2" } else { "0" };
        let output = run(path, &["config", "lm", option, value]);
        success(&output);
        std::fs::write(path.join(name), output.stdout).unwrap();
    }
    for (arguments, expected) in [
        (
            &[
                "jacreg-lm",
                "--recipe",
                "tied.json",
                "--weights",
                "0,0",
                "--penalty-frequency",
                "0.5",
            ][..],
            "the recipe is of the network \"explicit, weight-tied, 2 layers\"",
        ),
        (
            &["deq-lm", "--recipe", "tied.json", "--networks", "deq"],
            "the recipe is of the network \"explicit, weight-tied, 2 layers\"",
        ),
        (
            &["jacreg-lm", "--recipe", "plain.json"],
            "the recipe has no penalty to compare with none",
        ),
        (
            &["jacreg-lm", "--recipe", "plain.json", "--weights", "0,2"],
            "give --penalty-frequency",
        ),
        (
            &["jacreg-lm", "--weights", "1,2", "--plain-steps", "30"],
            "plain steps is 30, but must be left out where no weight is 0",
        ),
        (
            &["deq-lm", "--networks", "layers", "--layers", "50"],
            "layers is 50, but must be few enough",
        ),
    ] {
        let message = refused(path, &[&["reproduce"], arguments].concat());
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn evaluation_keeps_its_steps_when_training_gets_others() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["config", "mdeq", "--preset", "imagenet-small-jr"];
    let stops = |more: &[&str]| {
        let output = run(folder.path(), &[&arguments[..], more].concat());
        success(&output);
        let recipe: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let deq = &recipe["deq"];
        let steps = |stop: &str| deq[stop]["max_steps"].as_u64();
        (steps("stop"), steps("eval_stop"))
    };
    let (training, evaluation) = stops(&[]);
    assert_eq!(evaluation, None);
    assert_eq!(stops(&["--solver-steps", "20"]), (Some(20), training));
    let minutes = [&arguments[..], &["--minutes", "5"]].concat();
    assert!(refused(folder.path(), &minutes).contains("give it to `deq train`"));
}

#[test]
fn without_a_name_the_newest_run_goes_on_and_a_file_names_its_own() {
    let folder = folder_with_text();
    let path = folder.path();
    let seed = |more: &[&str]| {
        let output = run(path, &[&["config", "lm", "--resume"], more].concat());
        success(&output);
        let recipe: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        recipe["seed"].as_u64().unwrap()
    };
    let train = |name: &str, seed: &str| {
        let name = format!("runs/{name}");
        success(&small(path, &name, &["--seed", seed]).output().unwrap());
    };
    // One is missing, and the first is newer than the last.
    train("lm-tiny-3", "33");
    train("lm-tiny-tied-6", "66");
    train("lm-tiny", "11");
    assert_eq!(seed(&[]), 11);
    std::fs::remove_dir_all(path.join("runs/lm-tiny")).unwrap();
    assert_eq!(seed(&[]), 33);

    let tied = run(path, &["config", "lm", "--tied", "6"]).stdout;
    std::fs::write(path.join("tied.json"), tied).unwrap();
    let from_file = ["train", "lm", "--recipe", "tied.json", "--resume"];
    let message = refused(path, &[&from_file[..], &["--seed", "1"]].concat());
    assert!(message.contains("runs/lm-tiny-tied-6"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf_8_is_called_that() {
    use std::os::unix::ffi::OsStrExt;
    let folder = folder_with_text();
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
    std::fs::rename(folder.path().join("text.txt"), folder.path().join(name)).unwrap();
    for more in [&[][..], &["--set", "batch=2"]] {
        let mut command = deq(
            folder.path(),
            &["train", "lm", "--preset", "tiny", "--data"],
        );
        let output = command.arg(name).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("names are not UTF-8"), "{stderr}");
        assert!(!folder.path().join("runs").exists());
    }
}

#[test]
fn what_is_no_file_is_not_replaced() {
    let folder = folder_with_text();
    let path = folder.path();
    success(&small(path, "run", &[]).output().unwrap());
    std::fs::create_dir(path.join("there")).unwrap();
    let message = refused(path, &["export", "run", "there"]);
    assert!(
        message.contains("cannot write there: it is there, and not a file"),
        "{message}"
    );
}

#[test]
fn a_run_that_does_not_fit_is_refused_and_left_alone() {
    let folder = folder_with_text();
    let path = folder.path();
    success(&small(path, "run", &[]).output().unwrap());
    let resume = |more: &[&'static str]| [&SMALL[..], &["run", "--rounds", "3"], more].concat();

    let message = refused(path, &resume(&[]));
    assert!(
        message.contains("already holds a run or its checkpoints: resume it"),
        "{message}"
    );
    let message = refused(path, &resume(&["--resume", "--seed", "7"]));
    assert!(
        message.contains("was started with seed = 1, and 7 is given now"),
        "{message}"
    );
    let message = refused(path, &["eval", "run", "--data", "empty-folder"]);
    assert!(message.contains("there is no empty-folder"), "{message}");
    // As on a machine where the first backend of a program that has several does not work.
    let mut elsewhere = deq(path, &resume(&["--resume"]));
    let output = elsewhere.env("BURN_DEVICE", "none").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("its default device, which does not work here")
            && message.contains("BURN_DEVICE to one that does (flex)"),
        "{message}"
    );

    let model = path.join("run/checkpoints/step-0000009/model.bpk");
    let mut bytes = std::fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&model, &bytes).unwrap();
    for arguments in [resume(&["--resume"]), vec!["eval", "run"]] {
        let message = refused(path, &arguments);
        assert!(message.contains("does not match its checksum"), "{message}");
    }
    let config = path.join("run/config.json");
    std::fs::write(&config, "{\"kind\": \"sine\", \"format\": 1}").unwrap();
    let message = refused(path, &["eval", "run"]);
    assert!(
        message.contains("is of the task sine, not text"),
        "{message}"
    );
    std::fs::write(&config, "{\"kind\": \"text\", \"format\": 99}").unwrap();
    let message = refused(path, &["eval", "run"]);
    assert!(
        message.contains("has the format 99, but this program reads"),
        "{message}"
    );
}

#[test]
fn the_synthetic_experiment_prints_its_table_and_claims() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "reproduce",
        "jacreg-synthetic",
        "--seeds",
        "1",
        "--epochs",
        "1",
    ];
    let output = run(folder.path(), &arguments);
    success(&output);
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "gamma 0 ",
        "gamma 4 ",
        "weight decay 0.01",
        "the spectral radius falls",
        "images: ",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let written = folder.path().join("runs/jacreg-synthetic");
    let json = std::fs::read(written.join("result.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["runs"].as_array().unwrap().len(), 6);
    let page = std::fs::read_to_string(written.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("|J| at one point"));
}

#[test]
fn the_language_model_experiment_compares_budgets_and_goes_on_where_it_stopped() {
    let folder = folder_with_text();
    let arguments = [
        "reproduce",
        "jacreg-lm",
        "--preset",
        "tiny",
        "--data",
        "text.txt",
        "--steps",
        "4",
        "--weights",
        "1.6,0",
        "--seeds",
        "2",
        "--budgets",
        "2,8",
    ];
    let output = run(folder.path(), &arguments);
    success(&output);
    let first = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        first.contains("perplexity with") && first.contains("gamma 1.6"),
        "{first}"
    );
    let written = folder.path().join("runs/jacreg-text");
    let json = std::fs::read(written.join("result.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let variants = json["variants"].as_array().unwrap();
    let weights: Vec<_> = variants.iter().map(|variant| &variant["weight"]).collect();
    assert_eq!(weights, [0.0, 1.6]);
    let runs = variants[1]["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[1]["quality"].as_array().unwrap().len(), 2);
    // Two seeds bear out nothing.
    let claims = json["claims"].as_array().unwrap();
    assert!(claims.iter().all(|claim| claim["verdict"] != "holds"));
    assert!(first.contains("paper: perplexity 24.0 without"), "{first}");
    assert!(written.join("report.html").is_file());
    // What is trained already is not trained again.
    let again = run(folder.path(), &arguments);
    success(&again);
    let table = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.starts_with("gamma"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        table(&String::from_utf8_lossy(&again.stdout)),
        table(&first)
    );
}

#[test]
fn an_explicit_network_writes_travels_and_is_measured_by_memory() {
    let folder = folder_with_text();
    let explicit = [
        "train",
        "lm",
        "--data",
        "text.txt",
        "--tied",
        "2",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--batch",
        "4",
        "--set",
        "task.segment=16",
        "--set",
        "task.model.cutoffs=[20,60]",
        "--run",
        "run",
        "--plain",
    ];
    success(&run(folder.path(), &explicit));
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = run(folder.path(), arguments);
        success(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // It has no equilibrium to start from.
    let written = json(&["generate", "run", "--tokens", "16", "--json"]);
    assert_eq!(written["evaluations"], 2.0);
    assert!(written["compared"].is_null(), "{written}");

    let table = json(&["eval", "run", "--memory", "0,16", "--json"]);
    assert_eq!(table["budgets"], serde_json::json!([]));
    for row in table["rows"].as_array().unwrap() {
        assert_eq!(row["cells"].as_array().unwrap().len(), 1);
    }
    let shown = run(folder.path(), &["eval", "run", "--memory", "0,16"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("as trained") && !shown.contains("NaN"),
        "{shown}"
    );
    let message = refused(
        folder.path(),
        &["eval", "run", "--memory", "0,16", "--max-steps", "2"],
    );
    assert!(message.contains("without an equilibrium"), "{message}");

    // Clusters in one table are seen, where they begin is not.
    success(&run(folder.path(), &["export", "run", "model.safetensors"]));
    let info = run(folder.path(), &["info", "model.safetensors"]);
    let info = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(info.contains("3 clusters"), "{info}");
    let info = json(&["info", "model.safetensors", "--json"]);
    let model = &info["model"]["deq_transformer"];
    assert_eq!(model["d_model"], 96);
    assert!(model["cutoffs"].is_null(), "{model}");
    let import = [
        "import",
        "model.safetensors",
        "--run",
        "in",
        "--layers",
        "18",
    ];
    let message = refused(folder.path(), &import);
    assert!(message.contains("wt103-jr is for text"), "{message}");
}

#[test]
fn a_trained_model_writes_travels_and_is_measured_by_memory_and_budget() {
    let folder = folder_with_text();
    success(&small(folder.path(), "run", &[]).output().unwrap());
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = run(folder.path(), arguments);
        success(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    };

    // The same seed writes the same text; starting from the previous equilibrium is compared with
    // starting from zero.
    let generate = [
        "generate",
        "run",
        "--prompt",
        "the state",
        "--tokens",
        "24",
        "--json",
    ];
    let written = json(&generate);
    assert_eq!(written["text"], json(&generate)["text"]);
    // Every byte is a letter here, or waits for its other half.
    assert_eq!(written["tokens"], 24);
    assert!(!written["text"].as_str().unwrap().is_empty());
    assert!(written["compared"][1].as_f64().unwrap() >= 1.0);
    let streamed = run(folder.path(), &generate[..6]);
    success(&streamed);
    let streamed = String::from_utf8_lossy(&streamed.stdout).into_owned();
    let text = written["text"].as_str().unwrap();
    assert_eq!(streamed, format!("the state{text}\n"));

    // Out as the original's state dict, and in again: the same model.
    success(&run(folder.path(), &["export", "run", "model.safetensors"]));
    let info = json(&["info", "model.safetensors", "--json"]);
    assert_eq!(info["model"]["deq_transformer"]["d_model"], 96);
    let import = [
        "import",
        "model.safetensors",
        "--run",
        "imported",
        "--preset",
        "tiny",
        "--data",
        "text.txt",
    ];
    success(&run(folder.path(), &import));
    success(&run(
        folder.path(),
        &["export", "imported", "again.safetensors"],
    ));
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("model.safetensors"), bytes("again.safetensors"));
    let perplexity = &json(&["eval", "imported", "--json"])["eval"]["quality"]["value"];
    assert!(perplexity.as_f64().unwrap() < 256.0, "{perplexity}");
    // An imported run is trained on, and training begins with the weights of a run or of a file.
    let on = [
        "train", "lm", "--run", "imported", "--resume", "--steps", "2", "--plain",
    ];
    success(&run(folder.path(), &on));
    let trained = records(&folder.path().join("imported"));
    let steps = trained.iter().filter(|record| record["event"] == "step");
    let phases: Vec<_> = steps.map(|step| &step["phase"]).collect();
    // It is an equilibrium already.
    assert_eq!(phases, ["equilibrium"; 2]);
    for (name, from) in [("from-run", "run"), ("from-file", "model.safetensors")] {
        let output = small(folder.path(), name, &["--init", from]).output();
        success(&output.unwrap());
    }
    let first = |name: &str| records(&folder.path().join(name))[0]["loss"].clone();
    assert_eq!(first("from-run"), first("from-file"));
    assert!(first("from-run").as_f64() < first("run").as_f64());
    let again = run(folder.path(), &import);
    assert!(String::from_utf8_lossy(&again.stderr).contains("imported"));
    assert_eq!(again.status.code(), Some(2));

    let table = json(&[
        "eval",
        "run",
        "--memory",
        "0,16",
        "--max-steps",
        "1,4,8",
        "--json",
    ]);
    assert_eq!(table["rows"].as_array().unwrap().len(), 2);
    assert_eq!(table["rows"][1]["cells"].as_array().unwrap().len(), 3);
    let residual =
        |row: usize, column: usize| table["rows"][row]["cells"][column]["residual"].as_f64();
    assert!(residual(1, 2) < residual(1, 0), "more steps, closer");
    assert!(folder.path().join("run/evaluation.html").is_file());

    // A model that has diverged is said to have.
    support::poison(&folder.path().join("run"));
    for arguments in [
        &["eval", "run"][..],
        &generate[..6],
        &["export", "run", "diverged.safetensors"],
    ] {
        let message = refused(folder.path(), arguments);
        assert!(
            message.contains("has diverged: model.") && message.contains("NaN or infinite"),
            "{message}"
        );
    }
}
