//! How the weight of the penalty changes during training.

use crate::error::{InvalidPenalty, at_least_one, at_least_zero, positive, require};
use serde::{Deserialize, Serialize};

/// How the weight of the penalty changes during training, from
/// [`JacobianPenaltyConfig::weight`](crate::JacobianPenaltyConfig::weight) on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum WeightSchedule {
    /// It stays.
    #[default]
    Constant,
    /// It grows in steps, as in the original scripts.
    Increment(IncrementConfig),
    /// It moves on a straight line and then stays.
    Linear(LinearConfig),
    /// A controller moves it by what the solves do.
    Controlled(WeightControllerConfig),
}

/// `weight + by * floor((step - after) / every)`, and `weight` before training step `after`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncrementConfig {
    /// Added at every increment. Default 0.1, as in the scripts of Bai et al. 2021.
    #[serde(default = "default_by")]
    pub by: f64,
    /// Training steps between two increments; the WikiText-103 scripts have 30,000 and 35,000 of
    /// 300,000.
    pub every: usize,
    /// The training step from which they are counted. Default 0; the ImageNet scripts count from
    /// the end of the unrolled pre-training.
    #[serde(default)]
    pub after: usize,
}

fn default_by() -> f64 {
    0.1
}

impl IncrementConfig {
    /// An increment every so many training steps, with the other fields at their defaults.
    pub fn new(every: usize) -> Self {
        Self {
            by: default_by(),
            every,
            after: 0,
        }
    }
}

/// From `weight` at training step 0 to `to` at training step `steps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// The weight at the end; the paper's ranges (Table 4) are 1.6 to 2.5 and 2 to 3.
    pub to: f64,
    /// The training steps that it takes.
    pub steps: usize,
}

impl LinearConfig {
    /// A line to the weight `to` at training step `steps`.
    pub fn new(to: f64, steps: usize) -> Self {
        Self { to, steps }
    }
}

/// A controller that holds the steps per solve, or the spectral radius, at a target.
///
/// ```text
/// excess     <- measured / target - 1                                  within [-1, 1]
/// log weight <- log weight + gain * excess                             within [smallest, largest]
/// ```
///
/// A solve that failed, or a measurement that is not finite, counts as an excess of 1.
///
/// An integral controller: the weight grows while solves are too long and shrinks while they are
/// shorter than they need be, so that no likelihood is paid for contraction that nobody uses. Bai
/// et al. 2021 raise the weight by a schedule, for the same purpose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightControllerConfig {
    /// What to hold: the mean steps of a training solve, or the mean spectral radius, whichever is
    /// [observed](crate::PenaltyPolicy::observe).
    pub target: f64,
    /// By how much the logarithm of the weight moves when the measurement is twice the target.
    /// Default 0.2: at 10 % over the target a weight doubles in 35 measurements, slow beside the
    /// noise of single steps and fast beside the drift of training.
    #[serde(default = "default_gain")]
    pub gain: f64,
    /// The smallest weight. Default 0.01; a weight of 0 could never grow again.
    #[serde(default = "default_smallest")]
    pub smallest: f64,
    /// The largest weight. Default 10, above the paper's range of 0.5 to 3.
    #[serde(default = "default_largest")]
    pub largest: f64,
}

fn default_gain() -> f64 {
    0.2
}

fn default_smallest() -> f64 {
    0.01
}

fn default_largest() -> f64 {
    10.0
}

impl WeightControllerConfig {
    /// A controller that holds `target`, with the other fields at their defaults.
    pub fn new(target: f64) -> Self {
        Self {
            target,
            gain: default_gain(),
            smallest: default_smallest(),
            largest: default_largest(),
        }
    }

    /// `weight` is where it begins.
    fn validate(&self, weight: f64) -> Result<(), InvalidPenalty> {
        positive("penalty.schedule.target", self.target)?;
        positive("penalty.schedule.gain", self.gain)?;
        positive("penalty.schedule.smallest", self.smallest)?;
        positive("penalty.schedule.largest", self.largest)?;
        require(
            self.smallest <= self.largest,
            "penalty.schedule.smallest",
            self.smallest,
            "at most penalty.schedule.largest",
        )?;
        require(
            (self.smallest..=self.largest).contains(&weight),
            "penalty.weight",
            weight,
            "from penalty.schedule.smallest to penalty.schedule.largest",
        )
    }
}

impl WeightSchedule {
    /// `weight` is where it begins.
    pub(crate) fn validate(&self, weight: f64) -> Result<(), InvalidPenalty> {
        match self {
            Self::Constant => Ok(()),
            Self::Increment(config) => {
                at_least_zero("penalty.schedule.by", config.by)?;
                at_least_one("penalty.schedule.every", config.every)
            }
            Self::Linear(config) => {
                at_least_zero("penalty.schedule.to", config.to)?;
                at_least_one("penalty.schedule.steps", config.steps)
            }
            Self::Controlled(config) => config.validate(weight),
        }
    }

    /// Moves every training step that is named.
    pub(crate) fn scale(&mut self, scaled: impl Fn(usize) -> usize) {
        match self {
            Self::Constant | Self::Controlled(_) => {}
            Self::Increment(increment) => {
                increment.every = scaled(increment.every).max(1);
                increment.after = scaled(increment.after);
            }
            Self::Linear(linear) => linear.steps = scaled(linear.steps).max(1),
        }
    }
}

setters!(IncrementConfig {
    with_by(by: f64),
    with_after(after: usize),
});

setters!(WeightControllerConfig {
    with_gain(gain: f64),
    with_smallest(smallest: f64),
    with_largest(largest: f64),
});
