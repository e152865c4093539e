//! Recipes as JSON documents: unknown fields, single fields, versions.

use super::{FORMAT, Recipe};
use crate::error::{RecipeError, RunError, TrainError};
use crate::task::Task;
use deq_models::checkpoint::printable;
use serde_json::{Map, Value};
use std::path::Path;

/// The recipe in a JSON value that was read from `path`.
///
/// # Errors
///
/// [`TrainError`] if it is of another version or task, or a field is missing, unknown or wrong.
pub(crate) fn parse<T: Task>(value: Value, path: &Path) -> Result<Recipe<T>, TrainError> {
    let found = value.get("format").and_then(Value::as_u64);
    if found != Some(u64::from(FORMAT)) {
        return Err(RunError::OtherFormat {
            path: path.to_owned(),
            found,
            expected: FORMAT,
        }
        .into());
    }
    let kind = value.get("kind").and_then(Value::as_str);
    if kind != Some(T::NAME) {
        return Err(RunError::OtherTask {
            path: path.to_owned(),
            found: printable(kind.unwrap_or("missing")),
            expected: T::NAME,
        }
        .into());
    }
    from_value(&value, path)
}

fn from_value<T: Task>(value: &Value, path: &Path) -> Result<Recipe<T>, TrainError> {
    let wrong = |reason: String| RecipeError::WrongValue {
        path: path.to_owned(),
        reason,
    };
    let recipe: Recipe<T> = serde_json::from_value(value.clone()).map_err(|error| {
        let text = printable(&error.to_string());
        match wrong_field::<T>(value) {
            Some(field) if Path::new(&field) != path => wrong(format!("{field}: {text}")),
            _ => wrong(text),
        }
    })?;
    let known = serde_json::to_value(&recipe).map_err(|error| wrong(error.to_string()))?;
    match first_unknown(value, &known) {
        None => Ok(recipe),
        Some((field, nearest)) => Err(RecipeError::UnknownField {
            path: path.to_owned(),
            field,
            nearest,
        }
        .into()),
    }
}

/// The path of the field whose value is of a wrong type, if that is what is wrong. Serde tells the
/// line of a text, and every field of an indented one has its own.
fn wrong_field<T: Task>(value: &Value) -> Option<String> {
    let text = serde_json::to_string_pretty(value).ok()?;
    let error = serde_json::from_str::<Recipe<T>>(&text).err()?;
    error.to_string().strip_prefix("invalid ")?;
    let mut path: Vec<&str> = Vec::new();
    for line in text.lines().take(error.line()) {
        let inner = line.trim_start();
        if let Some((key, _)) = inner
            .strip_prefix('"')
            .and_then(|key| key.split_once("\":"))
        {
            // Two spaces for each level.
            path.truncate((line.len() - inner.len()) / 2 - 1);
            path.push(key);
        }
    }
    (!path.is_empty()).then(|| path.join("."))
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
    let (distance, best) = known.map(|other| (distance(name, other), other)).min()?;
    // A third of the letters may be wrong.
    (distance <= name.chars().count().div_ceil(3).max(1)).then(|| best.to_owned())
}

/// The edit distance of Levenshtein.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
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
    let wrong = |reason: String| {
        TrainError::from(RecipeError::WrongValue {
            path: path.into(),
            reason,
        })
    };
    let mut document = to_json(recipe)?;
    let mut place = &mut document;
    let mut walked = String::new();
    for name in path.split('.') {
        if place.is_null() {
            return Err(wrong(format!(
                "{walked} is null: set it as a whole, to an object in JSON"
            )));
        }
        let Value::Object(fields) = place else {
            return Err(wrong(format!("{walked} has no fields")));
        };
        let known: Vec<String> = fields.keys().cloned().collect();
        place = fields
            .get_mut(name)
            .ok_or_else(|| RecipeError::UnknownField {
                path: "recipe".into(),
                field: path.to_owned(),
                nearest: nearest(name, known.iter().map(String::as_str)),
            })?;
        walked = match walked.as_str() {
            "" => name.to_owned(),
            before => format!("{before}.{name}"),
        };
    }
    *place = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    parse(document, Path::new(path))
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
                    let path = match path {
                        "" => key.clone(),
                        _ => format!("{path}.{key}"),
                    };
                    let or_null = |side: Option<&Value>| side.cloned().unwrap_or(Value::Null);
                    walk(&path, &or_null(a.get(key)), &or_null(b.get(key)), out);
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
        assert_eq!(
            unknown(json!({"a": {"max_steps": 3}, "list": [{"x": 5}]})),
            None
        );
        assert_eq!(
            unknown(json!({"a": {"max_step": 3}})),
            Some(("a.max_step".to_owned(), Some("max_steps".to_owned())))
        );
        assert_eq!(
            unknown(json!({"list": [{"whatever": 3}]})).unwrap().0,
            "list[0].whatever"
        );
        assert_eq!(unknown(json!({"list": [{"whatever": 3}]})).unwrap().1, None);
        // Left out by its type where it says nothing.
        assert_eq!(unknown(json!({"a": {"optional": null}})), None);
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(
            nearest("pentalty", ["penalty", "preset"].into_iter()).unwrap(),
            "penalty"
        );
        assert_eq!(nearest("zzz", ["penalty", "preset"].into_iter()), None);
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
