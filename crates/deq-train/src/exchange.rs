//! Models of other programs as runs, runs as files for other programs, and weights to begin with.

use crate::device::{any_device, device};
use crate::error::{ExchangeError, TrainError};
use crate::recipe::Recipe;
use crate::run::{Trained, write_run};
use crate::run_folder::RunFolder;
use crate::task::{Opening, Task};
use burn::module::Module;
use deq_models::checkpoint::{LoadReport, StateDict, WeightsChoice, write};
use std::path::Path;

/// What an import made.
#[derive(Clone, Debug)]
pub struct Imported<T: Task> {
    /// The recipe of the run, with the model that the file holds.
    pub recipe: Recipe<T>,
    /// What became of every tensor.
    pub report: LoadReport,
    /// Parameters.
    pub parameters: usize,
}

/// Makes a run in the folder `run` of a checkpoint of another program, to be evaluated, used, and
/// trained on. Of a file that holds several weights, such as `ema`, `weights` names those that are
/// taken; by default the trained ones.
///
/// Names and shapes say what the model is; what they do not say is that of `recipe`, and so are the
/// data, which must be those that the model was trained with as far as its shapes depend on them.
/// Unrolled pre-training is left out.
///
/// # Errors
///
/// [`TrainError`] if the file is not such a checkpoint, something is missing or has another shape
/// (the report says what), the data do not fit, or there is a run in the folder already. Nothing is
/// written then.
pub fn import<T: Task>(
    file: &Path,
    mut recipe: Recipe<T>,
    run: &Path,
    weights: Option<&str>,
) -> Result<Imported<T>, TrainError> {
    RunFolder::new(run.to_owned()).require_vacant()?;
    let device = device(any_device())?;
    let mut state = StateDict::open(file)?;
    if let Some(weights) = weights {
        let Ok(choice) = weights.parse::<WeightsChoice>();
        state = state.with_choice(choice);
    }
    recipe.task.prepare(recipe.network)?;
    recipe.task.sized_by(&state)?;
    let sized = recipe.task.clone();
    let data = recipe.task.open(&Opening {
        training: true,
        ..Opening::default()
    })?;
    recipe.task.fits(&sized, file)?;
    // The model has been trained before.
    recipe.set_pretrain_steps(0);
    recipe.validate()?;
    let model = recipe.task.init(recipe.network, &device)?;
    let (model, report) = recipe.task.load(model, &state)?;
    require_complete(file, &report)?;
    let parameters = model.num_params();
    write_run((&recipe, &data), model, run)?;
    Ok(Imported {
        recipe,
        report,
        parameters,
    })
}

/// Writes the newest model of a run as safetensors under the names of the other program.
///
/// # Errors
///
/// [`TrainError`] if there is no run or no checkpoint, the other program has no such model, or the
/// file cannot be written.
pub fn export<T: Task>(run: &Path, file: &Path) -> Result<(), TrainError> {
    let trained = Trained::<T>::open(run, any_device(), None)?;
    let tensors = trained.recipe.task.state_dict(&trained.model)?;
    Ok(write(&tensors, file)?)
}

/// The model with the weights of a run, or of a checkpoint file; layers of the head that do not fit
/// keep theirs. Anything else that does not fit is an error.
pub(crate) fn with_weights_of<T: Task>(
    task: &T,
    model: T::Model,
    path: &Path,
) -> Result<T::Model, TrainError> {
    let state = match path.is_dir() {
        true => {
            let trained = Trained::<T>::open(path, any_device(), None)?;
            task.takes_weights_of(&trained.recipe.task, path)?;
            StateDict::from_tensors(trained.recipe.task.state_dict(&trained.model)?)
        }
        false => StateDict::open(path)?,
    };
    let (model, mut report) = task.load(model, &state)?;
    report.missing.retain(|name| !T::is_head(name));
    report.mismatched.retain(|wrong| !T::is_head(&wrong.name));
    require_complete(path, &report)?;
    Ok(model)
}

/// Refuses a checkpoint that does not fill the model.
fn require_complete(path: &Path, report: &LoadReport) -> Result<(), TrainError> {
    let (path, complete) = (path.to_owned(), report.is_complete());
    let report = report.to_string();
    match complete {
        true => Ok(()),
        false => Err(ExchangeError::Incomplete { path, report }.into()),
    }
}
