//! A run as one self-contained page.

use crate::chart::{Chart, Series};
use crate::dashboard::{clock, number, status_text};
use crate::error::TrainError;
use crate::files;
use crate::records::{EvalRecord, Phase, Record, StepRecord};
use std::path::Path;
use std::time::Duration;

/// What the page says besides the curves.
#[derive(Clone, Debug)]
pub struct ReportHeader {
    /// The title.
    pub title: String,
    /// Rows of the table at the top: what, and its value.
    pub facts: Vec<(String, String)>,
}

/// Writes the page: a table, and charts of loss, steps per solve, residual against the step of a solve, spectral radius.
///
/// # Errors
///
/// [`TrainError`] if a chart cannot be drawn or the file cannot be written.
pub fn write_report(
    path: &Path,
    header: &ReportHeader,
    records: &[Record],
) -> Result<(), TrainError> {
    write_report_with(path, header, records, "")
}

/// [`write_report`] with more HTML before the table of evaluations.
pub(crate) fn write_report_with(
    path: &Path,
    header: &ReportHeader,
    records: &[Record],
    more: &str,
) -> Result<(), TrainError> {
    let mut page = String::from("<table>\n");
    for (name, value) in &header.facts {
        page += &format!(
            "<tr><th>{}</th><td>{}</td></tr>\n",
            escape(name),
            escape(value)
        );
    }
    page += "</table>\n";
    page += &figures(charts(records))?;
    page += more;
    page += &evaluations(records);
    write_page(path, &header.title, &page)
}

/// Writes a page of the given title whose body is HTML already.
pub(crate) fn write_page(path: &Path, title: &str, body: &str) -> Result<(), TrainError> {
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>body{{font-family:sans-serif;max-width:1340px;margin:2em auto;padding:0 1em;color:#222}}\
         table{{border-collapse:collapse;margin-bottom:1em}}td,th{{padding:.25em .8em;border-bottom:1px solid #ddd;\
         text-align:left}}figure{{display:inline-block;margin:0 8px 12px 0}}svg{{max-width:100%;height:auto}}</style>\n\
         <h1>{title}</h1>\n{body}</html>\n",
        title = escape(title)
    );
    files::write_whole(path, page.as_bytes())
}

/// Charts as figures of a page; those without a point are left out.
pub(crate) fn figures(charts: impl IntoIterator<Item = Chart>) -> Result<String, TrainError> {
    let mut figures = String::new();
    for chart in charts {
        if let Some(svg) = chart.svg()? {
            figures += &format!("<figure>{svg}</figure>\n");
        }
    }
    Ok(figures)
}

/// The charts of a run.
fn charts(records: &[Record]) -> [Chart; 5] {
    let steps: Vec<&StepRecord> = records.iter().filter_map(as_step).collect();
    let evals: Vec<&EvalRecord> = records.iter().filter_map(as_eval).collect();
    // The test split is measured once and not in the course of training.
    let held_out = |value: fn(&EvalRecord) -> Option<f64>| -> Vec<(f64, f64)> {
        let evals = evals.iter().filter(|eval| eval.split == "valid");
        evals
            .filter_map(|e| Some((e.step as f64, value(e)?)))
            .collect()
    };
    [
        Chart {
            title: "Loss",
            x: "training step",
            y: "nats per target",
            log: false,
            series: vec![
                series("train", smoothed(&steps, |step| Some(step.loss))),
                series("held out", held_out(|eval| Some(eval.loss))),
            ],
        },
        Chart {
            title: "Share of right predictions",
            x: "training step",
            y: "accuracy",
            log: false,
            series: vec![
                series("train", smoothed(&steps, |step| step.accuracy)),
                series("held out", held_out(|eval| eval.quality.accuracy())),
                series("held out, mean IoU", held_out(|eval| eval.quality.miou())),
            ],
        },
        Chart {
            title: "Steps per solve",
            x: "training step",
            y: "steps",
            log: false,
            series: vec![
                series(
                    "forward",
                    smoothed(&steps, |s| Some(s.forward.as_ref()?.steps)),
                ),
                series(
                    "backward",
                    smoothed(&steps, |s| Some(s.backward.as_ref()?.steps)),
                ),
            ],
        },
        Chart {
            title: "Residual against step of a solve",
            x: "step of the solve",
            y: "relative residual",
            log: true,
            series: residual_curves(&evals),
        },
        Chart {
            title: "Spectral radius of the Jacobian at the equilibrium",
            x: "training step",
            y: "spectral radius",
            log: false,
            series: vec![series("held out", held_out(|eval| eval.spectral_radius))],
        },
    ]
}

fn as_step(record: &Record) -> Option<&StepRecord> {
    match record {
        Record::Step(step) => Some(step),
        Record::Eval(_) => None,
    }
}

fn as_eval(record: &Record) -> Option<&EvalRecord> {
    match record {
        Record::Eval(eval) => Some(eval),
        Record::Step(_) => None,
    }
}

fn series(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series {
        name: name.to_owned(),
        points,
    }
}

/// Means over about 200 windows, so that a long run stays readable and the page small.
fn smoothed(steps: &[&StepRecord], value: impl Fn(&StepRecord) -> Option<f64>) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = steps
        .iter()
        .filter_map(|step| Some((step.step as f64, value(step)?)))
        .collect();
    let window = points.len().div_ceil(200).max(1);
    points
        .chunks(window)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let sum = chunk
                .iter()
                .fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
            (sum.0 / n, sum.1 / n)
        })
        .collect()
}

/// The first, the middle and the last evaluation that traced a solve.
fn residual_curves(evals: &[&EvalRecord]) -> Vec<Series> {
    let traced: Vec<&&EvalRecord> = evals
        .iter()
        .filter(|eval| !eval.residual_by_step.is_empty())
        .collect();
    let mut chosen = vec![0, traced.len() / 2, traced.len().saturating_sub(1)];
    chosen.dedup();
    chosen
        .into_iter()
        .filter_map(|index| traced.get(index))
        .map(|eval| Series {
            name: format!("after {} steps", eval.step),
            points: eval
                .residual_by_step
                .iter()
                .enumerate()
                .map(|(step, residual)| ((step + 1) as f64, *residual))
                .collect(),
        })
        .collect()
}

fn evaluations(records: &[Record]) -> String {
    let measure = records.iter().filter_map(as_eval).next();
    let measure = measure.map_or("quality", |eval| eval.quality.main().0);
    let mut rows = format!(
        "<h2>Evaluations</h2>\n<table>\n<tr><th>step</th><th>split</th><th>{measure}</th><th>nats per target</th>\
         <th>evaluations of f per solve</th><th>residual</th><th>spectral radius</th><th>solves</th></tr>\n",
    );
    let optional = |value: Option<f64>| value.map_or("–".to_owned(), number);
    for eval in records.iter().filter_map(as_eval) {
        rows += &format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.2}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            eval.step,
            escape(&eval.split),
            number(eval.quality.main().1),
            eval.loss,
            eval.nfe_per_solve,
            optional(eval.residual),
            optional(eval.spectral_radius),
            status_text(&eval.status),
        );
    }
    rows + "</table>\n"
}

/// Totals over a run: evaluations of `f` forward, products backward, and time, for the table at the top.
pub fn totals(records: &[Record]) -> Vec<(String, String)> {
    let steps: Vec<&StepRecord> = records.iter().filter_map(as_step).collect();
    let sum = |value: fn(&StepRecord) -> usize| steps.iter().map(|s| value(s)).sum::<usize>();
    let unrolled = steps.iter().filter(|s| s.phase == Phase::Unrolled).count();
    let seconds: f64 = steps.iter().map(|s| s.seconds).sum();
    let fact = |name: &str, value: String| (name.to_owned(), value);
    vec![
        fact(
            "training steps",
            format!("{} ({unrolled} of them unrolled)", steps.len()),
        ),
        fact(
            "targets predicted in training",
            sum(|s| s.targets).to_string(),
        ),
        fact(
            "evaluations of f, forward",
            sum(|s| s.forward_nfe).to_string(),
        ),
        fact(
            "vector-Jacobian products, backward",
            sum(|s| s.backward.as_ref().map_or(0, |b| b.nfe)).to_string(),
        ),
        fact(
            "evaluations and products of the penalty",
            sum(|s| s.penalty.as_ref().map_or(0, |p| p.nfe + p.products)).to_string(),
        ),
        fact("training time", clock(Duration::from_secs_f64(seconds))),
    ]
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Quality, SolveRecord};

    #[test]
    fn the_page_holds_every_curve_and_nothing_from_outside() {
        let solve = SolveRecord {
            nfe: 9,
            steps: 8.5,
            residual: 5e-4,
            ..SolveRecord::default()
        };
        let mut records: Vec<Record> = (1..=500)
            .map(|step| {
                Record::Step(StepRecord {
                    step,
                    phase: Phase::Equilibrium,
                    loss: 4.0 - 0.002 * step as f64,
                    targets: 64,
                    accuracy: None,
                    forward_nfe: 10,
                    forward: Some(solve.clone()),
                    backward: Some(solve.clone()),
                    penalty: None,
                    learning_rate: 1e-3,
                    seconds: 0.5,
                })
            })
            .collect();
        for step in [250, 500] {
            records.push(Record::Eval(EvalRecord {
                step,
                split: "valid".to_owned(),
                loss: 3.0,
                quality: Quality::Text {
                    perplexity: 3.0_f64.exp(),
                },
                targets: 1000,
                batches: 10,
                nfe_per_solve: 9.0,
                steps: Some(8.0),
                residual: Some(6e-4),
                status: solve.status,
                spectral_radius: Some(0.8),
                residual_by_step: vec![1.0, 0.1, 0.01],
                seconds: 1.0,
            }));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        let header = ReportHeader {
            title: "a < b".to_owned(),
            facts: totals(&records),
        };
        write_report(&path, &header, &records).unwrap();
        let page = std::fs::read_to_string(path).unwrap();
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(page.contains("a &lt; b") && page.contains("5000") && page.contains("4:10"));
        assert!(!page.contains("src=") && !page.contains("href="));
    }
}
