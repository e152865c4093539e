//! Quality against evaluations allowed, as a table and a curve.

use super::run::{VisionEvalOptions, evaluate_run};
use crate::chart::{Chart, Series};
use crate::dashboard::number;
use crate::error::{TrainError, require};
use crate::report;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The quality of a run under several budgets.
#[derive(Clone, Debug, Serialize)]
pub struct BudgetTable {
    /// What the quality is: `accuracy` or `mean IoU`.
    pub measure: &'static str,
    /// One for every budget.
    pub rows: Vec<BudgetRow>,
    /// The page with the table and its curve.
    pub page: PathBuf,
}

/// The quality of a run under one budget.
#[derive(Clone, Debug, Serialize)]
pub struct BudgetRow {
    /// Evaluations allowed for a solve.
    pub budget: usize,
    /// From 0 to 1.
    pub quality: f64,
    /// The share of solves that met the tolerance.
    pub converged: f64,
    /// The mean relative residual at the answers.
    pub residual: Option<f64>,
}

/// [`evaluate_run`] with every budget in turn; writes `evaluation.html` into the folder of the run.
///
/// # Errors
///
/// As [`evaluate_run`], [`TrainError::NoEquilibrium`] for an explicit network, and [`TrainError::OutOfRange`] for a budget of 0 or none at all.
pub fn evaluate_budgets(
    run: &Path,
    options: &VisionEvalOptions,
    budgets: &[usize],
) -> Result<BudgetTable, TrainError> {
    let smallest = budgets.iter().min().copied().unwrap_or(0);
    require(smallest >= 1, "a budget", smallest as f64, "at least 1")?;
    let mut measure = "accuracy";
    let mut rows = Vec::new();
    for budget in budgets {
        let options = VisionEvalOptions {
            max_steps: Some(*budget),
            probe: false,
            ..options.clone()
        };
        let eval = evaluate_run(run, &options)?.eval;
        let (name, quality) = eval.quality.main();
        measure = name;
        rows.push(BudgetRow {
            budget: *budget,
            quality,
            converged: eval.status.converged as f64 / eval.status.total().max(1) as f64,
            residual: eval.residual,
        });
    }
    let chart = Chart {
        title: "Quality against evaluations allowed",
        x: "evaluations",
        y: measure,
        log: false,
        series: vec![Series {
            name: "held out".to_owned(),
            points: rows
                .iter()
                .map(|row| (row.budget as f64, row.quality))
                .collect(),
        }],
    };
    let mut body = format!(
        "<table><tr><th>evaluations</th><th>{measure}</th><th>converged</th><th>residual</th></tr>\n"
    );
    for row in &rows {
        body += &format!(
            "<tr><td>{}</td><td>{:.2} %</td><td>{:.1} %</td><td>{}</td></tr>\n",
            row.budget,
            100.0 * row.quality,
            100.0 * row.converged,
            row.residual.map_or("–".to_owned(), number)
        );
    }
    body += "</table>\n";
    body += &report::figures([chart])?;
    let page = run.join("evaluation.html");
    report::write_page(&page, "Quality by evaluations allowed", &body)?;
    Ok(BudgetTable {
        measure,
        rows,
        page,
    })
}
