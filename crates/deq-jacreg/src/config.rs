//! What a user sets: strength, frequency and estimator of the penalty.

use crate::error::{InvalidPenalty, at_least_one, at_least_zero, positive, require};
use crate::penalty::JacobianPenalty;
use crate::policy::PenaltyPolicy;
use crate::schedule::WeightSchedule;
use serde::{Deserialize, Serialize};

/// Which estimate of `|J|_F^2` is made.
///
/// The first two are unbiased, because `E |J^T v|^2 = E |J v|^2 = |J|_F^2` for a probe `v` with
/// independent entries of mean 0 and variance 1; the third is biased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Estimator {
    /// `|J^T v|^2`, the estimate of Bai et al. 2021. Its value is exact for the drawn `v`, even
    /// where `J` times a vector is a difference. Costs one vector-Jacobian product and, in the
    /// backward pass, one recorded product with `J` per probe.
    #[default]
    Cotangent,
    /// `|J v|^2`, whose value and gradient are consistent with each other even where `J v` is a
    /// difference. Costs one recorded product with `J` per probe, whose tape stands from then on.
    Tangent,
    /// `|f(z + sigma v) - z|^2 / sigma^2`: how far `f` carries a disturbed equilibrium from where
    /// it was.
    Denoising(DenoisingConfig),
}

/// The disturbance of the denoising energy.
///
/// For small `sigma` the energy is the tangent estimate with `z` instead of `f(z)`, so that what
/// the solve left of the residual counts too, as `|f(z) - z|^2 / sigma^2`. A larger `sigma` makes
/// `f` contract on a ball around the equilibrium instead of at one point. It takes one recorded
/// evaluation per probe, any float type, and has no trouble with kinks once `sigma` is larger than
/// their distances.
///
/// Perschewski and Stober, "Efficient Deep Equilibrium Models [...]", Procedia Computer Science
/// 2025, doi 10.1016/j.procs.2025.07.136. Their code does not divide by `sigma^2`; here the weight
/// means the same for all estimates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoisingConfig {
    /// The standard deviation of the disturbance, in the units of the state.
    pub sigma: f64,
}

impl DenoisingConfig {
    /// A disturbance of standard deviation `sigma`.
    pub fn new(sigma: f64) -> Self {
        Self { sigma }
    }
}

/// The distribution of the probe vectors' entries: independent, of mean 0 and variance 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// The standard normal distribution. The estimate's variance is `2 |J J^T|_F^2`.
    #[default]
    Gaussian,
    /// `+1` or `-1` with equal probability. Its variance is smaller, as it leaves out the diagonal
    /// of `J J^T`.
    Rademacher,
}

/// Settings of the Jacobian penalty: when it is applied, with what weight, and how it is estimated.
///
/// The defaults of `weight`, `frequency` and `vectors` are those with which Bai et al. 2021 (Table
/// 4) train on ImageNet. Of their three settings it is the middle one in average strength, weight
/// times frequency: 0.2, against 0.025 (0.5 at 0.05, CIFAR-10) and 0.56 (1.6 at 0.35,
/// WikiText-103).
///
/// In a file, fields that are left out take their defaults, and unknown ones are refused:
///
/// ```
/// use deq_jacreg::JacobianPenaltyConfig;
/// # let parse = serde_json::from_str::<JacobianPenaltyConfig>;
/// let config = parse(r#"{ "weight": 1.6, "schedule": { "Increment": { "every": 30000 } } }"#)?;
/// assert!((config.frequency - 0.1).abs() < 1e-15);
///
/// let error = parse(r#"{ "schedule": { "Increment": { "evry": 30000 } } }"#).unwrap_err();
/// assert!(error.to_string().starts_with("unknown field `evry`, expected one of `by`, `every`"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JacobianPenaltyConfig {
    /// The factor `gamma` of the penalty in the loss, dimensionless, at the first training step.
    /// Default 2.0, from the paper's range of 0.5 to 3.0 (see above). Too small a weight leaves the
    /// solver slow; too large a one costs accuracy.
    pub weight: f64,
    /// The weight while pre-training, when the penalty is taken at the last state of an unroll.
    /// Default 0: none. The original's ImageNet configurations have 0.03.
    pub pretrain_weight: f64,
    /// The probability that a training step applies the penalty. Default 0.1 (see above): the
    /// penalty then costs little, and 0.05 to 0.35 were enough in the paper.
    pub frequency: f64,
    /// The number `M` of probe vectors per application. Default 1, which the paper finds
    /// sufficient: the gradient's noise averages out over training steps.
    pub vectors: usize,
    /// Which estimate is made. Default [`Estimator::Cotangent`], the paper's, whose value is exact.
    pub estimator: Estimator,
    /// The distribution of the probes. Default [`Probe::Gaussian`], the paper's.
    pub distribution: Probe,
    /// How `weight` changes during training. Default [`WeightSchedule::Constant`].
    pub schedule: WeightSchedule,
    /// Rounds of power iteration that turn a probe towards the dominant left eigenvector of `J`
    /// before it is used, each one vector-Jacobian product. Default 0: the penalty on the Frobenius
    /// norm. With some, at most 10,000, the value tends to the squared spectral radius instead, see
    /// [`JacobianPenalty`]. [`Estimator::Cotangent`] alone may have them: the probe tends to an
    /// eigenvector of `J^T`, and the others multiply it by `J`.
    pub power_iterations: usize,
    /// The training step from which the penalty is no longer applied. Default none: applied to the
    /// end.
    pub stop_after: Option<usize>,
}

impl Default for JacobianPenaltyConfig {
    fn default() -> Self {
        Self {
            weight: 2.0,
            pretrain_weight: 0.0,
            frequency: 0.1,
            vectors: 1,
            estimator: Estimator::default(),
            distribution: Probe::default(),
            schedule: WeightSchedule::default(),
            power_iterations: 0,
            stop_after: None,
        }
    }
}

impl JacobianPenaltyConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::OutOfRange`] naming the first field outside its range.
    pub fn validate(&self) -> Result<(), InvalidPenalty> {
        at_least_zero("penalty.weight", self.weight)?;
        at_least_zero("penalty.pretrain_weight", self.pretrain_weight)?;
        require(
            (0.0..=1.0).contains(&self.frequency),
            "penalty.frequency",
            self.frequency,
            "a probability from 0 to 1",
        )?;
        at_least_one("penalty.vectors", self.vectors)?;
        let vectors = self.vectors as f64;
        require(vectors <= 1e4, "penalty.vectors", vectors, "at most 10,000")?;
        let (most, requirement) = match self.estimator {
            Estimator::Cotangent => (10_000, "at most 10,000"),
            _ => (0, "0 unless the estimator is Cotangent"),
        };
        require(
            self.power_iterations <= most,
            "penalty.power_iterations",
            self.power_iterations as f64,
            requirement,
        )?;
        if let Estimator::Denoising(DenoisingConfig { sigma }) = self.estimator {
            positive("penalty.estimator.sigma", sigma)?;
        }
        self.schedule.validate(self.weight)
    }

    /// Checks every field, for a layer whose training solves may take up to `max_steps` steps.
    ///
    /// # Errors
    ///
    /// As [`validate`](Self::validate); also if a controller has a target of `max_steps` or more. A
    /// solve cannot take longer than its budget: the weight would only ever fall.
    pub fn validate_for(&self, max_steps: usize) -> Result<(), InvalidPenalty> {
        self.validate()?;
        match &self.schedule {
            WeightSchedule::Controlled(config) => require(
                config.target < max_steps as f64,
                "penalty.schedule.target",
                config.target,
                "below the steps that a training solve may take",
            ),
            _ => Ok(()),
        }
    }

    /// The same schedule for a training of `steps` steps instead of `before`: increments, lines and
    /// the end come as much earlier or later.
    #[must_use]
    pub fn with_steps_scaled(&self, before: usize, steps: usize) -> Self {
        let scaled = |at: usize| (at as u128 * steps as u128 / before.max(1) as u128) as usize;
        let mut config = self.clone();
        config.stop_after = config.stop_after.map(scaled);
        config.schedule.scale(scaled);
        config
    }

    /// Checks the settings and returns the penalty, which makes the estimates.
    ///
    /// # Errors
    ///
    /// As [`validate`](Self::validate).
    pub fn build(&self) -> Result<JacobianPenalty, InvalidPenalty> {
        self.validate()?;
        Ok(JacobianPenalty::new(self.clone()))
    }

    /// Checks the settings and returns the policy, which decides when the penalty is applied and
    /// with what weight.
    ///
    /// # Errors
    ///
    /// As [`validate`](Self::validate).
    pub fn policy(&self) -> Result<PenaltyPolicy, InvalidPenalty> {
        self.validate()?;
        Ok(PenaltyPolicy::new(self.clone()))
    }
}

setters!(JacobianPenaltyConfig {
    with_weight(weight: f64),
    with_pretrain_weight(pretrain_weight: f64),
    with_frequency(frequency: f64),
    with_vectors(vectors: usize),
    with_estimator(estimator: Estimator),
    with_distribution(distribution: Probe),
    with_schedule(schedule: WeightSchedule),
    with_power_iterations(power_iterations: usize),
    with_stop_after(stop_after: Option<usize>),
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{IncrementConfig, LinearConfig, WeightControllerConfig};

    fn config() -> JacobianPenaltyConfig {
        JacobianPenaltyConfig::new()
    }

    fn controlled(controller: WeightControllerConfig) -> JacobianPenaltyConfig {
        config().with_schedule(WeightSchedule::Controlled(controller))
    }

    fn message(config: &JacobianPenaltyConfig) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn invalid_settings_are_rejected_by_name() {
        let increment = |config| WeightSchedule::Increment(config);
        let cases = [
            (
                config().with_weight(-1.0),
                "penalty.weight is -1, but must be a finite number of at least 0",
            ),
            (
                config().with_pretrain_weight(-1.0),
                "penalty.pretrain_weight is -1, but must be a finite number of at least 0",
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
                config().with_power_iterations(10_001),
                "penalty.power_iterations is 10001, but must be at most 10,000",
            ),
            (
                config()
                    .with_power_iterations(1)
                    .with_estimator(Estimator::Tangent),
                "penalty.power_iterations is 1, but must be 0 unless the estimator is Cotangent",
            ),
            (
                config()
                    .with_power_iterations(2)
                    .with_estimator(Estimator::Denoising(DenoisingConfig::new(0.1))),
                "penalty.power_iterations is 2, but must be 0 unless the estimator is Cotangent",
            ),
            (
                config().with_estimator(Estimator::Denoising(DenoisingConfig::new(0.0))),
                "penalty.estimator.sigma is 0, but must be a finite number above 0",
            ),
            (
                config().with_schedule(increment(IncrementConfig::new(5).with_by(-0.1))),
                "penalty.schedule.by is -0.1, but must be a finite number of at least 0",
            ),
            (
                config().with_schedule(increment(IncrementConfig::new(0))),
                "penalty.schedule.every is 0, but must be at least 1",
            ),
            (
                config().with_schedule(WeightSchedule::Linear(LinearConfig::new(2.0, 0))),
                "penalty.schedule.steps is 0, but must be at least 1",
            ),
            (
                controlled(WeightControllerConfig::new(0.0)),
                "penalty.schedule.target is 0, but must be a finite number above 0",
            ),
            (
                controlled(WeightControllerConfig::new(1.0).with_smallest(20.0)),
                "penalty.schedule.smallest is 20, but must be at most penalty.schedule.largest",
            ),
            (
                controlled(WeightControllerConfig::new(1.0)).with_weight(20.0),
                "penalty.weight is 20, but must be from penalty.schedule.smallest to \
                 penalty.schedule.largest",
            ),
        ];
        for (config, expected) in cases {
            assert_eq!(message(&config), expected);
            assert_eq!(config.build().unwrap_err().to_string(), expected);
            assert_eq!(config.policy().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_by_name() {
        let controller = || WeightControllerConfig::new(8.0);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let line = WeightSchedule::Linear(LinearConfig::new(bad, 3));
            let increment = WeightSchedule::Increment(IncrementConfig::new(3).with_by(bad));
            let denoising = Estimator::Denoising(DenoisingConfig::new(bad));
            for (field, config) in [
                ("weight", config().with_weight(bad)),
                ("pretrain_weight", config().with_pretrain_weight(bad)),
                ("frequency", config().with_frequency(bad)),
                ("estimator.sigma", config().with_estimator(denoising)),
                ("schedule.to", config().with_schedule(line)),
                ("schedule.by", config().with_schedule(increment)),
                (
                    "schedule.target",
                    controlled(WeightControllerConfig::new(bad)),
                ),
                ("schedule.gain", controlled(controller().with_gain(bad))),
                (
                    "schedule.smallest",
                    controlled(controller().with_smallest(bad)),
                ),
                (
                    "schedule.largest",
                    controlled(controller().with_largest(bad)),
                ),
                ("weight", controlled(controller()).with_weight(bad)),
            ] {
                let expected = format!("penalty.{field} is {bad}, but must be ");
                assert!(
                    message(&config).starts_with(&expected),
                    "{}",
                    message(&config)
                );
            }
        }
    }

    #[test]
    fn a_target_that_no_solve_can_miss_is_refused() {
        let config = controlled(WeightControllerConfig::new(12.0));
        assert_eq!(config.validate_for(13), Ok(()));
        assert_eq!(
            config.validate_for(12).unwrap_err().to_string(),
            "penalty.schedule.target is 12, but must be below the steps that a training solve may \
             take"
        );
        let invalid = config.with_vectors(0).validate_for(13).unwrap_err();
        assert_eq!(
            invalid.to_string(),
            "penalty.vectors is 0, but must be at least 1"
        );
        assert_eq!(JacobianPenaltyConfig::new().validate_for(1), Ok(()));
    }

    #[test]
    fn settings_round_trip_through_json() {
        let schedules = [
            WeightSchedule::Constant,
            WeightSchedule::Increment(IncrementConfig::new(3)),
            WeightSchedule::Linear(LinearConfig::new(0.1 + 0.2, 3)),
            WeightSchedule::Controlled(WeightControllerConfig::new(10.0).with_gain(0.3)),
        ];
        let estimators = [
            Estimator::Tangent,
            Estimator::Denoising(DenoisingConfig::new(0.1)),
        ];
        for schedule in schedules {
            for estimator in estimators {
                let config = config()
                    .with_estimator(estimator)
                    .with_distribution(Probe::Rademacher)
                    .with_schedule(schedule.clone())
                    .with_stop_after(Some(7));
                let text = serde_json::to_string(&config).unwrap();
                assert_eq!(
                    serde_json::from_str::<JacobianPenaltyConfig>(&text).unwrap(),
                    config
                );
            }
        }
    }

    #[test]
    fn unknown_fields_are_refused_at_any_depth_and_missing_ones_take_their_defaults() {
        let parse = serde_json::from_str::<JacobianPenaltyConfig>;
        assert_eq!(parse("{}").unwrap(), config());
        let short = r#"{ "schedule": { "Controlled": { "target": 9 } } }"#;
        assert_eq!(
            parse(short).unwrap(),
            controlled(WeightControllerConfig::new(9.0))
        );
        for (text, field) in [
            (r#"{ "wieght": 1.0 }"#, "wieght"),
            (
                r#"{ "schedule": { "Increment": { "every": 3, "form": 5 } } }"#,
                "form",
            ),
            (
                r#"{ "schedule": { "Linear": { "to": 3, "steps": 5, "by": 1 } } }"#,
                "by",
            ),
            (
                r#"{ "schedule": { "Controlled": { "target": 9, "weight": 5 } } }"#,
                "weight",
            ),
            (
                r#"{ "estimator": { "Denoising": { "sigma": 1, "mu": 5 } } }"#,
                "mu",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("unknown field `{field}`")),
                "{error}"
            );
        }
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
}
