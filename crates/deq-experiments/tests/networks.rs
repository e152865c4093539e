//! Networks of the same parts, compared.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_experiments::Verdict;
use deq_experiments::networks::{
    Contender, ExplicitNetwork, Length, NetworkComparison, NetworkComparisonResult, NetworkResult,
    compare_networks,
};
use deq_train::tasks::images::ImagesTask;
use deq_train::tasks::text::TextTask;
use deq_train::{Network, Optimizer, Recipe, StepMemory};
use std::path::Path;

fn small(folder: &Path) -> NetworkComparison<TextTask> {
    let mut recipe = Recipe::<TextTask>::preset("tiny").unwrap();
    recipe.task.model = deq_models::DeqTransformerLmConfig::new(1, 16, 2, 96).with_mem_len(8);
    (recipe.batch, recipe.task.segment) = (2, 8);
    (recipe.steps, recipe.pretrain_steps, recipe.warmup_steps) = (40, 4, 4);
    (recipe.rounds, recipe.valid_batches) = (1, Some(2));
    let layers = Some(ExplicitNetwork::transformer_xl(&recipe, 1, "flex").unwrap());
    NetworkComparison {
        title: "A small model".to_owned(),
        recipe,
        length: Length::Minutes(0.002),
        contenders: Contender::DEFAULT.to_vec(),
        seeds: 1,
        tied_depth: 2,
        layers,
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
    let parameters = |network: &NetworkResult| network.parameters.unwrap() as f64;
    let ratio = parameters(layers) / parameters(plain);
    // Off by less than one unit of inner width.
    assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
    assert!(plain.converged.is_some() && layers.converged.is_none());
    assert_eq!(
        (tied.evaluations, layers.evaluations),
        (Some(2.0), Some(1.0))
    );
    assert!(plain.training_evaluations[1] > 0.0);
    assert_eq!(plain.step_bytes, Some(1000));
    assert_eq!(result.memory.len(), 3);
    // Solves, two DEQs beside two explicit networks, memory.
    assert_eq!(result.claims.len(), 6);
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

    // Neither runs of another length nor of another recipe are taken for those asked for.
    let longer = NetworkComparison {
        length: Length::Steps(40),
        ..options.clone()
    };
    let message = compare_networks(&longer, &mut |_| {})
        .unwrap_err()
        .to_string();
    let expected = "holds a run with length = 0.002 minutes, and 40 steps is asked for";
    assert!(message.contains(expected), "{message}");
    let mut faster = options;
    faster.recipe.learning_rate *= 2.0;
    let message = compare_networks(&faster, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("holds a run with learning_rate"),
        "{message}"
    );
}

#[test]
fn contenders_are_trained_for_equal_steps_each_in_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let names = [
        "deq-jr",
        "deq-jr+unrolled",
        "deq-jr+phantom",
        "deq-jr+one-step",
        "deq+one-step+short+unrolled",
        "weight-tied",
    ];
    let mut contenders = names.map(|name| name.parse().unwrap()).to_vec();
    contenders.push(Contender::DEQ_JR);
    let options = NetworkComparison {
        length: Length::Steps(8),
        contenders,
        ..small(folder.path())
    };
    let result = compare_networks(&options, &mut |_| {}).unwrap();
    let trained: Vec<_> = result
        .networks
        .iter()
        .map(|network| &network.name)
        .collect();
    assert_eq!(trained, names, "one that is named twice is trained once");
    for network in &result.networks {
        assert_eq!(network.steps, 8, "{}", network.name);
        let trained_by_a_solve = ["deq-jr", "deq-jr+unrolled"].contains(&network.name.as_str());
        let products = network.training_evaluations[1];
        assert_eq!(products > 0.0, trained_by_a_solve, "{}", network.name);
    }
    let path = folder.path().join("deq-one-step-short-unrolled/seed-1");
    let short = Recipe::<TextTask>::of_run(&path).unwrap();
    assert!(short.penalty.is_none());
    assert_eq!((short.pretrain_steps, short.deq.stop.max_steps), (4, 9));
    assert_eq!(short.deq.eval_stop.unwrap().max_steps, 30);

    // Each DEQ beside the weight-tied network, and the memory of the two; nothing about layers.
    let statements: Vec<_> = result.claims.iter().map(|claim| &claim.statement).collect();
    assert_eq!(statements.len(), 6, "{statements:?}");
    let first = "deq-jr is better than weight-tied with as many parameters after equal steps";
    assert_eq!(statements[0], first);
    assert!(statements[5].starts_with("training memory"));
}

#[test]
fn a_network_that_diverges_is_the_worst_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = NetworkComparison {
        length: Length::Steps(4),
        contenders: vec![Contender::DEQ, Contender::WeightTied],
        layers: None,
        memory: None,
        ..small(folder.path())
    };
    options.recipe.optimizer = Optimizer::Momentum;
    options.recipe.weight_decay = 1e38;
    let result = compare_networks(&options, &mut |_| {}).unwrap();
    assert_eq!(result.networks.len(), 2);
    for network in &result.networks {
        assert!(
            network.diverged && network.parameters.is_none(),
            "{network:?}"
        );
        assert_eq!((network.quality, network.evaluations), (None, None));
        assert_eq!(network.converged, None);
    }
    assert!(!result.claims.is_empty());
    let verdicts = result.claims.iter().map(|claim| claim.verdict);
    assert!(
        verdicts
            .into_iter()
            .all(|verdict| verdict == Verdict::DoesNotHold)
    );
    let page = std::fs::read_to_string(&result.report).unwrap();
    assert!(page.contains("diverged"));
}

#[test]
fn a_multiscale_model_is_compared_with_a_resnet() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::<ImagesTask>::preset("mini").unwrap();
    // All of the held-out images are evaluated in the end.
    (recipe.batch, recipe.steps, recipe.pretrain_steps) = (64, 2, 1);
    (recipe.rounds, recipe.valid_batches, recipe.warmup_steps) = (1, Some(1), 0);
    (recipe.deq.stop.max_steps, recipe.deq.eval_stop) = (2, None);
    let options = NetworkComparison {
        title: "A small model".to_owned(),
        layers: Some(ExplicitNetwork::resnet(&recipe, 18).unwrap()),
        recipe,
        length: Length::Steps(2),
        contenders: Contender::DEFAULT.to_vec(),
        seeds: 1,
        tied_depth: 2,
        device: "flex".to_owned(),
        folder: folder.path().to_owned(),
        memory: None,
    };
    let result = compare_networks(&options, &mut |_| {}).unwrap();
    let names: Vec<_> = result
        .networks
        .iter()
        .map(|network| &network.name)
        .collect();
    assert_eq!(names, ["deq-jr", "deq", "weight-tied", "resnet"]);
    let [plain, resnet] = [&result.networks[1], &result.networks[3]];
    let ratio = resnet.parameters.unwrap() as f64 / plain.parameters.unwrap() as f64;
    assert!((0.8..1.25).contains(&ratio), "{ratio}");
    let quality = resnet.quality.unwrap();
    assert!((0.0..=1.0).contains(&quality) && resnet.converged.is_none());
    assert!(result.claims[1].here.starts_with("accuracy"));
    let page = std::fs::read_to_string(&result.report).unwrap();
    assert!(page.contains("A small model beside explicit networks") && page.contains("accuracy"));

    // Both sides of the comparison are one model without it.
    let without = Recipe::<ImagesTask> {
        penalty: None,
        ..options.recipe.clone()
    };
    let refused = compare_networks(
        &NetworkComparison {
            recipe: without,
            ..options
        },
        &mut |_| {},
    );
    let message = refused.unwrap_err().to_string();
    assert!(message.starts_with("penalty.weight is 0"), "{message}");
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = small(folder.path());
    let refused = compare_networks(
        &NetworkComparison {
            length: Length::Minutes(0.0),
            ..base.clone()
        },
        &mut |_| {},
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "minutes is 0, but must be above 0 and at most 1,000,000"
    );
    let mut tied = base.clone();
    tied.recipe.make_explicit(Network::WeightTied { depth: 2 });
    tied.contenders = vec![Contender::DEQ];
    let message = compare_networks(&tied, &mut |_| {})
        .unwrap_err()
        .to_string();
    let expected = "the recipe is of the network \"explicit, weight-tied, 2 layers\"";
    assert!(message.starts_with(expected), "{message}");
    let without = NetworkComparison {
        layers: None,
        ..base.clone()
    };
    let message = compare_networks(&without, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("layers is 0, but must be given"),
        "{message}"
    );
    let refused = ExplicitNetwork::transformer_xl(&base.recipe, 50, "flex");
    let message = refused.unwrap_err().to_string();
    assert!(
        message.starts_with("layers is 50, but must be few enough"),
        "{message}"
    );
}
