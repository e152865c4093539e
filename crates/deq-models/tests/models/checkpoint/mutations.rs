//! Files that are changed at random are refused or read, but nothing panics.

use super::write::{Torch, file, safetensors, tar};
use super::{config, model};
use burn::tensor::TensorData;
use deq_models::checkpoint::{StateDict, load, state_dict};
use deq_models::{
    DeqTransformerLmConfig, MdeqClassifierConfig, MdeqSegmenterConfig, ModelError, ResNetConfig,
};
use deq_testkit::{f64_device, fuzz};
use std::sync::LazyLock;
use zip::CompressionMethod::{Deflated, Stored};

/// A small model in every container.
static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let tensors = state_dict(&model()).unwrap();
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, data)| (name, data.convert::<f64>()))
        .collect();
    let mut offset = 0;
    let mut data = Vec::new();
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, tensor): &(String, TensorData)| {
            let start = offset;
            offset += tensor.as_bytes().len();
            data.extend(tensor.as_bytes());
            let shape = tensor.shape().to_vec();
            format!(
                r#""{name}":{{"dtype":"F64","shape":{shape:?},"data_offsets":[{start},{offset}]}}"#
            )
        })
        .collect();
    vec![
        Torch::state_dict(&tensors).zip(Stored),
        Torch::state_dict(&tensors).zip(Deflated),
        Torch::state_dict(&tensors).legacy(),
        tar(&tensors),
        safetensors(&format!("{{{}}}", entries.join(",")), &data),
        // A pickle alone, since changes of an archive's are found by its checksum.
        Torch::state_dict(&tensors).pickle,
    ]
});

/// Does everything that can be done with a file.
fn use_file(bytes: &[u8]) -> Result<(), ModelError> {
    let (_folder, path) = file(bytes);
    let dict = StateDict::open(&path)?;
    for info in dict.infos() {
        let _ = dict.read(&info.name);
    }
    let _ = MdeqClassifierConfig::from_state_dict(&dict, &MdeqClassifierConfig::imagenet_small());
    let _ = MdeqSegmenterConfig::from_state_dict(&dict, &MdeqSegmenterConfig::cityscapes_small());
    let _ = ResNetConfig::from_state_dict(&dict);
    let found = DeqTransformerLmConfig::from_state_dict(&dict, &config())?;
    let (_, report) = load(found.init(&f64_device())?, &dict)?;
    assert!(report.to_string().len() < 100_000);
    Ok(())
}

#[test]
fn unchanged_samples_are_read() {
    for bytes in &SAMPLES[..5] {
        use_file(bytes).unwrap();
    }
}

#[test]
fn mutations_of_checkpoints_cause_no_panic() {
    fuzz("state dicts", &SAMPLES, 256, |bytes| {
        if let Err(error) = use_file(bytes) {
            let text = error.to_string();
            assert!(
                text.len() < 2000 && !text.contains(char::is_control),
                "{text}"
            );
        }
    });
}

#[test]
fn mutations_of_pickles_cause_no_panic() {
    let tensors = [("a".to_owned(), TensorData::new(vec![1.0_f64, 2.0], [2]))];
    let torch = || Torch::state_dict(&tensors);
    fuzz("pickles", &[torch().pickle], 256, |bytes| {
        let mut torch = torch();
        torch.pickle = bytes.to_vec();
        let _ = use_file(&torch.clone().legacy());
        let _ = use_file(&torch.zip(Stored));
    });
}
