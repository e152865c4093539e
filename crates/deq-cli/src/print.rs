//! How results are printed.

use anyhow::Result;
use deq_train::{BudgetTable, Summary, clock, number, status_text};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

/// A value as JSON on standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A line on standard error, which nobody need read.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A name and a value in two columns.
pub(crate) fn row(name: &str, value: impl Display) {
    println!("{name:<22} {value}");
}

/// What a run achieved.
pub(crate) fn summary(summary: &Summary) {
    let eval = &summary.eval;
    let trained = clock(Duration::from_secs_f64(summary.training_seconds));
    let (steps, parameters) = (eval.step, summary.parameters);
    row("run:", summary.run.display());
    let trained = format!("{steps} steps in {trained}, {parameters} parameters");
    row("trained:", trained);
    let quality = &eval.quality;
    let name = format!("{} {}:", eval.split, quality.measure.name());
    let value = format!("{} over {} targets", quality.text(), eval.targets);
    row(&name, value);
    for other in &quality.others {
        let value = other.value.map(|value| other.measure.text(value));
        let name = format!("  {}:", other.measure.name());
        row(&name, value.as_deref().unwrap_or("does not occur"));
    }
    for (name, value) in &summary.facts {
        row(&format!("{name}:"), value);
    }
    let evaluations = format!("{:.2}", eval.nfe_per_solve);
    row("evaluations per solve:", evaluations);
    if let Some(residual) = eval.residual {
        row("relative residual:", number(residual));
        row("solves:", status_text(&eval.status));
    }
    if let Some(radius) = eval.spectral_radius {
        let radius = format!("{radius:.3} at the equilibria of the first batch");
        row("spectral radius:", radius);
    }
    if let Some((path, reason)) = summary.left_out.first() {
        let (count, path) = (summary.left_out.len(), path.display());
        let first = format!("{count}, the first {path}: {reason}");
        row("files left out:", first);
    }
}

/// Quality by the steps that a solve may take.
pub(crate) fn budgets(table: &BudgetTable) {
    print!("{:22}", format!("{} with", table.measure.name()));
    let columns = table.columns();
    columns.iter().for_each(|column| print!("{column:>10}"));
    println!("  solver steps");
    for row in &table.rows {
        print!("{:22}", row.name);
        let cells = row.cells.iter();
        cells.for_each(|eval| print!("{:>10}", eval.quality.text()));
        println!();
        let shares: Option<Vec<f64>> = row.cells.iter().map(|eval| eval.converged()).collect();
        if let Some(shares) = shares {
            print!("{:22}", "  converged");
            for share in shares {
                print!("{:>10}", format!("{:.1} %", 100.0 * share));
            }
            println!();
        }
    }
    row("curves:", table.page.display());
}

/// The parts of a whole that a progress bar counts.
pub(crate) const PARTS: u64 = 10_000;

/// A bar on standard error that is told shares of a whole.
pub(crate) fn progress_bar() -> Result<ProgressBar> {
    let style = "{elapsed_precise} {wide_bar} {percent:>3} %  {msg}  {eta} left";
    let bar = ProgressBar::new(PARTS);
    bar.set_style(ProgressStyle::with_template(style)?);
    Ok(bar)
}
