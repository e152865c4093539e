//! Self-contained pages: tables, charts, and the report of a run.

#[cfg(feature = "charts")]
mod chart;
mod comparison;

#[cfg(feature = "charts")]
pub use chart::side_by_side;
pub use comparison::{NamedRun, comparison_charts, write_comparison};

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

/// One curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points; those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// A line chart with a linear x axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The quantity on the x axis.
    pub x: String,
    /// The quantity on the y axis.
    pub y: String,
    /// Whether the y axis is logarithmic.
    pub log: bool,
    /// The curves.
    pub series: Vec<Series>,
}

impl Series {
    /// A curve of this name.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points: points.into_iter().collect(),
        }
    }
}

impl Chart {
    /// A chart of this title with the names of its axes, and a logarithmic y axis if `log`.
    pub fn new(title: &str, [x, y]: [&str; 2], log: bool, series: Vec<Series>) -> Self {
        Self {
            title: title.to_owned(),
            x: x.to_owned(),
            y: y.to_owned(),
            log,
            series,
        }
    }
}

/// A matrix of non-negative numbers as an image, white for 0 and dark for the largest.
#[derive(Clone, Debug, PartialEq)]
pub struct Heat<'a> {
    /// What it shows.
    pub title: String,
    /// The number of columns.
    pub columns: usize,
    /// The numbers, row by row.
    pub values: &'a [f64],
    /// The value drawn darkest, so that several images can share a scale.
    pub largest: f64,
}

/// Writes the report of a run: facts, charts of loss, quality, steps per solve, residual against
/// the step of a solve and spectral radius, `more` HTML, and a table of the evaluations.
///
/// # Errors
///
/// If a chart cannot be drawn or the file cannot be written.
pub fn write_report(
    path: &Path,
    header: &ReportHeader,
    records: &[Record],
    more: &str,
) -> Result<(), TrainError> {
    let mut page = String::from("<table>\n");
    for (name, value) in &header.facts {
        let (name, value) = (escape(name), escape(value));
        page += &format!("<tr><th>{name}</th><td>{value}</td></tr>\n");
    }
    page += "</table>\n";
    page += &figures(charts(records))?;
    page += more;
    page += &evaluations(records);
    page += &changes(records);
    write_page(path, &header.title, &page)
}

/// A table of HTML: a row of column names, then rows whose first cell names them.
pub fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let row = |cells: String| format!("<tr>{cells}</tr>\n");
    let th = |text: &String| format!("<th>{}</th>", escape(text));
    let td = |text: &String| format!("<td>{}</td>", escape(text));
    let mut html = String::from("<table>\n");
    html += &row(header.iter().map(th).collect());
    for cells in rows {
        let (first, rest) = cells.split_at(1.min(cells.len()));
        html += &row(first.iter().map(th).chain(rest.iter().map(td)).collect());
    }
    html + "</table>\n"
}

/// Writes a page of the given title whose body is HTML already.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write_page(path: &Path, title: &str, body: &str) -> Result<(), TrainError> {
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

/// Charts as figures of a page; those without a point are left out, and all of them without the
/// feature `charts`.
///
/// # Errors
///
/// If a chart cannot be drawn.
#[cfg(feature = "charts")]
pub fn figures(charts: impl IntoIterator<Item = Chart>) -> Result<String, TrainError> {
    let mut figures = String::new();
    for chart in charts {
        if let Some(svg) = chart.svg()? {
            figures += &format!("<figure>{svg}</figure>\n");
        }
    }
    Ok(figures)
}

/// Charts as figures of a page: none, without the feature `charts`.
///
/// # Errors
///
/// None.
#[cfg(not(feature = "charts"))]
pub fn figures(_charts: impl IntoIterator<Item = Chart>) -> Result<String, TrainError> {
    Ok(String::new())
}

/// The charts of a run.
fn charts(records: &[Record]) -> Vec<Chart> {
    let steps: Vec<&StepRecord> = records.iter().filter_map(Record::as_step).collect();
    let evals: Vec<&EvalRecord> = records.iter().filter_map(Record::as_eval).collect();
    // The test split is measured once and not in the course of training.
    let held_out = |value: &dyn Fn(&EvalRecord) -> Option<f64>| -> Vec<(f64, f64)> {
        let evals = evals.iter().filter(|eval| eval.split == "valid");
        evals
            .filter_map(|eval| Some((eval.step as f64, value(eval)?)))
            .collect()
    };
    let over_training = |title: &str, y: &str, curves: [(&str, Vec<(f64, f64)>); 2]| {
        let curves = curves.into_iter();
        let series = curves
            .map(|(name, points)| Series::new(name, points))
            .collect();
        Chart::new(title, ["training step", y], false, series)
    };
    let loss = smoothed(&steps, |step| Some(step.loss));
    let curves = [
        ("train", loss),
        ("held out", held_out(&|eval| Some(eval.loss))),
    ];
    let mut charts = vec![over_training("Loss", "loss per target", curves)];
    if let Some(measure) = evals.first().map(|eval| &eval.quality.measure) {
        let train = smoothed(&steps, |step| step.quality);
        let held_out = held_out(&|eval| Some(eval.quality.value));
        let curves = [("train", train), ("held out", held_out)];
        charts.push(over_training("Quality", measure.name(), curves));
    }
    let forward = smoothed(&steps, |step| Some(step.forward.as_ref()?.steps));
    let backward = smoothed(&steps, |step| Some(step.backward.as_ref()?.steps));
    let curves = [("forward", forward), ("backward", backward)];
    charts.push(over_training("Steps per solve", "steps", curves));
    charts.push(Chart::new(
        "Residual against step of a solve",
        ["step of the solve", "relative residual"],
        true,
        residual_curves(&evals),
    ));
    let radius = Series::new("held out", held_out(&|eval| eval.spectral_radius));
    charts.push(Chart::new(
        "Spectral radius of the Jacobian at the equilibrium",
        ["training step", "spectral radius"],
        false,
        vec![radius],
    ));
    charts
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
        .map(|eval| {
            let residuals = (1..)
                .map(f64::from)
                .zip(eval.residual_by_step.iter().copied());
            Series::new(format!("after {} steps", eval.step), residuals)
        })
        .collect()
}

fn evaluations(records: &[Record]) -> String {
    let evals: Vec<&EvalRecord> = records.iter().filter_map(Record::as_eval).collect();
    let measure = evals
        .first()
        .map_or("quality", |eval| eval.quality.measure.name());
    let header = [
        "step",
        "split",
        measure,
        "loss per target",
        "evaluations of f per solve",
        "residual",
        "spectral radius",
        "solves",
    ];
    let optional = |value: Option<f64>| value.map_or("–".to_owned(), number);
    let row = |eval: &&EvalRecord| {
        vec![
            eval.step.to_string(),
            eval.split.clone(),
            eval.quality.text(),
            format!("{:.4}", eval.loss),
            format!("{:.2}", eval.nfe_per_solve),
            optional(eval.residual),
            optional(eval.spectral_radius),
            status_text(&eval.status),
        ]
    };
    let rows: Vec<Vec<String>> = evals.iter().map(row).collect();
    "<h2>Evaluations</h2>\n".to_owned() + &table(&header.map(str::to_owned), &rows)
}

/// What resumed runs changed; nothing if nothing was.
fn changes(records: &[Record]) -> String {
    let row = |record: &Record| match record {
        Record::Change(change) => Some(vec![
            change.step.to_string(),
            change.field.clone(),
            change.from.to_string(),
            change.to.to_string(),
        ]),
        _ => None,
    };
    let rows: Vec<Vec<String>> = records.iter().filter_map(row).collect();
    match rows.is_empty() {
        true => String::new(),
        false => {
            let header = ["after step", "field", "before", "from here on"].map(str::to_owned);
            "<h2>Changes</h2>\n".to_owned() + &table(&header, &rows)
        }
    }
}

/// Totals over a run: evaluations of `f` forward, products backward, and time, for the table at the
/// top.
pub fn totals(records: &[Record]) -> Vec<(String, String)> {
    let steps: Vec<&StepRecord> = records.iter().filter_map(Record::as_step).collect();
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

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
