//! What quality is, and its value.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The main number by which models of a task are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The exponential of the mean loss; lower is better, in relative terms.
    Perplexity,
    /// A share from 0 to 1 of something that is right, such as `accuracy`; higher is better.
    Share(Cow<'static, str>),
    /// An error of this name; lower is better, in relative terms.
    Error(Cow<'static, str>),
}

impl Measure {
    /// A share of this name.
    pub const fn share(name: &'static str) -> Self {
        Measure::Share(Cow::Borrowed(name))
    }

    /// An error of this name.
    pub const fn error(name: &'static str) -> Self {
        Measure::Error(Cow::Borrowed(name))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Measure::Perplexity => "perplexity",
            Measure::Share(name) | Measure::Error(name) => name,
        }
    }

    /// Whether higher is better.
    pub fn higher_is_better(&self) -> bool {
        matches!(self, Measure::Share(_))
    }

    /// The best of some values.
    pub fn best(&self, values: &[f64]) -> f64 {
        let values = values.iter().copied();
        match self.higher_is_better() {
            true => values.fold(f64::NEG_INFINITY, f64::max),
            false => values.fold(f64::INFINITY, f64::min),
        }
    }

    /// What a value loses against the best one: a difference of shares, a ratio of anything else.
    pub fn loss(&self, value: f64, best: f64) -> f64 {
        match self {
            Measure::Share(_) => best - value,
            Measure::Perplexity | Measure::Error(_) => value / best,
        }
    }

    /// A value as it is printed, with its unit.
    pub fn text(&self, value: f64) -> String {
        match self {
            Measure::Perplexity => format!("{value:.2}"),
            Measure::Share(_) => format!("{:.2} %", 100.0 * value),
            Measure::Error(_) => crate::dashboard::number(value),
        }
    }
}

/// A value of a [`Measure`], and what stands behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// What it is.
    pub measure: Measure,
    /// Its value.
    #[serde(with = "crate::records::any_float")]
    pub value: f64,
    /// Other measures, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Detail>,
}

/// A measure beside the main one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// What it is, such as the class whose intersection over union it is.
    pub measure: Measure,
    /// Its value; absent where there is nothing to measure.
    pub value: Option<f64>,
}

impl Quality {
    /// A value alone.
    pub fn new(measure: Measure, value: f64) -> Self {
        Self {
            measure,
            value,
            others: Vec::new(),
        }
    }

    /// The value as it is printed, with its unit.
    pub fn text(&self) -> String {
        self.measure.text(self.value)
    }
}
