//! The penalty on a model: the same training with and without it.

use crate::{Claim, claims_table};
use deq_train::records::{EvalRecord, Record, SolveRecord, StepRecord, read_records};
use deq_train::report::{self, Chart, Series};
use deq_train::{
    EvalOptions, Measure, Recipe, RecipeError, RunFolder, Start, Task, TrainError, TrainOptions,
    evaluate, files, require, train,
};
use serde::Serialize;
use std::path::PathBuf;

/// What to run.
#[derive(Clone, Debug)]
pub struct Comparison<T: Task> {
    /// What is compared, for the title of the page.
    pub title: String,
    /// The training that all variants share but for the weight of the penalty.
    pub recipe: Recipe<T>,
    /// The weights to compare. A first one of 0 is the plain model.
    pub weights: Vec<f64>,
    /// The evaluations that a solve may make at inference.
    pub budgets: Vec<usize>,
    /// The device, by name.
    pub device: String,
    /// Where runs and results are written. Runs that are there and complete are used as they are.
    pub folder: PathBuf,
}

impl<T: Task> Comparison<T> {
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
        require(
            self.recipe.penalty.is_some() || self.weights.iter().all(|weight| *weight <= 0.0),
            "penalty.weight",
            0.0,
            "above 0 in the recipe, whose frequency the variants share",
        )?;
        let [steps, pretrain] = self.recipe.phases();
        match pretrain < steps {
            true => Ok(()),
            false => Err(RecipeError::NothingSolved { steps, pretrain }.into()),
        }
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

/// Trains every variant, evaluates it with every budget, writes `result.json` and `report.html`,
/// and judges the claims. A variant that was interrupted goes on where it stopped. `say` hears what
/// runs.
///
/// # Errors
///
/// [`TrainError`] if the recipe or a number is wrong, fewer than two weights or no budget is given,
/// or a run fails.
pub fn compare<T: Task>(
    options: &Comparison<T>,
    say: &mut dyn FnMut(&str),
) -> Result<ComparisonResult, TrainError> {
    options.validate()?;
    files::create_folder(&options.folder)?;
    let mut variants = Vec::new();
    for weight in &options.weights {
        say(&format!("training with gamma {weight}"));
        variants.push(variant(options, *weight, say)?);
    }
    let measure = options.recipe.task.measure();
    let result = ComparisonResult {
        claims: claims(&measure, &variants, &options.budgets),
        measure,
        variants,
        budgets: options.budgets.clone(),
        report: options.folder.join("report.html"),
    };
    files::write_json(&options.folder.join("result.json"), &result)?;
    write_page(&result, &options.title)?;
    Ok(result)
}

fn variant<T: Task>(
    options: &Comparison<T>,
    weight: f64,
    say: &mut dyn FnMut(&str),
) -> Result<Variant, TrainError> {
    let mut recipe = options.recipe.clone();
    recipe.penalty = match weight > 0.0 {
        true => recipe.penalty.map(|penalty| penalty.with_weight(weight)),
        false => None,
    };
    let folder = RunFolder::new(options.folder.join(format!("gamma-{weight}")));
    let start = match folder.exists() {
        true => Start::Resume,
        false => Start::New,
    };
    let train_options = TrainOptions {
        start,
        plain: true,
        ..TrainOptions::new(&options.device, folder.path().to_owned())
    };
    let training_seconds = train(recipe, &train_options)?.training_seconds;
    let (mut quality, mut converged) = (Vec::new(), Vec::new());
    for budget in &options.budgets {
        say(&format!(
            "evaluating gamma {weight} with {budget} evaluations"
        ));
        let eval_options = EvalOptions {
            max_steps: Some(*budget),
            probe: false,
            ..EvalOptions::new(&options.device)
        };
        let eval = evaluate::<T>(folder.path(), &eval_options)?.eval;
        converged.push(eval.converged().unwrap_or(0.0));
        quality.push(eval.quality.value);
    }
    let records = read_records(&folder.metrics())?;
    let evaluations = records.iter().filter_map(Record::as_eval).cloned();
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
        .filter_map(Record::as_step)
        .filter(|step| step.forward.is_some())
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

fn claims(measure: &Measure, variants: &[Variant], budgets: &[usize]) -> Vec<Claim> {
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
                    Measure::Share(_) => "below",
                    _ => "over",
                }
            ),
            loss(plain),
            loss(penalised),
        ),
    ]
}

fn write_page(result: &ComparisonResult, title: &str) -> Result<(), TrainError> {
    let measure = &result.measure;
    let first = format!("held-out {}, evaluations allowed", measure.name());
    let budgets = result.budgets.iter().map(usize::to_string);
    let header: Vec<String> = std::iter::once(first).chain(budgets).collect();
    let row = |variant: &Variant| {
        let values = variant.quality.iter().map(|value| measure.text(*value));
        std::iter::once(variant.name()).chain(values).collect()
    };
    let rows: Vec<Vec<String>> = result.variants.iter().map(row).collect();
    let mut body = report::table(&header, &rows);
    body += &claims_table(&result.claims);
    let curves = |points: &dyn Fn(&Variant) -> Vec<(f64, f64)>| -> Vec<Series> {
        let series = result.variants.iter();
        series
            .map(|variant| Series::new(variant.name(), points(variant)))
            .collect()
    };
    let axes = |y| ["training step", y];
    let course = |title: &str, y, log, value: &dyn Fn(&CoursePoint) -> f64| {
        let points = |variant: &Variant| {
            let course = variant.course.iter();
            course.map(|p| (p.step as f64, value(p))).collect()
        };
        Chart::new(title, axes(y), log, curves(&points))
    };
    let evaluated = |title: &str, y, value: &dyn Fn(&EvalRecord) -> Option<f64>| {
        let points = |variant: &Variant| {
            let evaluations = variant.evaluations.iter();
            evaluations
                .filter_map(|e| Some((e.step as f64, value(e)?)))
                .collect()
        };
        Chart::new(title, axes(y), false, curves(&points))
    };
    let by_budget = curves(&|variant| {
        let budgets = result.budgets.iter().map(|budget| *budget as f64);
        budgets.zip(variant.quality.iter().copied()).collect()
    });
    let charts = [
        Chart::new(
            "Quality against evaluations allowed",
            ["evaluations", measure.name()],
            !measure.higher_is_better(),
            by_budget,
        ),
        course("Steps per training solve", "steps", false, &|p| {
            p.solver_steps
        }),
        course("Training solves that converged", "share", false, &|p| {
            p.converged
        }),
        evaluated("Steps of held-out solves to tolerance", "steps", &|e| {
            e.steps
        }),
        course(
            "Residual of training solves",
            "relative residual",
            true,
            &|p| p.residual,
        ),
        evaluated("Spectral radius", "spectral radius", &|e| e.spectral_radius),
        evaluated("Quality over training", measure.name(), &|e| {
            Some(e.quality.value)
        }),
    ];
    body += &report::figures(charts)?;
    report::write_page(
        &result.report,
        &format!("The Jacobian penalty on {title}"),
        &body,
    )
}
