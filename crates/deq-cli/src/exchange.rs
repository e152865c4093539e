//! `deq info`, `deq import`, `deq export`.

use crate::args::{ExportArgs, ImportArgs, InfoArgs, ModelKind};
use crate::eval::print_json;
use anyhow::{Result, bail};
use deq_data::ImageSource;
use deq_models::checkpoint::{StateDict, printable};
use deq_models::{
    DeqTransformerLmConfig, MdeqClassifierConfig, MdeqConfig, MdeqSegmenterConfig, ResNetConfig,
};
use deq_train::lm::{self, DataSource, LmRecipe};
use deq_train::vision::{self, VisionRecipe};
use deq_train::{RunFolder, any_device};
use serde::Serialize;
use serde_json::json;

pub(crate) fn info(args: &InfoArgs) -> Result<()> {
    if args.path.is_dir() {
        let recipe = RunFolder::new(args.path.clone()).json()?;
        // The recipe is the run: its fields are named as in the documentation.
        return print_json(&recipe);
    }
    let file = StateDict::open(&args.path)?;
    let tensors: Vec<_> = file.infos().collect();
    let numbers = tensors.iter().map(|tensor| tensor.numbers());
    let total = numbers.fold(0, usize::saturating_add);
    let found = Recognised::new(&file);
    if args.json {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|tensor| {
                json!({
                    "name": tensor.name,
                    "shape": tensor.shape,
                    "dtype": tensor.element.to_string(),
                })
            })
            .collect();
        return print_json(&json!({
            "tensors": tensors,
            "numbers": total,
            "model": found,
        }));
    }
    for tensor in &tensors {
        let shape = format!("{:?}", tensor.shape);
        println!(
            "{:6} {shape:24} {}",
            tensor.element,
            printable(&tensor.name)
        );
    }
    println!("\n{} tensors, {total} numbers", tensors.len());
    println!("{}", found.sentence());
    Ok(())
}

/// The model that a checkpoint is of.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Recognised {
    DeqTransformer(DeqTransformerLmConfig),
    MdeqClassifier(MdeqClassifierConfig),
    MdeqSegmenter(MdeqSegmenterConfig),
    Resnet(ResNetConfig),
    Unknown,
}

impl Recognised {
    fn new(file: &StateDict) -> Self {
        // What the file does not say is no reason not to recognise it.
        let transformer = DeqTransformerLmConfig::new(1, 1, 1, 1);
        let classifier = MdeqClassifierConfig::imagenet_small();
        let segmenter = MdeqSegmenterConfig::cityscapes_small();
        if let Ok(model) = DeqTransformerLmConfig::from_state_dict(file, &transformer) {
            Self::DeqTransformer(model)
        } else if let Ok(model) = MdeqClassifierConfig::from_state_dict(file, &classifier) {
            Self::MdeqClassifier(model)
        } else if let Ok(model) = MdeqSegmenterConfig::from_state_dict(file, &segmenter) {
            Self::MdeqSegmenter(model)
        } else if let Ok(model) = ResNetConfig::from_state_dict(file) {
            Self::Resnet(model)
        } else {
            Self::Unknown
        }
    }

    fn sentence(&self) -> String {
        let switch = |on| if on { "on" } else { "off" };
        let backbone = |model: &MdeqConfig| {
            format!(
                "branches of {:?} channels, expansion {}, weight normalisation {}",
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
            Self::MdeqClassifier(model) => format!(
                "an MDEQ classifier: {} classes, {}",
                model.num_classes,
                backbone(&model.backbone)
            ),
            Self::MdeqSegmenter(model) => format!(
                "an MDEQ segmenter: {} classes, {}",
                model.num_classes,
                backbone(&model.backbone)
            ),
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

pub(crate) fn import(args: &ImportArgs) -> Result<()> {
    match VisionRecipe::PRESETS.contains(&&*args.preset) {
        true => import_vision(args),
        false => import_lm(args),
    }
}

fn import_lm(args: &ImportArgs) -> Result<()> {
    let mut recipe = LmRecipe::preset(&args.preset)?;
    if let Some(data) = &args.data {
        recipe.data = DataSource::Path(data.clone());
    }
    recipe.level = args.level.unwrap_or(recipe.level);
    recipe.model.mem_len = args.memory.unwrap_or(recipe.model.mem_len);
    if let Some(cutoffs) = &args.cutoffs {
        recipe.model.cutoffs = cutoffs.clone();
    }
    let imported = lm::import_run(&args.file, recipe, &args.run, any_device())?;
    println!("{}", imported.report);
    println!(
        "{} parameters, {} tokens, width {}; run: {}",
        imported.parameters,
        imported.model.vocab_size,
        imported.model.d_model,
        args.run.display()
    );
    Ok(())
}

fn import_vision(args: &ImportArgs) -> Result<()> {
    if args.level.is_some() || args.memory.is_some() || args.cutoffs.is_some() {
        bail!(
            "the preset {} is for pictures: leave out --level, --memory and --cutoffs",
            args.preset
        );
    }
    let Some(data) = &args.data else {
        bail!(
            "--data is missing: give the pictures that name the classes, such as imagefolder:PATH"
        );
    };
    let data = data.to_string_lossy().parse::<ImageSource>()?;
    let mut recipe = VisionRecipe::preset(&args.preset, &data)?;
    if args.model == ModelKind::Resnet {
        recipe.become_resnet()?;
    }
    let imported = vision::import_run(&args.file, recipe, &args.run, any_device())?;
    println!("{}", imported.report);
    println!(
        "{} parameters; run: {}",
        imported.parameters,
        args.run.display()
    );
    Ok(())
}

pub(crate) fn export(args: &ExportArgs) -> Result<()> {
    match RunFolder::new(args.run.clone()).kind()?.as_str() {
        "vision" => vision::export_run(&args.run, &args.file)?,
        _ => lm::export_run(&args.run, &args.file)?,
    }
    println!("written: {}", args.file.display());
    Ok(())
}
