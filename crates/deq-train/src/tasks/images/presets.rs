//! Recipes to start from.

use super::config::ImagesTask;
use super::error::ImagesError;
use crate::error::TrainError;
use crate::presets::Preset;
use crate::recipe::Recipe;
use deq_data::ImageSource;

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        [$(Preset {
            name: $name,
            json: include_str!(concat!("../../../presets/images/", $name, ".json")),
        }),*]
    };
}

pub(super) const PRESETS: [Preset; 17] = presets![
    "mini",
    "mini-shapes-segmentation",
    "mini-cifar10",
    "mini-folder",
    "mini-segmentation",
    "cifar10-tiny",
    "cifar10-large",
    "cifar10-large-jr",
    "imagenet-small",
    "imagenet-small-jr",
    "imagenet-large",
    "imagenet-large-jr",
    "imagenet-xl",
    "imagenet-xl-jr",
    "cityscapes-small",
    "cityscapes-large",
    "cityscapes-xl",
];

/// The preset that trains on these data on two CPU cores.
pub fn default_preset(data: &ImageSource) -> &'static str {
    match data {
        ImageSource::Shapes => "mini",
        ImageSource::ShapesSegmentation => "mini-shapes-segmentation",
        ImageSource::Cifar10(_) => "mini-cifar10",
        ImageSource::ImageFolder(_) => "mini-folder",
        ImageSource::Segmentation(_) => "mini-segmentation",
    }
}

/// A preset for the data at hand; `mini` stands for the [default](default_preset) one. Transforms
/// and steps are those of the preset, whose images may be of another size and number.
///
/// All but `mini` and its variants have the values of the YAML files of locuslab/deq
/// (`MDEQ-Vision/experiments`), as every preset's `source` says.
///
/// # Errors
///
/// [`RecipeError::UnknownPreset`](crate::RecipeError) with the names there are, or
/// [`ImagesError::PresetForOtherTask`] for a classifier where pixels are to be classified, or the
/// other way around.
pub fn preset_for(name: &str, data: &ImageSource) -> Result<Recipe<ImagesTask>, TrainError> {
    let fitting = default_preset(data);
    let mut recipe = Recipe::<ImagesTask>::preset(if name == "mini" { fitting } else { name })?;
    if recipe.task.model.task() != data.task() {
        return Err(ImagesError::PresetForOtherTask {
            preset: name.to_owned(),
            data: data.to_string(),
            fitting,
        }
        .into());
    }
    recipe.task.data.clone_from(data);
    Ok(recipe)
}
