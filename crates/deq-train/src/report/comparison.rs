//! Several runs on one page.

use super::{Chart, Series, figures, smoothed, table, write_page};
use crate::dashboard::{number, status_text};
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
    fn steps(&self) -> Vec<&StepRecord> {
        self.records.iter().filter_map(Record::as_step).collect()
    }

    fn evals(&self) -> impl Iterator<Item = &EvalRecord> {
        let evals = self.records.iter().filter_map(Record::as_eval);
        evals.filter(|eval| eval.split == "valid")
    }
}

/// Charts with one curve per run: loss in training, quality of held-out data, steps of the solves
/// in training, how many of them converge, and the spectral radius.
pub fn comparison_charts(runs: &[NamedRun]) -> Vec<Chart> {
    let training = |title: &str, y: &str, value: &dyn Fn(&StepRecord) -> Option<f64>| {
        let curve = |run: &NamedRun| Series::new(&run.name, smoothed(&run.steps(), value));
        let curves = runs.iter().map(curve).collect();
        Chart::new(title, ["training step", y], false, curves)
    };
    let held_out = |title: &str, y: &str, value: &dyn Fn(&EvalRecord) -> Option<f64>| {
        let curve = |run: &NamedRun| {
            let points = run.evals();
            let points = points.filter_map(|eval| Some((eval.step as f64, value(eval)?)));
            Series::new(&run.name, points)
        };
        let curves = runs.iter().map(curve).collect();
        Chart::new(title, ["training step", y], false, curves)
    };
    let converged = |solve: &SolveRecord| {
        let total = solve.status.total();
        (total > 0).then(|| 100.0 * solve.status.converged as f64 / total as f64)
    };
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
        held_out("Held-out data", measure, &|eval| Some(eval.quality.value)),
        held_out(
            "Spectral radius of the Jacobian at the equilibrium",
            "spectral radius",
            &|eval| eval.spectral_radius,
        ),
    ]
}

/// Writes a page with the [`comparison_charts`] of the runs and their last evaluations.
///
/// # Errors
///
/// If a chart cannot be drawn or the file cannot be written.
pub fn write_comparison(path: &Path, runs: &[NamedRun]) -> Result<(), TrainError> {
    let header = [
        "run",
        "step",
        "quality",
        "loss per target",
        "evaluations of f per solve",
        "residual",
        "spectral radius",
        "solves",
    ];
    let optional = |value: Option<f64>| value.map_or("–".to_owned(), number);
    let row = |run: &NamedRun| {
        let Some(eval) = run.evals().last() else {
            let dashes = std::iter::repeat_n("–".to_owned(), header.len() - 1);
            return std::iter::once(run.name.clone()).chain(dashes).collect();
        };
        vec![
            run.name.clone(),
            eval.step.to_string(),
            format!("{} {}", eval.quality.measure.name(), eval.quality.text()),
            format!("{:.4}", eval.loss),
            format!("{:.2}", eval.nfe_per_solve),
            optional(eval.residual),
            optional(eval.spectral_radius),
            status_text(&eval.status),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    let mut page = table(&header.map(str::to_owned), &rows);
    page += &figures(comparison_charts(runs))?;
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    write_page(path, &names.join(", "), &page)
}
