//! The presets of text have the values of the original's scripts and of the papers.

use burn::module::Module;
use burn::tensor::Device;
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{DeqConfig, GradientConfig, ImplicitConfig};
use deq_data::Level;
use deq_jacreg::{
    IncrementConfig, JacobianPenaltyConfig, LinearConfig, WeightControllerConfig, WeightSchedule,
};
use deq_models::DeqTransformerLmConfig;
use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{Network, Optimizer, Preset, Recipe, Task};

fn preset(name: &str) -> Recipe<TextTask> {
    Recipe::preset(name).unwrap()
}

fn names() -> Vec<&'static str> {
    TextTask::presets()
        .iter()
        .map(|preset| preset.name)
        .collect()
}

fn solve(steps: usize, tolerance: f64) -> StopConfig {
    StopConfig::new()
        .with_max_steps(steps)
        .with_rel_tol(tolerance)
}

#[test]
fn presets_are_valid_and_survive_json() {
    for Preset { name, .. } in TextTask::presets() {
        let mut recipe = preset(name);
        assert_eq!(
            (recipe.preset.as_str(), recipe.kind.as_str()),
            (*name, "text")
        );
        recipe.validate().unwrap();
        recipe.task.model.vocab_size = 267_735;
        recipe.task.model.validate().unwrap();
        let json = serde_json::to_string(&recipe).unwrap();
        let back: Recipe<TextTask> = serde_json::from_str(&json).unwrap();
        assert_eq!(back, recipe);
        assert_eq!(recipe.steps_after(recipe.rounds), recipe.steps);
    }
    let message = Recipe::<TextTask>::preset("huge").unwrap_err().to_string();
    let names = names().join(", ");
    assert!(message.contains("there is no preset \"huge\""), "{message}");
    assert!(
        message.ends_with(&format!("choose one of {names}")),
        "{message}"
    );
}

#[test]
fn every_preset_says_what_it_is_for_and_whence_its_values_come() {
    for preset in TextTask::presets() {
        let about = preset.about().unwrap();
        assert!(about.contains(" parameters, "), "{}: {about}", preset.name);
        let file: serde_json::Value = serde_json::from_str(preset.json).unwrap();
        let source = file["source"].as_object().unwrap();
        assert!(!source.is_empty(), "{}", preset.name);
        let recipe = serde_json::to_value(self::preset(preset.name)).unwrap();
        for field in source.keys().filter(|field| !field.starts_with("all")) {
            let place = format!("/{}", field.replace('.', "/"));
            assert!(recipe.pointer(&place).is_some(), "{}: {field}", preset.name);
        }
    }
}

#[test]
fn the_small_presets_hold_their_solves_at_twelve_steps() {
    let tiny = preset("tiny");
    let implicit = ImplicitConfig::new().with_stop(solve(19, 1e-3));
    let deq = DeqConfig::new()
        .with_stop(solve(18, 1e-3))
        .with_eval_stop(Some(solve(30, 1e-3)))
        .with_gradient(GradientConfig::Implicit(implicit));
    let penalty = JacobianPenaltyConfig::new()
        .with_weight(0.5)
        .with_frequency(0.35)
        .with_schedule(WeightSchedule::Controlled(WeightControllerConfig::new(
            12.0,
        )));
    let task = TextTask {
        data: DataSource::Builtin,
        level: Level::Byte,
        tokenizer: None,
        vocabulary: None,
        fingerprint: None,
        segment: 64,
        model: DeqTransformerLmConfig::new(1, 96, 4, 384)
            .with_mem_len(64)
            .with_dropout(0.05),
    };
    let expected = Recipe {
        preset: "tiny".to_owned(),
        network: Network::Equilibrium,
        deq,
        penalty: Some(penalty),
        rounds: 8,
        pretrain_steps: 80,
        pretrain_depth: 2,
        optimizer: Optimizer::Adam,
        weight_decay: 0.0,
        learning_rate: 3e-3,
        warmup_steps: 40,
        clip: Some(0.25),
        valid_batches: Some(20),
        seed: 1,
        ..Recipe::new(task, 16, 400)
    };
    assert_eq!(tiny, expected);
    let expected = Recipe {
        preset: "wt2".to_owned(),
        task: TextTask {
            level: Level::Word,
            model: DeqTransformerLmConfig::new(1, 128, 4, 512)
                .with_mem_len(64)
                .with_dropout(0.05)
                .with_cutoffs(vec![2_000, 10_000]),
            ..tiny.task.clone()
        },
        steps: 3000,
        pretrain_steps: 300,
        rounds: 10,
        learning_rate: 2e-3,
        warmup_steps: 200,
        ..tiny
    };
    assert_eq!(preset("wt2"), expected);
}

#[test]
fn the_presets_of_wikitext_103_have_the_values_of_scripts_and_paper() {
    for name in names() {
        let has = |part: &str| name.split('-').any(|found| found == part);
        if !has("wt103") {
            continue;
        }
        let (regularised, pre_norm, paper) = (has("jr"), has("preln"), has("paper"));
        let steps = if paper { 250_000 } else { 300_000 };
        let [forward, backward] = match (regularised, pre_norm, paper) {
            (false, ..) => [30, 35],
            (true, false, false) => [12, 13],
            (true, false, true) => [12, 12],
            (true, true, _) => [14, 14],
        };
        let implicit = ImplicitConfig::new()
            .with_solver(SolverConfig::broyden().into())
            .with_stop(solve(backward, if paper { 1e-4 } else { 1e-3 }));
        let increment = |every| WeightSchedule::Increment(IncrementConfig::new(every));
        let (weight, frequency, schedule) = match (pre_norm, paper) {
            (_, true) => (
                1.6,
                0.35,
                WeightSchedule::Linear(LinearConfig::new(2.5, steps)),
            ),
            (false, false) => (1.9, 0.35, increment(35_000)),
            (true, false) => (2.0, 0.4, increment(30_000)),
        };
        let penalty = JacobianPenaltyConfig::new()
            .with_weight(weight)
            .with_frequency(frequency)
            .with_schedule(schedule);
        let tiny = preset("tiny");
        let expected = Recipe {
            preset: name.to_owned(),
            task: TextTask {
                level: Level::Word,
                segment: 150,
                model: DeqTransformerLmConfig::new(1, 700, 10, 48_000)
                    .with_mem_len(if regularised { 300 } else { 150 })
                    .with_local_size(Some(1_000))
                    .with_pre_norm(pre_norm)
                    .with_dropout(if regularised { 0.06 } else { 0.05 })
                    .with_attention_dropout(if regularised { 0.01 } else { 0.0 })
                    .with_cutoffs(vec![20_000, 40_000, 200_000])
                    .with_div_val(4)
                    .with_init_std(0.01),
                ..tiny.task
            },
            deq: DeqConfig::new()
                .with_stop(solve(forward, 1e-3))
                .with_gradient(GradientConfig::Implicit(implicit))
                .with_budget_jitter(if regularised { 2 } else { 0 }),
            penalty: regularised.then_some(penalty),
            batch: if paper { 60 } else { 56 },
            steps,
            pretrain_steps: 32_000,
            rounds: steps / 5_000,
            learning_rate: 2.5e-4,
            warmup_steps: if paper { 11_470 } else { 16_000 },
            valid_batches: None,
            seed: 1111,
            ..tiny
        };
        assert_eq!(preset(name), expected);
    }
}

/// The original prints 98M for this model; embeddings of all clusters are counted once, as they
/// are tied.
#[test]
fn the_original_model_has_the_parameters_of_the_paper() {
    let config = preset("wt103-jr").task.model;
    let (vocab, d, inner) = (267_735_usize, config.d_model, config.d_inner);
    let bounds = [0, 20_000, 40_000, 200_000, vocab];
    let embedding: usize = (0..4)
        .map(|k| {
            let width = d / 4_usize.pow(k as u32);
            (bounds[k + 1] - bounds[k]) * width + width * d
        })
        .sum();
    // The head's own projection, gates, and a bias for every token.
    let output = d * d + 3 * (d + 1) + vocab;
    let injection = 3 * d * (d + 1);
    // Weights, gains, biases.
    let attention = 5 * d * d + 5 * d + d + 2 * d;
    let feed_forward = 2 * d * inner + 2 * (d + inner);
    let total = embedding + output + injection + attention + feed_forward;
    assert!((97.5..98.5).contains(&(total as f64 / 1e6)), "{total}");
}

#[test]
fn the_small_models_are_as_large_as_they_say() {
    for (name, vocabulary, said) in [("tiny", 256, "174,304"), ("wt2", 33_278, "4,557,952")] {
        let mut model = preset(name).task.model;
        model.vocab_size = vocabulary;
        let count = model.init(&Device::flex()).unwrap().num_params();
        assert_eq!(count.to_string(), said.replace(',', ""));
        let found = TextTask::presets()
            .iter()
            .find(|preset| preset.name == name)
            .unwrap();
        let about = found.about().unwrap();
        assert!(about.contains(&format!(": {said} parameters, ")), "{about}");
    }
}
