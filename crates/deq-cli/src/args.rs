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
    /// Fetch, describe and check texts.
    Data {
        #[command(subcommand)]
        what: DataCommand,
    },
    /// Measure the newest checkpoint of a run: perplexity, accuracy or IoU, evaluations per solve, residual, spectral radius.
    Eval(EvalArgs),
    /// Apply a run on pictures to pictures: likeliest classes, or a picture coloured by class.
    Predict(PredictArgs),
    /// Go on from a prompt with a trained language model.
    Generate(GenerateArgs),
    /// Say what a checkpoint file or a run holds.
    Info(InfoArgs),
    /// Make a run of a checkpoint of the original DEQ-Transformer or MDEQ, or of torchvision's ResNet (PyTorch or safetensors).
    Import(ImportArgs),
    /// Write the model of a run as safetensors with the original's names, for PyTorch.
    Export(ExportArgs),
}

#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// Folder of the run.
    pub(crate) run: PathBuf,
    /// The text to go on from. Default: the beginning of a line.
    #[arg(long, default_value = "")]
    pub(crate) prompt: String,
    /// Tokens to generate.
    #[arg(long, default_value_t = 200)]
    pub(crate) tokens: usize,
    /// Divides log-probabilities: 1 for the model's own distribution, 0 for the likeliest token every time.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Draw from this many likeliest tokens. Default: all.
    #[arg(long)]
    pub(crate) top_k: Option<usize>,
    /// Draw from the smallest set of tokens whose probability reaches this.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    pub(crate) top_p: f64,
    /// Let the token for unknown words come too.
    #[arg(long)]
    pub(crate) unknown: bool,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Most steps of a solve. Default: the run's.
    #[arg(long, value_name = "STEPS")]
    pub(crate) max_steps: Option<usize>,
    /// Solve every so many tokens once more from zero, to tell what starting from the previous equilibrium saves; 0 for never.
    #[arg(long, value_name = "TOKENS", default_value_t = 8)]
    pub(crate) compare_every: usize,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print text and counts as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct InfoArgs {
    /// A checkpoint file (.pth, .pt, .pkl, .safetensors) or the folder of a run.
    pub(crate) path: PathBuf,
    /// Print it as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The checkpoint: .pth, .pt, .pkl or .safetensors.
    pub(crate) file: PathBuf,
    /// Folder of the run to make.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) run: PathBuf,
    /// The data that the model was trained on, for its vocabulary or its classes: a folder or file of text; for pictures as in `deq train mdeq`.
    #[arg(long, value_name = "DATA")]
    pub(crate) data: Option<PathBuf>,
    /// The network, with a preset for pictures.
    #[arg(long, value_enum, default_value = "mdeq")]
    pub(crate) model: ModelKind,
    /// What shapes do not say, from a preset of `deq train lm` or `deq train mdeq`: where layer norms stand, memory length, groups, transforms, solvers.
    #[arg(long, default_value = "wt103-jr")]
    pub(crate) preset: String,
    /// What a token is: byte or word. Default: the preset's.
    #[arg(long)]
    pub(crate) level: Option<Level>,
    /// Memory length. Default: the preset's.
    #[arg(long)]
    pub(crate) memory: Option<usize>,
    /// Where clusters of an adaptive softmax begin, if all tokens share one table. Default: the preset's.
    #[arg(long, value_delimiter = ',')]
    pub(crate) cutoffs: Option<Vec<usize>>,
}

#[derive(Args)]
pub(crate) struct ExportArgs {
    /// Folder of the run.
    pub(crate) run: PathBuf,
    /// The file to write.
    pub(crate) file: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Download WikiText-2 or WikiText-103 and check it.
    #[cfg(feature = "fetch")]
    Fetch(DataFetchArgs),
    /// Say what a text is: files, splits, tokens, vocabulary, token files.
    Info(DataInfoArgs),
    /// Read a text and its token files in full and compare them with their checksums.
    Verify {
        /// Folder of text files, or one text file.
        path: PathBuf,
    },
}

#[cfg(feature = "fetch")]
#[derive(Args)]
pub(crate) struct DataFetchArgs {
    /// wikitext-2 (4.5 MB) or wikitext-103 (190 MB).
    pub(crate) name: String,
    /// Address of the folder that holds the archive. Default: that of the author of WikiText.
    #[arg(long, value_name = "URL", env = "DEQ_MIRROR")]
    pub(crate) mirror: Option<String>,
    /// Folder for the text. Default: data/NAME.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct DataInfoArgs {
    /// Folder of text files, or one text file.
    pub(crate) path: PathBuf,
    /// What a token is: byte, word or tokenizer (the tokenizer.json in the folder).
    #[arg(long, default_value = "word")]
    pub(crate) level: Level,
    /// Read the text by this tokenizer.json.
    #[arg(long, value_name = "FILE", conflicts_with = "level")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Keep the ids in a token file, so that training begins at once.
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Subcommand)]
pub(crate) enum Experiment {
    /// A regression in one dimension with and without the penalty, and with weight decay in its place.
    JacregSynthetic(SyntheticArgs),
    /// A language model trained with different weights of the penalty and evaluated with different budgets.
    JacregLm(ReproduceLmArgs),
    /// A multiscale model on pictures trained with and without the penalty and evaluated with different budgets.
    JacregVision(ReproduceVisionArgs),
    /// The DEQ-Transformer with and without the penalty, beside a weight-tied network and a Transformer-XL with as many parameters, for
    /// equal time.
    DeqLm(DeqLmArgs),
}

#[derive(Args)]
pub(crate) struct DeqLmArgs {
    /// Recipe to start from. Default: tiny (built-in text), or wt2 with --data.
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Folder with train.txt, valid.txt and test.txt, or one text file. Default: the built-in handbook.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Minutes of training for each network.
    #[arg(long, default_value_t = 30.0, allow_negative_numbers = true)]
    pub(crate) minutes: f64,
    /// Applications of the cell in the weight-tied network.
    #[arg(long, default_value_t = 6)]
    pub(crate) tied_depth: usize,
    /// Layers of the Transformer-XL; their inner width is chosen so that the parameters are equal.
    #[arg(long, default_value_t = 2)]
    pub(crate) layers: usize,
    /// Folder of the runs and the results. Give it again to go on after an interruption.
    #[arg(long, value_name = "FOLDER", default_value = "runs/deq-lm")]
    pub(crate) folder: PathBuf,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct ReproduceVisionArgs {
    /// Pictures: shapes (generated), cifar10:PATH, or imagefolder:PATH.
    #[arg(long, default_value = "shapes")]
    pub(crate) data: ImageSource,
    /// Recipe to start from: mini, or cifar10- or imagenet- with a size as in `deq train mdeq`.
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
        default_value = "0,1"
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
    /// Recipe to start from: tiny, wt2, or wt103 with any of -jr, -preln, -paper. Default: tiny, or wt2 with --data.
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
    /// Recipe to start from: mini; cifar10-tiny, -large, -large-jr; imagenet-small, -small-jr, -large, -large-jr, -xl, -xl-jr; cityscapes-small, -large or -xl.
    #[arg(long, default_value = "mini")]
    pub(crate) preset: String,
    /// Recipe to start from as a file: config.json of a run, with any field changed. It names its data.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "preset"])]
    pub(crate) recipe: Option<PathBuf>,
    /// Begin with the weights of a run or of a checkpoint file of the original, all but those of a head that does not fit.
    #[arg(long, value_name = "PATH")]
    pub(crate) init: Option<PathBuf>,
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
    /// Training steps of a round. Default: that of the preset, mostly a pass over the training pictures.
    #[arg(long)]
    pub(crate) steps_per_epoch: Option<usize>,
    /// Train for about so many minutes, evaluations not counted: the number of steps comes from the time of a few, and all phases are scaled to it.
    #[arg(long, allow_negative_numbers = true, conflicts_with_all = ["epochs", "steps_per_epoch"])]
    pub(crate) minutes: Option<f64>,
    /// The most held-out pictures that the evaluation after a round reads; the last one reads all. Default: all.
    #[arg(long, value_name = "PICTURES")]
    pub(crate) valid_pictures: Option<usize>,
    /// Steps of unrolled pre-training.
    #[arg(long)]
    pub(crate) pretrain: Option<usize>,
    /// Pictures in a batch.
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Peak learning rate.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) lr: Option<f64>,
    /// Let pixels of all classes count the same in the loss. Default: those of rare classes count more, as the data set says.
    #[arg(long)]
    pub(crate) equal_classes: bool,
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
    /// Recipe to start from: tiny, wt2, or wt103 with any of -jr, -preln, -paper. Default: tiny, or wt2 with --data.
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Folder of text files, with train.txt, valid.txt and test.txt or others, or one text file. Default: the built-in handbook.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// What a token is: byte, word or tokenizer (the tokenizer.json in the folder of the data). Default: the preset's.
    #[arg(long)]
    pub(crate) level: Option<Level>,
    /// Read the text by this tokenizer.json.
    #[arg(long, value_name = "FILE", conflicts_with = "level")]
    pub(crate) tokenizer: Option<PathBuf>,
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
    /// Train for about so many minutes, evaluations not counted: the number of steps comes from the time of a few, and all phases are scaled to it.
    #[arg(long, allow_negative_numbers = true, conflicts_with = "steps")]
    pub(crate) minutes: Option<f64>,
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
    /// Train a Transformer-XL instead: this many layers with weights of their own.
    #[arg(long, value_name = "DEPTH")]
    pub(crate) layers: Option<usize>,
    /// Width inside the feed-forward layer.
    #[arg(long, value_name = "WIDTH")]
    pub(crate) inner_width: Option<usize>,
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
    /// Most steps of a solve; several, separated by commas, make a table and a plot. Default: the run's.
    #[arg(long, value_name = "STEPS", value_delimiter = ',')]
    pub(crate) max_steps: Vec<usize>,
    /// Memory lengths; several, separated by commas, make a table and a plot. Default: the run's.
    #[arg(long, value_name = "LENGTHS", value_delimiter = ',')]
    pub(crate) memory: Vec<usize>,
    /// Device to run on.
    #[arg(long, default_value = "flex")]
    pub(crate) device: String,
    /// Print the result as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}
