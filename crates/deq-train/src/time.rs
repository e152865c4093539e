//! Training for a given time.

use crate::error::{Stopped, TrainError, require};
use crate::recipe::Recipe;
use crate::records::{Record, read_records};
use crate::run::{Start, TrainOptions, train_only};
use crate::run_folder::RunFolder;
use crate::task::Task;
use deq_core::solvers::StopConfig;
use deq_core::{DeqConfig, GradientConfig};
use deq_data::remove_abandoned;
use deq_jacreg::WeightSchedule;
use std::path::Path;

/// The beginning of the name of a trial's folder.
const PREFIX: &str = ".trial-";

/// Steps of the trial, and how many of them are unrolled if training begins with such a phase.
const TRIAL: usize = 24;
const TRIAL_UNROLLED: usize = 6;
/// The learning rate of the trial: too small to diverge by, and what a step takes does not depend
/// on it.
const TRIAL_RATE: f64 = 1e-6;

/// The same training, the first `unrolled` steps unrolled, with solves that use up their steps, or
/// as many as they take where a controller holds them. It has a step more than the trial, which is
/// stopped before the evaluation that is of everything.
fn trial<T: Task>(recipe: &Recipe<T>, unrolled: usize) -> Recipe<T> {
    let mut trial = recipe.clone();
    trial.scale_steps(TRIAL + 1);
    trial.pretrain_steps = unrolled;
    (trial.rounds, trial.warmup_steps, trial.learning_rate) = (1, 0, TRIAL_RATE);
    trial.deq = without_tolerance(trial.deq);
    if let Some(penalty) = &mut trial.penalty
        && let WeightSchedule::Controlled(controller) = &penalty.schedule
    {
        trial.deq = held(trial.deq, controller.target);
        // It costs the same, and a controller needs solves that may miss its target.
        penalty.schedule = WeightSchedule::Constant;
    }
    trial
}

/// How many steps fit into so many minutes of training, evaluations not counted: from a few steps
/// of each phase, whose solves use up their budgets, or half of what these leave above the target
/// of a controller of the penalty. Where solves end earlier, training is done earlier.
///
/// `options` are those of the training to come. The trial has a folder of its own in that of the
/// run, or in the nearest one on the way there, which is removed in the end; it stops when the
/// training would.
///
/// # Errors
///
/// [`TrainError`] if `minutes` is not above 0, or the trial fails or is interrupted.
pub fn affordable_steps<T: Task>(
    recipe: &Recipe<T>,
    minutes: f64,
    options: &TrainOptions,
) -> Result<usize, TrainError> {
    let valid = minutes > 0.0 && minutes <= 1e6;
    require(valid, "minutes", minutes, "above 0 and at most 1,000,000")?;
    let [steps, unrolled] = recipe.phases();
    let first = if unrolled > 0 { TRIAL_UNROLLED } else { 0 };
    // The checkpoint of the trial is as large as those of the run, for which there must be room.
    let mut above = options.run.ancestors();
    let above = above.find(|path| path.is_dir()).unwrap_or(Path::new("."));
    remove_abandoned(above, &[PREFIX]);
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(above);
    let folder = folder.map_err(|source| TrainError::io("create", above, source))?;
    let run = RunFolder::new(folder.path().to_owned());
    let options = TrainOptions {
        run: run.path().to_owned(),
        start: Start::New,
        plain: true,
        stop_after: Some(TRIAL),
        ..options.clone()
    };
    match train_only(trial(recipe, first), &options) {
        // As it was to.
        Err(TrainError::Stopped(Stopped::Interrupted { step: TRIAL, .. })) => {}
        Err(TrainError::Stopped(Stopped::Interrupted { .. })) => {
            return Err(Stopped::Trial.into());
        }
        Err(TrainError::Stopped(Stopped::Diverged { what, .. })) => {
            return Err(Stopped::TrialDiverged { what }.into());
        }
        ended => _ = ended?,
    }
    let total = run.newest()?.position.seconds;
    let records = read_records(&run.metrics())?;
    let steps_made = records.iter().filter_map(Record::as_step);
    let taken: Vec<f64> = steps_made.map(|step| step.seconds).collect();
    // The first steps of a phase find nothing in the caches.
    let warm = |range: std::ops::Range<usize>| typical(&taken[range.start + 2..range.end]);
    let share = (unrolled as f64 / steps.max(1) as f64).min(1.0);
    let inside = match first {
        0 => warm(0..TRIAL),
        _ => share * warm(0..first) + (1.0 - share) * warm(first..TRIAL),
    };
    // What a step takes beside its forward and backward pass: the optimizer, the batch, the log.
    let beside = total - taken.iter().sum::<f64>();
    let per_step = inside + beside.max(0.0) / TRIAL as f64;
    Ok(((60.0 * minutes / per_step) as usize).max(1))
}

/// The layer with solves that use up their steps.
pub fn without_tolerance(deq: DeqConfig) -> DeqConfig {
    with_each_stop(deq, |stop| {
        (stop.abs_tol, stop.rel_tol) = (0.0, 1e-12);
    })
}

/// The layer with solves of a batch whose samples take `target` steps on average: the slowest of
/// them decides, and is between that and the limit.
fn held(deq: DeqConfig, target: f64) -> DeqConfig {
    with_each_stop(deq, |stop| {
        let middle = 0.5 * (target + stop.max_steps as f64);
        *stop = stop.limited_to(stop.max_steps.min(middle.ceil() as usize));
    })
}

/// The layer with changed rules for when its solves stop, forward and, if one is solved, backward.
fn with_each_stop(mut deq: DeqConfig, change: impl Fn(&mut StopConfig)) -> DeqConfig {
    change(&mut deq.stop);
    if let GradientConfig::Implicit(adjoint) = &mut deq.gradient {
        change(&mut adjoint.stop);
    }
    deq
}

/// The mean without the slowest, which other work of the machine may have slowed.
fn typical(seconds: &[f64]) -> f64 {
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    (seconds.iter().sum::<f64>() - slowest) / (seconds.len() - 1) as f64
}

/// Seconds of the evaluations between training steps.
pub fn evaluation_seconds(records: &[Record]) -> f64 {
    let evals = records.iter().filter_map(Record::as_eval);
    evals.map(|eval| eval.seconds).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::text::TextTask;

    #[test]
    fn the_slowest_step_does_not_count() {
        assert!((typical(&[1.0, 9.0, 2.0]) - 1.5).abs() < 1e-12);
    }

    #[test]
    fn the_solves_of_a_trial_are_as_long_as_a_controller_leaves_them() {
        let limits = |recipe: &Recipe<TextTask>| {
            let trial = trial(recipe, TRIAL_UNROLLED);
            trial.validate().unwrap();
            let GradientConfig::Implicit(adjoint) = &trial.deq.gradient else {
                panic!("the preset has the implicit gradient");
            };
            [trial.deq.stop.max_steps, adjoint.stop.max_steps]
        };
        let mut recipe = Recipe::preset("tiny").unwrap();
        // Held at 12 on average.
        assert_eq!(limits(&recipe), [15, 16]);
        recipe.penalty = None;
        assert_eq!(limits(&recipe), [18, 19]);
    }
}
