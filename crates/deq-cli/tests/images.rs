//! Runs on pictures as a user meets them: outcomes, exit codes, messages, files.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod support;

use deq_data::{ImageDataset, Picture, Shapes, Target, VisionTask};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn deq(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deq"));
    command.current_dir(folder).args(arguments);
    command
}

fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = deq(folder, arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn error(folder: &Path, arguments: &[&str]) -> String {
    let output: Output = deq(folder, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Shapes in the layout of CIFAR-10, few enough for a test.
fn folder_of_cifar() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, count, seed) in [("train.bin", 32, 1), ("test.bin", 12, 2)] {
        let shapes = Shapes::new(VisionTask::Classification, 32, count, seed).unwrap();
        let mut records = Vec::new();
        for index in 0..count {
            let example = shapes.example(index).unwrap();
            let Target::Class(class) = example.target else {
                panic!("shapes to classify");
            };
            records.push(class as u8);
            for channel in 0..3 {
                records.extend(example.picture.data().iter().skip(channel).step_by(3));
            }
        }
        let path = folder.path().join("cifar").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, records).unwrap();
    }
    folder
}

/// Two pre-training steps, then the equilibrium with the penalty.
const SMALL: [&str; 16] = [
    "train",
    "mdeq",
    "--data",
    "cifar10:cifar",
    "--batch",
    "4",
    "--steps",
    "6",
    "--rounds",
    "2",
    "--pretrain",
    "2",
    "--penalty-frequency",
    "0.8",
    "--plain",
    "--run",
];

/// Everything but the times of every record.
fn records(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        record.as_object_mut().unwrap().remove("seconds");
        record
    });
    lines.collect()
}

#[test]
fn a_run_is_trained_interrupted_measured_and_used() {
    let folder = folder_of_cifar();
    let path = folder.path();
    let whole = run(path, &[&SMALL[..], &["whole"]].concat());
    assert!(whole.contains("valid accuracy:") && whole.contains("spectral radius:"));
    let report = std::fs::read_to_string(path.join("whole/report.html")).unwrap();
    assert!(report.contains("Quality") && report.contains("data:image/png"));
    let pictures = std::fs::read_to_string(path.join("whole/predictions.svg")).unwrap();
    assert_eq!(pictures.matches("<image").count(), 12);

    // Killed after its first round and resumed, by another number of workers, it repeats the same
    // losses.
    let mut killed = deq(path, &[&SMALL[..], &["killed"]].concat())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !path.join("killed/checkpoints/step-0000003").is_dir() {
        assert!(
            started.elapsed() < Duration::from_secs(300),
            "no checkpoint"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    run(
        path,
        &[&SMALL[..], &["killed", "--resume", "--workers", "3"]].concat(),
    );
    let found = records(&path.join("killed"));
    assert_eq!(found, records(&path.join("whole")));
    let phases: Vec<&str> = found
        .iter()
        .filter_map(|record| record.get("phase")?.as_str())
        .collect();
    let mut expected = vec!["unrolled"; 2];
    expected.resize(6, "equilibrium");
    assert_eq!(phases, expected);
    assert!(found.iter().any(|record| record.get("penalty").is_some()));

    let json: serde_json::Value =
        serde_json::from_str(&run(path, &["eval", "whole", "--json"])).unwrap();
    let last = &found[found.len() - 1];
    assert_eq!(json["eval"]["quality"], last["quality"]);
    assert_eq!(json["eval"]["targets"], 12);
    let measured = json["eval"].clone();
    let table = run(path, &["eval", "whole", "--max-steps", "1,6"]);
    assert!(
        table.contains("solver steps") && table.contains("accuracy"),
        "{table}"
    );
    assert!(path.join("whole/evaluation.html").is_file());

    let picture = Picture::filled(40, 50, [200, 30, 30]);
    picture.save_png(&path.join("red.png")).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&run(path, &["predict", "whole", "red.png", "--json"])).unwrap();
    let classes = json[0]["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 5);
    let shares: Vec<f64> = classes.iter().map(|c| c[1].as_f64().unwrap()).collect();
    assert!(shares.is_sorted_by(|a, b| a >= b) && shares.iter().sum::<f64>() <= 1.0 + 1e-6);
    assert!(json[0]["overlay"].is_null());
    let mut unread = deq(path, &["predict", "whole", "red.png"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(unread.stdout.take());
    let stderr = unread.wait_with_output().unwrap().stderr;
    assert_eq!(String::from_utf8_lossy(&stderr), "");
    std::fs::write(path.join("text.png"), "no picture").unwrap();
    let message = error(path, &["predict", "whole", "text.png"]);
    assert!(message.contains("text.png cannot be used"), "{message}");
    let message = error(
        path,
        &["predict", "whole", "red.png", "--overlays", "painted"],
    );
    assert!(message.contains("makes no overlays"), "{message}");
    weights_come_and_go(path, &measured);
    support::poison(&path.join("whole"));
    for arguments in [&["eval", "whole"][..], &["predict", "whole", "red.png"]] {
        let message = error(path, arguments);
        assert!(message.contains("has diverged: model."), "{message}");
    }
}

/// Out as the original's state dict, in again, and into the beginning of another run.
fn weights_come_and_go(path: &Path, eval: &serde_json::Value) {
    run(path, &["export", "whole", "mdeq.safetensors"]);
    let info: serde_json::Value =
        serde_json::from_str(&run(path, &["info", "mdeq.safetensors", "--json"])).unwrap();
    let found = &info["model"]["mdeq_classifier"];
    assert_eq!(found["backbone"]["channels"], serde_json::json!([8, 16]));
    assert_eq!(found["head_channels"], serde_json::json!([4, 8]));
    assert_eq!(found["backbone"]["post_fusion_affine"], false);
    let data = SMALL[3];
    let import = |file: &str, run: &str, preset: &str| -> Vec<String> {
        let words = [
            "import", file, "--run", run, "--preset", preset, "--data", data,
        ];
        words.map(str::to_owned).to_vec()
    };
    let imported = import("mdeq.safetensors", "imported", "mini");
    let imported: Vec<&str> = imported.iter().map(String::as_str).collect();
    assert!(run(path, &imported).contains("tensors match"));
    run(path, &["export", "imported", "again.safetensors"]);
    let bytes = |name: &str| std::fs::read(path.join(name)).unwrap();
    assert_eq!(bytes("mdeq.safetensors"), bytes("again.safetensors"));
    let json: serde_json::Value =
        serde_json::from_str(&run(path, &["eval", "imported", "--json"])).unwrap();
    assert_eq!(json["eval"]["quality"], eval["quality"]);
    // In batches of another size, so that means are added in another order.
    let loss = |eval: &serde_json::Value| eval["loss"].as_f64().unwrap();
    assert!((loss(&json["eval"]) - loss(eval)).abs() < 1e-5);
    let message = error(path, &imported);
    assert!(message.contains("imported"), "{message}");

    // Training that begins with trained weights begins better than with random ones.
    let first_loss = |name: &str| records(&path.join(name))[0]["loss"].as_f64().unwrap();
    for (name, from) in [("from-run", "whole"), ("from-file", "mdeq.safetensors")] {
        run(path, &[&SMALL[..], &[name, "--init", from]].concat());
        assert!(first_loss(name) < first_loss("whole"), "{from}");
    }
    let all = |name: &str| records(&path.join(name));
    assert_eq!(all("from-run"), all("from-file"));
    std::fs::write(path.join("other.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    let message = error(
        path,
        &[&SMALL[..], &["none", "--init", "other.safetensors"]].concat(),
    );
    assert!(message.contains("other.safetensors"), "{message}");
    assert!(!path.join("none").exists());
}

/// A PNG of ids, and the picture that shows them.
fn write_pair(folder: &Path, split: &str, name: &str, (height, shift): (usize, usize)) {
    let width = 44;
    let id = |x: usize| ((x + shift) / 11 % 4) as u8;
    let labels: Vec<u8> = (0..width * height).map(|i| id(i % width)).collect();
    let pixels = labels.iter().flat_map(|id| [60 * id, 200 - 40 * id, 90]);
    let picture = Picture::new(width, height, pixels.collect());
    for part in [split.to_owned(), format!("{split}annot")] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    picture.save_png(&folder.join(split).join(name)).unwrap();
    let file = std::fs::File::create(folder.join(format!("{split}annot")).join(name)).unwrap();
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&labels).unwrap();
}

#[test]
fn pixels_are_classified_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for number in 0..4 {
        write_pair(
            &path.join("scenes"),
            "train",
            &format!("{number}.png"),
            (36, number),
        );
        write_pair(
            &path.join("scenes"),
            "val",
            &format!("{number}.png"),
            // Held-out files may be of any size.
            (36 - 5 * number, 3 * number),
        );
    }
    std::fs::write(path.join("scenes/classes.txt"), "a\nb\nc\nignore\n").unwrap();
    let text = run(
        path,
        &[
            "train",
            "mdeq",
            "--data",
            "segmentation:scenes",
            "--batch",
            "2",
            "--rounds",
            "1",
            "--steps",
            "2",
            "--pretrain",
            "1",
            "--plain",
            "--run",
            "seg",
        ],
    );
    for expected in [
        "valid mean IoU:",
        "pixel accuracy:",
        "IoU of a:",
        "IoU of c:",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    std::fs::write(path.join("text.png"), "no picture").unwrap();
    let pictures = ["text.png", "scenes/val/1.png"];
    // One broken file does not keep the others from being predicted.
    let message = error(
        path,
        &[
            &["predict", "seg"],
            &pictures[..],
            &["--overlays", "painted"],
        ]
        .concat(),
    );
    assert!(
        message.contains("text.png cannot be used")
            && message.contains("1 of 2 images could not be predicted"),
        "{message}"
    );
    let painted = Picture::open(&path.join("painted/1.classes.png")).unwrap();
    assert_eq!((painted.width(), painted.height()), (44, 31));
}

#[test]
fn the_penalty_is_compared_at_every_budget() {
    let folder = folder_of_cifar();
    let path = folder.path();
    let arguments = [
        "reproduce",
        "jacreg-vision",
        "--data",
        "cifar10:cifar",
        "--rounds",
        "1",
        "--steps",
        "2",
        "--pretrain",
        "1",
        "--penalty-frequency",
        "1",
        "--weights",
        "0,1",
        "--seeds",
        "1",
        "--budgets",
        "1,4",
    ];
    // The batch of the preset is 32, all that there is.
    let text = run(path, &arguments);
    assert!(
        text.contains("accuracy with") && text.contains("gamma 1 "),
        "{text}"
    );
    let json = std::fs::read(path.join("runs/jacreg-images/result.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["measure"]["share"], "accuracy");
    assert_eq!(
        json["variants"][1]["runs"][0]["quality"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn training_for_a_time_chooses_its_steps_and_goes_on_with_them() {
    let folder = folder_of_cifar();
    let path = folder.path();
    let timed = [
        "train",
        "mdeq",
        "--data",
        "cifar10:cifar",
        "--batch",
        "4",
        "--minutes",
        "0.02",
        "--valid-batches",
        "1",
        "--plain",
        "--run",
        "timed",
        "--set",
        "warmup_steps=1",
    ];
    let first = run(path, &timed);
    assert!(first.contains("valid accuracy:"), "{first}");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path.join("timed/config.json")).unwrap()).unwrap();
    let number = |name: &str| config[name].as_u64().unwrap();
    let steps = number("steps");
    assert!(number("pretrain_steps") < steps);
    // What the preset says grows with the steps, what an option says stays.
    assert_eq!(number("warmup_steps"), 1);
    let found = records(&path.join("timed"));
    // What a run was made with makes it again.
    std::fs::copy(path.join("timed/config.json"), path.join("again.json")).unwrap();
    let again = ["train", "mdeq", "--recipe", "again.json", "--run", "again"];
    run(path, &again);
    let losses = |name: &str| -> Vec<serde_json::Value> {
        let all = records(&path.join(name)).into_iter();
        all.map(|record| record["loss"].clone()).collect()
    };
    assert_eq!(losses("again"), losses("timed"));
    let mut changed = config.clone();
    changed["pretrain_steps"] = 1.into();
    changed["penalty"]["pretrain_weight"] = 0.5.into();
    changed["penalty"]["frequency"] = 1.0.into();
    (changed["rounds"], changed["steps"], changed["warmup_steps"]) = (1.into(), 2.into(), 0.into());
    std::fs::write(path.join("changed.json"), changed.to_string()).unwrap();
    let changed = [
        "train",
        "mdeq",
        "--recipe",
        "changed.json",
        "--run",
        "changed",
    ];
    run(path, &changed);
    let made = records(&path.join("changed"));
    let penalised = |step: usize| (&made[step]["phase"], &made[step]["penalty"]["weight"]);
    assert_eq!(penalised(0), (&"unrolled".into(), &0.5.into()));
    assert_eq!(penalised(1), (&"equilibrium".into(), &1.0.into()));
    let evals = || found.iter().filter(|record| record["event"] == "eval");
    assert_eq!(found.len() as u64, steps + number("rounds"));
    // Of the 12 held-out pictures, one batch after each round, and all of them after the last.
    let read: Vec<_> = evals().map(|eval| eval["targets"].as_u64()).collect();
    let (last, before) = read.split_last().unwrap();
    assert!(
        *last == Some(12) && before.iter().all(|read| *read == Some(4)),
        "{read:?}"
    );
    run(path, &[&timed[..], &["--resume"]].concat());
    assert_eq!(records(&path.join("timed")), found);
    let message = error(path, &[&timed[..6], &["--minutes", "-1"]].concat());
    assert!(
        message.contains("minutes is -1, but must be above 0"),
        "{message}"
    );
}

#[test]
fn a_resnet_of_equal_size_is_trained_by_the_same_command() {
    let folder = folder_of_cifar();
    let path = folder.path();
    let network = |more: &[&str]| -> serde_json::Value {
        let arguments = [
            "train",
            "mdeq",
            "--data",
            "cifar10:cifar",
            "--rounds",
            "1",
            "--steps",
            "1",
            "--json",
        ];
        serde_json::from_str(&run(path, &[&arguments, more].concat())).unwrap()
    };
    let (mdeq, resnet) = (network(&[]), network(&["--layers", "18"]));
    let parameters = |summary: &serde_json::Value| summary["parameters"].as_f64().unwrap();
    let ratio = parameters(&resnet) / parameters(&mdeq);
    // A ResNet grows by steps, since its width is a whole number.
    assert!((0.8..1.25).contains(&ratio), "{ratio}");
    assert!(resnet["eval"].get("steps").is_none());
    let message = error(
        path,
        &[
            "eval",
            "runs/mdeq-mini-cifar10-layers-18",
            "--max-steps",
            "4",
        ],
    );
    assert!(message.contains("without an equilibrium"), "{message}");
    assert!(
        path.join("runs/mdeq-mini-cifar10").is_dir()
            && path.join("runs/mdeq-mini-cifar10-layers-18").is_dir()
    );
}

#[test]
fn what_makes_no_sense_is_refused_in_one_sentence() {
    let folder = folder_of_cifar();
    let path = folder.path();
    let train = |more: &[&str]| error(path, &[&["train", "mdeq"], more].concat());
    for (arguments, expected) in [
        (&["--data", "mnist"][..], "there is no data set \"mnist\""),
        (&["--data", "cifar10:nowhere"], "there is no folder nowhere"),
        (&["--preset", "huge"], "choose one of mini"),
        (
            &["--preset", "cifar10-tiny", "--data", "shapes-segmentation"],
            "does not fit the data",
        ),
        (&["--layers", "18", "--penalty", "1"], "no equilibrium"),
        (
            &["--layers", "18", "--data", "shapes-segmentation"],
            "has no network",
        ),
        (&["--recipe", "nowhere.json"], "cannot read nowhere.json"),
        (
            &["--data", "shapes-segmentation", "--solver-steps", "10"],
            "target is 14, but must be below",
        ),
        (&["--lr", "-1"], "learning_rate is -1"),
        (&["--penalty", "0", "--hold-steps", "5"], "needs a penalty"),
        (
            &["--data", "cifar10:cifar", "--batch", "33"],
            "at most the number of training images",
        ),
    ] {
        let message = train(arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    let message = error(
        path,
        &[
            "reproduce",
            "jacreg-vision",
            "--rounds",
            "1",
            "--steps",
            "2",
            "--pretrain",
            "2",
        ],
    );
    assert!(message.contains("all 2 steps are unrolled"), "{message}");
    assert!(
        !path.join("runs").exists(),
        "nothing is written before it is checked"
    );
}
