//! Recipes as JSON documents: unknown fields, single fields, versions.

use super::{FORMAT, Recipe};
use crate::error::{RecipeError, RunError, TrainError};
use crate::task::Task;
use deq_models::checkpoint::printable;
use serde_json::{Map, Value};
use std::path::Path;
use strsim::levenshtein;

/// The recipe in a JSON value that was read from `path`, which must be of this version and task.
pub(crate) fn parse<T: Task>(value: &Value, path: &Path) -> Result<Recipe<T>, TrainError> {
    let (format, kind) = (value.get("format"), value.get("kind"));
    let (found, path_buf) = (format.and_then(Value::as_u64), path.to_owned());
    if found != Some(u64::from(FORMAT)) {
        return Err(RunError::OtherFormat {
            path: path_buf,
            found,
            expected: FORMAT,
        }
        .into());
    }
    let kind = kind.and_then(Value::as_str);
    if kind != Some(T::NAME) {
        return Err(RunError::OtherTask {
            path: path_buf,
            found: printable(kind.unwrap_or("missing")),
            expected: T::NAME,
        }
        .into());
    }
    let recipe: Recipe<T> = serde_path_to_error::deserialize(value).map_err(|error| {
        let told = [error.path().to_string(), error.inner().to_string()];
        let [field, text] = told.map(|text| printable(&text));
        // The field may be what was given, and "." is the whole recipe.
        let reason = match field == "." || Path::new(&field) == path {
            true => text,
            false => format!("{field}: {text}"),
        };
        wrong(path, reason)
    })?;
    match first_unknown(value, &to_json(&recipe)?) {
        None => Ok(recipe),
        Some((field, nearest)) => Err(RecipeError::UnknownField {
            path: path_buf,
            field,
            nearest,
        }
        .into()),
    }
}

fn wrong(path: &Path, reason: String) -> RecipeError {
    let path = path.to_owned();
    RecipeError::WrongValue { path, reason }
}

/// The path of the first field of `given` that `known`, the same document as its type writes it,
/// does not have, with the nearest name that it has.
fn first_unknown(given: &Value, known: &Value) -> Option<(String, Option<String>)> {
    let join = |key: &str, (rest, near): (String, Option<String>)| match rest.starts_with('[') {
        true => (format!("{key}{rest}"), near),
        false => (format!("{key}.{rest}"), near),
    };
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            given.iter().find_map(|(key, value)| match known.get(key) {
                Some(inner) => first_unknown(value, inner).map(|found| join(key, found)),
                // A field that is left out where it says nothing.
                None if value.is_null() => None,
                None => {
                    let nearest = nearest(key, known.keys().map(String::as_str));
                    Some((key.clone(), nearest))
                }
            })
        }
        (Value::Array(given), Value::Array(known)) => {
            let pairs = given.iter().zip(known).enumerate();
            pairs.into_iter().find_map(|(index, (given, known))| {
                first_unknown(given, known).map(|found| join(&format!("[{index}]"), found))
            })
        }
        _ => None,
    }
}

/// The name that `name` was most likely meant to be, if one is near.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let (distance, best) = known.map(|other| (levenshtein(name, other), other)).min()?;
    // A third of the letters may be wrong.
    (distance <= name.chars().count().div_ceil(3).max(1)).then(|| best.to_owned())
}

/// The recipe as JSON, which has no names that are not UTF-8.
pub(crate) fn to_json<T: Task>(recipe: &Recipe<T>) -> Result<Value, RecipeError> {
    serde_json::to_value(recipe).map_err(|error| RecipeError::NotJson {
        reason: error.to_string(),
    })
}

/// The recipe with one field changed.
pub(super) fn set<T: Task>(
    recipe: &Recipe<T>,
    path: &str,
    text: &str,
) -> Result<Recipe<T>, TrainError> {
    let mut document = to_json(recipe)?;
    let mut place = &mut document;
    let mut walked = String::new();
    for name in path.split('.') {
        let null = place.is_null();
        let Value::Object(fields) = place else {
            let how = match null {
                true => "is null: set it as a whole, to an object in JSON",
                false => "has no fields",
            };
            return Err(wrong(Path::new(path), format!("{walked} {how}")).into());
        };
        if !fields.contains_key(name) {
            return Err(RecipeError::UnknownField {
                path: "recipe".into(),
                field: path.to_owned(),
                nearest: nearest(name, fields.keys().map(String::as_str)),
            }
            .into());
        }
        place = &mut fields[name];
        walked = joined(&walked, name);
    }
    *place = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    parse(&document, Path::new(path))
}

/// The path of a field of what lies at `path`, which is empty for the whole document.
fn joined(path: &str, field: &str) -> String {
    match path {
        "" => field.to_owned(),
        _ => format!("{path}.{field}"),
    }
}

/// `changes` laid over `base`: objects are merged field by field, anything else is replaced. So is
/// the variant of an enum, an object with one field, by another variant.
pub(crate) fn merge(base: &mut Value, changes: Value) {
    match (base, changes) {
        (Value::Object(base), Value::Object(changes)) if !other_variant(base, &changes) => {
            for (key, value) in changes {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, changes) => *base = changes,
    }
}

fn other_variant(before: &Map<String, Value>, after: &Map<String, Value>) -> bool {
    let single = before.len() == 1 && after.len() == 1;
    single && before.keys().ne(after.keys())
}

/// Every field in which two documents differ: its path, its value before and after.
pub(crate) fn differences(before: &Value, after: &Value) -> Vec<(String, Value, Value)> {
    fn walk(path: &str, before: &Value, after: &Value, out: &mut Vec<(String, Value, Value)>) {
        match (before, after) {
            (Value::Object(a), Value::Object(b)) => {
                let added = b.keys().filter(|key| !a.contains_key(*key));
                for key in a.keys().chain(added) {
                    // Indexing gives null for a field that is not there.
                    walk(&joined(path, key), &before[key], &after[key], out);
                }
            }
            _ if before == after => {}
            _ => out.push((path.to_owned(), before.clone(), after.clone())),
        }
    }
    let mut out = Vec::new();
    walk("", before, after, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_unknown_field_is_found_at_any_depth_with_the_nearest_name() {
        let known = json!({"a": {"max_steps": 1, "tol": 2}, "list": [{"x": 1}]});
        let unknown = |given| first_unknown(&given, &known);
        let right = json!({"a": {"max_steps": 3}, "list": [{"x": 5}]});
        assert_eq!(unknown(right), None);
        assert_eq!(
            unknown(json!({"a": {"max_step": 3}})),
            Some(("a.max_step".to_owned(), Some("max_steps".to_owned())))
        );
        assert_eq!(
            unknown(json!({"list": [{"whatever": 3}]})),
            Some(("list[0].whatever".to_owned(), None))
        );
        // Left out by its type where it says nothing.
        assert_eq!(unknown(json!({"a": {"optional": null}})), None);
    }

    #[test]
    fn a_name_is_near_if_a_third_of_its_letters_is_wrong_at_most() {
        let nearest = |name| nearest(name, ["penalty", "preset"].into_iter());
        assert_eq!(nearest("pentalty").as_deref(), Some("penalty"));
        assert_eq!(nearest("zzz"), None);
    }

    #[test]
    fn documents_are_merged_and_compared_field_by_field() {
        let mut base = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        let before = base.clone();
        merge(&mut base, json!({"a": {"c": 3, "e": 4}, "d": [2, 3]}));
        assert_eq!(base, json!({"a": {"b": 1, "c": 3, "e": 4}, "d": [2, 3]}));
        let differences = differences(&before, &base);
        let paths: Vec<&str> = differences.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, ["a.c", "a.e", "d"]);
    }

    #[test]
    fn another_variant_of_an_enum_replaces_the_one_before() {
        let mut base = json!({"model": {"classifier": {"classes": 2, "width": 8}}});
        merge(&mut base, json!({"model": {"classifier": {"classes": 3}}}));
        assert_eq!(
            base["model"],
            json!({"classifier": {"classes": 3, "width": 8}})
        );
        merge(&mut base, json!({"model": {"segmenter": {"classes": 4}}}));
        assert_eq!(base["model"], json!({"segmenter": {"classes": 4}}));
    }
}
