//! Self-contained pages: tables, charts, and the report of a run. A chart that cannot be drawn, or
//! a file that cannot be written, is an error ([`TrainError::Chart`], [`TrainError::Io`]).

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

/// One curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A line chart with a linear x axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    title: String,
    x: String,
    y: String,
    log: bool,
    series: Vec<Series>,
}

impl Series {
    /// A curve of this name in the legend; points that are not finite are left out.
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

/// Writes the report of a run: facts by name, charts of loss, quality, steps per solve, residual
/// against the step of a solve and spectral radius, `more` HTML, and a table of the evaluations.
pub fn write_report(
    path: &Path,
    (title, facts): (&str, &[(String, String)]),
    records: &[Record],
    more: &str,
) -> Result<(), TrainError> {
    let facts = facts
        .iter()
        .map(|(name, value)| [name.clone(), value.clone()]);
    let mut page = table::<&str>(&[], facts);
    page += &figures(charts(records))?;
    page += more;
    page += &evaluations(records);
    page += &changes(records);
    write_page(path, title, &page)
}

/// A table of HTML: a row of column names, if there are any, then rows whose first cell names them.
pub fn table<S: AsRef<str>>(
    header: &[S],
    rows: impl IntoIterator<Item = impl AsRef<[String]>>,
) -> String {
    let cell = |kind: &str, text: &str| format!("<{kind}>{}</{kind}>", escape(text));
    let mut html = String::from("<table>\n");
    if !header.is_empty() {
        let names = header.iter().map(|name| cell("th", name.as_ref()));
        html += &format!("<tr>{}</tr>\n", names.collect::<String>());
    }
    for row in rows {
        let kinds = std::iter::once("th").chain(std::iter::repeat("td"));
        let cells = kinds.zip(row.as_ref()).map(|(kind, text)| cell(kind, text));
        html += &format!("<tr>{}</tr>\n", cells.collect::<String>());
    }
    html + "</table>\n"
}

/// Writes a page of the given title whose body is HTML already.
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
#[cfg_attr(not(feature = "charts"), expect(unused_variables, unused_mut))]
pub fn figures(charts: impl IntoIterator<Item = Chart>) -> Result<String, TrainError> {
    let mut figures = String::new();
    #[cfg(feature = "charts")]
    for chart in charts {
        if let Some(svg) = chart.svg()? {
            figures += &format!("<figure>{svg}</figure>\n");
        }
    }
    Ok(figures)
}

/// The charts of a run.
fn charts(records: &[Record]) -> Vec<Chart> {
    let steps: Vec<&StepRecord> = records.iter().filter_map(Record::as_step).collect();
    let evals: Vec<&EvalRecord> = records.iter().filter_map(Record::as_eval).collect();
    let held_out = |value: &dyn Fn(&EvalRecord) -> Option<f64>| held_out(&evals, value);
    let over_training = |title: &str, y: &str, curves: Vec<(&str, Vec<(f64, f64)>)>| {
        let curves = curves.into_iter();
        let curves = curves.map(|(name, points)| Series::new(name, points));
        Chart::new(title, ["training step", y], false, curves.collect())
    };
    let train = smoothed(&steps, |step| Some(step.loss));
    let valid = held_out(&|eval| Some(eval.loss));
    let curves = vec![("train", train), ("held out", valid)];
    let mut charts = vec![over_training("Loss", "loss per target", curves)];
    if let Some(measure) = evals.first().map(|eval| eval.quality.measure.name()) {
        let train = smoothed(&steps, |step| step.quality);
        let valid = held_out(&|eval| Some(eval.quality.value));
        let curves = vec![("train", train), ("held out", valid)];
        charts.push(over_training("Quality", measure, curves));
    }
    let forward = smoothed(&steps, |step| Some(step.forward.as_ref()?.steps));
    let backward = smoothed(&steps, |step| Some(step.backward.as_ref()?.steps));
    let curves = vec![("forward", forward), ("backward", backward)];
    charts.push(over_training("Steps per solve", "steps", curves));
    charts.push(Chart::new(
        "Residual against step of a solve",
        ["step of the solve", "relative residual"],
        true,
        residual_curves(&evals),
    ));
    let title = "Spectral radius of the Jacobian at the equilibrium";
    let radius = vec![("held out", held_out(&|eval| eval.spectral_radius))];
    charts.push(over_training(title, "spectral radius", radius));
    charts
}

/// A number over training of the valid split; the test split is measured once, and not in the
/// course of training.
fn held_out(evals: &[&EvalRecord], value: impl Fn(&EvalRecord) -> Option<f64>) -> Vec<(f64, f64)> {
    let evals = evals.iter().filter(|eval| eval.split == "valid");
    let points = evals.filter_map(|eval| Some((eval.step as f64, value(eval)?)));
    points.collect()
}

/// Means over about 200 windows, so that a long run stays readable and the page small.
fn smoothed(steps: &[&StepRecord], value: impl Fn(&StepRecord) -> Option<f64>) -> Vec<(f64, f64)> {
    let points = steps.iter();
    let points: Vec<(f64, f64)> = points
        .filter_map(|step| Some((step.step as f64, value(step)?)))
        .collect();
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        let (x, y): (Vec<f64>, Vec<f64>) = chunk.iter().copied().unzip();
        (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n)
    };
    let window = points.len().div_ceil(200).max(1);
    points.chunks(window).map(mean).collect()
}

/// The first, the middle and the last evaluation that traced a solve.
fn residual_curves(evals: &[&EvalRecord]) -> Vec<Series> {
    let is_traced = |eval: &&&EvalRecord| !eval.residual_by_step.is_empty();
    let traced: Vec<&&EvalRecord> = evals.iter().filter(is_traced).collect();
    let mut chosen = vec![0, traced.len() / 2, traced.len().saturating_sub(1)];
    chosen.dedup();
    let chosen = chosen.into_iter().filter_map(|index| traced.get(index));
    let curve = |eval: &&&EvalRecord| {
        let residuals = eval.residual_by_step.iter().copied();
        let name = format!("after {} steps", eval.step);
        Series::new(name, (1..).map(f64::from).zip(residuals))
    };
    chosen.map(curve).collect()
}

/// The columns of an evaluation in a table, behind those that say which one it is.
const COLUMNS: [&str; 5] = [
    "loss per target",
    "evaluations of f per solve",
    "residual",
    "spectral radius",
    "solves",
];

fn cells(eval: &EvalRecord) -> [String; COLUMNS.len()] {
    let optional = |value: Option<f64>| value.map_or("–".to_owned(), number);
    [
        format!("{:.4}", eval.loss),
        format!("{:.2}", eval.nfe_per_solve),
        optional(eval.residual),
        optional(eval.spectral_radius),
        status_text(&eval.status),
    ]
}

fn evaluations(records: &[Record]) -> String {
    let evals = || records.iter().filter_map(Record::as_eval);
    let measure = evals().next().map(|eval| eval.quality.measure.name());
    let first = ["step", "split", measure.unwrap_or("quality")];
    let rows = evals().map(|eval| {
        let (step, split) = (eval.step.to_string(), eval.split.clone());
        let which = [step, split, eval.quality.text()];
        [&which[..], &cells(eval)].concat()
    });
    "<h2>Evaluations</h2>\n".to_owned() + &table(&[&first[..], &COLUMNS].concat(), rows)
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
            let header = ["after step", "field", "before", "from here on"];
            "<h2>Changes</h2>\n".to_owned() + &table(&header, &rows)
        }
    }
}

/// Totals over a run: evaluations of `f` forward, products backward, and time, for the table at the
/// top.
pub fn totals(records: &[Record]) -> Vec<(String, String)> {
    let steps: Vec<&StepRecord> = records.iter().filter_map(Record::as_step).collect();
    let sum = |value: fn(&StepRecord) -> usize| {
        let sum: usize = steps.iter().map(|step| value(step)).sum();
        sum.to_string()
    };
    let unrolled = steps.iter().filter(|s| s.phase == Phase::Unrolled).count();
    let seconds: f64 = steps.iter().map(|s| s.seconds).sum();
    let backward = sum(|s| s.backward.as_ref().map_or(0, |b| b.nfe));
    let penalty = sum(|s| s.penalty.as_ref().map_or(0, |p| p.nfe + p.products));
    let all = format!("{} ({unrolled} of them unrolled)", steps.len());
    let facts = [
        ("training steps", all),
        ("targets predicted in training", sum(|s| s.targets)),
        ("evaluations of f, forward", sum(|s| s.forward_nfe)),
        ("vector-Jacobian products, backward", backward),
        ("evaluations and products of the penalty", penalty),
        ("training time", clock(Duration::from_secs_f64(seconds))),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
