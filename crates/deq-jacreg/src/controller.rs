//! The weight of the penalty, set by what the solves do.

use crate::error::{InvalidPenalty, require};
use burn::config::Config;

/// Configuration of a [`WeightController`].
#[derive(Config, Debug, PartialEq)]
pub struct WeightControllerConfig {
    /// What to hold: the mean steps of a training solve, or the mean spectral radius, whichever is measured.
    pub target: f64,
    /// The weight to begin with. Default 0.5, the smallest of Bai et al. 2021, Table 4.
    #[config(default = 0.5)]
    pub weight: f64,
    /// By how much the logarithm of the weight moves when the measurement is twice the target. Default 0.2: at 10 % over the target
    /// a weight doubles in 35 measurements, slow beside the noise of single steps and fast beside the drift of training.
    #[config(default = 0.2)]
    pub gain: f64,
    /// The smallest weight. Default 0.01; a weight of 0 could never grow again.
    #[config(default = 0.01)]
    pub smallest: f64,
    /// The largest weight. Default 10, above the paper's range of 0.5 to 3.
    #[config(default = 10.0)]
    pub largest: f64,
}

impl WeightControllerConfig {
    /// Checks the fields and returns the controller at its first weight.
    ///
    /// # Errors
    ///
    /// [`InvalidPenalty::OutOfRange`] naming the first field outside its range.
    pub fn build(&self) -> Result<WeightController, InvalidPenalty> {
        let positive = |field, value: f64| {
            let valid = value.is_finite() && value > 0.0;
            require(valid, field, value, "a finite number above 0")
        };
        positive("controller.target", self.target)?;
        positive("controller.gain", self.gain)?;
        positive("controller.smallest", self.smallest)?;
        positive("controller.largest", self.largest)?;
        require(
            self.smallest <= self.weight && self.weight <= self.largest,
            "controller.weight",
            self.weight,
            "from controller.smallest to controller.largest",
        )?;
        Ok(WeightController {
            config: self.clone(),
            weight: self.weight,
        })
    }
}

/// Holds the steps per solve, or the spectral radius, at a target by moving the weight of the penalty.
///
/// ```text
/// log weight <- log weight + gain * (measured / target - 1)            within [smallest, largest]
/// ```
///
/// An integral controller: the weight grows while solves are too long and shrinks while they are shorter than they need be, so that no likelihood is
/// paid for contraction that nobody uses. The state is [`weight`](Self::weight) alone; store it in a checkpoint and hand it to [`resume`](Self::resume).
///
/// Bai et al. 2021 raise the weight during training by a schedule, for the same purpose.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightController {
    config: WeightControllerConfig,
    weight: f64,
}

impl WeightController {
    /// The weight `gamma` for the next step.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Goes on from a stored weight, which is brought within the limits.
    #[must_use]
    pub fn resume(mut self, weight: f64) -> Self {
        if weight.is_finite() {
            self.weight = weight.clamp(self.config.smallest, self.config.largest);
        }
        self
    }

    /// Takes a measurement in the units of the target. One that is not finite counts as twice the target: the solve has failed.
    pub fn update(&mut self, measured: f64) {
        let excess = match measured.is_finite() {
            // Limited, so that one wild measurement does not throw the weight.
            true => (measured / self.config.target - 1.0).clamp(-1.0, 1.0),
            false => 1.0,
        };
        let weight = self.weight * (self.config.gain * excess).exp();
        self.weight = weight.clamp(self.config.smallest, self.config.largest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_settles_where_the_measurement_meets_the_target() {
        // Steps that fall with the weight, as measured in docs/penalty.md: 12.6 at 0.5, 9.9 at 1.6.
        let steps = |weight: f64| 11.0 - 2.3 * weight.ln();
        let mut controller = WeightControllerConfig::new(10.5).build().unwrap();
        for _ in 0..2000 {
            controller.update(steps(controller.weight()));
        }
        let settled = (0.5_f64 / 2.3).exp();
        assert!((controller.weight() - settled).abs() < 1e-6);
        let again = WeightControllerConfig::new(10.5).build().unwrap();
        assert_eq!(again.resume(controller.weight()), controller);
    }

    #[test]
    fn failed_solves_raise_the_weight_up_to_its_limit() {
        let mut controller = WeightControllerConfig::new(8.0).build().unwrap();
        controller.update(f64::NAN);
        assert!((controller.weight() - 0.5 * 0.2_f64.exp()).abs() < 1e-12);
        (0..1000).for_each(|_| controller.update(f64::INFINITY));
        assert!((controller.weight() - 10.0).abs() < 1e-12);
        (0..10_000).for_each(|_| controller.update(1.0));
        assert!((controller.weight() - 0.01).abs() < 1e-12);
    }

    #[test]
    fn limits_are_checked() {
        let config = WeightControllerConfig::new(0.0);
        assert_eq!(
            config.build().unwrap_err().to_string(),
            "controller.target is 0, but must be a finite number above 0"
        );
        let config = WeightControllerConfig::new(1.0).with_weight(20.0);
        assert_eq!(
            config.build().unwrap_err().to_string(),
            "controller.weight is 20, but must be from controller.smallest to controller.largest"
        );
    }
}
