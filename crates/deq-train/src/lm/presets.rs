//! Recipes to start from.

use super::recipe::{DataSource, LmRecipe, Network};
use crate::error::TrainError;
use deq_core::solvers::{SolverConfig, StopConfig};
use deq_core::{DeqConfig, GradientConfig, ImplicitConfig};
use deq_data::Level;
use deq_jacreg::{IncrementConfig, JacobianPenaltyConfig, LinearConfig, WeightSchedule};
use deq_models::DeqTransformerLmConfig;

/// The vocabulary's size is filled in when the text has been read.
const UNKNOWN_VOCABULARY: usize = 1;

impl LmRecipe {
    /// The names that [`preset`](Self::preset) knows.
    pub const PRESETS: [&str; 10] = [
        "tiny",
        "wt2",
        "wt103",
        "wt103-preln",
        "wt103-jr",
        "wt103-jr-preln",
        "wt103-paper",
        "wt103-preln-paper",
        "wt103-jr-paper",
        "wt103-jr-preln-paper",
    ];

    /// A recipe by name.
    ///
    /// For two CPU cores:
    ///
    /// - `tiny`: a demonstration on the built-in text.
    /// - `wt2`: WikiText-2 by words.
    ///
    /// Both follow the original's schedule in small: unrolled pre-training for a tenth of the steps (the scripts' 32,000 of
    /// 300,000) with two applications, then the equilibrium with Anderson forward and backward within the 12 and 13 steps of
    /// the regularised post-norm script, Adam with warm-up and cosine decay, gradients clipped at 0.25.
    ///
    /// The original model on WikiText-103, 98M parameters, for GPUs:
    ///
    /// - `wt103`, `wt103-jr`: the values of the repository's scripts `wt103_deq_transformer.sh` and `wt103_deq_transformer_reg.sh`
    ///   (locuslab/deq), without and with the Jacobian penalty.
    /// - with `-preln`: layer norms before the sublayers, from `wt103_deq_transformer_preln_reg.sh`. Without the penalty this model
    ///   diverges in the paper (Table 5), and there is no script of it; here it is `wt103` with pre-norm.
    /// - with `-paper`: what Bai, Koltun and Kolter (ICML 2021) print instead, where they print it (Table 4 and the steps of
    ///   Section 5): batches of 60 in the place of 56, 250,000 steps in the place of 300,000, a warm-up of one pass, 12 and 12 solver
    ///   steps (14 and 14 pre-norm), a backward tolerance of 1e-4, a weight from 1.6 to 2.5. Without the penalty the paper has 30 forward
    ///   steps.
    ///
    /// # Errors
    ///
    /// [`TrainError::UnknownPreset`] with the names there are.
    pub fn preset(name: &str) -> Result<Self, TrainError> {
        match name {
            "tiny" => Ok(tiny()),
            "wt2" => Ok(wt2()),
            _ if Self::PRESETS.contains(&name) => Ok(wt103(name)),
            _ => Err(TrainError::UnknownPreset {
                name: name.to_owned(),
                known: Self::PRESETS.join(", "),
            }),
        }
    }
}

fn solve(steps: usize, tolerance: f64) -> StopConfig {
    StopConfig::new()
        .with_max_steps(steps)
        .with_rel_tol(tolerance)
}

fn tiny() -> LmRecipe {
    // The relative tolerances of the original code, forward and backward. Evaluation may take longer, and says how long.
    let deq = DeqConfig::new()
        .with_stop(solve(12, 1e-3))
        .with_eval_stop(Some(solve(30, 1e-3)))
        .with_gradient(GradientConfig::Implicit(
            ImplicitConfig::new().with_stop(solve(13, 1e-3)),
        ));
    // The frequency of the WikiText-103 row of Bai et al. 2021, Table 4. Its weight of 1.6 costs these small models 0.1
    // nats more than 0.5 does (docs/penalty.md), the weight of the CIFAR-10 row.
    let penalty = JacobianPenaltyConfig::new()
        .with_weight(0.5)
        .with_frequency(0.35);
    LmRecipe {
        kind: "lm".to_owned(),
        preset: "tiny".to_owned(),
        data: DataSource::Builtin,
        level: Level::Byte,
        tokenizer: None,
        vocabulary: None,
        model: DeqTransformerLmConfig::new(UNKNOWN_VOCABULARY, 96, 4, 384)
            .with_mem_len(64)
            .with_dropout(0.05),
        network: Network::Equilibrium,
        deq,
        penalty: Some(penalty),
        controller: None,
        batch: 16,
        segment: 64,
        steps: 400,
        pretrain_steps: 80,
        pretrain_depth: 2,
        rounds: 8,
        learning_rate: 3e-3,
        warmup_steps: 40,
        clip: 0.25,
        valid_segments: 20,
        seed: 1,
    }
}

fn wt2() -> LmRecipe {
    LmRecipe {
        preset: "wt2".to_owned(),
        level: Level::Word,
        model: DeqTransformerLmConfig::new(UNKNOWN_VOCABULARY, 128, 4, 512)
            .with_mem_len(64)
            .with_dropout(0.05)
            .with_cutoffs(vec![2_000, 10_000]),
        steps: 3000,
        pretrain_steps: 300,
        rounds: 10,
        learning_rate: 2e-3,
        warmup_steps: 200,
        valid_segments: 20,
        ..tiny()
    }
}

fn wt103(name: &str) -> LmRecipe {
    let has = |part: &str| name.split('-').any(|found| found == part);
    let (regularised, pre_norm, paper) = (has("jr"), has("preln"), has("paper"));
    let steps = if paper { 250_000 } else { 300_000 };
    // Forward and backward.
    let budgets = match (regularised, pre_norm, paper) {
        (false, ..) => [30, 35],
        (true, false, false) => [12, 13],
        (true, false, true) => [12, 12],
        (true, true, _) => [14, 14],
    };
    let backward_tolerance = if paper { 1e-4 } else { 1e-3 };
    let adjoint = ImplicitConfig::new()
        .with_solver(SolverConfig::broyden().into())
        .with_stop(solve(budgets[1], backward_tolerance));
    let (weight, frequency) = match (pre_norm, paper) {
        (_, true) => (1.6, 0.35),
        (false, false) => (1.9, 0.35),
        (true, false) => (2.0, 0.4),
    };
    let schedule = match (pre_norm, paper) {
        (_, true) => WeightSchedule::Linear(LinearConfig::new(2.5, steps)),
        (false, false) => WeightSchedule::Increment(IncrementConfig::new(35_000)),
        (true, false) => WeightSchedule::Increment(IncrementConfig::new(30_000)),
    };
    let penalty = JacobianPenaltyConfig::new()
        .with_weight(weight)
        .with_frequency(frequency)
        .with_schedule(schedule);
    LmRecipe {
        preset: name.to_owned(),
        level: Level::Word,
        model: DeqTransformerLmConfig::new(UNKNOWN_VOCABULARY, 700, 10, 48_000)
            .with_mem_len(if regularised { 300 } else { 150 })
            // The original hides what lies further back than this, if nothing else is asked for.
            .with_local_size(Some(1_000))
            .with_pre_norm(pre_norm)
            .with_dropout(if regularised { 0.06 } else { 0.05 })
            .with_attention_dropout(if regularised { 0.01 } else { 0.0 })
            .with_cutoffs(vec![20_000, 40_000, 200_000])
            .with_div_val(4)
            .with_init_std(0.01),
        deq: DeqConfig::new()
            .with_stop(solve(budgets[0], 1e-3))
            .with_gradient(GradientConfig::Implicit(adjoint))
            .with_budget_jitter(if regularised { 2 } else { 0 }),
        penalty: regularised.then_some(penalty),
        batch: if paper { 60 } else { 56 },
        segment: 150,
        steps,
        pretrain_steps: 32_000,
        rounds: steps / 5_000,
        learning_rate: 2.5e-4,
        // One pass over 103,227,021 tokens in the paper.
        warmup_steps: if paper { 11_470 } else { 16_000 },
        valid_segments: usize::MAX,
        seed: 1111,
        ..tiny()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::RoundTask;

    #[test]
    fn presets_are_valid_and_survive_json() {
        for name in LmRecipe::PRESETS {
            let mut recipe = LmRecipe::preset(name).unwrap();
            assert_eq!(recipe.preset, name);
            recipe.model.vocab_size = 267_735;
            recipe.validate().unwrap();
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<LmRecipe>(&json).unwrap(), recipe);
            assert_eq!(recipe.steps_after(recipe.rounds), recipe.steps);
        }
        assert_eq!(
            LmRecipe::preset("huge").unwrap_err().to_string(),
            format!(
                "there is no preset \"huge\": choose one of {}",
                LmRecipe::PRESETS.join(", ")
            )
        );
    }

    /// The original prints 98M for this model; embeddings of all clusters are counted once, as they are tied.
    #[test]
    fn the_original_model_has_the_parameters_of_the_paper() {
        let config = LmRecipe::preset("wt103-jr").unwrap().model;
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
}
