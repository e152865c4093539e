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
    row(
        "trained:",
        format_args!("{steps} steps in {trained}, {parameters} parameters"),
    );
    let quality = &eval.quality;
    row(
        &format!("{} {}:", eval.split, quality.measure.name()),
        format_args!("{} over {} targets", quality.text(), eval.targets),
    );
    for other in &quality.others {
        let value = other.value.map(|value| other.measure.text(value));
        let name = format!("  {}:", other.measure.name());
        row(&name, value.as_deref().unwrap_or("does not occur"));
    }
    for (name, value) in &summary.facts {
        row(&format!("{name}:"), value);
    }
    row(
        "evaluations per solve:",
        format_args!("{:.2}", eval.nfe_per_solve),
    );
    if let Some(residual) = eval.residual {
        row("relative residual:", number(residual));
        row("solves:", status_text(&eval.status));
    }
    if let Some(radius) = eval.spectral_radius {
        row(
            "spectral radius:",
            format_args!("{radius:.3} at the equilibria of the first batch"),
        );
    }
    if let Some((path, reason)) = summary.left_out.first() {
        let count = summary.left_out.len();
        row(
            "files left out:",
            format_args!("{count}, the first {}: {reason}", path.display()),
        );
    }
}

/// Quality by the steps that a solve may take.
pub(crate) fn budgets(table: &BudgetTable) {
    print!("{:22}", format!("{} with", table.measure.name()));
    table
        .budgets
        .iter()
        .for_each(|budget| print!("{budget:>10}"));
    println!("  solver steps");
    for row in &table.rows {
        print!("{:22}", row.name);
        row.cells
            .iter()
            .for_each(|eval| print!("{:>10}", eval.quality.text()));
        println!();
        print!("{:22}", "  converged");
        for eval in &row.cells {
            let share = 100.0 * eval.converged().unwrap_or(f64::NAN);
            print!("{:>10}", format!("{share:.1} %"));
        }
        println!();
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
