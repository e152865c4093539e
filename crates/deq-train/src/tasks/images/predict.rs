//! A trained model on images of its user.

use super::batches::ImagesBatch;
use super::config::ImagesTask;
use super::error::ImagesError;
use super::model::likeliest;
use crate::error::TrainError;
use crate::run::Trained;
use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData};
use deq_data::{Example, IGNORE_LABEL, LabelMap, Picture, Target, VisionTask};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a model says about an image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The image.
    pub path: PathBuf,
    /// The likeliest classes with their probabilities, the likeliest first, at most five. Of a
    /// segmentation, the classes with their shares of the pixels.
    pub classes: Vec<(String, f64)>,
    /// The image with its pixels coloured by class, for a segmentation.
    pub overlay: Option<PathBuf>,
    /// Steps of the solve; absent for an explicit network.
    pub steps: Option<f64>,
    /// Whether the solve met its tolerance; absent for an explicit network.
    pub converged: Option<bool>,
}

/// Where predictions come from and go to.
#[derive(Clone, Debug)]
pub struct PredictOptions {
    /// The device's name, see [`device`](crate::device()).
    pub device: String,
    /// The most steps of a solve instead of the recipe's.
    pub max_steps: Option<usize>,
    /// The folder of overlays. Default: beside each image, as `NAME.classes.png`.
    pub overlays: Option<PathBuf>,
}

/// The classes named for an image.
const TOP: usize = 5;

/// Applies the newest checkpoint of a run to images, which are cut or resized as held-out ones
/// were. Each in turn is handed to `on_image`, also those that cannot be read.
///
/// # Errors
///
/// [`TrainError`] if there is no such run, overlays are asked for in a folder but the model does
/// not make any, or two overlays would have one name. An image that cannot be read, or an overlay
/// that cannot be written, is an error of that image only.
pub fn predict(
    run: &Path,
    images: &[PathBuf],
    options: &PredictOptions,
    on_image: &mut dyn FnMut(&Path, Result<Prediction, TrainError>),
) -> Result<(), TrainError> {
    let trained = Trained::<ImagesTask>::open(run, &options.device, options.max_steps)?;
    let overlays = match (trained.recipe.task.model.task(), &options.overlays) {
        (VisionTask::Segmentation, out) => overlay_paths(images, out.as_deref())?,
        (VisionTask::Classification, None) => Vec::new(),
        (VisionTask::Classification, Some(_)) => {
            let path = run.to_owned();
            return Err(ImagesError::NoOverlays { path }.into());
        }
    };
    if let Some(out) = &options.overlays {
        crate::files::create_folder(out)?;
    }
    for (index, path) in images.iter().enumerate() {
        let place = overlays.get(index).map(PathBuf::as_path);
        on_image(path, predict_one(&trained, path, place));
    }
    Ok(())
}

fn predict_one(
    trained: &Trained<ImagesTask>,
    path: &Path,
    place: Option<&Path>,
) -> Result<Prediction, TrainError> {
    let image = Picture::open(path)?;
    let task = &trained.recipe.task;
    let shown = shown(task, &image);
    let sides = [shown.height(), shown.width()];
    ImagesTask::validate_sides("task.eval_transform", sides, task.side_multiple())?;
    let (mut prediction, map) = answer(trained, &image);
    if let (Some(map), Some(place)) = (map, place) {
        overlay(&image, &map).save_png(place)?;
        prediction.overlay = Some(place.to_owned());
    }
    prediction.path = path.to_owned();
    Ok(prediction)
}

/// Where the overlay of each image goes, no two to one file.
fn overlay_paths(images: &[PathBuf], out: Option<&Path>) -> Result<Vec<PathBuf>, ImagesError> {
    // The overlay of one image must not overwrite another one.
    let itself = images.iter().map(|path| (path.clone(), path.as_path()));
    let mut taken: BTreeMap<PathBuf, &Path> = itself.collect();
    let places = images.iter().map(|path| {
        let folder = out.unwrap_or_else(|| path.parent().unwrap_or(Path::new("")));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let place = folder.join(format!("{stem}.classes.png"));
        match taken.insert(place.clone(), path) {
            Some(first) if first != path.as_path() => Err(ImagesError::SameOverlay {
                first: first.to_owned(),
                second: path.clone(),
            }),
            _ => Ok(place),
        }
    });
    places.collect()
}

/// Runs the model on one image, whose path is left empty; of a segmentation, also the class of
/// every pixel.
pub(super) fn answer(
    trained: &Trained<ImagesTask>,
    image: &Picture,
) -> (Prediction, Option<LabelMap>) {
    let task = &trained.recipe.task;
    let shown = shown(task, image);
    let (width, height) = (shown.width(), shown.height());
    let mut planes = vec![0.0; 3 * width * height];
    task.data.normalization().write(&shown, &mut planes);
    let planes = TensorData::new(planes, [1, 3, height, width]);
    let batch = ImagesBatch {
        images: Tensor::from_data(planes, &trained.device),
        targets: Vec::new(),
    };
    let reading = trained.read(&batch, &());
    let solved = reading.solved.as_ref();
    let solve = solved.and_then(|solved| solved.equilibrium.solve.as_ref());
    let (shares, map) = match task.model.task() {
        VisionTask::Classification => {
            let probabilities = softmax(reading.output, 1).into_data();
            (probabilities.iter::<f64>().collect(), None)
        }
        VisionTask::Segmentation => {
            let found = likeliest(reading.output);
            let found = found.into_iter().map(|class| class as u8).collect();
            let size = (image.width(), image.height());
            let map = LabelMap::new(width, height, found).cropped((0, 0), size, [IGNORE_LABEL]);
            let mut shares = vec![0.0; task.classes.len()];
            let pixel = 1.0 / map.data().len() as f64;
            for class in map.data() {
                if let Some(share) = shares.get_mut(usize::from(*class)) {
                    *share += pixel;
                }
            }
            (shares, Some(map))
        }
    };
    let mut classes: Vec<(String, f64)> = task.classes.iter().cloned().zip(shares).collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1));
    classes.truncate(TOP);
    classes.retain(|(_, share)| *share > 0.0);
    let prediction = Prediction {
        path: PathBuf::new(),
        classes,
        overlay: None,
        steps: solve.map(|solve| solve.mean_steps()),
        converged: solve.map(|solve| solve.status_counts().converged == 1),
    };
    (prediction, map)
}

/// The image as the model sees it.
pub(super) fn shown(task: &ImagesTask, image: &Picture) -> Picture {
    let example = Example::new(image.clone(), Target::Class(0));
    task.eval_transform.apply(example, 0, 0, 0).picture
}

/// The image with half of each pixel's colour replaced by that of its class; ignored pixels stay.
pub(super) fn overlay(image: &Picture, map: &LabelMap) -> Picture {
    let pixels = image.data().chunks_exact(3).zip(map.data());
    let mixed = pixels.flat_map(|(pixel, class)| {
        let color = match *class {
            IGNORE_LABEL => [pixel[0], pixel[1], pixel[2]],
            class => class_color(class),
        };
        [0, 1, 2].map(|c| ((u16::from(pixel[c]) + u16::from(color[c])) / 2) as u8)
    });
    Picture::new(image.width(), image.height(), mixed.collect())
}

/// Colours as far apart as may be for neighbouring classes: hues a golden section of the circle
/// apart, in three brightnesses.
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
            "the overlays of a/1.png and b/1.jpg would have the same name: \
             predict them one by one, or into different folders"
        );
        let over = overlay_paths(&paths(&["1.classes.png", "1.png"]), None);
        assert!(over.is_err(), "an overlay would overwrite an image");
        // The same image twice is the same overlay twice.
        assert!(overlay_paths(&paths(&["a/1.png", "a/1.png"]), out).is_ok());
    }

    #[test]
    fn an_overlay_keeps_ignored_pixels_and_tells_classes_apart() {
        let image = Picture::filled(3, 1, [100, 100, 100]);
        let map = LabelMap::new(3, 1, vec![0, 1, IGNORE_LABEL]);
        let mixed = overlay(&image, &map);
        assert_eq!(mixed.pixel(2, 0), [100, 100, 100]);
        assert_eq!(mixed.pixel(0, 0), [177, 50, 50]);
        assert_ne!(mixed.pixel(0, 0), mixed.pixel(1, 0));
        let colors: std::collections::BTreeSet<_> = (0..19).map(class_color).collect();
        assert_eq!(colors.len(), 19);
    }
}
