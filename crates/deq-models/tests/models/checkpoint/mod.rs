//! State dicts of the original programs: what fits is loaded, what does not is named.

mod kinds;
mod mutations;
mod wrappers;
mod write;

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use deq_models::checkpoint::{LoadReport, ShapeMismatch, StateDict, load, save, state_dict};
use deq_models::{Depth, DeqTransformerLm, DeqTransformerLmConfig, LmMemory};
use deq_testkit::{f64_device, fixtures_of_kind, values};

fn config() -> DeqTransformerLmConfig {
    DeqTransformerLmConfig::new(30, 12, 3, 20)
        .with_cutoffs(vec![8, 20])
        .with_div_val(2)
}

fn model() -> DeqTransformerLm {
    config().init(&f64_device()).unwrap()
}

/// What the model makes of some tokens.
fn output(model: &DeqTransformerLm) -> Vec<f64> {
    let tokens = Tensor::<2, Int>::from_data([[1, 9, 25, 3]], &f64_device());
    let out = model.forward(tokens, &LmMemory::empty(), Depth::Unrolled(2));
    values(&model.nll(out.hidden, &[9, 25, 3, 11]))
}

/// The model's own tensors, changed by `edit`, loaded into a fresh model.
fn reloaded(edit: impl FnOnce(&mut Vec<(String, TensorData)>)) -> (DeqTransformerLm, LoadReport) {
    let mut tensors = state_dict(&model()).unwrap();
    edit(&mut tensors);
    load(model(), &StateDict::from_tensors(tensors)).unwrap()
}

#[test]
fn a_saved_model_comes_back_to_the_last_digit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let saved = model();
    save(&saved, &path).unwrap();
    let file = StateDict::open(&path).unwrap();
    let (loaded, report) = load(model(), &file).unwrap();
    assert!(report.is_complete() && report.unused.is_empty(), "{report}");
    assert_eq!(output(&loaded), output(&saved));
    let found = DeqTransformerLmConfig::from_state_dict(&file, &config()).unwrap();
    assert_eq!(found, config());

    // On an autodiff device too, where the parameters stay trainable.
    let device = f64_device().autodiff();
    let (loaded, _) = load(config().init(&device).unwrap(), &file).unwrap();
    assert_eq!(output(&loaded.valid()), output(&saved));
    assert!(loaded.injection.weight.val().is_require_grad());
}

#[test]
fn what_does_not_fit_is_named() {
    let (_, report) = reloaded(|tensors| {
        let find = |tensors: &[(String, TensorData)], name: &str| {
            tensors.iter().position(|(n, _)| n == name).unwrap()
        };
        tensors.remove(find(tensors, "inject_conv.bias"));
        let wrong = find(tensors, "crit.cluster_bias");
        tensors[wrong].1 = TensorData::new(vec![0.0_f64; 3], [3]);
        let tied = find(tensors, "crit.out_layers.1.weight");
        tensors[tied].1 = TensorData::new(vec![0.5_f64; 12 * 6], [12, 6]);
        tensors.push(("extra".to_owned(), TensorData::new(vec![0.0_f64], [1])));
    });
    assert!(!report.is_complete());
    assert_eq!(report.missing, ["inject_conv.bias"]);
    assert_eq!(
        report.mismatched,
        [ShapeMismatch {
            name: "crit.cluster_bias".to_owned(),
            expected: vec![2],
            found: vec![3],
        }]
    );
    let tied = ["crit.out_layers.1.weight", "word_emb.emb_layers.1.weight"];
    assert_eq!(report.untied, [(tied[0].to_owned(), tied[1].to_owned())]);
    assert_eq!(report.unused, ["extra"]);
    let text = report.to_string();
    for line in [
        "missing: inject_conv.bias",
        "wrong shape: crit.cluster_bias is [3], but the model needs [2]",
        "not tied: crit.out_layers.1.weight differs from word_emb.emb_layers.1.weight",
        "unused: extra",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn the_names_and_shapes_are_those_of_the_original() {
    for case in fixtures_of_kind("deq_transformer") {
        let recorded = case.names().filter_map(|name| {
            let tensor = case.get(name)?;
            Some((name.strip_prefix("param.")?.to_owned(), tensor))
        });
        let file = StateDict::from_tensors(recorded.map(|(name, (shape, values))| {
            (name, TensorData::new(values.to_vec(), shape.to_vec()))
        }));
        let base = DeqTransformerLmConfig::new(1, 1, 1, 1);
        let config = DeqTransformerLmConfig::from_state_dict(&file, &base).unwrap();
        let (model, _) = load(config.init(&f64_device()).unwrap(), &file).unwrap();
        let ours: Vec<_> = state_dict(&model).unwrap();
        assert_eq!(ours.len(), file.infos().count(), "{}", case.name);
        for (name, data) in ours {
            let there = file.read(&name).unwrap().unwrap();
            assert_eq!(data.shape(), there.shape(), "{name}");
            let error = data.iter::<f64>().zip(there.iter::<f64>());
            let error = error.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            // The frequencies are a constant of f32.
            assert!(error < 1e-7, "{} {name}: {error}", case.name);
        }
    }
}

#[test]
fn a_transformer_is_recognised_by_its_tensors() {
    let other = StateDict::from_tensors([(
        "fc.weight".to_owned(),
        TensorData::new(vec![0.0_f64], [1, 1]),
    )]);
    assert_eq!(
        DeqTransformerLmConfig::from_state_dict(&other, &config())
            .unwrap_err()
            .to_string(),
        "the checkpoint is not that of a DEQ-Transformer: there is no word_emb.emb_layers.0.weight"
    );
}
