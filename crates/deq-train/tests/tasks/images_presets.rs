//! The presets of images have the values of the original's files.

use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{DeqConfig, GradientConfig, ImplicitConfig};
use deq_data::ImageSource;
use deq_jacreg::{JacobianPenaltyConfig, Phase};
use deq_models::{MdeqClassifierConfig, MdeqSegmenterConfig};
use deq_train::tasks::images::{ImagesModelConfig, ImagesTask, default_preset, preset_for};
use deq_train::{Recipe, RecipeError, Task, TrainError};

fn recipe(name: &str) -> Recipe<ImagesTask> {
    Recipe::preset(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn presets_are_valid_say_what_they_are_for_and_survive_json() {
    for preset in ImagesTask::presets() {
        let recipe = recipe(preset.name);
        assert_eq!(recipe.preset, preset.name);
        recipe
            .validate()
            .unwrap_or_else(|error| panic!("{}: {error}", preset.name));
        assert!(!preset.about().unwrap().is_empty());
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(
            serde_json::from_str::<Recipe<ImagesTask>>(&json).unwrap(),
            recipe
        );
        // Its own data are of a kind that it fits.
        assert_eq!(
            preset_for(preset.name, &recipe.task.data).unwrap().task,
            recipe.task
        );
    }
}

#[test]
fn a_preset_is_for_one_task_and_mini_for_all_data() {
    for data in [
        "shapes",
        "shapes-segmentation",
        "cifar10:x",
        "imagefolder:x",
        "segmentation:x",
    ] {
        let data: ImageSource = data.parse().unwrap();
        let recipe = preset_for("mini", &data).unwrap();
        assert_eq!(recipe.preset, default_preset(&data));
        assert_eq!(recipe.task.data, data);
        recipe.validate().unwrap();
    }
    let shapes = &ImageSource::Shapes;
    for (name, data) in [
        ("cifar10-tiny", &ImageSource::ShapesSegmentation),
        ("cityscapes-xl", shapes),
    ] {
        let wrong = preset_for(name, data).unwrap_err().to_string();
        assert!(wrong.contains("does not fit the data shapes"), "{wrong}");
        assert!(
            wrong.contains(&format!("choose {}", default_preset(data))),
            "{wrong}"
        );
    }
    let unknown = preset_for("imagenet-smal", shapes).unwrap_err();
    assert!(matches!(
        unknown,
        TrainError::Recipe(RecipeError::UnknownPreset { nearest: Some(ref name), .. })
            if name == "imagenet-small"
    ));
}

#[test]
fn only_models_of_ours_warm_up() {
    for preset in ImagesTask::presets() {
        let warm_up = recipe(preset.name).warmup_steps;
        let ours = preset.name.starts_with("mini");
        assert!(ours || warm_up == 0, "{}: {warm_up}", preset.name);
    }
}

#[test]
fn models_are_those_of_the_files() {
    let classifiers = [
        ("mini", MdeqClassifierConfig::mini(2)),
        ("mini-folder", MdeqClassifierConfig::mini(2)),
        ("cifar10-tiny", MdeqClassifierConfig::cifar10_tiny()),
        ("cifar10-large", MdeqClassifierConfig::cifar10_large()),
        ("cifar10-large-jr", MdeqClassifierConfig::cifar10_large_jr()),
        ("imagenet-small", MdeqClassifierConfig::imagenet_small()),
        (
            "imagenet-small-jr",
            MdeqClassifierConfig::imagenet_small_jr(),
        ),
        ("imagenet-large", MdeqClassifierConfig::imagenet_large()),
        (
            "imagenet-large-jr",
            MdeqClassifierConfig::imagenet_large_jr(),
        ),
        ("imagenet-xl", MdeqClassifierConfig::imagenet_xl()),
        ("imagenet-xl-jr", MdeqClassifierConfig::imagenet_xl_jr()),
    ];
    for (name, model) in classifiers {
        assert_eq!(
            recipe(name).task.model,
            ImagesModelConfig::Classifier(model),
            "{name}"
        );
    }
    let segmenters = [
        ("mini-shapes-segmentation", MdeqSegmenterConfig::mini(2, 1)),
        ("mini-segmentation", MdeqSegmenterConfig::mini(2, 2)),
        ("cityscapes-small", MdeqSegmenterConfig::cityscapes_small()),
        ("cityscapes-large", MdeqSegmenterConfig::cityscapes_large()),
        ("cityscapes-xl", MdeqSegmenterConfig::cityscapes_xl()),
    ];
    for (name, model) in segmenters {
        assert_eq!(
            recipe(name).task.model,
            ImagesModelConfig::Segmenter(model),
            "{name}"
        );
    }
}

/// Broyden's method forward, and what a layer does by default backward.
#[test]
fn layers_are_those_of_the_files() {
    let stop = |steps, absolute| {
        let stop = StopConfig::new().with_max_steps(steps);
        match absolute {
            true => stop.with_rel_tol(0.0).with_abs_tol(1e-3),
            false => stop.with_rel_tol(1e-3),
        }
    };
    let layer = |forward, backward, absolute| {
        let backward = ImplicitConfig::new().with_stop(stop(backward, absolute));
        DeqConfig::new()
            .with_solver(SolverConfig::broyden())
            .with_stop(stop(forward, absolute))
            .with_gradient(GradientConfig::Implicit(backward))
    };
    let longer = Some(stop(20, false));
    for (name, expected) in [
        ("mini", layer(12, 12, false).with_eval_stop(longer.clone())),
        (
            "mini-segmentation",
            layer(16, 12, false).with_eval_stop(longer),
        ),
        ("cifar10-tiny", layer(18, 20, false)),
        ("cifar10-large", layer(18, 20, false)),
        ("cifar10-large-jr", layer(8, 7, false).with_budget_jitter(2)),
        ("imagenet-small", layer(26, 27, true)),
        (
            "imagenet-small-jr",
            layer(14, 14, true).with_budget_jitter(2),
        ),
        (
            "imagenet-large-jr",
            layer(14, 14, true).with_budget_jitter(2),
        ),
        ("imagenet-xl", layer(26, 27, true)),
        ("imagenet-xl-jr", layer(14, 14, true).with_budget_jitter(2)),
        ("cityscapes-small", layer(27, 30, true)),
        ("cityscapes-large", layer(27, 30, true)),
        ("cityscapes-xl", layer(27, 30, true)),
    ] {
        assert_eq!(recipe(name).deq, expected, "{name}");
    }
}

/// Epochs of the files times the full batches of an epoch.
#[test]
fn steps_are_those_of_the_files_on_their_data() {
    let steps = |name: &str| {
        let recipe = recipe(name);
        (
            recipe.steps,
            recipe.rounds,
            recipe.pretrain_steps,
            recipe.pretrain_depth,
        )
    };
    assert_eq!(steps("mini"), (700, 4, 30, 3));
    assert_eq!(steps("mini-cifar10"), (4 * (50_000 / 32), 4, 30, 3));
    assert_eq!(steps("mini-segmentation"), (1500, 10, 600, 3));
    assert_eq!(steps("cifar10-tiny"), (50 * (50_000 / 128), 50, 3000, 10));
    assert_eq!(
        steps("cifar10-large"),
        (220 * (50_000 / 128), 220, 20_000, 10)
    );
    assert_eq!(
        steps("cifar10-large-jr"),
        (220 * (50_000 / 96), 220, 16_000, 8)
    );
    let imagenet = 100 * (1_281_167 / 128);
    assert_eq!(steps("imagenet-small-jr"), (imagenet, 100, 510_000, 5));
    assert_eq!(steps("imagenet-xl"), (imagenet, 100, 510_000, 4));
    assert_eq!(
        steps("cityscapes-large"),
        (500 * (2975 / 12), 500, 60_000, 3)
    );
    assert_eq!(steps("cityscapes-xl"), (500 * (2975 / 16), 500, 40_000, 3));
}

/// Table 4 of Bai et al. 2021 and the files differ; these are the files'.
#[test]
fn the_penalty_is_that_of_the_files() {
    let of = |name: &str| {
        let recipe = recipe(name);
        recipe
            .penalty
            .map(|p| (p.weight, p.frequency, p.vectors, p.pretrain_weight))
    };
    assert_eq!(of("mini"), Some((1.0, 0.4, 1, 0.0)));
    assert_eq!(of("cifar10-large"), None);
    assert_eq!(of("cifar10-large-jr"), Some((0.4, 0.02, 2, 0.0)));
    assert_eq!(of("imagenet-small-jr"), Some((2.5, 0.08, 2, 0.03)));
    assert_eq!(of("imagenet-large-jr"), Some((3.0, 0.08, 2, 0.03)));
    assert_eq!(of("imagenet-xl"), None);
    assert_eq!(of("imagenet-xl-jr"), Some((3.0, 0.08, 2, 0.03)));
    assert_eq!(of("cityscapes-large"), None);

    // On every step, to see the schedule.
    let weight_at = |name: &str, step| {
        let penalty = recipe(name).penalty.unwrap().with_frequency(1.0);
        penalty
            .policy()
            .unwrap()
            .decide(1, step, Phase::Equilibrium)
            .unwrap_or(0.0)
    };
    // Increments are counted from the end of the pre-training.
    assert!((weight_at("imagenet-small-jr", 559_999) - 2.5).abs() < 1e-12);
    assert!((weight_at("imagenet-small-jr", 560_000) - 2.6).abs() < 1e-12);
    assert!((weight_at("cifar10-large-jr", 46_799) - 0.4).abs() < 1e-12);
    assert!(weight_at("cifar10-large-jr", 46_800).abs() < 1e-12);
    let controlled = recipe("mini-segmentation").penalty.unwrap();
    let expected = JacobianPenaltyConfig::new()
        .with_weight(1.0)
        .with_frequency(0.4)
        .with_schedule(deq_jacreg::WeightSchedule::Controlled(
            deq_jacreg::WeightControllerConfig::new(14.0),
        ));
    assert_eq!(controlled, expected);
}
