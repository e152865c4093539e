//! The penalty on a model: the same training with and without it.

use super::{Claim, claims_table};
use crate::chart::{Chart, Series};
use crate::error::{TrainError, require};
use crate::records::{EvalRecord, Record, SolveRecord, StepRecord, read_records};
use crate::run_folder::RunFolder;
use crate::{files, report};
use deq_jacreg::JacobianPenaltyConfig;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A recipe that can be trained with different weights of the penalty and evaluated with different budgets.
pub trait Comparable: Clone {
    /// What is trained, as a title.
    const TITLE: &'static str;
    /// What is measured.
    fn measure(&self) -> Measure;

    /// The penalty, whose frequency the variants share.
    fn penalty(&mut self) -> &mut Option<JacobianPenaltyConfig>;

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`TrainError`] naming the first field that is wrong.
    fn check(&self) -> Result<(), TrainError>;

    /// Trains, or goes on training, in the folder `run` and returns the seconds that it took.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the run fails.
    fn train_in(&self, run: &Path, device: &str) -> Result<f64, TrainError>;

    /// Evaluates the run with so many evaluations allowed.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the run fails.
    fn evaluate_in(run: &Path, device: &str, budget: usize) -> Result<EvalRecord, TrainError>;
}

/// A measure of quality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The lower the better, in relative terms.
    Perplexity,
    /// The share of right predictions.
    Accuracy,
    /// The mean over classes of intersection over union.
    MeanIou,
}

impl Measure {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Perplexity => "perplexity",
            Measure::Accuracy => "accuracy",
            Measure::MeanIou => "mean IoU",
        }
    }

    /// The best of some values.
    fn best(self, values: &[f64]) -> f64 {
        let values = values.iter().copied();
        match self {
            Measure::Perplexity => values.fold(f64::INFINITY, f64::min),
            Measure::Accuracy | Measure::MeanIou => values.fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// What a value loses against the best one: a ratio of perplexities, a difference of shares.
    fn loss(self, value: f64, best: f64) -> f64 {
        match self {
            Measure::Perplexity => value / best,
            Measure::Accuracy | Measure::MeanIou => best - value,
        }
    }

    /// How a value is printed.
    pub fn text(self, value: f64) -> String {
        match self {
            Measure::Perplexity => format!("{value:.2}"),
            Measure::Accuracy | Measure::MeanIou => format!("{:.1} %", 100.0 * value),
        }
    }
}

/// [`TrainError::NothingSolved`] if all `steps` are unrolled.
pub(super) fn require_solves([steps, pretrain]: [usize; 2]) -> Result<(), TrainError> {
    match pretrain < steps {
        true => Ok(()),
        false => Err(TrainError::NothingSolved { steps, pretrain }),
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Comparison<R> {
    /// The training that all variants share but for the weight of the penalty.
    pub recipe: R,
    /// The weights to compare. A first one of 0 is the plain model.
    pub weights: Vec<f64>,
    /// The evaluations that a solve may make at inference.
    pub budgets: Vec<usize>,
    /// The device, by name.
    pub device: String,
    /// Where runs and results are written. Runs that are there and complete are used as they are.
    pub folder: PathBuf,
}

impl<R: Comparable> Comparison<R> {
    fn validate(&self) -> Result<(), TrainError> {
        let (weights, budgets) = (self.weights.len(), self.budgets.len());
        require(
            weights >= 2,
            "the number of weights",
            weights as f64,
            "at least 2",
        )?;
        require(
            budgets >= 1,
            "the number of budgets",
            budgets as f64,
            "at least 1",
        )?;
        for weight in &self.weights {
            let valid = weight.is_finite() && *weight >= 0.0;
            require(valid, "a weight", *weight, "a finite number of at least 0")?;
        }
        for budget in &self.budgets {
            require(*budget >= 1, "a budget", *budget as f64, "at least 1")?;
        }
        let mut recipe = self.recipe.clone();
        require(
            recipe.penalty().is_some() || self.weights.iter().all(|weight| *weight <= 0.0),
            "penalty.weight",
            0.0,
            "above 0 in the recipe, whose frequency the variants share",
        )?;
        self.recipe.check()
    }
}

/// One trained model.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// The weight `gamma` of the penalty.
    pub weight: f64,
    /// Seconds of training.
    pub training_seconds: f64,
    /// The measure with each budget, in the order of [`Comparison::budgets`].
    pub quality: Vec<f64>,
    /// The share of held-out solves that converged, with each budget.
    pub converged: Vec<f64>,
    /// Evaluations after every round, the last one after training.
    pub evaluations: Vec<EvalRecord>,
    /// Means over tenths of the equilibrium steps.
    pub course: Vec<CoursePoint>,
}

/// Means over some training steps.
#[derive(Clone, Debug, Serialize)]
pub struct CoursePoint {
    /// The last of the steps.
    pub step: usize,
    /// Steps per forward solve.
    pub solver_steps: f64,
    /// The share of forward solves that met the tolerance within the budget.
    pub converged: f64,
    /// The relative residual at the answers.
    pub residual: f64,
}

impl Variant {
    /// A short name.
    pub fn name(&self) -> String {
        format!("gamma {}", self.weight)
    }

    fn last(&self) -> &EvalRecord {
        self.evaluations.last().expect("evaluated after training")
    }

    fn late(&self) -> &CoursePoint {
        self.course.last().expect("has equilibrium steps")
    }
}

/// All models and what they say about the paper.
#[derive(Clone, Debug, Serialize)]
pub struct ComparisonResult {
    /// What the quality of the variants is.
    pub measure: Measure,
    /// One entry per weight.
    pub variants: Vec<Variant>,
    /// The budgets of inference.
    pub budgets: Vec<usize>,
    /// The claims, each of the first weight against the last.
    pub claims: Vec<Claim>,
    /// The page with tables and curves.
    pub report: PathBuf,
}

/// Trains every variant, evaluates it with every budget, writes `result.json` and `report.html`, and judges the claims. A variant that was interrupted goes on where it
/// stopped. `say` hears what runs.
///
/// # Errors
///
/// [`TrainError`] if the recipe or a number is wrong, fewer than two weights or no budget is given, or a run fails.
pub fn compare<R: Comparable>(
    options: &Comparison<R>,
    say: &mut dyn FnMut(&str),
) -> Result<ComparisonResult, TrainError> {
    options.validate()?;
    files::create_folder(&options.folder)?;
    let mut variants = Vec::new();
    for weight in &options.weights {
        say(&format!("training with gamma {weight}"));
        variants.push(variant(options, *weight, say)?);
    }
    let measure = options.recipe.measure();
    let result = ComparisonResult {
        measure,
        claims: claims(measure, &variants, &options.budgets),
        variants,
        budgets: options.budgets.clone(),
        report: options.folder.join("report.html"),
    };
    files::write_json(&options.folder.join("result.json"), &result)?;
    write_page(&result, R::TITLE)?;
    Ok(result)
}

fn variant<R: Comparable>(
    options: &Comparison<R>,
    weight: f64,
    say: &mut dyn FnMut(&str),
) -> Result<Variant, TrainError> {
    let mut recipe = options.recipe.clone();
    let penalty = recipe.penalty();
    *penalty = match weight > 0.0 {
        true => penalty.take().map(|penalty| penalty.with_weight(weight)),
        false => None,
    };
    let folder = RunFolder::new(options.folder.join(format!("gamma-{weight}")));
    let training_seconds = recipe.train_in(folder.path(), &options.device)?;
    let (mut quality, mut converged) = (Vec::new(), Vec::new());
    for budget in &options.budgets {
        say(&format!(
            "evaluating gamma {weight} with {budget} evaluations"
        ));
        let eval = R::evaluate_in(folder.path(), &options.device, *budget)?;
        quality.push(eval.quality.main().1);
        let solves = eval.status.total().max(1) as f64;
        converged.push(eval.status.converged as f64 / solves);
    }
    let records = read_records(&folder.metrics())?;
    let evaluations = records.iter().filter_map(|record| match record {
        Record::Eval(eval) => Some(eval.clone()),
        Record::Step(_) => None,
    });
    Ok(Variant {
        weight,
        training_seconds,
        quality,
        converged,
        evaluations: evaluations.collect(),
        course: course(&records),
    })
}

fn course(records: &[Record]) -> Vec<CoursePoint> {
    let steps: Vec<&StepRecord> = records
        .iter()
        .filter_map(|record| match record {
            Record::Step(step) if step.forward.is_some() => Some(step),
            _ => None,
        })
        .collect();
    steps
        .chunks(steps.len().div_ceil(10).max(1))
        .map(|chunk| {
            let solves = || chunk.iter().filter_map(|step| step.forward.as_ref());
            let mean = |value: &dyn Fn(&SolveRecord) -> f64| {
                solves().map(value).sum::<f64>() / chunk.len() as f64
            };
            CoursePoint {
                step: chunk[chunk.len() - 1].step,
                solver_steps: mean(&|solve| solve.steps),
                converged: mean(&|solve| {
                    solve.status.converged as f64 / solve.status.total().max(1) as f64
                }),
                residual: mean(&|solve| solve.residual),
            }
        })
        .collect()
}

fn claims(measure: Measure, variants: &[Variant], budgets: &[usize]) -> Vec<Claim> {
    let [plain, .., penalised] = variants else {
        return Vec::new();
    };
    let claim = |statement: &str, worse: f64, better: f64| Claim {
        statement: statement.to_owned(),
        holds: worse > better,
        evidence: format!(
            "{worse:.3} with {}, {better:.3} with {}",
            plain.name(),
            penalised.name()
        ),
    };
    // The smallest budget is the hardest; what counts is how much each model loses by it.
    let hardest = (0..budgets.len())
        .min_by_key(|index| budgets[*index])
        .unwrap_or(0);
    let loss = |variant: &Variant| {
        let quality = &variant.quality;
        measure.loss(quality[hardest], measure.best(quality))
    };
    let radius = |variant: &Variant| variant.last().spectral_radius.unwrap_or(f64::NAN);
    let steps = |variant: &Variant| variant.last().steps.unwrap_or(f64::NAN);
    vec![
        claim(
            "training solves late in training take fewer steps with the penalty",
            plain.late().solver_steps,
            penalised.late().solver_steps,
        ),
        claim(
            "more of them converge: the share that does not",
            1.0 - plain.late().converged,
            1.0 - penalised.late().converged,
        ),
        claim(
            "held-out solves to tolerance take fewer steps",
            steps(plain),
            steps(penalised),
        ),
        claim(
            "the spectral radius is smaller",
            radius(plain),
            radius(penalised),
        ),
        claim(
            &format!(
                "a budget of {} evaluations costs less: {} {} that of the best budget",
                budgets[hardest],
                measure.name(),
                match measure {
                    Measure::Perplexity => "over",
                    Measure::Accuracy | Measure::MeanIou => "below",
                }
            ),
            loss(plain),
            loss(penalised),
        ),
    ]
}

fn write_page(result: &ComparisonResult, title: &str) -> Result<(), TrainError> {
    let measure = result.measure;
    let mut body = format!(
        "<table><tr><th>held-out {}, evaluations allowed</th>",
        measure.name()
    );
    for budget in &result.budgets {
        body += &format!("<th>{budget}</th>");
    }
    body += "</tr>\n";
    for variant in &result.variants {
        body += &format!("<tr><th>{}</th>", variant.name());
        for value in &variant.quality {
            body += &format!("<td>{}</td>", measure.text(*value));
        }
        body += "</tr>\n";
    }
    body += "</table>\n";
    body += &claims_table(&result.claims);
    let curves = |points: &dyn Fn(&Variant) -> Vec<(f64, f64)>| -> Vec<Series> {
        let series = result.variants.iter().map(|variant| Series {
            name: variant.name(),
            points: points(variant),
        });
        series.collect()
    };
    let course = |value: &'static dyn Fn(&CoursePoint) -> f64| {
        curves(&|variant| {
            variant
                .course
                .iter()
                .map(|p| (p.step as f64, value(p)))
                .collect()
        })
    };
    let evaluated = |value: &'static dyn Fn(&EvalRecord) -> Option<f64>| {
        curves(&|variant| {
            let points = variant.evaluations.iter();
            points
                .filter_map(|e| Some((e.step as f64, value(e)?)))
                .collect()
        })
    };
    let chart = |title, x, y, log, series| Chart {
        title,
        x,
        y,
        log,
        series,
    };
    let step = "training step";
    let by_budget = curves(&|variant| {
        let budgets = result.budgets.iter().map(|budget| *budget as f64);
        budgets.zip(variant.quality.iter().copied()).collect()
    });
    let charts = [
        chart(
            "Quality against evaluations allowed",
            "evaluations",
            measure.name(),
            measure == Measure::Perplexity,
            by_budget,
        ),
        chart(
            "Steps per training solve",
            step,
            "steps",
            false,
            course(&|p| p.solver_steps),
        ),
        chart(
            "Training solves that converged",
            step,
            "share",
            false,
            course(&|p| p.converged),
        ),
        chart(
            "Steps of held-out solves to tolerance",
            step,
            "steps",
            false,
            evaluated(&|e| e.steps),
        ),
        chart(
            "Residual of training solves",
            step,
            "relative residual",
            true,
            course(&|p| p.residual),
        ),
        chart(
            "Spectral radius",
            step,
            "spectral radius",
            false,
            evaluated(&|e| e.spectral_radius),
        ),
        chart(
            "Quality over training",
            step,
            measure.name(),
            false,
            evaluated(&|e| Some(e.quality.main().1)),
        ),
    ];
    body += &report::figures(charts)?;
    report::write_page(
        &result.report,
        &format!("The Jacobian penalty on {title}"),
        &body,
    )
}
