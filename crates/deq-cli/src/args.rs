//! What the command accepts.

use clap::{Args, Parser, Subcommand};
use deq_data::{ImageSource, Level};
use std::path::PathBuf;

/// Train, evaluate and inspect deep equilibrium models.
#[derive(Parser)]
#[command(name = "deq", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Train a model.
    Train {
        #[command(subcommand)]
        what: Trainee,
    },
    /// Run a claim of the paper on Jacobian regularisation again and say whether it holds.
    Reproduce {
        #[command(subcommand)]
        what: Experiment,
    },
    /// Measure the newest checkpoint of a run: perplexity, accuracy or IoU, evaluations per solve, residual, spectral radius.
    Eval(EvalArgs),
    /// Apply a run on pictures to pictures: likeliest classes, or a picture coloured by class.
    Predict(PredictArgs),
}

#[derive(Subcommand)]
pub(crate) enum Experiment {
    /// A regression in one dimension with and without the penalty, and with weight decay in its place.
    JacregSynthetic(SyntheticArgs),
    /// A language model trained with different weights of the penalty and evaluated with different budgets.
    JacregLm(ReproduceLmArgs),
    /// A multiscale model on pictures trained with and without the penalty and evaluated with different budgets.
    JacregVision(ReproduceVisionArgs),
}

#[derive(Args)]
pub(crate) struct ReproduceVisionArgs {
    /// Pictures: shapes (generated), cifar10:PATH, or imagefolder:PATH.
    #[arg(long, default_value = "shapes")]
    pub(crate) data: ImageSource,
    /// Recipe to start from: mini, cifar10-tiny, cifar10-large or cifar10-large-jr.
    #[arg(long, default_value = "mini")]
    pub(crate) preset: String,
    /// Rounds; each ends with an evaluation.
    #[arg(long)]
    pub(crate) epochs: Option<usize>,
    /// Training steps of a round. Default: the preset's.
    #[arg(long)]
    pub(crate) steps_per_epoch: Option<usize>,
    /// Steps of unrolled pre-training.
    #[arg(long)]
    pub(crate) pretrain: Option<usize>,
    /// Weights of the penalty to compare.
    #[arg(
        long,
        value_delimiter = ',',
        allow_negative_numbers = true,
        default_value = "0,0.5"
    )]
    pub(crate) weights: Vec<f64>,
    /// Share of steps that apply the penalty.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) penalty_frequency: Option<f64>,
    /// Evaluations allowed at inference.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,5,6,8,12,20")]
    pub(crate) budgets: Vec<usize>,
    /// Seed of weights, order, dropout masks and penalty draws.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Folder of the runs and the results. Give it again to go on after an interruption.
    #[arg(long, value_name = "FOLDER", default_value = "runs/jacreg-vision")]
    pub(crate) folder: PathBuf,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ReproduceLmArgs {
    /// Recipe to start from: tiny (built-in text) or wt2 (WikiText-2). Default: tiny, or wt2 with --data.
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Folder with train.txt, valid.txt and test.txt, or one text file. Default: the built-in handbook.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Training steps. Default: the preset's.
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Weights of the penalty to compare.
    #[arg(
        long,
        value_delimiter = ',',
        allow_negative_numbers = true,
        default_value = "0,0.5,1.6"
    )]
    pub(crate) weights: Vec<f64>,
    /// Evaluations allowed at inference.
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,6,8,12,16,20,30")]
    pub(crate) budgets: Vec<usize>,
    /// Seed of weights, dropout masks and penalty draws.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Folder of the runs and the results. Give it again to go on after an interruption.
    #[arg(long, value_name = "FOLDER", default_value = "runs/jacreg-lm")]
    pub(crate) folder: PathBuf,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct SyntheticArgs {
    /// Seeds, each of which trains six models.
    #[arg(long, default_value_t = 3)]
    pub(crate) seeds: u64,
    /// Passes over the 4096 training points; the paper has 50.
    #[arg(long, default_value_t = 50)]
    pub(crate) epochs: usize,
    /// Folder of the results.
    #[arg(long, value_name = "FOLDER", default_value = "runs/jacreg-synthetic")]
    pub(crate) folder: PathBuf,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
pub(crate) enum Trainee {
    /// A DEQ-Transformer language model.
    Lm(Box<LmArgs>),
    /// A multiscale DEQ that classifies or segments pictures.
    Mdeq(Box<MdeqArgs>),
}

/// Which network is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ModelKind {
    /// The multiscale DEQ.
    Mdeq,
    /// A ResNet with about as many parameters.
    Resnet,
}

#[derive(Args)]
pub(crate) struct MdeqArgs {
    /// Pictures: shapes, shapes-segmentation (both generated), cifar10:PATH, imagefolder:PATH or segmentation:PATH.
    #[arg(long, default_value = "shapes")]
    pub(crate) data: ImageSource,
    /// Recipe to start from: mini, cifar10-tiny, cifar10-large or cifar10-large-jr.
    #[arg(long, default_value = "mini")]
    pub(crate) preset: String,
    /// Network to train.
    #[arg(long, value_enum, default_value = "mdeq")]
    pub(crate) model: ModelKind,
    /// Folder of the run. Default: the first free runs/mdeq-PRESET, or with --resume the newest.
    #[arg(long, visible_alias = "out", value_name = "FOLDER")]
    pub(crate) run: Option<PathBuf>,
    /// Continue from the last checkpoint of the run.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Device to train on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Rounds; each ends with an evaluation and a checkpoint.
    #[arg(long)]
    pub(crate) epochs: Option<usize>,
    /// Training steps of a round. Default: a pass over the training pictures.
    #[arg(long)]
    pub(crate) steps_per_epoch: Option<usize>,
    /// Steps of unrolled pre-training.
    #[arg(long)]
    pub(crate) pretrain: Option<usize>,
    /// Pictures in a batch.
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Peak learning rate.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) lr: Option<f64>,
    /// Weight of the Jacobian penalty; 0 turns it off.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) penalty: Option<f64>,
    /// Share of steps that apply the penalty.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) penalty_frequency: Option<f64>,
    /// Move the weight of the penalty so that a training solve takes so many steps on average; it begins at --penalty.
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    pub(crate) hold_steps: Option<f64>,
    /// Most steps of a forward solve in training.
    #[arg(long)]
    pub(crate) solver_steps: Option<usize>,
    /// Threads that make training batches ahead of time.
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: usize,
    /// Seed of weights, order, augmentation, dropout masks and penalty draws.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Print progress as lines even on a terminal.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Print the summary as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct PredictArgs {
    /// Folder of the run.
    pub(crate) run: PathBuf,
    /// JPEG or PNG files.
    #[arg(required = true)]
    pub(crate) pictures: Vec<PathBuf>,
    /// Folder of the coloured pictures of a segmentation. Default: beside each picture.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Most steps of a solve. Default: the run's.
    #[arg(long, value_name = "STEPS")]
    pub(crate) max_steps: Option<usize>,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct LmArgs {
    /// Recipe to start from: tiny (built-in text) or wt2 (WikiText-2). Default: tiny, or wt2 with --data.
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Folder with train.txt, valid.txt and test.txt, or one text file. Default: the built-in handbook.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// What a token is: byte or word. Default: the preset's.
    #[arg(long)]
    pub(crate) level: Option<Level>,
    /// Folder of the run. Default: the first free runs/lm-PRESET, or with --resume the newest.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) run: Option<PathBuf>,
    /// Continue from the last checkpoint of the run.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Device to train on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Training steps.
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Rounds that the steps are divided into; each ends with an evaluation and a checkpoint.
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Steps of unrolled pre-training.
    #[arg(long)]
    pub(crate) pretrain: Option<usize>,
    /// Parallel streams of text.
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Peak learning rate.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) lr: Option<f64>,
    /// Weight of the Jacobian penalty; 0 turns it off.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) penalty: Option<f64>,
    /// Share of steps that apply the penalty.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) penalty_frequency: Option<f64>,
    /// Move the weight of the penalty so that a training solve takes so many steps on average; it begins at --penalty.
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    pub(crate) hold_steps: Option<f64>,
    /// Most steps of a forward solve in training.
    #[arg(long)]
    pub(crate) solver_steps: Option<usize>,
    /// Train the explicit network instead: this many applications of the same layer.
    #[arg(long, value_name = "DEPTH")]
    pub(crate) explicit: Option<usize>,
    /// Seed of weights, dropout masks and penalty draws.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Print progress as lines even on a terminal.
    #[arg(long)]
    pub(crate) plain: bool,
    /// Print the summary as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// Folder of the run.
    pub(crate) run: PathBuf,
    /// Another place of the data that the run was trained on, in the form that training takes.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Measure the test split instead of the valid split.
    #[arg(long)]
    pub(crate) test: bool,
    /// Most steps of a solve. Default: the run's.
    #[arg(long, value_name = "STEPS")]
    pub(crate) max_steps: Option<usize>,
    /// Measure with each of these numbers of evaluations allowed, and draw the curve; for runs on pictures.
    #[arg(long, value_delimiter = ',')]
    pub(crate) budgets: Vec<usize>,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}
