//! Several devices make the steps that one makes, and none depends on their number.

use super::*;
use deq_core::solvers::{PicardConfig, SolverConfig};
use deq_core::{GradientConfig, ImplicitConfig};
use deq_train::{Devices, DevicesError, Variant, evaluate_budgets};
use serde_json::Value;

/// What two orders of summation in f32 may differ by, over a few steps without an adaptive
/// optimizer: some hundred roundings.
const ROUNDING: f64 = 5e-5;

fn on(devices: &str, run: &Path, start: Start, stop_after: Option<usize>) -> TrainOptions {
    TrainOptions {
        devices: Devices::from(devices),
        ..options(run, start, stop_after)
    }
}

/// Equal but for the rounding of numbers; counts and outcomes exactly.
fn assert_close(found: &Value, expected: &Value, place: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            assert!(found.keys().eq(expected.keys()), "{place}");
            for (key, value) in found {
                assert_close(value, &expected[key], &format!("{place}.{key}"));
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{place}");
            for (found, expected) in found.iter().zip(expected) {
                assert_close(found, expected, place);
            }
        }
        (Value::Number(found), Value::Number(expected)) if expected.is_f64() => {
            let [found, expected] = [found, expected].map(|number| number.as_f64().unwrap());
            // Residuals are differences of nearly equal numbers.
            let tolerance = match place.contains("residual") {
                true => 1e-2 * expected,
                false => ROUNDING * expected.abs().max(1.0),
            };
            let error = (found - expected).abs();
            assert!(error <= tolerance, "{place}: {found} for {expected}");
        }
        _ => assert_eq!(found, expected, "{place}"),
    }
}

fn assert_same_run(found: &Path, expected: &Path) {
    let [found, expected] = [found, expected].map(records);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_close(found, expected, "record");
    }
}

fn assert_same_weights<T: Task>(found: &Path, expected: &Path) {
    let [found, expected] = [found, expected].map(weights::<T>);
    assert_eq!(found.len(), expected.len());
    let distance = |a: &f64, b: &f64| (a - b).abs();
    let largest = found.iter().zip(&expected).map(|(a, b)| distance(a, b));
    let largest = largest.fold(0.0, f64::max);
    assert!(largest < ROUNDING, "weights differ by {largest}");
}

/// A recipe without what amplifies rounding: Adam makes steps of the rounding of gradients that are
/// zero, and Anderson extrapolates from nearly equal states. Some solves converge and some do not.
fn steady<T: Task>(mut recipe: Recipe<T>) -> Recipe<T> {
    recipe.set("optimizer", "nesterov").unwrap();
    recipe.learning_rate = 0.05;
    recipe.deq.solver = PicardConfig::new().into();
    recipe.deq.stop.rel_tol = 0.04;
    let adjoint = ImplicitConfig::new()
        .with_solver(SolverConfig::from(PicardConfig::new()).into())
        .with_stop(recipe.deq.stop.clone());
    recipe.deq.gradient = GradientConfig::Implicit(adjoint);
    recipe.deq.eval_stop = None;
    recipe
}

#[test]
fn text_on_several_devices_is_text_on_one_and_resumes_on_any() {
    let _turn = turn();
    let recipe = steady(text());
    let folder = tempfile::tempdir().unwrap();
    let [one, two, mixed] = ["one", "two", "mixed"].map(|name| folder.path().join(name));
    train_only(recipe.clone(), &on("flex", &one, Start::New, None)).unwrap();
    let penalties = records(&one)
        .iter()
        .filter(|r| r["penalty"].is_object())
        .count();
    assert!(penalties > 1, "{penalties} steps with the penalty");

    train_only(recipe.clone(), &on("flex,flex", &two, Start::New, None)).unwrap();
    assert_same_run(&two, &one);
    assert_same_weights::<TextTask>(&two, &one);

    // The memory of the streams goes from three parts into two, and from there into one.
    for (step, devices) in [(2, "flex,flex,flex"), (4, "flex,flex")] {
        let start = if step == 2 { Start::New } else { Start::Resume };
        let stopped = train_only(recipe.clone(), &on(devices, &mixed, start, Some(step)));
        assert!(stopped.is_err(), "it was to be interrupted");
    }
    train_only(recipe, &on("flex", &mixed, Start::Resume, None)).unwrap();
    assert_same_run(&mixed, &one);
    assert_same_weights::<TextTask>(&mixed, &one);

    // A table of the same checkpoint.
    let table = |devices: &str| {
        let variants = [Variant::<TextTask>::as_trained()];
        let options = EvalOptions::new(devices);
        let table = evaluate_budgets(&one, &options, &variants, &[2], &mut |_| ()).unwrap();
        let mut record = serde_json::to_value(&table.rows[0].cells[0]).unwrap();
        record.as_object_mut().unwrap().remove("seconds");
        record
    };
    assert_close(&table("flex,flex"), &table("flex"), "table");
}

/// The mean of a part over no target is not a number, and counts nothing.
#[test]
fn a_part_without_targets_is_left_out_of_the_loss() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    let mut recipe = steady(own());
    recipe.batch = 2;
    Sine::LACKING.set(1);
    Sine::POISONED_FROM.set(0);
    let trained = [("flex", &one), ("flex,flex", &two)]
        .map(|(devices, run)| train_only(recipe.clone(), &on(devices, run, Start::New, None)));
    Sine::LACKING.set(0);
    Sine::POISONED_FROM.set(usize::MAX);
    for trained in trained {
        trained.unwrap();
    }
    let losses = |run: &Path| -> Value {
        let steps = records(run).into_iter();
        steps.map(|record| record["loss"].clone()).collect()
    };
    assert_close(&losses(&two), &losses(&one), "losses");
    assert_same_weights::<SineTask>(&two, &one);
}

/// Batch statistics are those of a part, as in the original, so that losses differ a little.
#[test]
fn images_on_several_devices_are_all_counted_and_resume_on_any() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    let mut recipe = images();
    (recipe.steps, recipe.valid_batches) = (3, Some(1));
    train_only(recipe.clone(), &on("flex", &one, Start::New, None)).unwrap();
    let stopped = train_only(recipe.clone(), &on("flex,flex", &two, Start::New, Some(2)));
    assert!(stopped.is_err(), "it was to be interrupted");
    train_only(
        recipe.clone(),
        &on("flex,flex,flex", &two, Start::Resume, None),
    )
    .unwrap();
    let [found, expected] = [&two, &one].map(|run| records(run));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        for count in ["targets", "step", "phase", "batches"] {
            assert_eq!(found[count], expected[count], "{count}");
        }
        for solve in ["forward", "backward"] {
            let samples = |record: &Value| -> Option<u64> {
                let status = record[solve]["status"].as_object()?;
                Some(status.values().filter_map(Value::as_u64).sum())
            };
            assert_eq!(samples(found), samples(expected));
        }
    }
    // In evaluation statistics are fixed, and the division exact.
    let eval = |devices: &str| {
        let mut options = EvalOptions::new(devices);
        options.probe = false;
        options.max_steps = Some(2);
        let summary = evaluate::<ImagesTask>(&one, &options).unwrap();
        let mut record = serde_json::to_value(summary.eval).unwrap();
        record.as_object_mut().unwrap().remove("seconds");
        record
    };
    assert_close(&eval("flex,flex"), &eval("flex"), "eval");
}

#[test]
fn what_cannot_be_divided_is_refused_before_anything_is_written() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let options = on("flex,flex", &run, Start::New, None);
    match train_only(own(), &options) {
        Err(TrainError::Devices(DevicesError::Indivisible { task: "sine" })) => {}
        other => panic!("{other:?}"),
    }
    let mut recipe = text();
    recipe.batch = 1;
    let message = train_only(recipe, &options).unwrap_err().to_string();
    assert!(message.contains("batch"), "{message}");
    assert!(!run.exists());
}
