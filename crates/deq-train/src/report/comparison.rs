//! Several runs on one page.

use super::{COLUMNS, Chart, Series, cells, figures, held_out, smoothed, table, write_page};
use crate::error::TrainError;
use crate::records::{EvalRecord, Record, SolveRecord, StepRecord};
use std::path::Path;

/// A run, to be shown beside others.
#[derive(Clone, Debug)]
pub struct NamedRun {
    /// Its name in legends and tables.
    pub name: String,
    /// Its log, see [`read_records`](crate::records::read_records).
    pub records: Vec<Record>,
}

impl NamedRun {
    fn evals(&self) -> impl DoubleEndedIterator<Item = &EvalRecord> {
        let evals = self.records.iter().filter_map(Record::as_eval);
        evals.filter(|eval| eval.split == "valid")
    }
}

/// Charts with one curve per run: steps of the solves in training, how many of them converge, and
/// their residuals; loss in training; quality of held-out data, steps of its solves, and the
/// spectral radius.
pub fn comparison_charts(runs: &[NamedRun]) -> Vec<Chart> {
    let chart = |title: &str, y: &str, points: &dyn Fn(&NamedRun) -> Vec<(f64, f64)>| {
        let curves = runs.iter().map(|run| Series::new(&run.name, points(run)));
        Chart::new(title, ["training step", y], false, curves.collect())
    };
    let training = |title: &str, y: &str, value: &dyn Fn(&StepRecord) -> Option<f64>| {
        chart(title, y, &|run| {
            let steps: Vec<_> = run.records.iter().filter_map(Record::as_step).collect();
            smoothed(&steps, value)
        })
    };
    let measured = |title: &str, y: &str, value: &dyn Fn(&EvalRecord) -> Option<f64>| {
        chart(title, y, &|run| {
            held_out(&run.evals().collect::<Vec<_>>(), value)
        })
    };
    let converged = |solve: &SolveRecord| Some(100.0 * solve.converged()?);
    let measure = runs.iter().flat_map(NamedRun::evals).next();
    let measure = measure.map_or("quality", |eval| eval.quality.measure.name());
    vec![
        training("Steps per forward solve", "steps", &|step| {
            Some(step.forward.as_ref()?.steps)
        }),
        training("Forward solves that converge", "%", &|step| {
            converged(step.forward.as_ref()?)
        }),
        training("Steps per backward solve", "steps", &|step| {
            Some(step.backward.as_ref()?.steps)
        }),
        training("Backward solves that converge", "%", &|step| {
            converged(step.backward.as_ref()?)
        }),
        training("Loss in training", "loss per target", &|step| {
            Some(step.loss)
        }),
        Chart {
            log: true,
            ..training(
                "Residual of training solves",
                "relative residual",
                &|step| Some(step.forward.as_ref()?.residual),
            )
        },
        measured("Held-out data", measure, &|eval| Some(eval.quality.value)),
        measured("Steps of held-out solves", "steps", &|eval| eval.steps),
        measured(
            "Spectral radius of the Jacobian at the equilibrium",
            "spectral radius",
            &|eval| eval.spectral_radius,
        ),
    ]
}

/// Writes a page with the [`comparison_charts`] of the runs and their last evaluations.
pub fn write_comparison(path: &Path, runs: &[NamedRun]) -> Result<(), TrainError> {
    let row = |run: &NamedRun| {
        let mut row = vec![run.name.clone()];
        if let Some(eval) = run.evals().next_back() {
            let quality = format!("{} {}", eval.quality.measure.name(), eval.quality.text());
            row.extend([eval.step.to_string(), quality]);
            row.extend(cells(eval));
        }
        row.resize(3 + COLUMNS.len(), "–".to_owned());
        row
    };
    let header = [&["run", "step", "quality"], &COLUMNS[..]].concat();
    let mut page = table(&header, runs.iter().map(row));
    page += &figures(comparison_charts(runs))?;
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    write_page(path, &names.join(", "), &page)
}
