//! The penalty on a language model: the same training with and without it.

use super::{Claim, claims_table};
use crate::chart::{Chart, Series};
use crate::error::TrainError;
use crate::lm::{EvalOptions, LmRecipe, RunFolder, TrainOptions, evaluate_run, train};
use crate::records::{EvalRecord, Record, StepRecord, read_records};
use crate::{files, report};
use serde::Serialize;
use std::path::PathBuf;

/// What to run.
#[derive(Clone, Debug)]
pub struct LmComparison {
    /// The training that all variants share but for the weight of the penalty.
    pub recipe: LmRecipe,
    /// The weights to compare. A first one of 0 is the plain model.
    pub weights: Vec<f64>,
    /// The evaluations that a solve may make at inference.
    pub budgets: Vec<usize>,
    /// The device, by name.
    pub device: String,
    /// Where runs and results are written. Runs that are there and complete are used as they are.
    pub folder: PathBuf,
}

impl LmComparison {
    fn validate(&self) -> Result<(), TrainError> {
        let require = |valid, field, value: f64, requirement| match valid {
            true => Ok(()),
            false => Err(TrainError::OutOfRange {
                field,
                value,
                requirement,
            }),
        };
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
        if self.weights.iter().any(|weight| *weight > 0.0) && self.recipe.penalty.is_none() {
            return Err(TrainError::OutOfRange {
                field: "penalty.weight",
                value: 0.0,
                requirement: "above 0 in the recipe, whose frequency the variants share",
            });
        }
        self.recipe.validate()
    }
}

/// One trained model.
#[derive(Clone, Debug, Serialize)]
pub struct LmVariant {
    /// The weight `gamma` of the penalty.
    pub weight: f64,
    /// Seconds of training.
    pub training_seconds: f64,
    /// Perplexity with each budget, in the order of [`LmComparison::budgets`].
    pub perplexity: Vec<f64>,
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

impl LmVariant {
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
pub struct LmComparisonResult {
    /// One entry per weight.
    pub variants: Vec<LmVariant>,
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
pub fn compare(
    options: &LmComparison,
    say: &mut dyn FnMut(&str),
) -> Result<LmComparisonResult, TrainError> {
    options.validate()?;
    files::create_folder(&options.folder)?;
    let mut variants = Vec::new();
    for weight in &options.weights {
        say(&format!("training with gamma {weight}"));
        variants.push(variant(options, *weight, say)?);
    }
    let result = LmComparisonResult {
        claims: claims(&variants, &options.budgets),
        variants,
        budgets: options.budgets.clone(),
        report: options.folder.join("report.html"),
    };
    files::write_json(&options.folder.join("result.json"), &result)?;
    write_page(&result)?;
    Ok(result)
}

fn variant(
    options: &LmComparison,
    weight: f64,
    say: &mut dyn FnMut(&str),
) -> Result<LmVariant, TrainError> {
    let mut recipe = options.recipe.clone();
    recipe.penalty = match weight > 0.0 {
        true => recipe.penalty.map(|penalty| penalty.with_weight(weight)),
        false => None,
    };
    let path = options.folder.join(format!("gamma-{weight}"));
    let folder = RunFolder::new(path.clone());
    let train_options = TrainOptions {
        resume: folder.exists(),
        plain: true,
        ..TrainOptions::new(&options.device, path.clone())
    };
    let trained = train(recipe, &train_options)?;
    let (mut perplexity, mut converged) = (Vec::new(), Vec::new());
    for budget in &options.budgets {
        say(&format!(
            "evaluating gamma {weight} with {budget} evaluations"
        ));
        let eval = EvalOptions {
            max_steps: Some(*budget),
            probe: false,
            ..EvalOptions::new(&options.device)
        };
        let eval = evaluate_run(&path, &eval)?.eval;
        perplexity.push(eval.perplexity);
        let solves = eval.status.total().max(1) as f64;
        converged.push(eval.status.converged as f64 / solves);
    }
    let records = read_records(&path.join("metrics.jsonl"))?;
    let evaluations = records.iter().filter_map(|record| match record {
        Record::Eval(eval) => Some(eval.clone()),
        Record::Step(_) => None,
    });
    Ok(LmVariant {
        weight,
        training_seconds: trained.training_seconds,
        perplexity,
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
            let mean = |value: &dyn Fn(&crate::records::SolveRecord) -> f64| {
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

fn claims(variants: &[LmVariant], budgets: &[usize]) -> Vec<Claim> {
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
    let loss = |variant: &LmVariant| {
        let best = variant
            .perplexity
            .iter()
            .copied()
            .fold(f64::INFINITY, f64::min);
        variant.perplexity[hardest] / best
    };
    let radius = |variant: &LmVariant| variant.last().spectral_radius.unwrap_or(f64::NAN);
    let steps = |variant: &LmVariant| variant.last().steps.unwrap_or(f64::NAN);
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
                "a budget of {} evaluations costs less: perplexity over that of the best budget",
                budgets[hardest]
            ),
            loss(plain),
            loss(penalised),
        ),
    ]
}

fn write_page(result: &LmComparisonResult) -> Result<(), TrainError> {
    let mut body = String::from("<table><tr><th>held-out perplexity, evaluations allowed</th>");
    for budget in &result.budgets {
        body += &format!("<th>{budget}</th>");
    }
    body += "</tr>\n";
    for variant in &result.variants {
        body += &format!("<tr><th>{}</th>", variant.name());
        for perplexity in &variant.perplexity {
            body += &format!("<td>{perplexity:.2}</td>");
        }
        body += "</tr>\n";
    }
    body += "</table>\n";
    body += &claims_table(&result.claims);
    let curves = |points: &dyn Fn(&LmVariant) -> Vec<(f64, f64)>| -> Vec<Series> {
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
        budgets.zip(variant.perplexity.iter().copied()).collect()
    });
    let charts = [
        chart(
            "Perplexity against evaluations allowed",
            "evaluations",
            "perplexity",
            true,
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
            "Held-out perplexity",
            step,
            "perplexity",
            false,
            evaluated(&|e| Some(e.perplexity)),
        ),
    ];
    body += &report::figures(charts)?;
    report::write_page(
        &result.report,
        "The Jacobian penalty on a language model",
        &body,
    )
}
