//! What a user sets: strength, frequency and estimator of the penalty, and how they change during training.

use crate::error::{InvalidPenalty, require};
use burn::config::Config;
use deq_core::random;

/// Which of the two unbiased estimates of `|J|_F^2` is made.
///
/// Both have the same expectation, because `E |J^T v|^2 = E |J v|^2 = |J|_F^2` for a probe `v` with
/// independent entries of mean 0 and variance 1.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Estimator {
    /// `|J^T v|^2`, the estimate of Bai et al. 2021. Its value is exact for the drawn `v`, even where `J` times a
    /// vector is a difference. Costs one vector-Jacobian product and one tracked product with `J` per probe.
    Cotangent,
    /// `|J v|^2`, whose value and gradient are consistent with each other even where `J v` is a difference. Costs
    /// one tracked product with `J` per probe; by differences, such a product is two evaluations of `f`.
    Tangent,
}

/// The distribution of the probe vectors' entries: independent, of mean 0 and variance 1.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The standard normal distribution. The estimate's variance is `2 |J J^T|_F^2`.
    Gaussian,
    /// `+1` or `-1` with equal probability. Its variance is smaller, as it leaves out the diagonal of `J J^T`.
    Rademacher,
}

/// How the weight of the penalty changes during training. A [`WeightController`](crate::WeightController) sets it by what the solves do instead.
#[derive(Config, Debug, PartialEq)]
pub enum WeightSchedule {
    /// It stays.
    Constant,
    /// It grows in steps, as in the original scripts.
    Increment(IncrementConfig),
    /// It moves on a straight line and then stays.
    Linear(LinearConfig),
}

/// `weight + by * floor((step - after) / every)`, and `weight` before step `after`
#[derive(Config, Debug, PartialEq)]
pub struct IncrementConfig {
    /// Added at every increment. Default 0.1, as in the scripts of Bai et al. 2021.
    #[config(default = 0.1)]
    pub by: f64,
    /// Training steps between two increments; the WikiText-103 scripts have 30,000 and 35,000 of 300,000.
    pub every: usize,
    /// The training step from which they are counted. Default 0; the ImageNet scripts count from the end of the unrolled pre-training.
    #[config(default = 0)]
    pub after: usize,
}

/// From `weight` at step 0 to `to` at step `steps`.
#[derive(Config, Debug, PartialEq)]
pub struct LinearConfig {
    /// The weight at the end; the paper's ranges (Table 4) are 1.6 to 2.5 and 2 to 3.
    pub to: f64,
    /// The training steps that it takes.
    pub steps: usize,
}

/// Settings of the Jacobian penalty.
///
/// The defaults of `weight`, `frequency` and `vectors` are those with which Bai et al. 2021 (Table 4) train on ImageNet. Of
/// their three settings it is the middle one in average strength `weight * frequency`: 0.2, against 0.025
/// (0.5 at 0.05, CIFAR-10) and 0.56 (1.6 at 0.35, WikiText-103).
#[derive(Config, Debug, PartialEq)]
pub struct JacobianPenaltyConfig {
    /// The factor `gamma` of the penalty in the loss, dimensionless. Default 2.0, from the paper's range of 0.5 to 3.0 (see
    /// above). Too small a weight leaves the solver slow; too large a one costs accuracy.
    #[config(default = 2.0)]
    pub weight: f64,
    /// The probability that a training step applies the penalty. Default 0.1 (see above): the penalty then costs little,
    /// and 0.05 to 0.35 were enough in the paper.
    #[config(default = 0.1)]
    pub frequency: f64,
    /// The number `M` of probe vectors per application. Default 1, which the paper finds sufficient: the gradient's noise
    /// averages out over training steps.
    #[config(default = 1)]
    pub vectors: usize,
    /// Which estimate is made. Default [`Estimator::Cotangent`], the paper's, whose value is exact.
    #[config(default = "Estimator::Cotangent")]
    pub estimator: Estimator,
    /// The distribution of the probes. Default [`Probe::Gaussian`], the paper's.
    #[config(default = "Probe::Gaussian")]
    pub distribution: Probe,
    /// How `weight` changes during training. Default [`WeightSchedule::Constant`].
    #[config(default = "WeightSchedule::Constant")]
    pub schedule: WeightSchedule,
    /// Rounds of power iteration that turn a probe towards the dominant left eigenvector of `J` before it is used, each one
    /// product. Default 0: the penalty on the Frobenius norm. With some, the value tends to the squared spectral radius instead, see
    /// [`JacobianPenalty`].
    #[config(default = 0)]
    pub power_iterations: usize,
    /// The training step from which the penalty is no longer applied. Default none: applied to the end.
    #[config(default = "None")]
    pub stop_after: Option<usize>,
}

impl JacobianPenaltyConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::OutOfRange`] naming the first field outside its range.
    pub fn validate(&self) -> Result<(), InvalidPenalty> {
        let at_least_zero = "a finite number of at least 0";
        let valid = |value: f64| value.is_finite() && value >= 0.0;
        require(
            valid(self.weight),
            "penalty.weight",
            self.weight,
            at_least_zero,
        )?;
        require(
            (0.0..=1.0).contains(&self.frequency),
            "penalty.frequency",
            self.frequency,
            "a probability from 0 to 1",
        )?;
        require(
            self.vectors >= 1,
            "penalty.vectors",
            self.vectors as f64,
            "at least 1",
        )?;
        let (field, steps) = match &self.schedule {
            WeightSchedule::Constant => return Ok(()),
            WeightSchedule::Increment(config) => {
                require(
                    valid(config.by),
                    "penalty.schedule.by",
                    config.by,
                    at_least_zero,
                )?;
                ("penalty.schedule.every", config.every)
            }
            WeightSchedule::Linear(config) => {
                require(
                    valid(config.to),
                    "penalty.schedule.to",
                    config.to,
                    at_least_zero,
                )?;
                ("penalty.schedule.steps", config.steps)
            }
        };
        require(steps >= 1, field, steps as f64, "at least 1")
    }

    /// The same schedule for a training of `steps` steps in the place of `before`: increments, lines and the end come as much earlier or later.
    #[must_use]
    pub fn with_steps_scaled(&self, before: usize, steps: usize) -> Self {
        let scaled = |at: usize| (at as u128 * steps as u128 / before.max(1) as u128) as usize;
        let mut config = self.clone();
        config.stop_after = config.stop_after.map(scaled);
        match &mut config.schedule {
            WeightSchedule::Constant => {}
            WeightSchedule::Increment(increment) => {
                increment.every = scaled(increment.every).max(1);
                increment.after = scaled(increment.after);
            }
            WeightSchedule::Linear(linear) => linear.steps = scaled(linear.steps).max(1),
        }
        config
    }

    /// Checks the settings and makes the penalty from them.
    ///
    /// # Errors
    ///
    /// As [`validate`](Self::validate).
    pub fn build(&self) -> Result<JacobianPenalty, InvalidPenalty> {
        self.validate()?;
        Ok(JacobianPenalty {
            config: self.clone(),
        })
    }
}

/// The stochastic Jacobian penalty of Bai et al. 2021; made by [`JacobianPenaltyConfig::build`].
///
/// Adds to the loss of a training step, at the equilibrium `z*` of a batch,
///
/// ```text
/// loss + tau * gamma * 1/(M n) * sum over M probes v of |J^T v|^2,      J = df/dz at (z*, context)
/// ```
///
/// with `n = batch * dim`, `tau` drawn by [`applies_at`](Self::applies_at) and `gamma` given by [`weight_at`](Self::weight_at). The
/// sum estimates the Frobenius norm `|J|_F^2`, which bounds the squared spectral radius of `J` from above. A smaller
/// radius makes the forward and the backward solve converge in fewer steps.
///
/// With `power_iterations`, every probe is first multiplied by `J^T` so many times and brought back to its length `sqrt(dim)`. Near
/// the dominant left eigenvector, `|J^T v|^2 / dim` is the squared spectral radius itself instead of its bound, at one product more per round:
/// the regulariser of STARS. The direction counts as a constant in the gradient.
///
/// Use it when solves need more steps as training goes on. It does not help a model whose budget is already
/// ample, and costs some accuracy when the weight is large.
///
/// # References
///
/// - Bai, Koltun, Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization", ICML 2021,
///   <https://arxiv.org/abs/2106.14342>, equation 6 and section 4.
/// - "STARS", arXiv 2605.26733 (probes turned by power iteration).
/// - Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in Statistics 1989.
///
/// # Differences from the reference code
///
/// `locuslab/deq` differentiates `|J^T v|^2` by a second backward pass. Burn differentiates once, so the gradient is taken of
/// the cell's own tangent here ([`estimate_exact`](Self::estimate_exact)) or of a central difference
/// ([`estimate`](Self::estimate)). The random decision whether a step applies the penalty
/// is a function of seed and step, not of the state of a generator.
#[derive(Clone, Debug, PartialEq)]
pub struct JacobianPenalty {
    pub(crate) config: JacobianPenaltyConfig,
}

impl JacobianPenalty {
    /// The settings.
    pub fn config(&self) -> &JacobianPenaltyConfig {
        &self.config
    }

    /// The weight `gamma` of a training step (counted from 0), as the [`WeightSchedule`] says, and
    /// 0 from step `stop_after` on.
    ///
    /// # Returns
    ///
    /// A finite number of at least 0, independent of [`applies_at`](Self::applies_at).
    pub fn weight_at(&self, step: usize) -> f64 {
        if self.stopped(step) {
            return 0.0;
        }
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
        }
    }

    /// Whether a training step applies the penalty: a draw with probability `frequency`.
    ///
    /// The draw depends on `seed` and `step` alone. Training resumed from a checkpoint makes the same draws, and so do
    /// the workers of one data-parallel run.
    ///
    /// # Returns
    ///
    /// `false` always where [`weight_at`](Self::weight_at) is 0.
    pub fn applies_at(&self, seed: u64, step: usize) -> bool {
        self.weight_at(step) > 0.0 && self.drawn_at(seed, step)
    }

    /// The draw of [`applies_at`](Self::applies_at) alone, for a weight that does not come from the [`WeightSchedule`].
    pub fn drawn_at(&self, seed: u64, step: usize) -> bool {
        random::uniform(seed, step as u64) < self.config.frequency
    }

    fn stopped(&self, step: usize) -> bool {
        self.config.stop_after.is_some_and(|stop| step >= stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> JacobianPenaltyConfig {
        JacobianPenaltyConfig::new()
    }

    #[test]
    fn invalid_settings_are_rejected_by_name() {
        let cases = [
            (
                config().with_weight(-1.0),
                "penalty.weight is -1, but must be a finite number of at least 0",
            ),
            (
                config().with_weight(f64::NAN),
                "penalty.weight is NaN, but must be a finite number of at least 0",
            ),
            (
                config().with_frequency(1.5),
                "penalty.frequency is 1.5, but must be a probability from 0 to 1",
            ),
            (
                config().with_vectors(0),
                "penalty.vectors is 0, but must be at least 1",
            ),
            (
                config().with_schedule(WeightSchedule::Increment(
                    IncrementConfig::new(5).with_by(-0.1),
                )),
                "penalty.schedule.by is -0.1, but must be a finite number of at least 0",
            ),
            (
                config().with_schedule(WeightSchedule::Increment(IncrementConfig::new(0))),
                "penalty.schedule.every is 0, but must be at least 1",
            ),
            (
                config().with_schedule(WeightSchedule::Linear(LinearConfig::new(f64::NAN, 3))),
                "penalty.schedule.to is NaN, but must be a finite number of at least 0",
            ),
            (
                config().with_schedule(WeightSchedule::Linear(LinearConfig::new(2.0, 0))),
                "penalty.schedule.steps is 0, but must be at least 1",
            ),
        ];
        for (config, message) in cases {
            assert_eq!(config.build().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn settings_round_trip_through_json() {
        let config = config()
            .with_estimator(Estimator::Tangent)
            .with_distribution(Probe::Rademacher)
            .with_stop_after(Some(7));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<JacobianPenaltyConfig>(&text).unwrap(),
            config
        );
    }

    #[test]
    fn a_schedule_follows_the_length_of_the_training() {
        let increment = WeightSchedule::Increment(IncrementConfig::new(30).with_after(50));
        let config = config().with_schedule(increment).with_stop_after(Some(80));
        let shorter = config.with_steps_scaled(100, 10);
        assert_eq!(shorter.stop_after, Some(8));
        assert_eq!(
            shorter.schedule,
            WeightSchedule::Increment(IncrementConfig::new(3).with_after(5))
        );
        assert_eq!(shorter.with_steps_scaled(10, 100), config);
    }

    #[test]
    fn weight_grows_in_steps_and_stops() {
        let penalty = config()
            .with_weight(1.6)
            .with_schedule(WeightSchedule::Increment(IncrementConfig::new(10)))
            .with_stop_after(Some(95))
            .with_frequency(1.0)
            .build()
            .unwrap();
        let close = |step: usize, weight: f64| (penalty.weight_at(step) - weight).abs() < 1e-12;
        assert!(close(0, 1.6) && close(9, 1.6) && close(10, 1.7) && close(94, 2.5));
        assert!(close(95, 0.0));
        assert!(penalty.applies_at(0, 94) && !penalty.applies_at(0, 95));
    }

    #[test]
    fn weight_moves_on_a_line_and_stays_at_its_end() {
        let line = WeightSchedule::Linear(LinearConfig::new(2.6, 100));
        let penalty = config()
            .with_weight(1.6)
            .with_schedule(line)
            .build()
            .unwrap();
        let close = |step: usize, weight: f64| (penalty.weight_at(step) - weight).abs() < 1e-12;
        assert!(close(0, 1.6) && close(50, 2.1) && close(100, 2.6) && close(1000, 2.6));
    }

    #[test]
    fn draws_repeat_and_differ_between_seeds() {
        let penalty = config().with_frequency(0.35).build().unwrap();
        let draws = |seed| (0..200).map(move |step| penalty.applies_at(seed, step));
        let (first, again, other) = (draws.clone()(1), draws.clone()(1), draws(2));
        let first: Vec<bool> = first.collect();
        assert_eq!(first, again.collect::<Vec<bool>>());
        assert_ne!(first, other.collect::<Vec<bool>>());
    }

    #[test]
    fn draws_have_the_frequency_asked_for() {
        let steps = 20_000;
        for frequency in [0.0, 0.05, 0.35, 1.0] {
            let penalty = config().with_frequency(frequency).build().unwrap();
            let applied = (0..steps)
                .filter(|step| penalty.applies_at(3, *step))
                .count();
            let standard_error = (frequency * (1.0 - frequency) / steps as f64).sqrt();
            let observed = applied as f64 / steps as f64;
            assert!(
                (observed - frequency).abs() <= 4.0 * standard_error,
                "{observed} for {frequency}"
            );
        }
    }
}
