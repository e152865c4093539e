//! Quality against the steps that a solve may take, as a table and curves.

use crate::error::{TrainError, require};
use crate::measure::Measure;
use crate::recipe::Recipe;
use crate::records::EvalRecord;
use crate::report::{Chart, Series, figures, table, write_page};
use crate::run::{EvalOptions, evaluate_with};
use crate::task::Task;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A change to a recipe.
type Change<'a, T> = Box<dyn Fn(&mut Recipe<T>) + 'a>;

/// A way to use a trained model: a row of a table.
pub struct Variant<'a, T: Task> {
    /// Its name, such as `memory 64`.
    pub name: String,
    /// What it changes in the recipe.
    pub change: Change<'a, T>,
}

impl<T: Task> Variant<'_, T> {
    /// The model as it was trained.
    pub fn as_trained() -> Self {
        Self {
            name: "as trained".to_owned(),
            change: Box::new(|_| ()),
        }
    }
}

/// A run measured under several budgets.
#[derive(Clone, Debug, Serialize)]
pub struct BudgetTable {
    /// What the quality is.
    pub measure: Measure,
    /// The most steps of a solve; empty if there is one column, with those of the recipe.
    pub budgets: Vec<usize>,
    /// One row for each variant.
    pub rows: Vec<BudgetRow>,
    /// The page with the table and its curves.
    pub page: PathBuf,
}

impl BudgetTable {
    /// What stands above each column.
    pub fn columns(&self) -> Vec<String> {
        match self.budgets.as_slice() {
            [] => vec!["as trained".to_owned()],
            budgets => budgets.iter().map(usize::to_string).collect(),
        }
    }
}

/// A variant measured under every budget.
#[derive(Clone, Debug, Serialize)]
pub struct BudgetRow {
    /// The name of the variant.
    pub name: String,
    /// One entry for each budget.
    pub cells: Vec<EvalRecord>,
}

/// Measures the newest checkpoint of a run for every pair of a variant and a budget, or every
/// variant with that of the recipe if none is given, and writes `evaluation.html` into its folder.
/// `on_cell` is called with the share that is done.
///
/// # Errors
///
/// As [`evaluate`](crate::evaluate); also if a budget is 0.
pub fn evaluate_budgets<T: Task>(
    run: &Path,
    options: &EvalOptions,
    variants: &[Variant<'_, T>],
    budgets: &[usize],
    on_cell: &mut dyn FnMut(f64),
) -> Result<BudgetTable, TrainError> {
    let smallest = budgets.iter().min().copied().unwrap_or(1);
    require(smallest >= 1, "a budget", smallest as f64, "at least 1")?;
    let columns: Vec<Option<usize>> = match budgets {
        [] => vec![None],
        budgets => budgets.iter().copied().map(Some).collect(),
    };
    let total = (variants.len() * columns.len()) as f64;
    let mut done = 0.0;
    let mut rows = Vec::new();
    for variant in variants {
        let mut cells = Vec::new();
        for &max_steps in &columns {
            let options = EvalOptions {
                max_steps,
                probe: false,
                ..options.clone()
            };
            cells.push(evaluate_with(run, &options, &*variant.change)?.eval);
            done += 1.0;
            on_cell(done / total);
        }
        rows.push(BudgetRow {
            name: variant.name.clone(),
            cells,
        });
    }
    let measure = Recipe::<T>::of_run(run)?.task.measure();
    let table = BudgetTable {
        measure,
        budgets: budgets.to_vec(),
        rows,
        page: run.join("evaluation.html"),
    };
    write(&table)?;
    Ok(table)
}

fn write(result: &BudgetTable) -> Result<(), TrainError> {
    let measure = &result.measure;
    let header = std::iter::once(format!("{}, solver steps allowed", measure.name()));
    let header: Vec<String> = header.chain(result.columns()).collect();
    let quality = |eval: &EvalRecord| eval.quality.text();
    let converged = |eval: &EvalRecord| match eval.converged() {
        Some(share) => format!("{:.1} %", 100.0 * share),
        None => String::new(),
    };
    let rows = result.rows.iter().flat_map(|row| {
        let line = |name: &str, text: &dyn Fn(&EvalRecord) -> String| -> Vec<String> {
            let cells = row.cells.iter().map(text);
            std::iter::once(name.to_owned()).chain(cells).collect()
        };
        [line(&row.name, &quality), line("converged", &converged)]
    });
    let chart = |title: &str, y: &str, log: bool, value: &dyn Fn(&EvalRecord) -> f64| {
        let line = |row: &BudgetRow| {
            let budgets = result.budgets.iter().map(|budget| *budget as f64);
            Series::new(&*row.name, budgets.zip(row.cells.iter().map(value)))
        };
        let series = result.rows.iter().map(line).collect();
        Chart::new(title, ["solver steps allowed", y], log, series)
    };
    let value = |eval: &EvalRecord| eval.quality.value;
    let evaluations = |eval: &EvalRecord| eval.nfe_per_solve;
    let residual = |eval: &EvalRecord| eval.residual.unwrap_or(f64::NAN);
    let (log, title) = (
        !measure.higher_is_better(),
        "Relative residual at the answers",
    );
    let charts = [
        chart("Quality", measure.name(), log, &value),
        chart("Evaluations per solve", "evaluations", false, &evaluations),
        chart(title, "relative residual", true, &residual),
    ];
    // One column makes no curve.
    let drawn = match result.budgets.as_slice() {
        [] => String::new(),
        _ => figures(charts)?,
    };
    let body = table(&header, rows) + &drawn;
    write_page(&result.page, "Quality by solver steps allowed", &body)
}
