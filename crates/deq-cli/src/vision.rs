//! `deq train mdeq`, and `deq eval` and `deq predict` for its runs.

use crate::args::{EvalArgs, MdeqArgs, ModelKind, PredictArgs};
use crate::eval::print_json;
use crate::train::{fit, penalty, run_folder, set};
use anyhow::{Result, bail};
use deq_data::ImageSource;
use deq_jacreg::WeightControllerConfig;
use deq_train::records::Quality;
use deq_train::vision::{
    PredictOptions, Prediction, VisionEvalOptions, VisionOptions, VisionRecipe, VisionSummary,
    evaluate_budgets, evaluate_run, predict, train,
};
use deq_train::{RunFolder, clock, number, status_text};
use std::time::Duration;

pub(crate) fn run(args: &MdeqArgs) -> Result<()> {
    let mut recipe = recipe(args)?;
    let preset = match recipe.model.is_equilibrium() {
        true => recipe.preset.clone(),
        false => format!("resnet-{}", recipe.preset),
    };
    let options = VisionOptions {
        device: args.device.clone(),
        run: run_folder(args.run.as_ref(), args.resume, &format!("mdeq-{preset}"))?,
        resume: args.resume,
        plain: args.plain || args.json,
        workers: args.workers,
    };
    let resumed = args.resume.then_some(&*options.run);
    fit(&mut recipe, args.minutes, &options.device, resumed)?;
    let summary = train(recipe, &options)?;
    if args.json {
        return print_json(&summary);
    }
    print_summary(&summary);
    println!(
        "curves and pictures:   {}",
        RunFolder::new(options.run).report().display()
    );
    Ok(())
}

/// The preset with everything that the command line says otherwise.
pub(crate) fn recipe(args: &MdeqArgs) -> Result<VisionRecipe> {
    let mut recipe = match &args.recipe {
        Some(file) => VisionRecipe::from_file(file)?,
        None => VisionRecipe::preset(&args.preset, &args.data)?,
    };
    if args.init.is_some() {
        recipe.init.clone_from(&args.init);
    }
    set(&mut recipe.epochs, args.epochs);
    set(&mut recipe.steps_per_epoch, args.steps_per_epoch);
    if let Some(steps) = args.pretrain {
        recipe.set_pretrain_steps(steps);
    }
    set(&mut recipe.valid_pictures, args.valid_pictures);
    set(&mut recipe.batch, args.batch);
    set(&mut recipe.learning_rate, args.lr);
    set(&mut recipe.seed, args.seed);
    set(&mut recipe.deq.stop.max_steps, args.solver_steps);
    if args.equal_classes {
        recipe.class_weights = vec![1.0; recipe.data.open()?.train.classes().len()];
    }
    if args.model == ModelKind::Resnet || !recipe.model.is_equilibrium() {
        let of_equilibria = [
            ("--penalty", args.penalty.is_some()),
            ("--penalty-frequency", args.penalty_frequency.is_some()),
            ("--hold-steps", args.hold_steps.is_some()),
            ("--solver-steps", args.solver_steps.is_some()),
            ("--pretrain", args.pretrain.is_some()),
        ];
        if let Some((option, _)) = of_equilibria.iter().find(|(_, given)| *given) {
            bail!("a ResNet has no equilibrium: leave out {option}");
        }
        recipe.become_resnet()?;
    }
    if args.penalty.is_some() {
        // A weight that is given stays, unless --hold-steps moves it from there.
        recipe.controller = None;
    }
    penalty(&mut recipe.penalty, args.penalty, args.penalty_frequency)?;
    if let Some(target) = args.hold_steps {
        let Some(penalty) = &recipe.penalty else {
            bail!("--hold-steps needs a penalty: give --penalty a weight above 0");
        };
        recipe.controller = Some(match recipe.controller.take() {
            Some(controller) => WeightControllerConfig {
                target,
                ..controller
            },
            None => WeightControllerConfig::new(target).with_weight(penalty.weight),
        });
    }
    Ok(recipe)
}

pub(crate) fn eval(args: &EvalArgs) -> Result<()> {
    if args.test {
        bail!("a run on pictures has one held-out part: leave out --test");
    }
    let data = match &args.data {
        Some(data) => Some(data.to_string_lossy().parse::<ImageSource>()?),
        None => None,
    };
    let options = VisionEvalOptions {
        device: args.device.clone(),
        data,
        max_steps: args.max_steps.first().copied(),
        probe: true,
    };
    if args.max_steps.len() < 2 {
        let summary = evaluate_run(&args.run, &options)?;
        if args.json {
            return print_json(&summary);
        }
        print_summary(&summary);
        return Ok(());
    }
    let result = evaluate_budgets(&args.run, &options, &args.max_steps)?;
    if args.json {
        return print_json(&result);
    }
    println!(
        "{:>11} {:>10} {:>10} {:>12}",
        "evaluations", result.measure, "converged", "residual"
    );
    for row in &result.rows {
        println!(
            "{:11} {:>8.2} % {:>8.1} % {:>12}",
            row.budget,
            100.0 * row.quality,
            100.0 * row.converged,
            row.residual.map_or("-".to_owned(), number)
        );
    }
    println!("curve: {}", result.page.display());
    Ok(())
}

pub(crate) fn print_summary(summary: &VisionSummary) {
    let eval = &summary.eval;
    let (measure, quality) = eval.quality.main();
    println!("run:                   {}", summary.run.display());
    println!(
        "trained:               {} steps in {}, {} parameters",
        eval.step,
        clock(Duration::from_secs_f64(summary.training_seconds)),
        summary.parameters
    );
    println!(
        "{:<23}{:.2} %",
        format!("held-out {measure}:"),
        100.0 * quality
    );
    if let Quality::Segmentation { accuracy, iou, .. } = &eval.quality {
        println!("right pixels:          {:.2} %", 100.0 * accuracy);
        for (class, iou) in summary.classes.iter().zip(iou) {
            match iou {
                Some(iou) => println!("  {class:<21}{:.2} %", 100.0 * iou),
                None => println!("  {class:<21}does not occur"),
            }
        }
    }
    println!("evaluations per solve: {:.2}", eval.nfe_per_solve);
    if let Some(residual) = eval.residual {
        println!("relative residual:     {}", number(residual));
        println!("solves:                {}", status_text(&eval.status));
    }
    if let Some(radius) = eval.spectral_radius {
        println!("spectral radius:       {radius:.3} at the equilibria of the first pictures");
    }
    if let Some((path, reason)) = summary.skipped.first() {
        println!(
            "files left out:        {}, the first {}: {reason}",
            summary.skipped.len(),
            path.display()
        );
    }
}

pub(crate) fn run_predict(args: &PredictArgs) -> Result<()> {
    let options = PredictOptions {
        device: args.device.clone(),
        max_steps: args.max_steps,
        out: args.out.clone(),
    };
    let mut predictions = Vec::new();
    let mut failed = 0;
    predict(
        &args.run,
        &args.pictures,
        &options,
        &mut |path, outcome| match outcome {
            Ok(prediction) if args.json => predictions.push(prediction),
            Ok(prediction) => print_prediction(&prediction),
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error}", path.display());
            }
        },
    )?;
    if args.json {
        print_json(&predictions)?;
    }
    match failed {
        0 => Ok(()),
        _ => bail!(
            "{failed} of {} pictures could not be predicted",
            args.pictures.len()
        ),
    }
}

fn print_prediction(prediction: &Prediction) {
    let solve = match (prediction.steps, prediction.converged) {
        (Some(steps), Some(true)) => format!(" ({steps:.0} steps)"),
        (Some(steps), _) => format!(" ({steps:.0} steps, not converged)"),
        _ => String::new(),
    };
    println!("{}{solve}", prediction.path.display());
    for (class, share) in &prediction.classes {
        println!("  {:6.2} %  {class}", 100.0 * share);
    }
    if let Some(overlay) = &prediction.overlay {
        println!("  written to {}", overlay.display());
    }
}
