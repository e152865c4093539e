//! A trained model on pictures of its user.

use super::recipe::VisionRecipe;
use super::run::Trained;
use crate::error::TrainError;
use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData};
use deq_data::{Example, IGNORE_LABEL, LabelMap, Picture, Target, VisionTask};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a model says about a picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The picture.
    pub path: PathBuf,
    /// The likeliest classes with their probabilities, the likeliest first, at most five. Of a segmentation, the classes with their shares of the pixels.
    pub classes: Vec<(String, f64)>,
    /// The picture with its pixels coloured by class, for a segmentation.
    pub overlay: Option<PathBuf>,
    /// Steps of the solve; absent for an explicit network.
    pub steps: Option<f64>,
    /// Whether the solve met its tolerance; absent for an explicit network.
    pub converged: Option<bool>,
}

/// Where predictions come from and go to.
#[derive(Clone, Debug)]
pub struct PredictOptions {
    /// The device's name, see [`device`](crate::device).
    pub device: String,
    /// The most steps of a solve, in the place of the recipe's.
    pub max_steps: Option<usize>,
    /// The folder of overlays. Default: beside each picture, as `NAME.classes.png`.
    pub out: Option<PathBuf>,
}

/// The classes named for a picture.
const TOP: usize = 5;

/// Applies the newest checkpoint of a run to pictures, which are cut or resized as held-out ones were. `on_picture` hears of each in turn, also of those that cannot
/// be read.
///
/// # Errors
///
/// [`TrainError`] if there is no such run, overlays are asked for in a folder but the model does not make any, or two overlays would have one name. A picture that cannot be
/// read, or an overlay that cannot be written, is an error of that picture only.
pub fn predict(
    run: &Path,
    pictures: &[PathBuf],
    options: &PredictOptions,
    on_picture: &mut dyn FnMut(&Path, Result<Prediction, TrainError>),
) -> Result<(), TrainError> {
    let trained = Trained::open(run, &options.device, options.max_steps)?;
    let overlays = match (trained.recipe.model.task(), &options.out) {
        (VisionTask::Segmentation, out) => overlay_paths(pictures, out.as_deref())?,
        (VisionTask::Classification, None) => Vec::new(),
        (VisionTask::Classification, Some(_)) => {
            return Err(TrainError::NoOverlays {
                path: run.to_owned(),
            });
        }
    };
    if let Some(out) = &options.out {
        crate::files::create_folder(out)?;
    }
    for (index, path) in pictures.iter().enumerate() {
        let place = overlays.get(index).map(PathBuf::as_path);
        on_picture(path, predict_one(&trained, path, place));
    }
    Ok(())
}

fn predict_one(
    trained: &Trained,
    path: &Path,
    place: Option<&Path>,
) -> Result<Prediction, TrainError> {
    let picture = Picture::open(path)?;
    let answer = answer(trained, &picture);
    let overlay = match (answer.map, place) {
        (Some(map), Some(place)) => {
            overlay(&picture, &map).save_png(place)?;
            Some(place.to_owned())
        }
        _ => None,
    };
    Ok(Prediction {
        path: path.to_owned(),
        classes: answer.classes,
        overlay,
        steps: answer.steps,
        converged: answer.converged,
    })
}

/// Where the overlay of each picture goes, no two to one file.
fn overlay_paths(pictures: &[PathBuf], out: Option<&Path>) -> Result<Vec<PathBuf>, TrainError> {
    // The overlay of one picture must not overwrite another one.
    let mut taken: BTreeMap<PathBuf, &Path> = pictures
        .iter()
        .map(|path| (path.clone(), path.as_path()))
        .collect();
    let places = pictures.iter().map(|path| {
        let folder = out.unwrap_or_else(|| path.parent().unwrap_or(Path::new("")));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let place = folder.join(format!("{stem}.classes.png"));
        match taken.insert(place.clone(), path) {
            Some(first) if first != path.as_path() => Err(TrainError::SameOverlay {
                first: first.to_owned(),
                second: path.clone(),
            }),
            _ => Ok(place),
        }
    });
    places.collect()
}

/// What a model says, before it is written anywhere.
pub(super) struct Answer {
    pub(super) classes: Vec<(String, f64)>,
    /// The class of every pixel.
    pub(super) map: Option<LabelMap>,
    steps: Option<f64>,
    converged: Option<bool>,
}

/// Runs the model on one picture.
pub(super) fn answer(trained: &Trained, picture: &Picture) -> Answer {
    let Trained {
        recipe,
        learner,
        device,
        ..
    } = trained;
    let shown = shown(recipe, picture);
    let (width, height) = (shown.width(), shown.height());
    let mut planes = vec![0.0; 3 * width * height];
    recipe.data.normalization().write(&shown, &mut planes);
    let images = TensorData::new(planes, [1, 3, height, width]);
    let reading = learner.read(Tensor::from_data(images, device));
    let solve = reading.solved.as_ref().and_then(|(z, _)| z.solve.as_ref());
    let (steps, converged) = match solve {
        Some(solve) => (
            Some(solve.mean_steps()),
            Some(solve.status_counts().converged == 1),
        ),
        None => (None, None),
    };
    let count = recipe.classes.len();
    let (shares, map) = match recipe.model.task() {
        VisionTask::Classification => {
            let probabilities = softmax(reading.scores, 1).into_data().convert::<f64>();
            let probabilities = probabilities.try_into_vec::<f64>();
            (probabilities.expect("it was converted to this type"), None)
        }
        VisionTask::Segmentation => {
            let found = reading.scores.argmax(1).into_data().convert::<u8>();
            let found = found
                .try_into_vec::<u8>()
                .expect("it was converted to this type");
            let map = LabelMap::new(width, height, found).cropped(
                (0, 0),
                (picture.width(), picture.height()),
                [IGNORE_LABEL],
            );
            let mut shares = vec![0.0; count];
            let pixel = 1.0 / map.data().len() as f64;
            for class in map.data() {
                if let Some(share) = shares.get_mut(usize::from(*class)) {
                    *share += pixel;
                }
            }
            (shares, Some(map))
        }
    };
    let mut classes: Vec<(String, f64)> = recipe.classes.iter().cloned().zip(shares).collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1));
    classes.truncate(TOP);
    classes.retain(|(_, share)| *share > 0.0);
    Answer {
        classes,
        map,
        steps,
        converged,
    }
}

/// The picture as the model sees it.
pub(super) fn shown(recipe: &VisionRecipe, picture: &Picture) -> Picture {
    let example = Example::new(picture.clone(), Target::Class(0));
    recipe.eval_transform.apply(example, 0, 0, 0).picture
}

/// The picture with half of each pixel's colour replaced by that of its class; ignored pixels stay.
pub(super) fn overlay(picture: &Picture, map: &LabelMap) -> Picture {
    let pixels = picture.data().chunks_exact(3).zip(map.data());
    let mixed = pixels.flat_map(|(pixel, class)| {
        let color = match *class {
            IGNORE_LABEL => [pixel[0], pixel[1], pixel[2]],
            class => class_color(class),
        };
        [0, 1, 2].map(|c| ((u16::from(pixel[c]) + u16::from(color[c])) / 2) as u8)
    });
    Picture::new(picture.width(), picture.height(), mixed.collect())
}

/// Colours as far apart as may be for neighbouring classes: hues a golden section of the circle apart, in three brightnesses.
pub(super) fn class_color(class: u8) -> [u8; 3] {
    let hue = (f64::from(class) * 0.618_034).fract() * 6.0;
    let value = [1.0, 0.75, 0.5][usize::from(class) % 3];
    [0.0, 4.0, 2.0].map(|shift: f64| {
        // The usual trapezoid of the hue circle: red at 0, green at 2, blue at 4.
        let distance = ((hue + shift) % 6.0 - 3.0).abs() - 1.0;
        (255.0 * value * distance.clamp(0.0, 1.0)) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_overlays_go_to_one_file() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let beside = overlay_paths(&paths(&["a/1.png", "b/1.jpg"]), None).unwrap();
        assert_eq!(beside, paths(&["a/1.classes.png", "b/1.classes.png"]));
        let out = Some(Path::new("out"));
        let message = overlay_paths(&paths(&["a/1.png", "b/1.jpg"]), out).unwrap_err();
        assert_eq!(
            message.to_string(),
            "the overlays of a/1.png and b/1.jpg would have the same name: predict them one by one, or into different folders"
        );
        let over = overlay_paths(&paths(&["1.classes.png", "1.png"]), None);
        assert!(over.is_err(), "an overlay would overwrite a picture");
        // The same picture twice is the same overlay twice.
        assert!(overlay_paths(&paths(&["a/1.png", "a/1.png"]), out).is_ok());
    }

    #[test]
    fn an_overlay_keeps_ignored_pixels_and_tells_classes_apart() {
        let picture = Picture::filled(3, 1, [100, 100, 100]);
        let map = LabelMap::new(3, 1, vec![0, 1, IGNORE_LABEL]);
        let mixed = overlay(&picture, &map);
        assert_eq!(mixed.pixel(2, 0), [100, 100, 100]);
        assert_eq!(mixed.pixel(0, 0), [177, 50, 50]);
        assert_ne!(mixed.pixel(0, 0), mixed.pixel(1, 0));
        let colors: std::collections::BTreeSet<_> = (0..19).map(class_color).collect();
        assert_eq!(colors.len(), 19);
    }
}
