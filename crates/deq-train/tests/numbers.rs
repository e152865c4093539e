//! Whatever number enters through a recipe, it is used or refused by its name, and nothing panics.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::catch_panic;
use deq_models::DeqTransformerLmConfig;
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{Recipe, Task, TrainError, TrainOptions, train_only};
use serde_json::Value;

/// Numbers that a recipe is given in place of each of its own.
const NUMBERS: [&str; 9] = [
    "-1",
    "0",
    "1.5",
    "1000000000000000000",
    "18446744073709551615",
    "100000000000000000000",
    "-1e300",
    "1e300",
    "NaN",
];

/// Every number of a document, by its path; the numbers in a list are reached through the list.
fn numbers(path: &str, value: &Value, found: &mut Vec<(String, Option<usize>)>) {
    match value {
        Value::Number(_) => found.push((path.to_owned(), None)),
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                numbers(path.trim_start_matches('.'), value, found);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_number) => {
            found.extend((0..items.len()).map(|index| (path.to_owned(), Some(index))));
        }
        _ => {}
    }
}

/// The recipe with another number at a place.
fn changed<T: Task>(
    recipe: &Recipe<T>,
    (path, index): &(String, Option<usize>),
    number: &str,
) -> Result<Recipe<T>, TrainError> {
    let mut changed = recipe.clone();
    match index {
        None => changed.set(path, number)?,
        Some(index) => {
            let place = format!("/{}", path.replace('.', "/"));
            let document = serde_json::to_value(recipe).unwrap();
            let mut list = document.pointer(&place).unwrap().clone();
            list[*index] = serde_json::from_str(number).unwrap_or_else(|_| number.into());
            changed.set(path, &list.to_string())?;
        }
    }
    Ok(changed)
}

/// Gives every number of a recipe every extreme, and trains a step with what is not refused.
fn every_number_is_used_or_refused<T: Task>(recipe: &Recipe<T>) {
    let mut places = Vec::new();
    numbers("", &serde_json::to_value(recipe).unwrap(), &mut places);
    assert!(places.len() > 30, "{places:?}");
    let mut refused = 0;
    for place in &places {
        for number in NUMBERS {
            let folder = tempfile::tempdir().unwrap();
            let options = TrainOptions {
                plain: true,
                stop_after: Some(1),
                ..TrainOptions::new("flex", folder.path().join("run"))
            };
            // What ends the process says no more.
            println!("{place:?} = {number}");
            let attempt = || train_only(changed(recipe, place, number)?, &options);
            let result = catch_panic(attempt);
            let result = result.unwrap_or_else(|panic| panic!("{place:?} = {number}: {panic}"));
            match result {
                Ok(_) | Err(TrainError::Stopped(_)) => {}
                Err(error) => {
                    refused += 1;
                    let (message, name) = (error.to_string(), place.0.rsplit('.').next().unwrap());
                    let named =
                        message.contains(name) || message.contains("too many for the memory");
                    assert!(
                        named && message.len() < 500,
                        "{place:?} = {number}: {message}"
                    );
                    assert!(
                        !options.run.exists(),
                        "{place:?} = {number}: something was written"
                    );
                }
            }
        }
    }
    assert!(
        refused > 3 * places.len(),
        "{refused} of {} places",
        places.len()
    );
}

#[test]
fn of_a_language_model() {
    let mut recipe = Recipe::<TextTask>::preset("tiny").unwrap();
    recipe.task.model = DeqTransformerLmConfig::new(1, 8, 2, 8)
        .with_mem_len(4)
        .with_local_size(Some(6))
        .with_d_embed(Some(4))
        .with_cutoffs(vec![100, 200]);
    recipe.task.segment = 4;
    (
        recipe.batch,
        recipe.steps,
        recipe.rounds,
        recipe.pretrain_steps,
    ) = (2, 6, 2, 1);
    (recipe.warmup_steps, recipe.valid_batches) = (1, Some(1));
    recipe.set("penalty.frequency", "1.0").unwrap();
    every_number_is_used_or_refused(&recipe);
    recipe
        .set("penalty.schedule.Controlled.target", "5.0")
        .unwrap();
    recipe.deq.stop.max_steps = 8;
    for gradient in [
        r#"{"Phantom": {"steps": 2, "damping": 0.5, "stored_states": 1}}"#,
        r#"{"Neumann": {"terms": 2}}"#,
        r#"{"Unrolled": {"steps": 2, "stored_states": 1}}"#,
    ] {
        recipe.set("deq.gradient", gradient).unwrap();
        every_number_is_used_or_refused(&recipe);
    }
}

#[test]
fn of_a_model_of_images() {
    let mut recipe = Recipe::<ImagesTask>::preset("mini").unwrap();
    (
        recipe.batch,
        recipe.steps,
        recipe.rounds,
        recipe.pretrain_steps,
    ) = (1, 6, 2, 1);
    (recipe.warmup_steps, recipe.valid_batches) = (1, Some(1));
    recipe.set("penalty.frequency", "1.0").unwrap();
    every_number_is_used_or_refused(&recipe);
}

#[test]
fn a_value_of_a_wrong_type_is_named_in_a_file() {
    let recipe = Recipe::<TextTask>::preset("tiny").unwrap();
    let mut document = serde_json::to_value(&recipe).unwrap();
    document["deq"]["stop"]["max_steps"] = (-1).into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.json");
    std::fs::write(&path, document.to_string()).unwrap();
    let message = Recipe::<TextTask>::from_file(&path)
        .unwrap_err()
        .to_string();
    let expected = "recipe.json is not right: deq.stop.max_steps: invalid value: integer `-1`";
    assert!(message.contains(expected), "{message}");
}
