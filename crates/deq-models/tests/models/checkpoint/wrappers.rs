//! Whatever stands around the weights of a model, they are found, and everything else is reported.

use super::write::{Torch, View, archive, file, safetensors, tar};
use super::{config, model, output};
use burn::tensor::TensorData;
use deq_models::checkpoint::{ElementType, LoadReport, StateDict, WeightsChoice, load, state_dict};
use deq_models::{
    DeqTransformerLm, DeqTransformerLmConfig, MdeqConfig, MdeqSegmenterConfig, ModelError,
};
use deq_testkit::f64_device;
use std::cell::Cell;
use std::slice::from_ref;
use zip::CompressionMethod::Stored;

type Named = Vec<(String, TensorData)>;

fn tensors(model: &DeqTransformerLm) -> Named {
    state_dict(model).unwrap()
}

fn prefixed(prefix: &str, tensors: &[(String, TensorData)]) -> Named {
    let tensors = tensors.iter();
    tensors
        .map(|(name, data)| (format!("{prefix}{name}"), data.clone()))
        .collect()
}

fn number(value: f64) -> TensorData {
    TensorData::new(vec![value], [1])
}

/// Loads a file into a fresh model of the configuration that the file reveals.
fn loaded(file: &StateDict) -> (DeqTransformerLm, LoadReport) {
    let found = DeqTransformerLmConfig::from_state_dict(file, &config()).unwrap();
    assert_eq!(found, config());
    load(model(), file).unwrap()
}

/// Asserts that a file holds all of a model and, besides, what is unused.
fn assert_found(file: &StateDict, saved: &DeqTransformerLm, group: &str, unused: &[&str]) {
    let (loaded, report) = loaded(file);
    assert!(report.is_complete(), "{report}");
    assert_eq!(output(&loaded), output(saved));
    assert_eq!(report.group, group);
    assert_eq!(report.unused, unused);
}

fn open(bytes: &[u8]) -> StateDict {
    let (_folder, path) = file(bytes);
    StateDict::open(&path).unwrap()
}

#[test]
fn every_container_of_pytorch_is_read() {
    let saved = model();
    let all = tensors(&saved);
    let deflated = zip::CompressionMethod::Deflated;
    // The buffer of positions is of f32, which the tar archive of this test does not have.
    let doubles: Named = all
        .iter()
        .map(|(name, data)| (name.clone(), data.clone().convert::<f64>()))
        .collect();
    for bytes in [
        Torch::state_dict(&all).zip(Stored),
        Torch::state_dict(&all).zip(deflated),
        Torch::state_dict(&all).legacy(),
        tar(&doubles),
    ] {
        assert_found(&open(&bytes), &saved, "", &[]);
    }
}

#[test]
fn archives_with_both_kinds_of_end_are_read_whatever_their_name() {
    // PyTorch puts 76 bytes for large archives between the directory and its end. Here the first
    // entry of the directory is of 76 bytes too: 46 and a name of 30.
    let mut torch = Torch::state_dict(&[("t".to_owned(), number(2.0))]);
    torch.raw(b".");
    let folder = "a_name_of_21_";
    let members = [
        (format!("{folder}/data.pkl"), torch.pickle),
        (format!("{folder}/data/0"), torch.storages.remove(0).1),
    ];
    let mut bytes = archive(&members, Stored);
    let end = bytes.len() - 22;
    let number_at = |at: usize| u64::from(u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()));
    let (size, start) = (number_at(end + 12), number_at(end + 16));
    let mut large = b"PK\x06\x06".to_vec();
    large.extend(44_u64.to_le_bytes());
    large.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [2, 2, size, start] {
        large.extend(number.to_le_bytes());
    }
    large.extend(b"PK\x06\x07\0\0\0\0");
    large.extend((end as u64).to_le_bytes());
    large.extend(1_u32.to_le_bytes());
    assert_eq!(large.len(), 76);
    bytes.splice(end..end, large);
    let file = open(&bytes);
    assert_eq!(file.read("t").unwrap().unwrap(), number(2.0));
}

#[test]
fn prefixes_of_wrappers_are_dropped_from_all_names_or_some() {
    let saved = model();
    let all = tensors(&saved);
    for prefix in [
        "module.",
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
    ] {
        assert_found(
            &StateDict::from_tensors(prefixed(prefix, &all)),
            &saved,
            "",
            &[],
        );
        // One half of the names only.
        let mut mixed = prefixed(prefix, &all[..all.len() / 2]);
        mixed.extend(all[all.len() / 2..].to_vec());
        assert_found(&StateDict::from_tensors(mixed), &saved, "", &[]);
    }
    // A submodule that was compiled by itself.
    let inner = all.iter().map(|(name, data)| {
        let name = name.replacen("func.", "func._orig_mod.", 1);
        (name, data.clone())
    });
    assert_found(&StateDict::from_tensors(inner), &saved, "", &[]);
}

#[test]
fn dictionaries_around_a_state_dict_are_looked_through() {
    let saved = model();
    let all = tensors(&saved);
    for key in ["model", "state_dict", "net", "model_state_dict"] {
        let mut torch = Torch::new();
        torch.dict(|torch| {
            torch.text("epoch");
            torch.int(3);
            torch.text(key);
            torch.dict(|torch| torch.entries(&prefixed("module.", &all)));
        });
        assert_found(&open(&torch.clone().zip(Stored)), &saved, key, &[]);
        assert_found(&open(&torch.legacy()), &saved, key, &[]);
    }
}

#[test]
fn the_state_of_an_optimiser_is_unused() {
    let saved = model();
    let mut torch = Torch::new();
    torch.dict(|torch| {
        torch.text("model_state_dict");
        torch.dict(|torch| torch.entries(&tensors(&saved)));
        torch.text("optimizer_state_dict");
        torch.dict(|torch| {
            torch.text("state");
            torch.dict(|torch| {
                torch.int(0);
                torch.dict(|torch| torch.entries(&[("exp_avg".to_owned(), number(0.5))]));
            });
            torch.text("param_groups");
            torch.raw(b"](");
            torch.dict(|torch| {
                torch.text("lr");
                torch.raw(b"G\x3f\x50\x62\x4d\xd2\xf1\xa9\xfc");
                torch.text("params");
                torch.ints(&[0, 1, 2]);
            });
            torch.raw(b"e");
        });
    });
    let unused = ["optimizer_state_dict.state.0.exp_avg"];
    assert_found(
        &open(&torch.zip(Stored)),
        &saved,
        "model_state_dict",
        &unused,
    );
}

#[test]
fn of_several_sets_of_weights_one_is_taken_and_said() {
    let (trained, average) = (model(), model());
    let mut all = prefixed("state_dict.", &tensors(&trained));
    all.extend(prefixed("state_dict_ema.module.", &tensors(&average)));
    let file = || StateDict::from_tensors(all.clone());
    let (loaded, report) = load(model(), &file()).unwrap();
    assert_eq!(output(&loaded), output(&trained));
    assert_eq!(report.group, "state_dict");
    assert_eq!(report.other_groups, ["state_dict_ema"]);
    let text = report.to_string();
    assert!(
        text.contains("tensors match, all in state_dict\n"),
        "{text}"
    );
    let other = "left out: other weights of the same model in state_dict_ema";
    assert!(text.contains(other), "{text}");

    for choice in ["ema", "state_dict_ema"] {
        let file = file().with_choice(choice.parse().unwrap());
        let (loaded, report) = load(model(), &file).unwrap();
        assert_eq!(output(&loaded), output(&average));
        assert_eq!(report.group, "state_dict_ema");
        assert_eq!(report.other_groups, ["state_dict"]);
    }
    let error = load(model(), &file().with_choice("best".parse().unwrap())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the checkpoint holds no weights under best, but under state_dict and under state_dict_ema"
    );
    // Averages alone are taken without asking.
    let only = StateDict::from_tensors(prefixed("ema_model.", &tensors(&average)));
    assert_found(&only, &average, "ema_model", &[]);
    let plain = StateDict::from_tensors(tensors(&trained)).with_choice(WeightsChoice::Ema);
    let error = DeqTransformerLmConfig::from_state_dict(&plain, &config()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the checkpoint holds no weights under ema, but without any name before theirs"
    );
}

#[test]
fn a_segmenter_wrapped_with_its_loss_is_found() {
    let device = f64_device();
    let backbone = MdeqConfig::new(vec![4, 8]).with_groups(2);
    let config = MdeqSegmenterConfig::new(3, backbone);
    let saved = config.init(&device).unwrap();
    let mut all = prefixed("model.", &state_dict(&saved).unwrap());
    all.push(("loss.criterion.weight".to_owned(), number(1.0)));
    let file = StateDict::from_tensors(all);
    assert_eq!(
        MdeqSegmenterConfig::from_state_dict(&file, &config).unwrap(),
        config
    );
    let (loaded, report) = load(config.init(&device).unwrap(), &file).unwrap();
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.group, "model");
    assert_eq!(report.unused, ["loss.criterion.weight"]);
    assert_eq!(state_dict(&loaded).unwrap(), state_dict(&saved).unwrap());
}

#[test]
fn a_whole_module_is_read_as_its_state_dict() {
    // Net(inner=Net(), with a parameter, a buffer that lasts and one that does not).
    let python2 = Cell::new(false);
    let table = |torch: &mut Torch, name: &str, entries: &[(String, TensorData)]| {
        torch.text(name);
        if !python2.get() {
            return torch.dict(|torch| torch.entries(entries));
        }
        // There an ordered dictionary is made from a list of pairs.
        torch.raw(b"ccollections\nOrderedDict\n(](");
        for entry in entries {
            torch.raw(b"](");
            torch.entries(from_ref(entry));
            torch.raw(b"e");
        }
        torch.raw(b"etR");
    };
    let entry = |name: &str, value: f64| vec![(name.to_owned(), number(value))];
    let module = |class: &[u8]| {
        let mut torch = Torch::new();
        let begin = |torch: &mut Torch| {
            torch.raw(class);
            torch.raw(b")\x81}(");
        };
        begin(&mut torch);
        table(&mut torch, "_parameters", &entry("weight", 1.0));
        table(&mut torch, "_buffers", &[]);
        torch.text("_modules");
        torch.raw(b"}(");
        torch.text("inner");
        begin(&mut torch);
        table(&mut torch, "_parameters", &[]);
        let mut buffers = entry("mean", 2.0);
        buffers.extend(entry("mask", 3.0));
        table(&mut torch, "_buffers", &buffers);
        table(&mut torch, "_modules", &[]);
        torch.text("_non_persistent_buffers_set");
        torch.raw(b"c__builtin__\nset\n(](");
        torch.text("mask");
        torch.raw(b"etRubuub");
        torch
    };
    // Before PyTorch 1.6 the source of a class was kept beside it.
    let with_source = b"(X\x06\0\0\0modulec__main__\nNet\nX\x01\0\0\0fX\x01\0\0\0stQ";
    for bytes in [
        module(b"c__main__\nNet\n").zip(Stored),
        module(with_source).legacy(),
        {
            python2.set(true);
            module(with_source).legacy()
        },
    ] {
        let file = open(&bytes);
        let names: Vec<_> = file.infos().map(|info| info.name).collect();
        assert_eq!(names, ["inner.mean", "weight"]);
        let mean = file.read("inner.mean").unwrap().unwrap();
        assert_eq!(mean.iter::<f64>().collect::<Vec<_>>(), [2.0]);
    }
}

#[test]
fn tied_weights_may_be_stored_under_either_name() {
    let saved = model();
    let all = tensors(&saved);
    for stored in ["word_emb.emb_layers.", "crit.out_layers."] {
        let other = match stored {
            "crit.out_layers." => "word_emb.emb_layers.",
            _ => "crit.out_layers.",
        };
        let mut once = all.clone();
        once.retain(|(name, _)| !(name.starts_with(other) && name.ends_with(".weight")));
        assert_eq!(once.len(), all.len() - 3);
        assert_found(&StateDict::from_tensors(once), &saved, "", &[]);
    }
}

#[test]
fn safetensors_name_the_tensor_that_another_stands_for() {
    let data: Vec<u8> = [1.0_f64, 2.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let header = r#"{"__metadata__":{
        "format":"pt","word_emb.emb_layers.0.weight":"crit.out_layers.0.weight"},
        "crit.out_layers.0.weight":{"dtype":"F64","shape":[1,2],"data_offsets":[0,16]}}"#;
    let file = open(&safetensors(header, &data));
    let names: Vec<_> = file.infos().map(|info| info.name).collect();
    assert_eq!(names, ["crit.out_layers.0.weight"]);
    let config = DeqTransformerLmConfig::new(1, 2, 1, 2);
    let (model, report) = load(config.init(&f64_device()).unwrap(), &file).unwrap();
    let tied = ["word_emb.emb_layers.0.weight", "crit.out_layers.0.weight"];
    assert_eq!(report.loaded, tied);
    let table = deq_testkit::values(&model.embedding.tables[0].val());
    assert_eq!(table, [1.0, 2.0]);
}

#[test]
fn both_ways_of_pytorch_to_normalise_weights_are_read() {
    let config = config().with_weight_norm(true);
    let saved = config.init(&f64_device()).unwrap();
    let newer = tensors(&saved).into_iter().map(|(name, data)| {
        let name = name.replace("weight_g", "parametrizations.weight.original0");
        let name = name.replace("weight_v", "parametrizations.weight.original1");
        (name, data)
    });
    let newer: Named = newer.collect();
    let renamed = newer.iter().filter(|(name, _)| name.contains("original"));
    assert_eq!(renamed.count(), 2 * 5);
    let file = StateDict::from_tensors(newer);
    let found = DeqTransformerLmConfig::from_state_dict(&file, &super::config()).unwrap();
    assert_eq!(found, config);
    let (loaded, report) = load(config.init(&f64_device()).unwrap(), &file).unwrap();
    assert!(report.is_complete() && report.unused.is_empty(), "{report}");
    assert_eq!(output(&loaded), output(&saved));
}

/// The names and types of a file.
fn listed(file: &StateDict) -> Vec<(String, String)> {
    let infos = file.infos();
    infos
        .map(|info| (info.name, info.element.to_string()))
        .collect()
}

#[test]
fn types_that_burn_lacks_do_not_hide_the_other_tensors() {
    let header = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},
        "b":{"dtype":"F16","shape":[1],"data_offsets":[2,4]},
        "c":{"dtype":"C64","shape":[1],"data_offsets":[4,12]}}"#;
    let file = open(&safetensors(header, &[0; 12]));
    let name = |name: &str| name.to_owned();
    let expected = [("a", "F8_E4M3"), ("b", "F16"), ("c", "C64")];
    assert_eq!(listed(&file), expected.map(|(a, b)| (name(a), name(b))));
    assert_eq!(file.shape("a"), Some(vec![2]));
    assert_eq!(
        file.element("a"),
        Some(ElementType::Unknown(name("F8_E4M3")))
    );
    assert!(file.read("b").unwrap().is_some());
    assert_eq!(
        file.read("a").unwrap_err().to_string(),
        "cannot read the tensor a: elements of type F8_E4M3 are not supported"
    );

    let mut torch = Torch::new();
    torch.dict(|torch| {
        torch.text("plain");
        torch.tensor(&number(4.0));
        torch.text("complex");
        torch.storages.push(("ComplexFloatStorage", vec![0; 8]));
        let view = |storage| View {
            storage,
            elements: 1,
            offset: 0,
            shape: &[1],
            strides: &[1],
        };
        torch.view(&view(1));
        torch.text("small");
        torch.storages.push(("UntypedStorage", vec![0]));
        torch.raw(b"ctorch._utils\n_rebuild_tensor_v3\n(");
        torch.reference(&view(2));
        torch.raw(b"\x89}ctorch\nfloat8_e5m2\ntR");
        torch.text("sparse");
        torch.raw(b"ctorch._utils\n_rebuild_sparse_tensor\n(NtR");
    });
    let file = open(&torch.zip(Stored));
    let expected = [
        ("complex", "complex64"),
        ("plain", "F64"),
        ("small", "float8_e5m2"),
        ("sparse", "sparse_tensor"),
    ];
    assert_eq!(listed(&file), expected.map(|(a, b)| (name(a), name(b))));
    assert!(file.read("plain").unwrap().is_some());
}

#[test]
fn a_tensor_of_a_type_that_burn_lacks_is_no_weight() {
    let mut torch = Torch::new();
    torch.dict(|torch| {
        torch.text("inject_conv.bias");
        torch.raw(b"ctorch._utils\n_rebuild_qtensor\n(NtR");
    });
    let error = load(model(), &open(&torch.zip(Stored))).unwrap_err();
    assert!(
        matches!(error, ModelError::UnreadableTensor { .. }),
        "{error}"
    );
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let mut all = tensors(&model());
    let bad = TensorData::new(vec![1.0, f64::NAN, f64::INFINITY], [3]);
    for (name, data) in &mut all {
        if name == "inject_conv.bias" {
            *data = TensorData::new(vec![f64::NAN; 36], [36]);
        }
        if name == "func.dec_attn.r_w_bias" {
            let mut values = vec![0.0; 12];
            values[5] = f64::NEG_INFINITY;
            *data = TensorData::new(values, [3, 4]);
        }
    }
    all.push(("unused".to_owned(), bad));
    let error = load(model(), &StateDict::from_tensors(all)).unwrap_err();
    assert_eq!(
        error,
        ModelError::NotFinite {
            name: "inject_conv.bias".to_owned(),
            numbers: 37,
            tensors: 2,
        }
    );
    let text = error.to_string();
    assert!(
        text.contains("inject_conv.bias is the first of 2 tensors with 37 numbers"),
        "{text}"
    );
}
