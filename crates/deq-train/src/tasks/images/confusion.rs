//! How often each class was predicted as each, and what follows from it.

use super::batches::IGNORED;
use crate::task::Tally;

/// Images or pixels by their class and the one predicted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// By target, then prediction.
    counts: Vec<u64>,
}

impl Confusion {
    /// The counts of a batch; targets that are [`IGNORED`] do not count.
    pub(super) fn new(classes: usize, predicted: &[i32], targets: &[i32]) -> Self {
        let mut counts = vec![0; classes * classes];
        for (predicted, target) in predicted.iter().zip(targets) {
            if *target != IGNORED {
                counts[*target as usize * classes + *predicted as usize] += 1;
            }
        }
        Self { classes, counts }
    }

    /// The share of targets whose class was predicted; 0 if there are none.
    pub fn accuracy(&self) -> f64 {
        let classes = 0..self.classes;
        let right: u64 = classes.map(|class| self.count(class, class)).sum();
        let all: u64 = self.counts.iter().sum();
        right as f64 / all.max(1) as f64
    }

    /// Of each class the intersection over union: the targets of this class that were predicted as
    /// it, over those that are of it or were predicted as it. `None` for a class that neither
    /// occurs nor was predicted.
    pub fn iou(&self) -> Vec<Option<f64>> {
        let all = || 0..self.classes;
        let of_class = |class| {
            let targets: u64 = all().map(|other| self.count(class, other)).sum();
            let predicted: u64 = all().map(|other| self.count(other, class)).sum();
            let both = self.count(class, class);
            let either = targets + predicted - both;
            (either > 0).then(|| both as f64 / either as f64)
        };
        all().map(of_class).collect()
    }

    fn count(&self, target: usize, predicted: usize) -> u64 {
        self.counts[target * self.classes + predicted]
    }
}

impl Tally for Confusion {
    fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.clone_from(other);
            return;
        }
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersection_over_union_follows_its_definition() {
        // Class 0: 1 of 2; class 1: 1 of 3; class 2 is predicted once and never right; class 3 does
        // not occur.
        let confusion = Confusion::new(4, &[0, 0, 1, 1, 2], &[0, 1, 1, IGNORED, 1]);
        assert_eq!(
            confusion.iou(),
            [Some(0.5), Some(1.0 / 3.0), Some(0.0), None]
        );
        assert!((confusion.accuracy() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn counts_of_batches_add_up() {
        let mut sum = Confusion::default();
        assert!(sum.accuracy().abs() < 1e-12 && sum.iou().is_empty());
        sum.add(&Confusion::new(2, &[0, 1], &[0, 0]));
        sum.add(&Confusion::new(2, &[1, 1], &[1, IGNORED]));
        sum.add(&Confusion::default());
        assert_eq!(sum, Confusion::new(2, &[0, 1, 1], &[0, 0, 1]));
    }
}
