//! Models of other programs as runs, runs as files for other programs, and weights to begin with.

use super::learner::VisionLearner;
use super::model::{VisionModel, VisionModelConfig};
use super::recipe::VisionRecipe;
use super::run::Trained;
use crate::device::{any_device, device};
use crate::error::TrainError;
use crate::exchange::{Imported, require_complete, vacant};
use burn::module::Module;
use deq_models::checkpoint::{StateDict, write};
use std::path::Path;

/// Makes a run of a checkpoint of the original MDEQ, or of torchvision's ResNet if the recipe is of one, to be evaluated and to predict.
///
/// Names and shapes say what the model is; groups, halvings of the stem, solver and transforms are those of `recipe`, and so are the data, whose classes in order
/// of their names must be those that the model was trained with.
///
/// # Errors
///
/// [`TrainError`] if the file is not such a checkpoint, something is missing or has another shape (the report says what), the data have another number of
/// classes, or there is a run in the folder already. Nothing is written then.
pub fn import_run(
    file: &Path,
    mut recipe: VisionRecipe,
    run: &Path,
    device_name: &str,
) -> Result<Imported<VisionModelConfig>, TrainError> {
    let folder = vacant(run)?;
    let device = device(device_name)?;
    let state = StateDict::open(file)?;
    recipe.model = recipe.model.sized_by(&state)?;
    let expected = recipe.model.classes();
    recipe.open()?;
    let found = recipe.classes.len();
    if expected != found {
        return Err(TrainError::NumberOfClasses {
            path: file.to_owned(),
            expected,
            found,
        });
    }
    let mut learner = VisionLearner::new(&recipe, &device)?;
    let (model, report) = learner.model.load(&state)?;
    require_complete(file, &report)?;
    let parameters = model.num_params();
    learner.model = model;
    folder.write_imported(learner, &recipe)?;
    Ok(Imported {
        model: recipe.model,
        report,
        parameters,
    })
}

/// Writes the newest model of a run as safetensors under the names of the original program, of torchvision for a ResNet.
///
/// # Errors
///
/// [`TrainError`] if there is no run or no checkpoint, or the file cannot be written.
pub fn export_run(run: &Path, file: &Path) -> Result<(), TrainError> {
    let trained = Trained::open(run, any_device(), None)?;
    Ok(write(&trained.learner.model.state_dict()?, file)?)
}

/// Layers that turn the equilibrium, or the last stage of a ResNet, into scores: they depend on the task and the classes.
const HEADS: [&str; 6] = [
    "incre_modules.",
    "downsamp_modules.",
    "final_layer.",
    "classifier.",
    "last_layer.",
    "fc.",
];

/// The model with the weights of a run, or of a checkpoint file; layers of the head that do not fit keep theirs.
///
/// # Errors
///
/// [`TrainError::IncompleteCheckpoint`] if anything else does not fit.
pub(super) fn with_weights_of(model: VisionModel, path: &Path) -> Result<VisionModel, TrainError> {
    let state = match path.is_dir() {
        true => {
            let trained = Trained::open(path, any_device(), None)?;
            StateDict::from_tensors(trained.learner.model.state_dict()?)
        }
        false => StateDict::open(path)?,
    };
    let (model, mut report) = model.load(&state)?;
    let of_head = |name: &str| HEADS.iter().any(|head| name.starts_with(head));
    report.missing.retain(|name| !of_head(name));
    report.mismatched.retain(|wrong| !of_head(&wrong.name));
    require_complete(path, &report)?;
    Ok(model)
}
