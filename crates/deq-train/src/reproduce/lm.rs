//! The penalty on a language model.

use super::comparison::{Comparable, Measure};
use crate::error::TrainError;
use crate::lm::{EvalOptions, LmRecipe, evaluate_run};
use crate::records::EvalRecord;
use deq_jacreg::JacobianPenaltyConfig;
use std::path::Path;

impl Comparable for LmRecipe {
    const TITLE: &'static str = "a language model";
    const MEASURE: Measure = Measure::Perplexity;

    fn penalty(&mut self) -> &mut Option<JacobianPenaltyConfig> {
        &mut self.penalty
    }

    fn check(&self) -> Result<(), TrainError> {
        self.validate()
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
