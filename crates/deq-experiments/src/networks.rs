//! An equilibrium model beside explicit networks: equal parameters, and equal time or equal steps.

mod contender;

pub use contender::{Contender, Equilibrium, Gradient, UnknownContender};

use crate::claim::{Claim, Verdict, claims_table, measured, spread};
use crate::comparison::{require_equilibrium, require_seeds, seeds};
use burn::module::Module;
use deq_core::GradientConfig;
use deq_train::records::{Record, StepRecord, read_records};
use deq_train::report::{self, Chart, Series};
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{
    Measure, Network, Opening, Recipe, RecipeError, RunError, RunFolder, Start, StepMemory,
    Stopped, Task, TrainError, TrainOptions, affordable_steps, device, evaluation_seconds, files,
    require, step_memory, train, without_tolerance,
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt::{Display, Formatter};
use std::path::PathBuf;

/// How long every network is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Minutes of training. Steps are chosen before training from the time of a few steps whose
    /// solves use up their whole budget, or half of what it leaves above the target of a controller
    /// of the penalty; a network whose solves end earlier is done earlier.
    Minutes(f64),
    /// Training steps.
    Steps(usize),
}

impl Display for Length {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Minutes(minutes) => write!(f, "{minutes} minutes"),
            Self::Steps(steps) => write!(f, "{steps} steps"),
        }
    }
}

/// The network of layers with weights of their own that an equilibrium model is compared with.
#[derive(Clone, Debug)]
pub struct ExplicitNetwork<T: Task> {
    /// A short name.
    pub name: &'static str,
    /// How it is trained; the steps are chosen later.
    pub recipe: Recipe<T>,
    /// What the papers report of the equilibrium model beside such a network.
    pub paper: &'static str,
}

impl ExplicitNetwork<TextTask> {
    /// A Transformer-XL with data, width, optimizer and schedule of `recipe`, whose inner width
    /// makes its parameters as many. Opens the data, whose vocabulary counts.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if the data cannot be opened, `device` is unknown, or attention alone in
    /// `layers` layers exceeds the parameters of the DEQ.
    pub fn transformer_xl(
        recipe: &Recipe<TextTask>,
        layers: usize,
        device: &str,
    ) -> Result<Self, TrainError> {
        require_count("layers", layers)?;
        let mut recipe = recipe.clone();
        drop(recipe.task.open(&Opening::default())?);
        recipe.task.model.d_inner = matching_width(&recipe, layers, device)?;
        Ok(Self {
            name: "transformer-xl",
            recipe: explicit(&recipe, Network::Layers { depth: layers }),
            paper: "perplexity 23.2 against 23.6 of Transformer-XL (Bai et al. 2019)",
        })
    }
}

impl ExplicitNetwork<ImagesTask> {
    /// A ResNet with data, optimizer and schedule of `recipe`, whose width brings its parameters
    /// nearest to those of the equilibrium model.
    ///
    /// # Errors
    ///
    /// [`TrainError`] if there is no ResNet of so many layers, or pixels are classified.
    pub fn resnet(recipe: &Recipe<ImagesTask>, layers: usize) -> Result<Self, TrainError> {
        let mut recipe = explicit(recipe, Network::Layers { depth: layers });
        recipe.task.prepare(recipe.network)?;
        Ok(Self {
            name: "resnet",
            recipe,
            paper: "accuracy on CIFAR-10 93.6 % without and 93.1 % with the penalty against 93.0 % \
                    of ResNet-18 (Bai et al. 2021)",
        })
    }
}

/// The same training of an explicit network.
fn explicit<T: Task>(recipe: &Recipe<T>, network: Network) -> Recipe<T> {
    let mut recipe = recipe.clone();
    recipe.make_explicit(network);
    recipe
}

/// What to compare, and for how long.
#[derive(Clone, Debug)]
pub struct NetworkComparison<T: Task> {
    /// What is compared, for the title of the page.
    pub title: String,
    /// The equilibrium with its penalty; all others share data, widths, optimizer, and schedule.
    pub recipe: Recipe<T>,
    /// How long each network is trained.
    pub length: Length,
    /// The networks that are trained, such as [`Contender::DEFAULT`]. One named twice is trained
    /// once; a claim is judged if both of its sides are there.
    pub contenders: Vec<Contender>,
    /// How many seeds each network is trained with, from the recipe's on;
    /// [`Verdict::SEEDS`] for verdicts that can hold.
    pub seeds: u64,
    /// Applications of the cell in the weight-tied network.
    pub tied_depth: usize,
    /// The network of layers with weights of their own, where [`Contender::Layers`] is compared.
    pub layers: Option<ExplicitNetwork<T>>,
    /// The device, by name.
    pub device: String,
    /// Where runs and results are written. Runs that are there go on where they stopped; they must
    /// have been trained by the same recipe for as long.
    pub folder: PathBuf,
    /// How the process knows its peak of memory; none leaves memory out.
    pub memory: Option<StepMemory>,
}

/// One trained network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkResult {
    /// The contender; of [`Contender::Layers`] the name of these layers.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// Whether its loss or a parameter stopped being a number. What was to be measured after
    /// training is then absent, and claims count its quality as the worst there is.
    pub diverged: bool,
    /// Parameters; absent if it diverged.
    pub parameters: Option<usize>,
    /// Training steps.
    pub steps: usize,
    /// Seconds of training steps with all that belongs to them, without the evaluations between
    /// them.
    pub training_seconds: f64,
    /// Quality on the whole valid split.
    pub quality: Option<f64>,
    /// Applications of the cell or of layers for a batch of the valid split.
    pub evaluations: Option<f64>,
    /// The same in a training step, mean over the second half of training: forward, and
    /// vector-Jacobian products backward.
    pub training_evaluations: [f64; 2],
    /// The share of solves of the valid split that converged; absent for explicit networks.
    pub converged: Option<f64>,
    /// The most bytes of heap that a training step holds beside the model and its data.
    pub step_bytes: Option<usize>,
    /// Quality on the part of the valid split that is evaluated after each round, on all of it
    /// after the last, by minutes of training.
    pub course: Vec<(f64, f64)>,
}

impl NetworkResult {
    /// Its quality as it is shown.
    pub fn quality_text(&self, measure: &Measure) -> String {
        self.quality
            .map_or("diverged".to_owned(), |quality| measure.text(quality))
    }
}

/// The memory of a training step by depth.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryByDepth {
    /// Most steps of the forward and backward solves; applications of the weight-tied cell.
    pub depth: usize,
    /// Bytes with the equilibrium.
    pub equilibrium: usize,
    /// Bytes with the explicit network.
    pub tied: usize,
}

/// All networks.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkComparisonResult {
    /// What quality is.
    pub measure: Measure,
    /// One entry for each network and seed.
    pub networks: Vec<NetworkResult>,
    /// Memory at several depths; empty if memory was not measured, or there is no DEQ or no
    /// weight-tied network.
    pub memory: Vec<MemoryByDepth>,
    /// What the papers say, and whether it holds here.
    pub claims: Vec<Claim>,
    /// The page with tables and curves.
    pub report: PathBuf,
}

/// Trains every network, measures it, writes `result.json` and `report.html`. `say` hears what
/// runs.
///
/// # Errors
///
/// [`TrainError`] if the recipe or a number is wrong, or a run fails.
pub fn compare_networks<T: Task>(
    options: &NetworkComparison<T>,
    say: &mut dyn FnMut(&str),
) -> Result<NetworkComparisonResult, TrainError> {
    match options.length {
        Length::Minutes(minutes) => require(
            minutes > 0.0 && minutes <= 1e6,
            "minutes",
            minutes,
            "above 0 and at most 1,000,000",
        )?,
        Length::Steps(steps) => require(
            (1..=1_000_000).contains(&steps),
            "steps",
            steps as f64,
            "from 1 to 1,000,000",
        )?,
    }
    require_count("tied depth", options.tied_depth)?;
    require_count("seeds", options.seeds as usize)?;
    require_seeds(options.recipe.seed, options.seeds)?;
    let mut contenders = options.contenders.clone();
    let mut seen = HashSet::new();
    contenders.retain(|contender| seen.insert(*contender));
    require_count("networks", contenders.len())?;
    require(
        options.recipe.penalty.is_some() || !contenders.iter().any(Contender::has_penalty),
        "penalty.weight",
        0.0,
        "above 0 in the recipe of a DEQ with the penalty",
    )?;
    require_equilibrium(&options.recipe)?;
    require(
        options.layers.is_some() || !contenders.contains(&Contender::Layers),
        "layers",
        0.0,
        "given where they are compared",
    )?;
    files::create_folder(&options.folder)?;
    require_length(options)?;

    let mut networks = Vec::new();
    for &contender in &contenders {
        for seed in seeds(options.recipe.seed, options.seeds) {
            networks.push(network(contender, seed, options, say)?);
        }
    }
    let both =
        contenders.iter().any(Contender::is_deq) && contenders.contains(&Contender::WeightTied);
    let memory = match &options.memory {
        Some(meter) if both => {
            say("measuring the memory of a training step by depth");
            memory_by_depth(options, meter)?
        }
        _ => Vec::new(),
    };
    let measure = options.recipe.task.measure();
    let result = NetworkComparisonResult {
        claims: claims(&measure, &networks, &memory, &contenders, options),
        measure,
        networks,
        memory,
        report: options.folder.join("report.html"),
    };
    files::write_json(&options.folder.join("result.json"), &result)?;
    write_page(&result, &options.title)?;
    Ok(result)
}

/// That the runs in the folder, if there are any, are of the same length.
fn require_length<T: Task>(options: &NetworkComparison<T>) -> Result<(), TrainError> {
    let path = options.folder.join("length.json");
    if !path.is_file() {
        return files::write_json(&path, &options.length);
    }
    let there: Length = files::read_json(&path, "length of a comparison")?;
    match there == options.length {
        true => Ok(()),
        false => Err(RunError::OtherRecipe {
            path: options.folder.clone(),
            field: "length".to_owned(),
            there: there.to_string(),
            here: options.length.to_string(),
        }
        .into()),
    }
}

fn require_count(field: &'static str, count: usize) -> Result<(), TrainError> {
    let valid = (1..=1000).contains(&count);
    Ok(require(valid, field, count as f64, "from 1 to 1,000")?)
}

/// The inner width with which the stack of layers has the parameters of the DEQ.
fn matching_width(
    recipe: &Recipe<TextTask>,
    layers: usize,
    device_name: &str,
) -> Result<usize, TrainError> {
    let plain = device(device_name)?;
    // The embedding is the same in both, so a small vocabulary tells the difference as well.
    let mut small = recipe.task.model.clone();
    small.vocab_size = small.cutoffs.last().map_or(1, |last| last + 1);
    let target = small.init(&plain)?.num_params();
    let with = |d_inner: usize| -> Result<usize, TrainError> {
        let config = deq_models::DeqTransformerLmConfig {
            d_inner,
            ..small.clone()
        };
        Ok(config.init_explicit(layers, &plain)?.num_params())
    };
    let (one, two) = (with(1)?, with(2)?);
    let width = target.saturating_sub(one) / (two - one) + 1;
    match target > one {
        true => Ok(width),
        false => Err(RecipeError::OutOfRange {
            field: "layers",
            value: layers as f64,
            requirement: "few enough that attention alone does not exceed the parameters of the DEQ",
        }
        .into()),
    }
}

/// As it is shown.
fn name<T: Task>(contender: Contender, options: &NetworkComparison<T>) -> String {
    match (contender, &options.layers) {
        (Contender::Layers, Some(layers)) => layers.name.to_owned(),
        _ => contender.to_string(),
    }
}

fn network<T: Task>(
    contender: Contender,
    seed: u64,
    options: &NetworkComparison<T>,
    say: &mut dyn FnMut(&str),
) -> Result<NetworkResult, TrainError> {
    let name = name(contender, options);
    let mut recipe = Recipe::<T> {
        seed,
        ..contender.recipe(options)
    };
    let path = options.folder.join(name.replace('+', "-"));
    let path = path.join(format!("seed-{seed}"));
    let folder = RunFolder::new(path.clone());
    let train_options = TrainOptions {
        start: Start::NewOrSame,
        plain: true,
        ..TrainOptions::new(&options.device, path.clone())
    };
    let steps = match options.length {
        Length::Steps(steps) => steps,
        // They were chosen when the run began.
        Length::Minutes(_) if folder.exists() => Recipe::<T>::of_run(&path)?.steps,
        Length::Minutes(minutes) => {
            say(&format!("{name}: choosing the number of steps"));
            affordable_steps(&recipe, minutes, &train_options)?
        }
    };
    recipe.scale_steps(steps);
    say(&format!(
        "{name}, seed {seed}: training for {} steps",
        recipe.steps
    ));
    let summary = match train(recipe.clone(), &train_options) {
        Ok(summary) => Some(summary),
        Err(TrainError::Stopped(Stopped::Diverged { .. })) => None,
        Err(error) => return Err(error),
    };
    let records = read_records(&folder.metrics())?;
    let steps: Vec<&StepRecord> = records.iter().filter_map(Record::as_step).collect();
    let late = &steps[steps.len() / 2..];
    let mean = |value: &dyn Fn(&StepRecord) -> usize| {
        late.iter().map(|step| value(step) as f64).sum::<f64>() / late.len().max(1) as f64
    };
    let step_bytes = match &options.memory {
        Some(meter) => Some(step_memory(&recipe, &options.device, meter)?),
        None => None,
    };
    let training_seconds = match &summary {
        Some(summary) => summary.training_seconds - evaluation_seconds(&records),
        None => steps.iter().map(|step| step.seconds).sum(),
    };
    let eval = summary.as_ref().map(|summary| &summary.eval);
    Ok(NetworkResult {
        name,
        seed,
        diverged: summary.is_none(),
        parameters: summary.as_ref().map(|summary| summary.parameters),
        steps: steps.len(),
        training_seconds,
        quality: eval.map(|eval| eval.quality.value),
        evaluations: eval.map(|eval| eval.nfe_per_solve),
        training_evaluations: [
            mean(&|step| step.forward_nfe),
            mean(&|step| step.backward.as_ref().map_or(0, |solve| solve.nfe)),
        ],
        converged: eval.and_then(|eval| eval.converged()),
        step_bytes,
        course: course(&records),
    })
}

fn course(records: &[Record]) -> Vec<(f64, f64)> {
    let mut seconds = 0.0;
    let mut points = Vec::new();
    for record in records {
        match record {
            Record::Step(step) => seconds += step.seconds,
            Record::Eval(eval) => points.push((seconds / 60.0, eval.quality.value)),
            Record::Change(_) => {}
        }
    }
    points
}

fn memory_by_depth<T: Task>(
    options: &NetworkComparison<T>,
    meter: &StepMemory,
) -> Result<Vec<MemoryByDepth>, TrainError> {
    [6, 12, 24]
        .into_iter()
        .map(|depth| {
            let mut solved = options.recipe.clone();
            solved.penalty = None;
            // The whole budget is used.
            solved.deq = without_tolerance(solved.deq);
            solved.deq.budget_jitter = 0;
            solved.deq.stop = solved.deq.stop.limited_to(depth);
            if let GradientConfig::Implicit(adjoint) = &mut solved.deq.gradient {
                adjoint.stop = adjoint.stop.limited_to(depth);
            }
            let tied = explicit(&solved, Network::WeightTied { depth });
            Ok(MemoryByDepth {
                depth,
                equilibrium: step_memory(&solved, &options.device, meter)?,
                tied: step_memory(&tied, &options.device, meter)?,
            })
        })
        .collect()
}

fn claims<T: Task>(
    measure: &Measure,
    networks: &[NetworkResult],
    memory: &[MemoryByDepth],
    contenders: &[Contender],
    options: &NetworkComparison<T>,
) -> Vec<Claim> {
    // One number for each seed; none if the contender was not asked for.
    let of = |contender: Contender, value: &dyn Fn(&NetworkResult) -> f64| -> Vec<f64> {
        let name = name(contender, options);
        let named = networks.iter().filter(|network| network.name == name);
        named.map(value).collect()
    };
    let worst = match measure.higher_is_better() {
        true => 0.0,
        false => f64::INFINITY,
    };
    let quality = |contender| of(contender, &|network| network.quality.unwrap_or(worst));
    let failed = |network: &NetworkResult| 1.0 - network.converged.unwrap_or(f64::NAN);
    let measured = |contender| measured(of(contender, &failed));
    let share = |share| format!("{:.1} %", 100.0 * share);
    let text = |numbers: &[f64]| spread(numbers, |number| measure.text(number));
    let better = |ones: &[f64], others: &[f64]| match measure.higher_is_better() {
        true => Verdict::below(others, ones),
        false => Verdict::below(ones, others),
    };
    let equal = match options.length {
        Length::Minutes(_) => "time",
        Length::Steps(_) => "steps",
    };
    let mut claims = Vec::new();
    let [regularised, plain] = [Contender::DEQ_JR, Contender::DEQ].map(measured);
    if !regularised.is_empty() && !plain.is_empty() {
        claims.push(Claim {
            statement: "with the penalty fewer held-out solves end without meeting the tolerance \
                        (Bai et al. 2021)"
                .to_owned(),
            paper: "",
            here: format!(
                "{} without, {} with it",
                spread(&plain, share),
                spread(&regularised, share)
            ),
            verdict: Verdict::below(&regularised, &plain),
        });
    }
    let paper = options.layers.as_ref().map_or("", |layers| layers.paper);
    let explicit = [(Contender::Layers, paper), (Contender::WeightTied, "")];
    for (other, paper) in explicit {
        let others = quality(other);
        if others.is_empty() {
            continue;
        }
        let other = name(other, options);
        for &contender in contenders.iter().filter(|one| one.is_deq()) {
            let ones = quality(contender);
            claims.push(Claim {
                statement: format!(
                    "{contender} is better than {other} with as many parameters after equal {equal}"
                ),
                paper,
                here: format!(
                    "{} {} of {contender}, {} of {other}",
                    measure.name(),
                    text(&ones),
                    text(&others)
                ),
                verdict: better(&ones, &others),
            });
        }
    }
    if let [first, .., last] = memory {
        let growth = |a: usize, b: usize| b as f64 / a as f64;
        let flat = growth(first.equilibrium, last.equilibrium);
        let tied = growth(first.tied, last.tied);
        claims.push(Claim {
            statement: "training memory does not grow with depth (Bai et al. 2019): less than a \
                        tenth"
                .to_owned(),
            paper: "3.7 GB against 9.0 GB of Transformer-XL",
            here: format!(
                "from {} to {} steps {flat:.2} times, the weight-tied network {tied:.2} times",
                first.depth, last.depth
            ),
            verdict: Verdict::exact(flat < 1.1),
        });
    }
    claims
}

fn write_page(result: &NetworkComparisonResult, title: &str) -> Result<(), TrainError> {
    let measure = &result.measure;
    let header = [
        "network",
        measure.name(),
        "parameters",
        "minutes",
        "steps",
        "ms per step",
        "evaluations, held out",
        "in training, forward + backward",
        "converged",
        "MB per step",
    ];
    let share = |share: f64| format!("{:.0} %", 100.0 * share);
    let row = |network: &NetworkResult| {
        let [forward, backward] = network.training_evaluations;
        vec![
            format!("{}, seed {}", network.name, network.seed),
            network.quality_text(measure),
            network
                .parameters
                .map_or(String::new(), |count| count.to_string()),
            format!("{:.1}", network.training_seconds / 60.0),
            network.steps.to_string(),
            format!(
                "{:.0}",
                1e3 * network.training_seconds / network.steps.max(1) as f64
            ),
            (network.evaluations).map_or(String::new(), |count| format!("{count:.1}")),
            format!("{forward:.1} + {backward:.1}"),
            network.converged.map_or(String::new(), share),
            network.step_bytes.map_or(String::new(), megabytes),
        ]
    };
    let rows: Vec<Vec<String>> = result.networks.iter().map(row).collect();
    let mut body = report::table(&header.map(str::to_owned), &rows);
    if !result.memory.is_empty() {
        let header = ["MB per step at depth", "equilibrium", "weight-tied"].map(str::to_owned);
        let row = |row: &MemoryByDepth| {
            let bytes = [row.equilibrium, row.tied].map(megabytes);
            [vec![row.depth.to_string()], bytes.to_vec()].concat()
        };
        let rows: Vec<Vec<String>> = result.memory.iter().map(row).collect();
        body += &report::table(&header, &rows);
    }
    body += &claims_table(&result.claims);
    let networks = result.networks.iter();
    let series = networks.map(|network| {
        let name = format!("{}, seed {}", network.name, network.seed);
        Series::new(name, network.course.clone())
    });
    body += &report::figures([Chart::new(
        "Quality on held-out data",
        ["minutes of training steps", measure.name()],
        !measure.higher_is_better(),
        series.collect(),
    )])?;
    report::write_page(
        &result.report,
        &format!("{title} beside explicit networks"),
        &body,
    )
}

/// Bytes in units of 10^6.
pub fn megabytes(bytes: usize) -> String {
    format!("{:.0}", bytes as f64 / 1e6)
}
