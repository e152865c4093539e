//! Recipes, logs and checkpoints, damaged at random: refused or read, never a panic.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod forge;
#[allow(dead_code, reason = "other tests use the rest")]
mod sine;

use deq_testkit::fuzz;
use deq_train::records::read_records;
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{Recipe, Start, Task, TrainError, TrainOptions, train_only, with_causes};
use forge::forge;
use sine::SineTask;
use std::path::Path;

/// The message of an error, which must be one that can be shown.
fn refused(error: &TrainError) {
    let text = with_causes(error);
    assert!(
        text.len() < 2000 && !text.contains(char::is_control),
        "{text}"
    );
}

fn recipes<T: Task>(target: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.json");
    let presets = T::presets().iter().map(|preset| {
        let recipe = Recipe::<T>::preset(preset.name).unwrap();
        serde_json::to_vec_pretty(&recipe).unwrap()
    });
    let samples: Vec<Vec<u8>> = presets.collect();
    fuzz(target, &samples, 1000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let read = Recipe::<T>::from_file(&path);
        if let Err(error) = read.and_then(|recipe| recipe.validate()) {
            refused(&error);
        }
    });
}

#[test]
fn mutations_of_recipes() {
    recipes::<TextTask>("recipes of text");
    recipes::<ImagesTask>("recipes of images");
}

fn options(run: &Path, start: Start) -> TrainOptions {
    TrainOptions {
        start,
        stop_after: Some(if start == Start::New { 3 } else { 4 }),
        plain: true,
        ..TrainOptions::new("flex", run.to_owned())
    }
}

/// A run that was stopped after its third step, and its recipe.
fn stopped_run(run: &Path) -> Recipe<SineTask> {
    let mut recipe = Recipe::new(SineTask { width: 4 }, 4, 5);
    (recipe.rounds, recipe.pretrain_steps, recipe.warmup_steps) = (2, 1, 1);
    recipe.set("penalty.frequency", "1.0").unwrap();
    assert!(train_only(recipe.clone(), &options(run, Start::New)).is_err());
    recipe
}

#[test]
fn mutations_of_logs() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    stopped_run(&run);
    let path = run.join("metrics.jsonl");
    let log = std::fs::read(&path).unwrap();
    assert_eq!(read_records(&path).unwrap().len(), 4);
    fuzz("logs", &[log], 1000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = read_records(&path) {
            refused(&error);
        }
    });
}

#[test]
fn mutations_of_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let [run, checkpoint] =
        ["run", "run/checkpoints/step-0000003"].map(|name| folder.path().join(name));
    let recipe = stopped_run(&run);
    let names = [
        "model.bpk",
        "optimizer.bpk",
        "memory.safetensors",
        "recipe.json",
        "manifest.json",
    ];
    let parts = names.map(|name| std::fs::read(checkpoint.join(name)).unwrap());
    let kept = ["metrics.jsonl", "config.json"]
        .map(|name| (run.join(name), std::fs::read(run.join(name)).unwrap()));
    for (name, part) in names.into_iter().zip(&parts) {
        fuzz(
            &format!("checkpoints, {name}"),
            std::slice::from_ref(part),
            25,
            |bytes| {
                for (name, part) in names.into_iter().zip(&parts) {
                    std::fs::write(checkpoint.join(name), part).unwrap();
                }
                kept.iter()
                    .for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
                let _ = std::fs::remove_dir_all(run.join("checkpoints/step-0000004"));
                match name {
                    "manifest.json" => std::fs::write(checkpoint.join(name), bytes).unwrap(),
                    _ => forge(&run, name, |part| *part = bytes.to_vec()),
                }
                match train_only(recipe.clone(), &options(&run, Start::Resume)) {
                    Err(error) => refused(&error),
                    Ok(_) => panic!("the run ends after the fourth step"),
                }
            },
        );
    }
}
