//! The penalty on a multiscale model, in the form of Table 3 of the paper.

use super::comparison::{Comparable, Measure, require_solves};
use crate::budget::Timed;
use crate::error::TrainError;
use crate::records::EvalRecord;
use crate::run_folder::RunFolder;
use crate::vision::{VisionEvalOptions, VisionOptions, VisionRecipe, evaluate_run, train};
use deq_data::VisionTask;
use deq_jacreg::JacobianPenaltyConfig;
use std::path::Path;

impl Comparable for VisionRecipe {
    const TITLE: &'static str = "a multiscale model";

    fn measure(&self) -> Measure {
        match self.model.task() {
            VisionTask::Classification => Measure::Accuracy,
            VisionTask::Segmentation => Measure::MeanIou,
        }
    }

    fn penalty(&mut self) -> &mut Option<JacobianPenaltyConfig> {
        &mut self.penalty
    }

    fn check(&self) -> Result<(), TrainError> {
        // The steps of a round are known once the data have been opened.
        let mut recipe = self.clone();
        recipe.resolve()?;
        require_solves(recipe.phases())
    }

    fn train_in(&self, run: &Path, device: &str) -> Result<f64, TrainError> {
        let options = VisionOptions {
            resume: RunFolder::new(run.to_owned()).exists(),
            plain: true,
            ..VisionOptions::new(device, run.to_owned())
        };
        Ok(train(self.clone(), &options)?.training_seconds)
    }

    fn evaluate_in(run: &Path, device: &str, budget: usize) -> Result<EvalRecord, TrainError> {
        let options = VisionEvalOptions {
            device: device.to_owned(),
            data: None,
            max_steps: Some(budget),
            probe: false,
        };
        Ok(evaluate_run(run, &options)?.eval)
    }
}
