//! Recipes to start from, as files.

use crate::error::{RecipeError, TrainError};
use crate::recipe::merge;
use serde_json::Value;
use std::path::Path;

/// A preset: a JSON file that is compiled in.
///
/// ```json
/// {
///   "about": "what it is for",
///   "extends": "the preset whose fields it has, but for those in recipe",
///   "source": { "steps": "where a value comes from" },
///   "recipe": { "steps": 400 }
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// The file.
    pub json: &'static str,
}

/// The presets of these names in the folder `presets/TASK`.
macro_rules! presets {
    ($task:literal; $($name:literal),* $(,)?) => {
        &[$($crate::presets::Preset {
            name: $name,
            json: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"), "/presets/", $task, "/", $name, ".json"
            )),
        }),*]
    };
}

pub(crate) use presets;

impl Preset {
    /// What it is for.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the file is malformed.
    pub fn about(&self) -> Result<String, TrainError> {
        let file = self.file()?;
        let about = file.get("about").and_then(Value::as_str);
        Ok(about.unwrap_or_default().to_owned())
    }

    /// The recipe of the preset called `name`, with everything it extends.
    pub(crate) fn resolve(presets: &[Preset], name: &str) -> Result<Value, TrainError> {
        Self::resolve_within(presets, name, presets.len())
    }

    fn resolve_within(presets: &[Preset], name: &str, depth: usize) -> Result<Value, TrainError> {
        let found = presets.iter().find(|preset| preset.name == name);
        let preset = found.ok_or_else(|| {
            let known: Vec<&str> = presets.iter().map(|preset| preset.name).collect();
            RecipeError::UnknownPreset {
                name: name.to_owned(),
                nearest: crate::recipe::nearest(name, known.iter().copied()),
                known: known.join(", "),
            }
        })?;
        let mut file = preset.file()?;
        let own = file["recipe"].take();
        let mut recipe = match (file["extends"].as_str(), depth) {
            (None, _) => return Ok(own),
            (Some(_), 0) => return Err(preset.malformed("it extends itself".to_owned())),
            (Some(base), _) => Self::resolve_within(presets, base, depth - 1)?,
        };
        merge(&mut recipe, own);
        Ok(recipe)
    }

    fn file(&self) -> Result<Value, TrainError> {
        serde_json::from_str(self.json).map_err(|error| self.malformed(error.to_string()))
    }

    fn malformed(&self, reason: String) -> TrainError {
        RecipeError::WrongValue {
            path: Path::new("presets").join(self.name),
            reason,
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PRESETS: [Preset; 3] = [
        Preset {
            name: "base",
            json: r#"{"about": "a base", "recipe": {"a": {"x": 1, "y": 2}}}"#,
        },
        Preset {
            name: "other",
            json: r#"{"extends": "base", "recipe": {"a": {"y": 3}}}"#,
        },
        Preset {
            name: "loop",
            json: r#"{"extends": "loop", "recipe": {}}"#,
        },
    ];

    #[test]
    fn a_preset_has_the_fields_of_the_one_it_extends_but_for_its_own() {
        let resolve = |name| Preset::resolve(&PRESETS, name);
        assert_eq!(resolve("other").unwrap(), json!({"a": {"x": 1, "y": 3}}));
        assert_eq!(PRESETS[0].about().unwrap(), "a base");
        let message = resolve("loop").unwrap_err().to_string();
        assert!(message.contains("extends itself"), "{message}");
        let message = resolve("bass").unwrap_err().to_string();
        assert!(
            message.contains("did you mean \"base\"") && message.contains("other"),
            "{message}"
        );
    }
}
