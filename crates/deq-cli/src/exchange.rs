//! `deq info`, `deq import`, `deq export`.

use crate::args::{ExportArgs, ImportArgs, InfoArgs};
use crate::eval::print_json;
use anyhow::Result;
use deq_models::DeqTransformerLmConfig;
use deq_models::checkpoint::StateDict;
use deq_train::lm::{DataSource, LmRecipe, RunFolder, export_run, import_run};
use serde_json::json;

pub(crate) fn info(args: &InfoArgs) -> Result<()> {
    if args.path.is_dir() {
        let recipe = RunFolder::new(args.path.clone()).recipe()?;
        // The recipe is the run: its fields are named as in the documentation.
        return print_json(&recipe);
    }
    let file = StateDict::open(&args.path)?;
    let tensors: Vec<_> = file.infos().collect();
    let total: usize = tensors
        .iter()
        .map(|tensor| tensor.shape.iter().product::<usize>())
        .sum();
    // Cutoffs that the file does not say are no reason not to recognise it.
    let model =
        DeqTransformerLmConfig::from_state_dict(&file, &DeqTransformerLmConfig::new(1, 1, 1, 1));
    if args.json {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|tensor| {
                json!({
                    "name": tensor.name,
                    "shape": tensor.shape,
                    "dtype": format!("{:?}", tensor.dtype),
                })
            })
            .collect();
        return print_json(&json!({
            "tensors": tensors,
            "numbers": total,
            "deq_transformer": model.as_ref().ok(),
        }));
    }
    for tensor in &tensors {
        let (shape, dtype) = (format!("{:?}", tensor.shape), format!("{:?}", tensor.dtype));
        println!("{dtype:6} {shape:24} {}", tensor.name);
    }
    println!("\n{} tensors, {total} numbers", tensors.len());
    match model {
        Ok(model) => println!(
            "a DEQ-Transformer: {} tokens, width {}, {} heads, inner width {}, {} clusters, weight normalisation {}",
            model.vocab_size,
            model.d_model,
            model.n_heads,
            model.d_inner,
            model.cutoffs.len() + 1,
            if model.weight_norm { "on" } else { "off" },
        ),
        Err(reason) => println!("{reason}"),
    }
    Ok(())
}

pub(crate) fn import(args: &ImportArgs) -> Result<()> {
    let mut recipe = LmRecipe::preset(&args.preset)?;
    if let Some(data) = &args.data {
        recipe.data = DataSource::Path(data.clone());
    }
    recipe.level = args.level.unwrap_or(recipe.level);
    recipe.model.mem_len = args.memory.unwrap_or(recipe.model.mem_len);
    if let Some(cutoffs) = &args.cutoffs {
        recipe.model.cutoffs = cutoffs.clone();
    }
    let imported = import_run(&args.file, recipe, &args.run, "flex")?;
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

pub(crate) fn export(args: &ExportArgs) -> Result<()> {
    export_run(&args.run, &args.file)?;
    println!("written: {}", args.file.display());
    Ok(())
}
