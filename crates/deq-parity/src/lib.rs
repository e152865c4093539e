//! Recorded cases checked one by one, by their kind.

mod gradient;
mod jacobian;
mod mdeq;
mod model;
mod solver;
mod transformer;

use deq_testkit::Golden;

pub use model::Precision;

/// One quantity of a recorded case beside ours.
#[derive(Clone, Debug)]
pub struct Check {
    /// What is compared.
    pub quantity: String,
    /// The relative error.
    pub error: f64,
    /// The largest error that passes.
    pub tolerance: f64,
    /// What the reader should know, such as where two solves part and why.
    pub note: String,
}

impl Check {
    fn new(quantity: impl Into<String>, error: f64, tolerance: f64) -> Self {
        Self {
            quantity: quantity.into(),
            error,
            tolerance,
            note: String::new(),
        }
    }

    fn noted(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Whether the error is within the tolerance; a NaN is not.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// What became of a recorded case.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The kind is known; these are its quantities.
    Checked(Vec<Check>),
    /// No check exists for this kind.
    NotCovered(String),
}

/// The kinds of whole models, which are checked in f64 and in f32; the others in f64 only.
pub const MODELS: [&str; 3] = [
    "deq_transformer",
    "mdeq_classification",
    "mdeq_segmentation",
];

/// Checks one case in f64, on the device of [`f64_device`](deq_testkit::f64_device).
pub fn check(case: &Golden) -> Outcome {
    check_in(case, &Precision::f64())
}

/// Checks one case. In f32 only those of [`MODELS`] are covered.
pub fn check_in(case: &Golden, precision: &Precision) -> Outcome {
    let double = precision.is_double();
    let mut checks = match case.info["kind"].as_str() {
        Some("deq_transformer") => transformer::language_model(case, precision),
        Some("mdeq_classification") => mdeq::classification(case, precision),
        Some("mdeq_segmentation") => mdeq::segmentation(case, precision),
        kind if !double => return Outcome::NotCovered(format!("{} in f32", kind.unwrap_or("?"))),
        Some("solver") => solver::original(case),
        Some("gradient") => gradient::tanh(case),
        Some("jacobian") => jacobian::tanh(case),
        Some("torchdeq_solver") => solver::torchdeq(case),
        kind => return Outcome::NotCovered(kind.unwrap_or("none named").to_owned()),
    };
    if checks.is_empty() {
        checks.push(Check::new("nothing recorded", f64::NAN, 0.0));
    }
    Outcome::Checked(checks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deq_testkit::{f64_device, fixtures_of_kind};

    #[test]
    fn every_recorded_case_of_these_kinds_passes() {
        let _ = f64_device();
        for kind in ["solver", "torchdeq_solver", "gradient", "jacobian"]
            .into_iter()
            .chain(MODELS)
        {
            for case in fixtures_of_kind(kind) {
                let Outcome::Checked(checks) = check(&case) else {
                    panic!("{kind} must be covered");
                };
                for check in checks {
                    assert!(check.passes(), "{}: {check:?}", case.name);
                }
            }
        }
    }
}
