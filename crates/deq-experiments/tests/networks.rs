//! Networks of the same parts, compared.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_experiments::networks::{
    Length, NetworkComparison, NetworkComparisonResult, compare_networks,
};
use deq_train::tasks::text::TextTask;
use deq_train::{Recipe, StepMemory};

fn small(folder: &std::path::Path) -> NetworkComparison {
    let mut recipe = Recipe::<TextTask>::preset("tiny").unwrap();
    recipe.task.model = deq_models::DeqTransformerLmConfig::new(1, 16, 2, 96).with_mem_len(8);
    (recipe.batch, recipe.task.segment) = (2, 8);
    (recipe.steps, recipe.pretrain_steps, recipe.warmup_steps) = (40, 4, 4);
    (recipe.rounds, recipe.valid_batches) = (1, Some(2));
    NetworkComparison {
        recipe,
        length: Length::Minutes(0.002),
        ways: false,
        seeds: 1,
        tied_depth: 2,
        layers: 1,
        device: "flex".to_owned(),
        folder: folder.to_owned(),
        memory: Some(StepMemory {
            reset: || {},
            current: || 100,
            peak: || 1100,
        }),
    }
}

#[test]
fn every_network_is_trained_and_a_second_call_finds_the_runs() {
    let folder = tempfile::tempdir().unwrap();
    let options = small(folder.path());
    let result = compare_networks(&options, &mut |_| {}).unwrap();
    let [regularised, plain, tied, layers] = result.networks.as_slice() else {
        panic!("four networks");
    };
    assert_eq!(regularised.parameters, plain.parameters);
    assert_eq!(tied.parameters, plain.parameters);
    let ratio = layers.parameters as f64 / plain.parameters as f64;
    // Off by less than one unit of inner width.
    assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
    assert!(plain.converged.is_some() && layers.converged.is_none());
    assert!((tied.evaluations - 2.0).abs() < 1e-9 && (layers.evaluations - 1.0).abs() < 1e-9);
    assert!(plain.training_evaluations[1] > 0.0);
    assert_eq!(plain.step_bytes, Some(1000));
    assert_eq!(result.memory.len(), 3);
    assert_eq!(result.claims.len(), 3);
    let page = std::fs::read_to_string(&result.report).unwrap();
    assert!(page.contains("transformer-xl") && page.contains("<svg"));

    let again = compare_networks(&options, &mut |_| {}).unwrap();
    let steps = |result: &NetworkComparisonResult| -> Vec<usize> {
        result
            .networks
            .iter()
            .map(|network| network.steps)
            .collect()
    };
    assert_eq!(steps(&again), steps(&result));
}

#[test]
fn networks_and_ways_to_train_one_have_equal_steps() {
    let folder = tempfile::tempdir().unwrap();
    let options = NetworkComparison {
        length: Length::Steps(8),
        ways: true,
        memory: None,
        ..small(folder.path())
    };
    let result = compare_networks(&options, &mut |_| {}).unwrap();
    assert_eq!(result.networks.len(), 7);
    for network in &result.networks {
        assert_eq!(network.steps, 8, "{}", network.name);
        let trained_by_a_solve = ["deq-jr", "deq", "deq-jr, half unrolled"].contains(&network.name);
        let products = network.training_evaluations[1];
        assert_eq!(products > 0.0, trained_by_a_solve, "{}", network.name);
    }
    assert!(result.claims[1].statement.ends_with("equal steps"));
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |options: NetworkComparison| {
        compare_networks(&options, &mut |_| {})
            .unwrap_err()
            .to_string()
    };
    let base = small(folder.path());
    assert_eq!(
        refused(NetworkComparison {
            length: Length::Minutes(0.0),
            ..base.clone()
        }),
        "minutes is 0, but must be above 0 and at most 1,000,000"
    );
    let message = refused(NetworkComparison { layers: 50, ..base });
    assert!(
        message.starts_with("layers is 50, but must be few enough"),
        "{message}"
    );
}
