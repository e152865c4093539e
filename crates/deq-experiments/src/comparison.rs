//! The penalty on a model: the same training with and without it, over several seeds.

use crate::claim::{Claim, Verdict, claims_table, mean, measured, spread};
use deq_core::GradientConfig;
use deq_jacreg::WeightSchedule;
use deq_train::records::{EvalRecord, Record, SolveRecord, StepRecord, read_records};
use deq_train::report::{self, Chart, NamedRun, Series, comparison_charts};
use deq_train::{
    EvalOptions, Measure, Network, Recipe, RecipeError, RunFolder, Start, Stopped, Task,
    TrainError, TrainOptions, evaluate, files, require, train,
};
use serde::Serialize;
use std::path::PathBuf;

/// What the paper reports of a task, printed beside what is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Evaluations of a training solve, forward.
    pub forward: &'static str,
    /// Products of a training solve, backward.
    pub backward: &'static str,
    /// The cost of a training.
    pub work: &'static str,
    /// What stopping the plain model early costs.
    pub early: &'static str,
    /// Both models with the evaluations that the penalised one needs.
    pub stopped: &'static str,
    /// Quality with all of them.
    pub quality: &'static str,
    /// What the penalty costs in quality there, as [`Measure::loss`] counts it.
    pub cost: f64,
    /// Trainings that diverged.
    pub diverged: &'static str,
}

impl Figures {
    /// Of the DEQ-Transformer on WikiText-103 (Bai et al. 2021, Tables 1, 4 and 5).
    pub const TEXT: Self = Self {
        forward: "30 without, 13 or 14 with it",
        backward: "35 without, 12 to 14 with it",
        work: "3.1 times the time of Transformer-XL without, 1.5 or 1.6 times with it",
        early: "perplexity 24.0 becomes 29.2 when the model without it is stopped at 12",
        stopped: "with 12: 29.2 without, 24.9 with it",
        quality: "perplexity 24.0 without, 24.5 (pre-norm) and 24.9 with it",
        cost: 24.9 / 24.0,
        diverged: "without it pre-norm, and post-norm with 15 evaluations",
    };

    /// Of MDEQ on CIFAR-10 (Bai et al. 2021, Tables 2 and 4).
    pub const IMAGES: Self = Self {
        forward: "17 without, 6 with it",
        backward: "20 without, 7 or 8 with it",
        work: "MDEQ on ImageNet: over 4 times the time of ResNet-101 without it",
        early: "93.6 % becomes 89.1 % when the model without it is stopped at 6",
        stopped: "with 6: 89.1 % without, 93.1 % with it",
        quality: "93.6 % without, 93.1 % with it",
        cost: 0.005,
        diverged: "none of those named",
    };
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Comparison<T: Task> {
    /// What is compared, for the title of the page.
    pub title: String,
    /// The training of an equilibrium that all variants share but for the weight of the penalty.
    pub recipe: Recipe<T>,
    /// The weights to compare, in any order; 0 is the plain model. The claims are of the largest
    /// against the smallest.
    pub weights: Vec<f64>,
    /// How many seeds each weight is trained with, from the recipe's on;
    /// [`Verdict::SEEDS`] for verdicts that can hold.
    pub seeds: u64,
    /// The steps that a training solve of the plain model may take, forward and backward; none for
    /// the recipe's. The paper gives it 30 where the penalised one has 12. Held-out solves keep the
    /// recipe's.
    pub plain_steps: Option<usize>,
    /// What the paper says.
    pub figures: Figures,
    /// The evaluations that a solve may make at inference.
    pub budgets: Vec<usize>,
    /// The device, by name.
    pub device: String,
    /// Where runs and results are written. Runs that are there go on where they stopped.
    pub folder: PathBuf,
}

impl<T: Task> Comparison<T> {
    fn validate(&self) -> Result<(), TrainError> {
        let steps = self.plain_steps.unwrap_or(1);
        let smallest = self.budgets.iter().copied().min();
        for (field, value, least, requirement) in [
            ("the number of weights", self.weights.len(), 2, "at least 2"),
            ("the number of budgets", self.budgets.len(), 1, "at least 1"),
            ("plain steps", steps, 1, "at least 1"),
            ("a budget", smallest.unwrap_or(1), 1, "at least 1"),
        ] {
            require(value >= least, field, value as f64, requirement)?;
        }
        let seeds = (1..=1000).contains(&self.seeds);
        require(seeds, "seeds", self.seeds as f64, "from 1 to 1,000")?;
        require_seeds(self.recipe.seed, self.seeds)?;
        for weight in &self.weights {
            let valid = weight.is_finite() && *weight >= 0.0;
            require(valid, "a weight", *weight, "a finite number of at least 0")?;
        }
        let plain = self.weights.iter().all(|weight| *weight <= 0.0);
        let valid = plain || self.recipe.penalty.is_some();
        let right = "above 0 in the recipe, whose frequency the variants share";
        require(valid, "penalty.weight", 0.0, right)?;
        let has_plain = self.weights.contains(&0.0);
        let valid = has_plain || self.plain_steps.is_none();
        let right = "left out where no weight is 0";
        require(valid, "plain steps", steps as f64, right)?;
        require_equilibrium(&self.recipe)?;
        let [steps, pretrain] = self.recipe.phases();
        match pretrain < steps {
            true => Ok(()),
            false => Err(RecipeError::NothingSolved { steps, pretrain }.into()),
        }
    }
}

/// That there are so many seeds from the first one on.
pub(crate) fn require_seeds(first: u64, seeds: u64) -> Result<(), RecipeError> {
    let valid = first.checked_add(seeds.saturating_sub(1)).is_some();
    require(
        valid,
        "seed",
        first as f64,
        "below 2^64 for the last run too",
    )
}

/// So many from the first one on; [`require_seeds`] has seen to it that they exist.
pub(crate) fn seeds(first: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| first + i)
}

/// That a comparison begins with an equilibrium.
pub(crate) fn require_equilibrium<T: Task>(recipe: &Recipe<T>) -> Result<(), RecipeError> {
    match recipe.network {
        Network::Equilibrium => Ok(()),
        network => Err(RecipeError::NotAnEquilibrium { network }),
    }
}

/// One weight with all its seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// The weight `gamma` of the penalty, where a schedule begins.
    pub weight: f64,
    /// A short name.
    pub name: String,
    /// One training per seed.
    pub runs: Vec<VariantRun>,
}

/// One trained model.
#[derive(Clone, Debug, Serialize)]
pub struct VariantRun {
    /// Its seed.
    pub seed: u64,
    /// Whether the loss stopped being a number. What was to be measured after training is then
    /// absent.
    pub diverged: bool,
    /// Seconds of training steps.
    pub training_seconds: f64,
    /// Evaluations of `f` and products with its Jacobian in an equilibrium step, those of the
    /// penalty included; the mean over training.
    pub work: f64,
    /// The measure with each budget, in the order of [`Comparison::budgets`].
    pub quality: Vec<f64>,
    /// The share of held-out solves that converged, with each budget.
    pub converged: Vec<f64>,
    /// Evaluations after every round, the last one after training.
    pub evaluations: Vec<EvalRecord>,
    /// Means over tenths of the equilibrium steps.
    pub course: Vec<CoursePoint>,
    /// The log of the training.
    #[serde(skip)]
    pub records: Vec<Record>,
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
    /// Steps per backward solve; NaN where the gradient solves nothing.
    pub backward_steps: f64,
    /// The share of backward solves that met the tolerance within the budget; NaN where the
    /// gradient solves nothing.
    pub backward_converged: f64,
}

impl VariantRun {
    /// A number of the last evaluation; NaN after a training that diverged.
    fn last(&self, value: impl Fn(&EvalRecord) -> Option<f64>) -> f64 {
        let last = self.evaluations.last().filter(|_| !self.diverged);
        last.and_then(value).unwrap_or(f64::NAN)
    }

    /// The mean of a number over the tenths of training, equally long but for the last.
    fn overall(&self, value: impl Fn(&CoursePoint) -> f64) -> f64 {
        mean(&self.course.iter().map(value).collect::<Vec<_>>())
    }

    /// A number of the last tenth of training; NaN if there is none.
    fn late(&self, value: impl Fn(&CoursePoint) -> f64) -> f64 {
        self.course.last().map_or(f64::NAN, value)
    }
}

impl Variant {
    /// A number of each seed.
    pub fn over_seeds(&self, value: impl Fn(&VariantRun) -> f64) -> Vec<f64> {
        self.runs.iter().map(value).collect()
    }

    /// A number of each seed that has it: a training that diverged has none of what is measured
    /// after training, and a gradient without a backward solve none of its steps.
    fn measured(&self, value: impl Fn(&VariantRun) -> f64) -> Vec<f64> {
        measured(self.over_seeds(value))
    }

    /// The measure with a budget, counted from 0, of each seed that did not diverge.
    fn qualities(&self, budget: usize) -> Vec<f64> {
        self.measured(|run| run.quality.get(budget).copied().unwrap_or(f64::NAN))
    }

    /// The mean of the measure with a budget, counted from 0, over the seeds that did not diverge;
    /// NaN if all did.
    pub fn mean_quality(&self, budget: usize) -> f64 {
        mean(&self.qualities(budget))
    }

    /// How many trainings diverged.
    pub fn diverged(&self) -> usize {
        self.runs.iter().filter(|run| run.diverged).count()
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
/// and judges the claims. A variant that is there goes on where it stopped; it must have been
/// trained by the same recipe. `say` hears what runs.
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
    let mut weights = options.weights.clone();
    weights.sort_by(f64::total_cmp);
    let mut variants = Vec::new();
    for weight in &weights {
        let mut runs = Vec::new();
        for seed in seeds(options.recipe.seed, options.seeds) {
            say(&format!("training with gamma {weight} and seed {seed}"));
            runs.push(run(options, *weight, seed, say)?);
        }
        variants.push(Variant {
            weight: *weight,
            name: name(options, *weight),
            runs,
        });
    }
    let measure = options.recipe.task.measure();
    let result = ComparisonResult {
        claims: claims(&measure, &variants, options),
        measure,
        variants,
        budgets: options.budgets.clone(),
        report: options.folder.join("report.html"),
    };
    files::write_json(&options.folder.join("result.json"), &result)?;
    write_page(&result, &options.title)?;
    Ok(result)
}

fn name<T: Task>(options: &Comparison<T>, weight: f64) -> String {
    let penalty = options.recipe.penalty.as_ref();
    let schedule = penalty.map(|penalty| &penalty.schedule);
    match schedule {
        Some(WeightSchedule::Controlled(config)) if weight > 0.0 => {
            format!("gamma from {weight} on, held at {} steps", config.target)
        }
        _ => format!("gamma {weight}"),
    }
}

fn run<T: Task>(
    options: &Comparison<T>,
    weight: f64,
    seed: u64,
    say: &mut dyn FnMut(&str),
) -> Result<VariantRun, TrainError> {
    let mut recipe = options.recipe.clone();
    recipe.seed = seed;
    recipe.penalty = match weight > 0.0 {
        true => recipe.penalty.map(|penalty| penalty.with_weight(weight)),
        false => None,
    };
    if let (None, Some(steps)) = (&recipe.penalty, options.plain_steps) {
        let stop = &mut recipe.deq.stop;
        recipe.deq.eval_stop.get_or_insert_with(|| stop.clone());
        *stop = stop.limited_to(steps);
        if let GradientConfig::Implicit(adjoint) = &mut recipe.deq.gradient {
            adjoint.stop = adjoint.stop.limited_to(steps);
        }
    }
    let path = options.folder.join(format!("gamma-{weight}"));
    let folder = RunFolder::new(path.join(format!("seed-{seed}")));
    let train_options = TrainOptions {
        start: Start::NewOrSame,
        plain: true,
        ..TrainOptions::new(&options.device, folder.path().to_owned())
    };
    let diverged = match train(recipe, &train_options) {
        Ok(_) => false,
        Err(TrainError::Stopped(Stopped::Diverged { .. })) => true,
        Err(error) => return Err(error),
    };
    let (mut quality, mut converged) = (Vec::new(), Vec::new());
    for budget in options.budgets.iter().filter(|_| !diverged) {
        say(&format!("evaluating with {budget} evaluations"));
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
    let steps = records.iter().filter_map(Record::as_step);
    let solved: Vec<&StepRecord> = steps
        .clone()
        .filter(|step| step.forward.is_some())
        .collect();
    Ok(VariantRun {
        seed,
        diverged,
        training_seconds: steps.map(|step| step.seconds).sum(),
        work: mean(&solved.iter().map(|step| work(step)).collect::<Vec<_>>()),
        quality,
        converged,
        evaluations: records
            .iter()
            .filter_map(Record::as_eval)
            .cloned()
            .collect(),
        course: course(&solved),
        records,
    })
}

fn work(step: &StepRecord) -> f64 {
    let backward = step.backward.as_ref().map_or(0, |solve| solve.nfe);
    let penalty = step.penalty.as_ref();
    let penalty = penalty.map_or(0, |penalty| penalty.nfe + penalty.products);
    (step.forward_nfe + backward + penalty) as f64
}

fn course(steps: &[&StepRecord]) -> Vec<CoursePoint> {
    type Solve = fn(&StepRecord) -> Option<&SolveRecord>;
    let forward: Solve = |step| step.forward.as_ref();
    let backward: Solve = |step| step.backward.as_ref();
    let point = |chunk: &[&StepRecord]| {
        let of = |solve: Solve, value: fn(&SolveRecord) -> f64| {
            let solves = chunk.iter().filter_map(|step| solve(step));
            mean(&solves.map(value).collect::<Vec<_>>())
        };
        let share = |solve: &SolveRecord| solve.converged().unwrap_or(0.0);
        CoursePoint {
            step: chunk[chunk.len() - 1].step,
            solver_steps: of(forward, |solve| solve.steps),
            converged: of(forward, share),
            residual: of(forward, |solve| solve.residual),
            backward_steps: of(backward, |solve| solve.steps),
            backward_converged: of(backward, share),
        }
    };
    let tenth = steps.len().div_ceil(10).max(1);
    steps.chunks(tenth).map(point).collect()
}

fn claims<T: Task>(measure: &Measure, variants: &[Variant], options: &Comparison<T>) -> Vec<Claim> {
    let [plain, .., penalised] = variants else {
        return Vec::new();
    };
    let mut claims = Vec::new();
    let mut smaller = |statement: &str,
                       paper: &'static str,
                       value: &dyn Fn(&VariantRun) -> f64,
                       text: &dyn Fn(f64) -> String| {
        let [without, with] = [plain, penalised].map(|variant| variant.measured(value));
        // Nothing is said of what was not measured.
        if !without.is_empty() && !with.is_empty() {
            claims.push(Claim {
                statement: statement.to_owned(),
                paper,
                here: beside([plain, penalised], [&without, &with], text),
                verdict: Verdict::below(&with, &without),
            });
        }
    };
    let steps = |steps: f64| format!("{steps:.1}");
    let share = |share: f64| format!("{:.1} %", 100.0 * share);
    // The smallest budget is the hardest; what counts is how much each model loses by it.
    let budgets = &options.budgets;
    let hardest = (0..budgets.len()).min_by_key(|index| budgets[*index]);
    let loss = |run: &VariantRun| match (hardest, run.diverged) {
        (Some(hardest), false) => measure.loss(run.quality[hardest], measure.best(&run.quality)),
        _ => f64::NAN,
    };
    let over = match measure {
        Measure::Share(_) => "below that of the best budget",
        _ => "as a multiple of that of the best budget",
    };
    let number = |number: f64| format!("{number:.3}");
    let figures = &options.figures;
    // Steps, and the share that ends without meeting the tolerance.
    type Solves = fn(&CoursePoint) -> [f64; 2];
    let forward: Solves = |point| [point.solver_steps, 1.0 - point.converged];
    let backward: Solves = |point| [point.backward_steps, 1.0 - point.backward_converged];
    for (name, paper, solves) in [
        ("forward", figures.forward, forward),
        ("backward", figures.backward, backward),
    ] {
        let statement = format!("late in training, {name} solves take fewer steps");
        smaller(&statement, paper, &|run| run.late(|p| solves(p)[0]), &steps);
        let statement = "and fewer of them end without meeting the tolerance";
        smaller(statement, "", &|run| run.late(|p| solves(p)[1]), &share);
    }
    let statement = "over all of training, fewer forward solves end without meeting the tolerance";
    smaller(statement, "", &|run| run.overall(|p| forward(p)[1]), &share);
    let statement = "and fewer backward solves";
    smaller(
        statement,
        "",
        &|run| run.overall(|p| backward(p)[1]),
        &share,
    );
    let statement = "over all of training, a step needs fewer evaluations and products, the \
                     penalty's included";
    smaller(statement, figures.work, &|run| run.work, &steps);
    let statement = "held-out solves to tolerance take fewer steps";
    let held_out = |run: &VariantRun| run.last(|eval| eval.steps);
    smaller(statement, figures.forward, &held_out, &steps);
    let statement = "the spectral radius at the equilibrium is smaller";
    let radius = |run: &VariantRun| run.last(|eval| eval.spectral_radius);
    smaller(statement, "", &radius, &number);
    let statement = format!(
        "a budget of {} evaluations at inference costs less: {} with it, {over}",
        hardest.map_or(0, |index| budgets[index]),
        measure.name(),
    );
    smaller(&statement, figures.early, &loss, &number);
    claims.extend(stopped(measure, plain, penalised, options));
    claims.push(quality(measure, plain, penalised, figures));
    claims.push(stability(plain, penalised, figures));
    claims
}

/// The numbers of two variants, over their seeds.
fn beside(
    variants: [&Variant; 2],
    numbers: [&[f64]; 2],
    text: impl Fn(f64) -> String + Copy,
) -> String {
    let [without, with] = numbers.map(|numbers| spread(numbers, text));
    let [plain, penalised] = variants.map(|variant| &variant.name);
    format!("{without} with {plain}, {with} with {penalised}")
}

/// That the plain model is the worse one when both are given what the penalised one needs: the
/// smallest budget with which none of its seeds loses more than a hundredth.
fn stopped<T: Task>(
    measure: &Measure,
    plain: &Variant,
    penalised: &Variant,
    options: &Comparison<T>,
) -> Option<Claim> {
    let unit = match measure {
        Measure::Share(_) => 0.0,
        Measure::Perplexity | Measure::Error(_) => 1.0,
    };
    let enough = |index: &usize| {
        let mut finished = penalised.runs.iter().filter(|run| !run.diverged);
        finished.all(|run| {
            let best = measure.best(&run.quality);
            let value = run.quality.get(*index);
            value.is_some_and(|value| measure.loss(*value, best) <= unit + 0.01)
        })
    };
    let budgets = (0..options.budgets.len()).filter(enough);
    let index = budgets.min_by_key(|index| options.budgets[*index])?;
    let [without, with] = [plain, penalised].map(|variant| variant.qualities(index));
    if without.is_empty() || with.is_empty() {
        return None;
    }
    let text = |value| measure.text(value);
    Some(Claim {
        statement: format!(
            "with the {} evaluations that the penalised model needs, it is the better one",
            options.budgets[index]
        ),
        paper: options.figures.stopped,
        here: beside([plain, penalised], [&without, &with], text),
        verdict: match measure.higher_is_better() {
            true => Verdict::below(&without, &with),
            false => Verdict::below(&with, &without),
        },
    })
}

/// That the penalty costs no more quality than in the paper.
fn quality(measure: &Measure, plain: &Variant, penalised: &Variant, figures: &Figures) -> Claim {
    let best = |run: &VariantRun| match run.diverged {
        true => f64::NAN,
        false => measure.best(&run.quality),
    };
    let [without, with] = [plain, penalised].map(|variant| variant.over_seeds(best));
    // Each seed against the mean without the penalty, since a seed does not pair two trainings.
    let finished: Vec<f64> = without.iter().copied().filter(|v| v.is_finite()).collect();
    let reference = mean(&finished);
    let costs = with.iter().map(|value| measure.loss(*value, reference));
    let costs: Vec<f64> = costs.collect();
    let text = |value| measure.text(value);
    Claim {
        statement: format!(
            "the penalty costs no more {} than in the paper, with the best budget",
            measure.name()
        ),
        paper: figures.quality,
        here: beside([plain, penalised], [&without, &with], text),
        verdict: match finished.is_empty() {
            // Nothing is lost against trainings that all diverge.
            true => stability(plain, penalised, figures).verdict,
            false => Verdict::at_most(&costs, figures.cost),
        },
    }
}

/// That no training with the penalty diverges.
fn stability(plain: &Variant, penalised: &Variant, figures: &Figures) -> Claim {
    let diverged = |run: &VariantRun| f64::from(u8::from(run.diverged));
    let count = |variant: &Variant| {
        let (diverged, all) = (variant.diverged(), variant.runs.len());
        format!("{diverged} of {all} with {}", variant.name)
    };
    Claim {
        statement: "no training with the penalty diverges".to_owned(),
        paper: figures.diverged,
        here: format!("{}, {}", count(plain), count(penalised)),
        verdict: Verdict::at_most(&penalised.over_seeds(diverged), 0.0),
    }
}

fn write_page(result: &ComparisonResult, title: &str) -> Result<(), TrainError> {
    let measure = &result.measure;
    let first = format!("held-out {}, evaluations allowed", measure.name());
    let budgets = result.budgets.iter().map(usize::to_string);
    let header: Vec<String> = std::iter::once(first).chain(budgets).collect();
    let row = |variant: &Variant| {
        let values = (0..result.budgets.len())
            .map(|budget| spread(&variant.qualities(budget), |value| measure.text(value)));
        let name = std::iter::once(variant.name.clone());
        name.chain(values).collect::<Vec<_>>()
    };
    let mut body = report::table(&header, result.variants.iter().map(row));
    body += &claims_table(&result.claims);
    let runs = || {
        let variants = result.variants.iter();
        variants.flat_map(|variant| variant.runs.iter().map(move |run| (variant, run)))
    };
    let name = |variant: &Variant, run: &VariantRun| format!("{}, seed {}", variant.name, run.seed);
    let by_budget = runs().map(|(variant, run)| {
        let budgets = result.budgets.iter().map(|budget| *budget as f64);
        Series::new(name(variant, run), budgets.zip(run.quality.iter().copied()))
    });
    let by_budget = Chart::new(
        "Quality against evaluations allowed",
        ["evaluations", measure.name()],
        !measure.higher_is_better(),
        by_budget.collect(),
    );
    let logs = runs().map(|(variant, run)| NamedRun {
        name: name(variant, run),
        records: run.records.clone(),
    });
    let over_training = comparison_charts(&logs.collect::<Vec<_>>());
    body += &report::figures(std::iter::once(by_budget).chain(over_training))?;
    report::write_page(
        &result.report,
        &format!("The Jacobian penalty on {title}"),
        &body,
    )
}
