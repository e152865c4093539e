//! Whether a training step is penalised, and with what weight.

use crate::config::JacobianPenaltyConfig;
use crate::schedule::{WeightControllerConfig, WeightSchedule};
use deq_core::random;
use deq_core::solvers::{SolveStats, StatusCounts};
use serde::{Deserialize, Serialize};

/// What the state at the end of a training step is, where the penalty would be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The last state of an unroll before equilibria are solved for, weighted by
    /// [`JacobianPenaltyConfig::pretrain_weight`].
    Pretraining,
    /// An equilibrium, weighted by the [`WeightSchedule`].
    Equilibrium,
}

/// What the solve of a training step tells a controller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observation {
    /// The measurement, in the units of [`WeightControllerConfig::target`]. One that is not finite
    /// counts as [`Failed`](Self::Failed).
    Measured(f64),
    /// The solve broke off. It counts as twice the target.
    Failed,
}

impl Observation {
    /// The steps of a solve with these outcomes.
    ///
    /// A batch of which a sample diverged, met a number that is not finite or broke down has
    /// failed: such a sample ends early, but its solve was not a short one.
    pub fn solve(mean_steps: f64, outcomes: &StatusCounts) -> Self {
        match outcomes.diverged + outcomes.non_finite + outcomes.breakdown {
            0 => Self::Measured(mean_steps),
            _ => Self::Failed,
        }
    }
}

impl From<&SolveStats> for Observation {
    fn from(stats: &SolveStats) -> Self {
        Self::solve(stats.mean_steps(), &stats.status_counts())
    }
}

/// What a checkpoint keeps of a [`PenaltyPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PenaltyState {
    /// The weight that a controller has come to; none without a controller.
    #[serde(default)]
    pub controlled: Option<f64>,
}

/// Decides which training steps are penalised and with what weight; made by
/// [`JacobianPenaltyConfig::policy`].
///
/// It holds the weight of a [controller](WeightSchedule::Controlled), and so belongs where the
/// steps are counted. Everything else is a function of seed and training step.
///
/// ```
/// use deq_jacreg::{
///     JacobianPenaltyConfig, Observation, Phase, WeightControllerConfig, WeightSchedule,
/// };
///
/// // Ten steps per solve, from a weight of 0.5 on, on every third training step.
/// let config = JacobianPenaltyConfig::new()
///     .with_weight(0.5)
///     .with_frequency(0.33)
///     .with_schedule(WeightSchedule::Controlled(WeightControllerConfig::new(10.0)));
/// let mut policy = config.policy()?;
/// for step in 0..100 {
///     if let Some(weight) = policy.decide(42, step, Phase::Equilibrium) {
///         assert!(weight > 0.0); // loss + weight * penalty
///     }
///     policy.observe(Observation::Measured(12.0));
/// }
/// // To be stored with the training step.
/// let state = policy.state();
/// assert_eq!(config.policy()?.resume(state), policy);
/// # Ok::<(), deq_jacreg::InvalidPenalty>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PenaltyPolicy {
    config: JacobianPenaltyConfig,
    /// The weight of the controller, if the schedule is one.
    controlled: f64,
}

impl PenaltyPolicy {
    /// `config` was validated.
    pub(crate) fn new(config: JacobianPenaltyConfig) -> Self {
        Self {
            controlled: config.weight,
            config,
        }
    }

    /// The weight of the penalty in the loss of a training step, counted from 0; `None` if the step
    /// is not penalised.
    ///
    /// A step is penalised with probability [`frequency`](JacobianPenaltyConfig::frequency), if the
    /// weight for its phase is above 0 and it comes before
    /// [`stop_after`](JacobianPenaltyConfig::stop_after). The draw depends on `seed` and `step`
    /// alone. Training resumed from a checkpoint makes the same draws, and so do the workers of one
    /// data-parallel run.
    pub fn decide(&self, seed: u64, step: usize, phase: Phase) -> Option<f64> {
        let stopped = self.config.stop_after.is_some_and(|stop| step >= stop);
        let drawn = random::uniform(seed, step as u64) < self.config.frequency;
        let weight = match phase {
            Phase::Pretraining => self.config.pretrain_weight,
            Phase::Equilibrium => self.weight(step),
        };
        (drawn && !stopped && weight > 0.0).then_some(weight)
    }

    /// The weight `gamma` at equilibria.
    fn weight(&self, step: usize) -> f64 {
        let weight = self.config.weight;
        match &self.config.schedule {
            WeightSchedule::Constant => weight,
            WeightSchedule::Increment(config) => {
                let counted = step.saturating_sub(config.after);
                weight + config.by * (counted / config.every) as f64
            }
            WeightSchedule::Linear(config) => {
                let share = (step as f64 / config.steps as f64).min(1.0);
                weight + (config.to - weight) * share
            }
            WeightSchedule::Controlled(_) => self.controlled,
        }
    }

    /// Tells a controller what a training solve took; nothing without a controller.
    ///
    /// Every solve counts, whether its step was penalised or not. A training step without a solve
    /// is not observed.
    pub fn observe(&mut self, observation: Observation) {
        let WeightSchedule::Controlled(config) = &self.config.schedule else {
            return;
        };
        let excess = match observation {
            // Limited, so that one wild measurement does not throw the weight.
            Observation::Measured(measured) if measured.is_finite() => {
                (measured / config.target - 1.0).clamp(-1.0, 1.0)
            }
            Observation::Measured(_) | Observation::Failed => 1.0,
        };
        self.controlled = within(config, self.controlled * (config.gain * excess).exp());
    }

    /// What changes during training, to be kept in a checkpoint.
    pub fn state(&self) -> PenaltyState {
        let controls = matches!(self.config.schedule, WeightSchedule::Controlled(_));
        PenaltyState {
            controlled: controls.then_some(self.controlled),
        }
    }

    /// Goes on from a stored state.
    ///
    /// A stored weight is brought within the limits of the controller. Without one (the training
    /// before had no controller), the controller begins at [`JacobianPenaltyConfig::weight`].
    #[must_use]
    pub fn resume(mut self, state: PenaltyState) -> Self {
        if let (WeightSchedule::Controlled(config), Some(weight)) =
            (&self.config.schedule, state.controlled)
            && weight.is_finite()
        {
            self.controlled = within(config, weight);
        }
        self
    }
}

fn within(config: &WeightControllerConfig, weight: f64) -> f64 {
    weight.clamp(config.smallest, config.largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{IncrementConfig, LinearConfig};
    use deq_core::solvers::SolveStatus;

    /// Applied at every training step.
    fn always() -> JacobianPenaltyConfig {
        JacobianPenaltyConfig::new().with_frequency(1.0)
    }

    /// A controller that holds `target`, from a weight of 0.5 on.
    fn controlled(target: f64) -> PenaltyPolicy {
        let schedule = WeightSchedule::Controlled(WeightControllerConfig::new(target));
        let config = always().with_weight(0.5).with_schedule(schedule);
        config.policy().unwrap()
    }

    fn decide(policy: &PenaltyPolicy, step: usize) -> f64 {
        policy.decide(0, step, Phase::Equilibrium).unwrap_or(0.0)
    }

    #[test]
    fn weight_grows_in_steps_and_stops() {
        let policy = always()
            .with_weight(1.6)
            .with_pretrain_weight(0.3)
            .with_schedule(WeightSchedule::Increment(IncrementConfig::new(10)))
            .with_stop_after(Some(95))
            .policy()
            .unwrap();
        let close = |step: usize, weight: f64| (decide(&policy, step) - weight).abs() < 1e-12;
        assert!(close(0, 1.6) && close(9, 1.6) && close(10, 1.7) && close(94, 2.5));
        for phase in [Phase::Pretraining, Phase::Equilibrium] {
            assert!(policy.decide(0, 94, phase).is_some());
            assert_eq!(policy.decide(0, 95, phase), None);
        }
    }

    #[test]
    fn weight_moves_on_a_line_and_stays_at_its_end() {
        let line = WeightSchedule::Linear(LinearConfig::new(2.6, 100));
        let policy = always().with_weight(1.6).with_schedule(line).policy();
        let policy = policy.unwrap();
        let close = |step: usize, weight: f64| (decide(&policy, step) - weight).abs() < 1e-12;
        assert!(close(0, 1.6) && close(50, 2.1) && close(100, 2.6) && close(1000, 2.6));
    }

    #[test]
    fn each_phase_has_its_own_weight() {
        let pretrained = always().with_weight(0.0).with_pretrain_weight(0.03);
        let policy = pretrained.policy().unwrap();
        assert_eq!(policy.decide(1, 5, Phase::Pretraining), Some(0.03));
        assert_eq!(policy.decide(1, 5, Phase::Equilibrium), None);
        let plain = always().with_weight(1.5).policy().unwrap();
        assert_eq!(plain.decide(1, 5, Phase::Pretraining), None);
        assert_eq!(plain.decide(1, 5, Phase::Equilibrium), Some(1.5));
        // Steps of both phases are drawn alike.
        let config = JacobianPenaltyConfig::new().with_frequency(0.35);
        let both = config.with_pretrain_weight(0.03).policy().unwrap();
        for step in 0..50 {
            let drawn = |phase| both.decide(7, step, phase).is_some();
            assert_eq!(drawn(Phase::Pretraining), drawn(Phase::Equilibrium));
        }
    }

    #[test]
    fn draws_repeat_and_differ_between_seeds() {
        let config = JacobianPenaltyConfig::new().with_frequency(0.35);
        let policy = config.policy().unwrap();
        let draws = |seed| -> Vec<Option<f64>> {
            let decide = |step| policy.decide(seed, step, Phase::Equilibrium);
            (0..200).map(decide).collect()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn draws_have_the_frequency_asked_for() {
        let steps = 20_000;
        for frequency in [0.0, 0.05, 0.35, 1.0] {
            let config = JacobianPenaltyConfig::new().with_frequency(frequency);
            let policy = config.policy().unwrap();
            let applied = (0..steps)
                .filter(|step| policy.decide(3, *step, Phase::Equilibrium).is_some())
                .count();
            let standard_error = (frequency * (1.0 - frequency) / steps as f64).sqrt();
            let observed = applied as f64 / steps as f64;
            assert!(
                (observed - frequency).abs() <= 4.0 * standard_error,
                "{observed} for {frequency}"
            );
        }
    }

    #[test]
    fn the_weight_settles_where_the_measurement_meets_the_target() {
        // Steps that fall with the weight, as measured for the book: 12.6 at 0.5, 9.9 at 1.6.
        let steps = |weight: f64| 11.0 - 2.3 * weight.ln();
        let mut policy = controlled(10.5);
        for step in 0..2000 {
            let weight = decide(&policy, step);
            policy.observe(Observation::Measured(steps(weight)));
        }
        let settled = (0.5_f64 / 2.3).exp();
        assert!((decide(&policy, 0) - settled).abs() < 1e-6);
        assert_eq!(controlled(10.5).resume(policy.state()), policy);
    }

    #[test]
    fn failed_solves_raise_the_weight_up_to_its_limit() {
        let close =
            |policy: &PenaltyPolicy, weight: f64| (decide(policy, 0) - weight).abs() < 1e-12;
        for failed in [
            Observation::Failed,
            Observation::Measured(f64::NAN),
            Observation::Measured(f64::INFINITY),
        ] {
            let mut policy = controlled(8.0);
            policy.observe(failed);
            assert!(close(&policy, 0.5 * 0.2_f64.exp()));
            (0..1000).for_each(|_| policy.observe(failed));
            assert!(close(&policy, 10.0));
            (0..10_000).for_each(|_| policy.observe(Observation::Measured(1.0)));
            assert!(close(&policy, 0.01));
        }
    }

    /// The penalty of a controller is on at every drawn training step, whatever its weight has come
    /// to from whatever beginning: a beginning at 0, from which it could not grow, is refused.
    #[test]
    fn a_controller_is_never_switched_off() {
        let schedule = || WeightSchedule::Controlled(WeightControllerConfig::new(10.0));
        let from = |weight| always().with_weight(weight).with_schedule(schedule());
        assert_eq!(
            from(0.0).policy().unwrap_err().to_string(),
            "penalty.weight is 0, but must be from penalty.schedule.smallest to \
             penalty.schedule.largest"
        );
        let mut policy = from(0.01).policy().unwrap();
        for step in 0..1000 {
            let weight = policy.decide(5, step, Phase::Equilibrium);
            assert!(weight >= Some(0.01), "{weight:?} at step {step}");
            // Short solves first, which lower the weight, then long ones.
            let measured = if step < 500 { 2.0 } else { 14.0 };
            policy.observe(Observation::Measured(measured));
        }
        assert!(decide(&policy, 1000) > 1.0);
    }

    #[test]
    fn a_state_survives_a_file_to_the_last_digit_and_other_schedules() {
        let mut policy = controlled(8.0);
        policy.observe(Observation::Measured(9.3));
        let text = serde_json::to_string(&policy.state()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        assert_eq!(controlled(8.0).resume(state), policy);
        // A controller that follows a schedule, and a schedule that follows a controller.
        let mut plain = always().with_weight(0.7).policy().unwrap();
        plain.observe(Observation::Measured(9.3));
        assert_eq!(plain.state(), PenaltyState::default());
        assert_eq!(controlled(8.0).resume(plain.state()), controlled(8.0));
        assert_eq!(plain.clone().resume(state), plain);
        // Outside the limits, and no number.
        for (weight, resumed) in [(50.0, 10.0), (1e-9, 0.01), (f64::NAN, 0.5)] {
            let state = PenaltyState {
                controlled: Some(weight),
            };
            let policy = controlled(8.0).resume(state);
            assert!((decide(&policy, 0) - resumed).abs() < 1e-12);
        }
    }

    #[test]
    fn a_solve_that_broke_off_was_not_a_short_one() {
        let stats = |last| SolveStats {
            steps: vec![4, 7, 1],
            status: vec![SolveStatus::Converged, SolveStatus::MaxSteps, last],
            ..SolveStats::default()
        };
        for status in [SolveStatus::Converged, SolveStatus::Stalled] {
            let observation = Observation::from(&stats(status));
            assert_eq!(observation, Observation::Measured(4.0));
        }
        for status in [
            SolveStatus::Diverged,
            SolveStatus::NonFinite,
            SolveStatus::Breakdown,
        ] {
            assert_eq!(Observation::from(&stats(status)), Observation::Failed);
        }
    }
}
