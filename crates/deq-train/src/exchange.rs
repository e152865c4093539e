//! What imports of models of every task have in common.

use crate::error::TrainError;
use crate::run_folder::RunFolder;
use deq_models::checkpoint::LoadReport;
use std::path::Path;

/// What an import made.
#[derive(Clone, Debug)]
pub struct Imported<M> {
    /// The configuration of the model that the file holds.
    pub model: M,
    /// What became of every tensor.
    pub report: LoadReport,
    /// Parameters.
    pub parameters: usize,
}

/// The folder of a run that is to be made.
pub(crate) fn vacant(run: &Path) -> Result<RunFolder, TrainError> {
    let folder = RunFolder::new(run.to_owned());
    match folder.exists() {
        true => Err(TrainError::RunExists {
            path: run.to_owned(),
        }),
        false => Ok(folder),
    }
}

/// Refuses a checkpoint that does not fill the model.
pub(crate) fn require_complete(path: &Path, report: &LoadReport) -> Result<(), TrainError> {
    match report.is_complete() {
        true => Ok(()),
        false => Err(TrainError::IncompleteCheckpoint {
            path: path.to_owned(),
            report: report.to_string(),
        }),
    }
}
