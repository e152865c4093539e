//! `deq info`, `deq import`, `deq export`.

use crate::print;
use crate::recipe::set;
use anyhow::{Result, bail};
use clap::Args;
use deq_data::{ImageSource, Level};
use deq_models::checkpoint::{StateDict, printable};
use deq_models::{
    DeqTransformerLmConfig, MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig, ResNetConfig,
};
use deq_train::tasks::images::{ImagesTask, preset_for};
use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{Network, Preset, Recipe, RunFolder, Task, export, import};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct InfoArgs {
    /// A checkpoint file (.pth, .pt, .pkl, .safetensors) or the folder of a run.
    path: PathBuf,
    /// Print it as JSON on standard output.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The checkpoint: .pth, .pt, .pkl or .safetensors.
    file: PathBuf,
    /// Folder of the run to make.
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// The data that the model was trained on, for its vocabulary or its classes: a folder or file
    /// of text; for images as in `deq train mdeq`.
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// What shapes do not say, from a preset: where layer norms stand, memory length, groups,
    /// transforms, solvers.
    #[arg(long, default_value = "wt103-jr")]
    preset: String,
    /// The checkpoint is of torchvision's ResNet of this depth.
    #[arg(long, value_name = "LAYERS")]
    layers: Option<usize>,
    /// Which weights of a file that holds several: trained, ema, or the name of their group.
    /// Default: trained.
    #[arg(long, value_name = "NAME")]
    weights: Option<String>,
    /// What a token is: byte or word. Default: the preset's.
    #[arg(long)]
    level: Option<Level>,
    /// Memory length. Default: the preset's.
    #[arg(long)]
    memory: Option<usize>,
    /// Where clusters of an adaptive softmax begin, if all tokens share one table. Default: the
    /// preset's.
    #[arg(long, value_delimiter = ',')]
    cutoffs: Option<Vec<usize>>,
}

#[derive(Args)]
pub(crate) struct ExportArgs {
    /// Folder of the run.
    run: PathBuf,
    /// The file to write.
    file: PathBuf,
}

pub(crate) fn info(args: &InfoArgs) -> Result<()> {
    if args.path.is_dir() {
        let recipe = RunFolder::new(args.path.clone()).json()?;
        // The recipe is the run: its fields are named as in the documentation.
        return print::json(&recipe);
    }
    let file = StateDict::open(&args.path)?;
    let tensors: Vec<_> = file.infos().collect();
    let numbers = tensors.iter().map(|tensor| tensor.numbers());
    let total = numbers.fold(0, usize::saturating_add);
    let found = Recognised::new(&file);
    if args.json {
        let tensors = tensors.iter().map(|tensor| {
            let dtype = tensor.element.to_string();
            json!({ "name": tensor.name, "shape": tensor.shape, "dtype": dtype })
        });
        let tensors: Vec<_> = tensors.collect();
        let model = found.json()?;
        return print::json(&json!({ "tensors": tensors, "numbers": total, "model": model }));
    }
    for tensor in &tensors {
        let (shape, name) = (format!("{:?}", tensor.shape), printable(&tensor.name));
        println!("{:6} {shape:24} {name}", tensor.element);
    }
    println!("\n{} tensors, {total} numbers", tensors.len());
    println!("{}", found.sentence());
    Ok(())
}

/// The most clusters of an adaptive softmax that are looked for; the papers have four.
const MOST_CLUSTERS: usize = 16;

/// The model that a checkpoint is of.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Recognised {
    /// With cutoffs that stand for as many unknown ones, if the file has clusters in one table.
    DeqTransformer(DeqTransformerLmConfig),
    MdeqClassifier(MdeqClassifierConfig),
    MdeqSegmenter(MdeqSegmenterConfig),
    Resnet(ResNetConfig),
    Unknown,
}

impl Recognised {
    fn new(file: &StateDict) -> Self {
        // What the file does not say is no reason not to recognise it.
        let transformer = |clusters: usize| {
            let rest = DeqTransformerLmConfig::new(1, 1, 1, 1);
            rest.with_cutoffs((1..clusters).collect())
        };
        let of_transformer =
            |clusters| DeqTransformerLmConfig::from_state_dict(file, &transformer(clusters)).ok();
        let classifier = MdeqClassifierConfig::imagenet_small();
        let segmenter = MdeqSegmenterConfig::cityscapes_small();
        if let Some(found) = (1..=MOST_CLUSTERS).find_map(of_transformer) {
            return Self::DeqTransformer(found);
        }
        MdeqClassifierConfig::from_state_dict(file, &classifier)
            .map(Self::MdeqClassifier)
            .or_else(|_| {
                MdeqSegmenterConfig::from_state_dict(file, &segmenter).map(Self::MdeqSegmenter)
            })
            .or_else(|_| ResNetConfig::from_state_dict(file).map(Self::Resnet))
            .unwrap_or(Self::Unknown)
    }

    /// The configuration, in which cutoffs that the file does not say are null.
    fn json(&self) -> Result<serde_json::Value> {
        let mut json = serde_json::to_value(self)?;
        if let Self::DeqTransformer(model) = self
            && model.div_val == 1
            && !model.cutoffs.is_empty()
        {
            json["deq_transformer"]["cutoffs"] = serde_json::Value::Null;
        }
        Ok(json)
    }

    fn sentence(&self) -> String {
        let switch = |on| if on { "on" } else { "off" };
        let mdeq = |kind: &str, classes: usize, model: &MdeqConfig| {
            format!(
                "an MDEQ {kind}: {classes} classes, branches of {:?} channels, expansion {}, \
                 weight normalisation {}",
                model.channels,
                model.expansion,
                switch(model.weight_norm)
            )
        };
        match self {
            Self::DeqTransformer(model) => format!(
                "a DEQ-Transformer: {} tokens, width {}, {} heads, inner width {}, {} clusters, weight normalisation {}",
                model.vocab_size,
                model.d_model,
                model.n_heads,
                model.d_inner,
                model.cutoffs.len() + 1,
                switch(model.weight_norm),
            ),
            Self::MdeqClassifier(model) => mdeq("classifier", model.num_classes, &model.backbone),
            Self::MdeqSegmenter(model) => mdeq("segmenter", model.num_classes, &model.backbone),
            Self::Resnet(model) => format!(
                "a ResNet: {} classes, stages of {:?} blocks, width {}",
                model.num_classes, model.stages, model.width
            ),
            Self::Unknown => {
                "not a checkpoint of a DEQ-Transformer, an MDEQ or a ResNet of torchvision"
                    .to_owned()
            }
        }
    }
}

pub(crate) fn import_run(args: &ImportArgs) -> Result<()> {
    let is_in = |presets: &[Preset]| presets.iter().any(|preset| preset.name == args.preset);
    match (is_in(TextTask::presets()), is_in(ImagesTask::presets())) {
        (true, _) => finish(args, text(args)?),
        (_, true) => finish(args, images(args)?),
        _ => bail!(
            "there is no preset {:?}: `deq presets` lists those for texts and for images",
            args.preset
        ),
    }
}

fn text(args: &ImportArgs) -> Result<Recipe<TextTask>> {
    if args.layers.is_some() {
        bail!(
            "the preset {} is for text: leave out --layers, or give --preset one for images",
            args.preset
        );
    }
    let mut recipe = Recipe::<TextTask>::preset(&args.preset)?;
    let task = &mut recipe.task;
    let data = args.data.as_ref().map(|data| DataSource::Path(data.into()));
    set(&mut task.data, data);
    set(&mut task.level, args.level);
    set(&mut task.model.mem_len, args.memory);
    set(&mut task.model.cutoffs, args.cutoffs.clone());
    Ok(recipe)
}

fn images(args: &ImportArgs) -> Result<Recipe<ImagesTask>> {
    if args.level.is_some() || args.memory.is_some() || args.cutoffs.is_some() {
        bail!(
            "the preset {} is for images: leave out --level, --memory and --cutoffs",
            args.preset
        );
    }
    let Some(data) = &args.data else {
        bail!("--data is missing: give the images that name the classes, as imagefolder:PATH");
    };
    let mut recipe = preset_for(&args.preset, &data.parse::<ImageSource>()?)?;
    if let Some(depth) = args.layers {
        recipe.network = Network::Layers { depth };
    }
    Ok(recipe)
}

fn finish<T: Task>(args: &ImportArgs, recipe: Recipe<T>) -> Result<()> {
    let imported = import(&args.file, recipe, &args.run, args.weights.as_deref())?;
    println!("{}", imported.report);
    let run = args.run.display();
    println!("{} parameters; run: {run}", imported.parameters);
    Ok(())
}

pub(crate) fn export_run(args: &ExportArgs) -> Result<()> {
    match RunFolder::new(args.run.clone()).kind()?.as_str() {
        ImagesTask::NAME => export::<ImagesTask>(&args.run, &args.file)?,
        _ => export::<TextTask>(&args.run, &args.file)?,
    }
    println!("written: {}", args.file.display());
    Ok(())
}
