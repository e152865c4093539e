//! Perplexity by memory length and evaluations allowed.

use super::run::{EvalOptions, evaluate_run};
use crate::chart::{Chart, Series};
use crate::error::TrainError;
use crate::records::EvalRecord;
use crate::report;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A run measured with several memory lengths and budgets.
#[derive(Clone, Debug, Serialize)]
pub struct EvalTable {
    /// Positions of the past that attention sees besides the segment.
    pub memory: Vec<usize>,
    /// The most steps of a solve.
    pub budgets: Vec<usize>,
    /// One row for each memory length, one entry for each budget.
    pub cells: Vec<Vec<EvalRecord>>,
    /// The page with the table and its curves.
    pub page: PathBuf,
}

/// Measures the newest checkpoint of a run for every pair of a memory length and a budget, and writes `evaluation.html` into its folder. `on_cell`
/// hears the share that is done.
///
/// # Errors
///
/// As [`evaluate_run`]; also if a budget is 0.
pub fn evaluate_table(
    run: &Path,
    options: &EvalOptions,
    (memory, budgets): (&[usize], &[usize]),
    on_cell: &mut dyn FnMut(f64),
) -> Result<EvalTable, TrainError> {
    let total = (memory.len() * budgets.len()) as f64;
    let mut done = 0.0;
    let mut cells = Vec::new();
    for &length in memory {
        let mut row = Vec::new();
        for &budget in budgets {
            let options = EvalOptions {
                max_steps: Some(budget),
                mem_len: Some(length),
                probe: false,
                ..options.clone()
            };
            row.push(evaluate_run(run, &options)?.eval);
            done += 1.0;
            on_cell(done / total);
        }
        cells.push(row);
    }
    let table = EvalTable {
        memory: memory.to_vec(),
        budgets: budgets.to_vec(),
        cells,
        page: run.join("evaluation.html"),
    };
    write_page(&table)?;
    Ok(table)
}

fn write_page(table: &EvalTable) -> Result<(), TrainError> {
    let mut body = String::from("<table><tr><th>perplexity, solver steps allowed</th>");
    for budget in &table.budgets {
        body += &format!("<th>{budget}</th>");
    }
    body += "</tr>\n";
    for (length, row) in table.memory.iter().zip(&table.cells) {
        body += &format!("<tr><th>memory {length}</th>");
        for eval in row {
            body += &format!("<td>{:.2}</td>", eval.perplexity);
        }
        body += "</tr>\n";
    }
    body += "</table>\n";
    let series = |value: &dyn Fn(&EvalRecord) -> f64| {
        let rows = table.memory.iter().zip(&table.cells);
        rows.map(|(length, row)| Series {
            name: format!("memory {length}"),
            points: table
                .budgets
                .iter()
                .zip(row)
                .map(|(budget, eval)| (*budget as f64, value(eval)))
                .collect(),
        })
        .collect()
    };
    body += &report::figures([
        Chart {
            title: "Perplexity",
            x: "solver steps allowed",
            y: "perplexity",
            log: true,
            series: series(&|eval| eval.perplexity),
        },
        Chart {
            title: "Evaluations per solve",
            x: "solver steps allowed",
            y: "evaluations",
            log: false,
            series: series(&|eval| eval.nfe_per_segment),
        },
        Chart {
            title: "Relative residual at the answers",
            x: "solver steps allowed",
            y: "relative residual",
            log: true,
            series: series(&|eval| eval.residual.unwrap_or(f64::NAN)),
        },
    ])?;
    report::write_page(
        &table.page,
        "Perplexity by memory and evaluations allowed",
        &body,
    )
}
