//! The penalty on a language model.

use super::comparison::{Comparable, Measure, require_solves};
use crate::budget::Timed;
use crate::error::TrainError;
use crate::lm::{EvalOptions, LmRecipe, TrainOptions, evaluate_run, train};
use crate::records::EvalRecord;
use crate::run_folder::RunFolder;
use deq_jacreg::JacobianPenaltyConfig;
use std::path::Path;

impl Comparable for LmRecipe {
    const TITLE: &'static str = "a language model";

    fn measure(&self) -> Measure {
        Measure::Perplexity
    }

    fn penalty(&mut self) -> &mut Option<JacobianPenaltyConfig> {
        &mut self.penalty
    }

    fn check(&self) -> Result<(), TrainError> {
        self.validate()?;
        require_solves(self.phases())
    }

    fn train_in(&self, run: &Path, device: &str) -> Result<f64, TrainError> {
        let options = TrainOptions {
            resume: RunFolder::new(run.to_owned()).exists(),
            plain: true,
            ..TrainOptions::new(device, run.to_owned())
        };
        Ok(train(self.clone(), &options)?.training_seconds)
    }

    fn evaluate_in(run: &Path, device: &str, budget: usize) -> Result<EvalRecord, TrainError> {
        let options = EvalOptions {
            max_steps: Some(budget),
            probe: false,
            ..EvalOptions::new(device)
        };
        Ok(evaluate_run(run, &options)?.eval)
    }
}
