//! What the parts of a batch measured, as that of the batch.

use crate::records::{PenaltyRecord, SolveRecord, StepRecord};
use crate::step::{Share, StepOutput};
use crate::task::{Tally, TaskModel};
use deq_core::solvers::StatusCounts;

/// What the parts of a batch measured together; their memories in order.
pub(super) fn whole<M: TaskModel>(
    parts: Vec<(StepOutput<M>, Share)>,
) -> (StepOutput<M>, Vec<M::Memory>) {
    let mut tally = M::Tally::default();
    let mut memories = Vec::with_capacity(parts.len());
    let mut records = Vec::with_capacity(parts.len());
    for (part, share) in parts {
        tally.add(&part.tally);
        memories.push(part.memory);
        records.push((part.record, share));
    }
    let item = StepOutput {
        record: whole_record(&records),
        memory: M::Memory::default(),
        tally,
    };
    (item, memories)
}

/// The record of a batch from those of its parts, at least one; its time is not known here.
fn whole_record(parts: &[(StepRecord, Share)]) -> StepRecord {
    let records = || parts.iter().map(|(record, _)| record);
    let (first, _) = &parts[0];
    let penalties = || records().filter_map(|record| record.penalty.as_ref());
    StepRecord {
        loss: parts
            .iter()
            // Of a part without targets it need not be a number.
            .filter(|(_, share)| share.of_loss > 0.0)
            .map(|(record, share)| record.loss * share.of_loss)
            .sum(),
        targets: records().map(|record| record.targets).sum(),
        // The slowest part is as long as the whole batch.
        forward_nfe: most(records().map(|record| record.forward_nfe)),
        forward: whole_solve(records().filter_map(|record| record.forward.as_ref())),
        backward: whole_solve(records().filter_map(|record| record.backward.as_ref())),
        penalty: first.penalty.as_ref().map(|penalty| PenaltyRecord {
            value: parts
                .iter()
                .filter_map(|(record, share)| Some((record.penalty.as_ref()?, share)))
                .map(|(penalty, share)| penalty.value * share.of_samples)
                .sum(),
            weight: penalty.weight,
            nfe: most(penalties().map(|penalty| penalty.nfe)),
            products: most(penalties().map(|penalty| penalty.products)),
        }),
        ..first.clone()
    }
}

/// A solve of a batch from those of its parts.
fn whole_solve<'a>(parts: impl Iterator<Item = &'a SolveRecord> + Clone) -> Option<SolveRecord> {
    let mut status = StatusCounts::default();
    parts.clone().for_each(|part| status.merge(&part.status));
    let samples = status.total().max(1) as f64;
    let mean = |value: fn(&SolveRecord) -> f64| {
        let sums = parts
            .clone()
            .map(|part| value(part) * part.status.total() as f64);
        sums.sum::<f64>() / samples
    };
    parts.clone().next()?;
    Some(SolveRecord {
        nfe: most(parts.clone().map(|part| part.nfe)),
        steps: mean(|part| part.steps),
        residual: mean(|part| part.residual),
        status,
    })
}

fn most(values: impl Iterator<Item = usize>) -> usize {
    values.max().unwrap_or(0)
}
