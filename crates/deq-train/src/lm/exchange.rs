//! Models of other programs as runs, and runs as files for other programs.

use super::data::DataListener;
use super::learner::{LmLearner, LmModel};
use super::recipe::LmRecipe;
use super::run::newest_model;
use crate::device::{any_device, device};
use crate::error::TrainError;
use crate::exchange::{Imported, require_complete, vacant};
use crate::files;
use crate::run_folder::RunFolder;
use burn::module::Module;
use deq_models::DeqTransformerLmConfig;
use deq_models::checkpoint::{StateDict, load, save};
use std::path::Path;

/// Makes a run of a checkpoint of the original program, to be evaluated and to generate from.
///
/// Shapes say what the model is; where layer norms stand, memory, window and solver are those of `recipe`, and so are the data, whose vocabulary
/// must be the one that the model was trained with.
///
/// # Errors
///
/// [`TrainError`] if the file is not such a checkpoint, something is missing or has another shape (the report says what), the vocabulary has
/// another size, or there is a run in the folder already. Nothing is written then.
pub fn import_run(
    file: &Path,
    mut recipe: LmRecipe,
    run: &Path,
    device_name: &str,
) -> Result<Imported<DeqTransformerLmConfig>, TrainError> {
    let folder = vacant(run)?;
    let device = device(device_name)?;
    let state = StateDict::open(file)?;
    recipe.model = DeqTransformerLmConfig::from_state_dict(&state, &recipe.model)?;
    let corpus = recipe.open_data(None, &DataListener::default())?;
    let (expected, found) = (recipe.model.vocab_size, corpus.vocabulary.len());
    if expected != found {
        return Err(TrainError::VocabularySize {
            path: file.to_owned(),
            expected,
            found,
        });
    }
    recipe.vocabulary = Some(corpus.vocabulary.fingerprint());
    recipe.validate()?;
    let mut learner = LmLearner::new(&recipe, &device)?;
    let LmModel::Deq(model) = learner.model else {
        return Err(TrainError::ExplicitNetwork {
            path: run.to_owned(),
        });
    };
    let (model, report) = load(model, &state)?;
    require_complete(file, &report)?;
    let parameters = model.num_params();
    learner.model = LmModel::Deq(model);

    files::create_folder(run)?;
    corpus.vocabulary.save_in(run)?;
    folder.write_imported(learner, &recipe)?;
    Ok(Imported {
        model: recipe.model,
        report,
        parameters,
    })
}

/// Writes the newest model of a run as safetensors under the names of the original program.
///
/// # Errors
///
/// [`TrainError`] if there is no run or no checkpoint, the run is of an explicit network with layers of its own, which the original program does
/// not have, or the file cannot be written.
pub fn export_run(run: &Path, file: &Path) -> Result<(), TrainError> {
    let folder = RunFolder::new(run.to_owned());
    let recipe: LmRecipe = folder.read()?;
    let (learner, _) = newest_model(&folder, &recipe, &device(any_device())?)?;
    match &learner.model {
        LmModel::Deq(model) => Ok(save(model, file)?),
        LmModel::Layers(_) => Err(TrainError::ExplicitNetwork {
            path: run.to_owned(),
        }),
    }
}
