//! Statements of the papers, and what measurements over several seeds say about them.

use deq_train::report::table;
use serde::Serialize;

/// One statement of a paper, what the paper reports, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// What should hold.
    pub statement: String,
    /// The paper's own numbers.
    pub paper: &'static str,
    /// The numbers measured.
    pub here: String,
    /// What they say.
    pub verdict: Verdict,
}

/// Whether measurements bear out a statement; the worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Not even the means do.
    DoesNotHold,
    /// The means do, but chance may be the reason: seeds contradict each other, or are fewer than
    /// [three](Verdict::SEEDS).
    OnAverage,
    /// Every seed does.
    Holds,
}

impl Verdict {
    /// The fewest seeds that can bear out a statement.
    ///
    /// If two ways of training did not differ, all of three numbers of one would be below all of
    /// three of the other in 1 of `6! / (3! 3!) = 20` cases (the exact rank test); of two, in 1
    /// of 6.
    pub const SEEDS: usize = 3;

    /// That the numbers of `lower` are below those of `higher`, each one number per seed.
    ///
    /// Holds if every number of one is below every number of the other, and there are enough of
    /// both: numbers that a diverged training does not have are to be left out. A number that is
    /// NaN is below nothing.
    pub fn below(lower: &[f64], higher: &[f64]) -> Self {
        let every = largest(lower) < least(higher);
        let seeds = lower.len().min(higher.len());
        Self::judge(seeds, every, mean(lower) < mean(higher))
    }

    /// That numbers, one per seed, are at most `limit`.
    pub fn at_most(numbers: &[f64], limit: f64) -> Self {
        let every = largest(numbers) <= limit;
        Self::judge(numbers.len(), every, mean(numbers) <= limit)
    }

    /// Of a statement about counts or bytes, which no seed changes.
    pub fn exact(holds: bool) -> Self {
        match holds {
            true => Self::Holds,
            false => Self::DoesNotHold,
        }
    }

    fn judge(seeds: usize, every: bool, on_average: bool) -> Self {
        match (every && seeds >= Self::SEEDS, on_average) {
            (true, true) => Self::Holds,
            (false, true) => Self::OnAverage,
            (_, false) => Self::DoesNotHold,
        }
    }

    /// It in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::OnAverage => "holds on average, within the spread of seeds",
            Self::DoesNotHold => "does not hold",
        }
    }
}

/// The largest number; NaN if one of them is.
fn largest(numbers: &[f64]) -> f64 {
    match numbers.iter().any(|number| number.is_nan()) {
        true => f64::NAN,
        false => numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// The smallest number; NaN if one of them is.
fn least(numbers: &[f64]) -> f64 {
    -largest(&numbers.iter().map(|number| -number).collect::<Vec<_>>())
}

/// The numbers that there are: NaN stands for what was not measured.
pub(crate) fn measured(mut numbers: Vec<f64>) -> Vec<f64> {
    numbers.retain(|number| !number.is_nan());
    numbers
}

/// The mean; NaN of nothing.
pub(crate) fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// The mean and, of several numbers, the smallest and the largest.
pub(crate) fn spread(numbers: &[f64], text: impl Fn(f64) -> String) -> String {
    match numbers {
        [] => "nothing".to_owned(),
        [one] => text(*one),
        _ => {
            let shown = [mean(numbers), least(numbers), largest(numbers)].map(text);
            format!("{} ({} to {})", shown[0], shown[1], shown[2])
        }
    }
}

/// The claims as a table of a page.
pub(crate) fn claims_table(claims: &[Claim]) -> String {
    let row = |claim: &Claim| {
        let (statement, here) = (claim.statement.as_str(), claim.here.as_str());
        [statement, claim.paper, here, claim.verdict.text()].map(str::to_owned)
    };
    table(
        &["claim", "paper", "here", "verdict"],
        claims.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{DoesNotHold, Holds, OnAverage};

    #[test]
    fn a_statement_holds_if_every_seed_says_so() {
        assert_eq!(Verdict::below(&[1., 2., 3.], &[4., 5., 6.]), Holds);
        assert_eq!(Verdict::below(&[1., 2., 4.5], &[4., 5., 6.]), OnAverage);
        assert_eq!(Verdict::below(&[4., 5., 6.], &[1., 2., 3.]), DoesNotHold);
        assert_eq!(Verdict::below(&[1., 1., 1.], &[1., 1., 1.]), DoesNotHold);
        assert_eq!(Verdict::at_most(&[1., 2., 3.], 3.0), Holds);
        assert_eq!(Verdict::at_most(&[1., 2., 4.], 3.0), OnAverage);
        assert_eq!(Verdict::at_most(&[4., 4., 4.], 3.0), DoesNotHold);
    }

    #[test]
    fn few_seeds_bear_out_nothing() {
        assert_eq!(Verdict::below(&[1., 2.], &[4., 5.]), OnAverage);
        assert_eq!(Verdict::below(&[], &[4., 5.]), DoesNotHold);
        assert_eq!(Verdict::at_most(&[1.0], 3.0), OnAverage);
    }

    #[test]
    fn what_is_not_a_number_bears_out_nothing() {
        let nan = f64::NAN;
        assert_eq!(Verdict::below(&[1., nan, 2.], &[4., 5., 6.]), DoesNotHold);
        assert_eq!(Verdict::below(&[1., 2., 3.], &[4., nan, 6.]), DoesNotHold);
        assert_eq!(Verdict::at_most(&[1., nan, 2.], 3.0), DoesNotHold);
    }

    #[test]
    fn numbers_are_shown_with_their_range() {
        let text = |number: f64| format!("{number:.1}");
        assert_eq!(spread(&[1.0, 3.0, 2.0], text), "2.0 (1.0 to 3.0)");
        assert_eq!(spread(&[1.5], text), "1.5");
    }
}
