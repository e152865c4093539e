//! A run that is stopped and resumed equals an uninterrupted one, for every task, and one on
//! several devices one on a single device.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod devices;
mod forge;
mod sine;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use deq_data::Level;
use deq_models::DeqTransformerLmConfig;
use deq_train::records::{EvalRecord, Record, read_records};
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{
    EvalOptions, Recipe, RunError, Start, Stopped, Task, TrainError, TrainOptions, Trained,
    affordable_steps, evaluate, train, train_only,
};
use forge::forge;
use sine::{Sine, SineTask};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The random numbers of a device are those of the whole process, so its trainings take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Five steps in two rounds, the first one unrolled, with the penalty on most of them.
fn short<T: Task>(mut recipe: Recipe<T>, batch: usize) -> Recipe<T> {
    (recipe.batch, recipe.steps, recipe.rounds) = (batch, 5, 2);
    (
        recipe.pretrain_steps,
        recipe.warmup_steps,
        recipe.valid_batches,
    ) = (1, 1, Some(2));
    recipe.set("penalty.frequency", "0.8").unwrap();
    recipe
}

fn text() -> Recipe<TextTask> {
    let mut recipe = Recipe::<TextTask>::preset("tiny").unwrap();
    recipe.task.model = DeqTransformerLmConfig::new(1, 16, 2, 32)
        .with_mem_len(8)
        .with_dropout(0.1);
    recipe.task.segment = 8;
    let mut recipe = short(recipe, 64);
    // Its weight travels with the checkpoints.
    let controlled = r#"{"Controlled": {"target": 5.0}}"#;
    recipe.set("penalty.schedule", controlled).unwrap();
    recipe
}

fn images() -> Recipe<ImagesTask> {
    let mut recipe = short(Recipe::<ImagesTask>::preset("mini").unwrap(), 8);
    // The last evaluation reads a thousand images.
    recipe.limit_eval_steps(Some(2));
    recipe
}

fn own() -> Recipe<SineTask> {
    short(Recipe::new(SineTask { width: 8 }, 16, 5), 16)
}

fn options(run: &Path, start: Start, stop_after: Option<usize>) -> TrainOptions {
    TrainOptions {
        start,
        stop_after,
        plain: true,
        ..TrainOptions::new("flex", run.to_owned())
    }
}

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

/// Every number of the newest checkpoint's model.
fn weights<T: Task>(run: &Path) -> Vec<f64> {
    struct Numbers(Vec<f64>);
    impl ModuleVisitor for Numbers {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(param.val().into_data().iter::<f64>());
        }
    }
    let mut numbers = Numbers(Vec::new());
    let trained = Trained::<T>::open(run, "flex", None).unwrap();
    trained.model.visit(&mut numbers);
    numbers.0
}

/// Stops after every one of the first four steps: within a round, and at its end before it is
/// evaluated.
fn stopped_and_resumed_equals_uninterrupted<T: Task>(recipe: &Recipe<T>) {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    train_only(recipe.clone(), &options(&whole, Start::New, None)).unwrap();
    // The last time there is nothing to do.
    for step in [1, 2, 3, 4, 4] {
        let start = if step == 1 { Start::New } else { Start::Resume };
        match train_only(recipe.clone(), &options(&parts, start, Some(step))) {
            Err(TrainError::Stopped(Stopped::Interrupted { step: at, .. })) => assert_eq!(at, step),
            other => panic!("{other:?}"),
        }
    }
    train_only(recipe.clone(), &options(&parts, Start::Resume, None)).unwrap();
    for (parts, whole) in records(&parts).iter().zip(records(&whole)) {
        assert_eq!(parts, &whole);
    }
    assert_eq!(records(&parts).len(), records(&whole).len());
    assert!(
        weights::<T>(&parts) == weights::<T>(&whole),
        "other weights"
    );
    let evals = records(&whole);
    let evals = evals.iter().filter(|record| record["event"] == "eval");
    assert_eq!(evals.count(), 2);
    // Every session has an event file.
    assert_eq!([event_files(&whole), event_files(&parts)], [1, 5]);
}

fn event_files(run: &Path) -> usize {
    let names = std::fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().contains("tfevents"))
        .count()
}

#[test]
fn a_language_model() {
    stopped_and_resumed_equals_uninterrupted(&text());
}

#[test]
fn a_language_model_in_16_bits() {
    let mut recipe = text();
    recipe.set("deq.precision", "bf16").unwrap();
    recipe.raise_tolerances();
    stopped_and_resumed_equals_uninterrupted(&recipe);
}

#[test]
fn a_model_of_images() {
    stopped_and_resumed_equals_uninterrupted(&images());
}

#[test]
fn a_model_of_ones_own() {
    stopped_and_resumed_equals_uninterrupted(&own());
}

#[test]
fn a_run_keeps_what_makes_it_and_says_what_changes() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let recipe = own();
    train(recipe.clone(), &options(&run, Start::New, None)).unwrap();
    let again = train(recipe.clone(), &options(&run, Start::New, None)).unwrap_err();
    assert!(
        matches!(again, TrainError::Run(RunError::Exists { .. })),
        "{again}"
    );

    for (field, value) in [("seed", "7"), ("batch", "8"), ("task.width", "9")] {
        let mut other = recipe.clone();
        other.set(field, value).unwrap();
        let message = train(other, &options(&run, Start::Resume, None))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(&format!("was started with {field} = ")),
            "{message}"
        );
    }
    let mut further = recipe.clone();
    further.steps = 7;
    further.set("learning_rate", "0.0005").unwrap();
    let summary = train(further, &options(&run, Start::Resume, None)).unwrap();
    assert_eq!(summary.eval.step, 7);
    // The model that is measured is the one that was trained.
    let measured = evaluate::<SineTask>(&run, &EvalOptions::new("flex")).unwrap();
    assert_eq!(measured.eval.quality, summary.eval.quality);
    let records = records(&run);
    let changes = records.iter().filter(|record| record["event"] == "change");
    let fields: Vec<&str> = changes
        .map(|change| change["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, ["learning_rate", "steps"]);
    let steps = records.iter().filter(|record| record["event"] == "step");
    assert_eq!(steps.count(), 7);

    // Other settings of the evaluation are tried, although nothing is left to train.
    let mut limited = Recipe::<SineTask>::of_run(&run).unwrap();
    limited.limit_eval_steps(Some(1));
    let summary = train(limited, &options(&run, Start::Resume, None)).unwrap();
    assert!((summary.eval.nfe_per_solve - 1.0).abs() < 1e-9);

    // Checkpoints are not taken for those of a new run.
    std::fs::remove_file(run.join("config.json")).unwrap();
    let again = train(recipe, &options(&run, Start::New, None)).unwrap_err();
    assert!(
        matches!(again, TrainError::Run(RunError::Exists { .. })),
        "{again}"
    );
}

#[test]
fn the_evaluation_that_is_reported_is_in_the_log() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let summary = train(own(), &options(&run, Start::New, None)).unwrap();
    let records = read_records(&run.join("metrics.jsonl")).unwrap();
    let evals: Vec<&EvalRecord> = records.iter().filter_map(Record::as_eval).collect();
    let batches: Vec<usize> = evals.iter().map(|eval| eval.batches).collect();
    assert_eq!(batches, [2, 4]);
    assert_eq!(*evals[1], summary.eval);
}

#[test]
fn an_evaluation_that_fails_takes_no_steps_with_it() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    train_only(own(), &options(&whole, Start::New, None)).unwrap();
    let checkpoints = |run: &Path| {
        let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for (start, step) in [(Start::New, 2), (Start::Resume, 2)] {
        Sine::TOO_LARGE.set(1);
        let error = train_only(own(), &options(&parts, start, None)).unwrap_err();
        Sine::TOO_LARGE.set(0);
        let message = error.to_string();
        let expected = format!("too little memory for the evaluation after step {step}: resume");
        assert!(message.contains(&expected), "{message}");
        assert_eq!(checkpoints(&parts), ["step-0000002"]);
    }
    train_only(own(), &options(&parts, Start::Resume, None)).unwrap();
    assert_eq!(records(&parts), records(&whole));
    assert!(
        weights::<SineTask>(&parts) == weights::<SineTask>(&whole),
        "other weights"
    );
    assert_eq!(checkpoints(&parts), ["step-0000002", "step-0000005"]);
}

/// The step at which a run has diverged, and that of its last checkpoint.
fn diverged(error: &TrainError) -> (usize, usize) {
    match error {
        TrainError::Stopped(Stopped::Diverged {
            step, checkpoint, ..
        }) => (*step, *checkpoint),
        _ => panic!("{error}"),
    }
}

#[test]
fn a_model_whose_evaluation_is_no_number_is_not_gone_on_from() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut recipe = own();
    recipe.steps = 3;
    // The last held-out batch alone, which only the last evaluation reads.
    Sine::POISONED_FROM.set(3);
    let error = train(recipe.clone(), &options(&run, Start::New, None)).unwrap_err();
    Sine::POISONED_FROM.set(usize::MAX);
    assert_eq!(diverged(&error), (3, 1));
    recipe.learning_rate /= 2.0;
    train(recipe, &options(&run, Start::Resume, None)).unwrap();
    let records = read_records(&run.join("metrics.jsonl")).unwrap();
    let changed = records.iter().find_map(|record| match record {
        Record::Change(change) => Some(change.step),
        _ => None,
    });
    assert_eq!(changed, Some(1));
}

#[test]
fn a_controller_goes_on_from_a_new_weight() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut recipe = own();
    let controlled = r#"{"Controlled": {"target": 5.0}}"#;
    for (field, value) in [("schedule", controlled), ("frequency", "1.0")] {
        recipe.set(&format!("penalty.{field}"), value).unwrap();
    }
    assert!(train_only(recipe.clone(), &options(&run, Start::New, Some(3))).is_err());
    recipe.set("penalty.weight", "4.0").unwrap();
    train_only(recipe, &options(&run, Start::Resume, None)).unwrap();
    let records = read_records(&run.join("metrics.jsonl")).unwrap();
    let mut steps = records.iter().filter_map(Record::as_step);
    let penalty = steps.nth(3).unwrap().penalty.as_ref().unwrap();
    assert!((penalty.weight - 4.0).abs() < 1e-12, "{penalty:?}");
}

#[test]
fn a_run_goes_on_from_the_checkpoint_before_after_a_change() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut recipe = own();
    let stopped = |recipe: &Recipe<SineTask>, start| {
        assert!(train_only(recipe.clone(), &options(&run, start, Some(3))).is_err());
    };
    // Checkpoints of step 2 and 3.
    stopped(&recipe, Start::New);
    recipe.learning_rate /= 2.0;
    stopped(&recipe, Start::Resume);
    std::fs::remove_dir_all(run.join("checkpoints/step-0000003")).unwrap();
    train_only(recipe, &options(&run, Start::Resume, None)).unwrap();
    assert!(run.join("checkpoints/step-0000005").is_dir());
}

#[test]
fn a_trial_leaves_nothing_and_is_interrupted_as_its_run_is() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let options = TrainOptions {
        stop: Some(stop.clone()),
        ..options(&folder.path().join("run"), Start::New, None)
    };
    assert!(affordable_steps(&own(), 1.0, &options).is_ok());
    stop.store(true, Ordering::Relaxed);
    let error = affordable_steps(&own(), 1.0, &options).unwrap_err();
    let interrupted = matches!(error, TrainError::Stopped(Stopped::Trial));
    assert!(interrupted, "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_run_belongs_to_one_training_and_to_its_files() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let recipe = own();
    let stopped = train(recipe.clone(), &options(&run, Start::New, Some(3)));
    assert!(stopped.is_err());
    let resume = || train(recipe.clone(), &options(&run, Start::Resume, None));
    // Another process holds the lock.
    let lock = std::fs::File::open(run.join("lock")).unwrap();
    lock.lock().unwrap();
    let message = resume().unwrap_err().to_string();
    assert!(
        message.contains("is being trained by another process"),
        "{message}"
    );
    drop(lock);

    for (name, how) in [
        ("metrics.jsonl", "it has become shorter"),
        ("config.json", "it was edited"),
    ] {
        let path = run.join(name);
        let whole = std::fs::read(&path).unwrap();
        let cut = match name {
            "metrics.jsonl" => Vec::new(),
            _ => [&whole[..], b" "].concat(),
        };
        std::fs::write(&path, cut).unwrap();
        let message = resume().unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(how), "{message}");
        std::fs::write(&path, whole).unwrap();
    }
    assert_eq!(resume().unwrap().eval.step, 5);
}

#[test]
fn a_diverged_run_is_logged_and_can_be_rescued() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut recipe = own();
    recipe.clip = None;
    Sine::POISONED_FROM.set(4);
    let error = train(recipe.clone(), &options(&run, Start::New, None)).unwrap_err();
    Sine::POISONED_FROM.set(usize::MAX);
    assert_eq!(diverged(&error), (5, 2));
    assert!(
        error
            .to_string()
            .contains("its last checkpoint is of step 2"),
        "{error}"
    );
    // The advice works, once it is followed far enough.
    let before = recipe.learning_rate;
    recipe.set("penalty.weight", "3.0").unwrap();
    for (divisor, poisoned) in [(2.0, 4), (4.0, usize::MAX)] {
        recipe.learning_rate = before / divisor;
        Sine::POISONED_FROM.set(poisoned);
        let result = train(recipe.clone(), &options(&run, Start::Resume, None));
        assert_eq!(result.is_ok(), poisoned > 4);
    }
    // Steps of the second rate are not in the log, so neither is the rate.
    let changes = records(&run);
    let changes = changes.iter().filter(|record| record["event"] == "change");
    let changes: Vec<_> = changes
        .map(|change| (&change["field"], &change["from"], &change["to"]))
        .collect();
    let (rate, weight) = ("learning_rate".into(), "penalty.weight".into());
    assert_eq!(
        changes,
        [
            (&rate, &before.into(), &(before / 4.0).into()),
            (&weight, &recipe_weight(&own()), &3.0.into()),
        ]
    );
}

fn recipe_weight(recipe: &Recipe<SineTask>) -> serde_json::Value {
    recipe.penalty.as_ref().unwrap().weight.into()
}

#[test]
fn parameters_that_are_no_numbers_end_a_run() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut recipe = own();
    // A norm of the gradient would bring it into every parameter, the next step into the loss.
    (recipe.clip, recipe.rounds) = (None, 5);
    Sine::POISONED_GRADIENT.set(1);
    let result = train(recipe, &options(&run, Start::New, None));
    Sine::POISONED_GRADIENT.set(0);
    // In evaluation solves of such a cell end where they begin, and the loss stays a number.
    let message = result.unwrap_err().to_string();
    assert!(
        message.starts_with("the parameter ")
            && message.contains("cell.input.weight became NaN or infinite at step 1"),
        "{message}"
    );
    let checkpoints = std::fs::read_dir(run.join("checkpoints")).unwrap();
    assert_eq!(checkpoints.count(), 0);
}

#[test]
fn a_run_without_a_checkpoint_begins_again() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let [first, second, killed] =
        ["first", "second", "killed"].map(|name| folder.path().join(name));
    train_only(text(), &options(&first, Start::New, None)).unwrap();
    let mut recipe = text();
    recipe.init = Some(first);
    train_only(recipe.clone(), &options(&second, Start::New, None)).unwrap();
    std::fs::create_dir(&killed).unwrap();
    std::fs::copy(second.join("config.json"), killed.join("config.json")).unwrap();
    train_only(recipe, &options(&killed, Start::Resume, None)).unwrap();
    assert!(
        weights::<TextTask>(&killed) == weights::<TextTask>(&second),
        "other weights"
    );
}

#[test]
fn weights_for_other_words_are_refused() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let recipe = |name: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, format!("a line of {name}\n").repeat(500)).unwrap();
        let mut recipe = short(text(), 2);
        (recipe.task.data, recipe.task.level) = (DataSource::Path(file), Level::Word);
        recipe
    };
    let [first, second] =
        ["first", "second"].map(|name| folder.path().join(name).with_extension("run"));
    train_only(recipe("words"), &options(&first, Start::New, None)).unwrap();
    for (name, fits) in [("other", false), ("words", true)] {
        let mut recipe = recipe(name);
        recipe.init = Some(first.clone());
        match train_only(recipe, &options(&second, Start::New, None)) {
            Ok(_) => assert!(fits),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !fits && message.contains("are for another vocabulary"),
                    "{message}"
                );
                assert!(!second.exists());
            }
        }
    }
}

#[test]
fn a_run_goes_on_as_the_same_or_not_at_all() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let recipe = own();
    let same = |recipe: &Recipe<SineTask>, stop| {
        train_only(recipe.clone(), &options(&run, Start::NewOrSame, stop))
    };
    assert!(same(&recipe, Some(3)).is_err());
    let mut other = recipe.clone();
    other.learning_rate = 0.5;
    let message = same(&other, None).unwrap_err().to_string();
    assert!(
        message.contains("holds a run with learning_rate = ")
            && message.contains("and 0.5 is asked for: choose another folder"),
        "{message}"
    );
    same(&recipe, None).unwrap();
    let steps = records(&run);
    let steps = steps.iter().filter(|record| record["event"] == "step");
    assert_eq!(steps.count(), 5);
}

/// A change to the bytes of a file.
type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

/// A run of three steps, with a copy to resume after every damage.
fn stopped_run(folder: &Path) -> impl Fn(&str, Damage) -> Result<(), TrainError> {
    let run = folder.join("run");
    let recipe = own();
    assert!(train(recipe.clone(), &options(&run, Start::New, Some(3))).is_err());
    move |name, change| {
        let checkpoint = run.join("checkpoints/step-0000003");
        let kept = ["manifest.json", name].map(|name| checkpoint.join(name));
        let before = kept.clone().map(|path| std::fs::read(path).unwrap());
        forge(&run, name, change);
        let result = train(recipe.clone(), &options(&run, Start::Resume, Some(4)));
        kept.iter()
            .zip(before)
            .for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        result.map(drop)
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let resumed = stopped_run(folder.path());
    for number in [f32::NAN, f32::INFINITY] {
        let last = |bytes: &mut Vec<u8>| {
            let at = bytes.len() - 4;
            bytes[at..].copy_from_slice(&number.to_le_bytes());
        };
        let message = resumed("model.bpk", &last).unwrap_err().to_string();
        let expected = "has diverged: model.readout.bias is the first of 1 parameters";
        assert!(message.contains(expected), "{message}");
        // A step with such a state of the optimizer would make weights that are no numbers; an
        // infinite second moment makes none.
        if number.is_nan() {
            let message = resumed("optimizer.bpk", &last).unwrap_err().to_string();
            assert!(message.contains("has diverged: model."), "{message}");
        }
    }
}

#[test]
fn an_optimizer_that_burn_cannot_use_is_refused_in_a_sentence() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let resumed = stopped_run(folder.path());
    let replaced = |from: &'static [u8], to: &'static [u8]| {
        move |bytes: &mut Vec<u8>| {
            let places = bytes.windows(from.len()).enumerate();
            let places: Vec<usize> = places
                .filter(|(_, w)| *w == from)
                .map(|(at, _)| at)
                .collect();
            assert!(!places.is_empty());
            for at in places {
                bytes[at..at + to.len()].copy_from_slice(to);
            }
        }
    };
    // Shapes as lists in CBOR, and the magic number of the format.
    let [wide, tall] = [&[0x82, 1, 8], &[0x82, 8, 1]];
    let cases: [(&[u8], &[u8]); 3] = [
        (wide, tall),
        (&[0x82, 8, 8], &[0x82, 9, 9]),
        (b"NRUB", b"BURN"),
    ];
    for (from, to) in cases {
        let message = resumed("optimizer.bpk", &replaced(from, to))
            .unwrap_err()
            .to_string();
        let expected = "is damaged (the optimizer does not fit: ";
        assert!(
            message.contains(expected) && message.len() < 500,
            "{message}"
        );
    }
}
