//! Files that were changed at random are refused or read, but nothing panics.

use super::write::{Torch, file, safetensors, tar};
use super::{config, model};
use burn::tensor::TensorData;
use deq_models::checkpoint::{StateDict, load, state_dict};
use deq_models::{
    DeqTransformerLmConfig, MdeqClassifierConfig, MdeqSegmenterConfig, ModelError, ResNetConfig,
};
use deq_testkit::f64_device;
use proptest::prelude::*;
use std::sync::LazyLock;
use zip::CompressionMethod::{Deflated, Stored};

/// A change of a file.
#[derive(Clone, Debug)]
enum Change {
    /// One byte becomes another.
    Byte(usize, u8),
    /// A number of four bytes becomes another, such as a length.
    Number(usize, u32),
    /// So many bytes are cut out.
    Cut(usize, usize),
    /// So many bytes are written once more.
    Twice(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let numbers = prop_oneof![
        Just(0),
        Just(1),
        Just(0x7fff_ffff),
        Just(u32::MAX),
        any::<u32>()
    ];
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        2 => (any::<usize>(), numbers).prop_map(|(at, number)| Change::Number(at, number)),
        1 => (any::<usize>(), 1..64_usize).prop_map(|(at, count)| Change::Cut(at, count)),
        1 => (any::<usize>(), 1..64_usize).prop_map(|(at, count)| Change::Twice(at, count)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let (Change::Byte(at, _)
        | Change::Number(at, _)
        | Change::Cut(at, _)
        | Change::Twice(at, _)) = change;
        let at = at % bytes.len().max(1);
        let rest = bytes.len() - at;
        match *change {
            _ if rest == 0 => {}
            Change::Byte(_, byte) => bytes[at] = byte,
            Change::Number(_, number) => {
                let number = number.to_le_bytes();
                let count = rest.min(4);
                bytes[at..at + count].copy_from_slice(&number[..count]);
            }
            Change::Cut(_, count) => drop(bytes.drain(at..at + count.min(rest))),
            Change::Twice(_, count) => {
                let again = bytes[at..at + count.min(rest)].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn files_that_were_changed_cause_no_panic(
        sample in 0..SAMPLES.len(),
        changes in prop::collection::vec(change(), 1..8),
    ) {
        if let Err(error) = use_file(&changed(SAMPLES[sample].clone(), &changes)) {
            let text = error.to_string();
            prop_assert!(text.len() < 2000 && !text.contains(char::is_control), "{}", text);
        }
    }

    #[test]
    fn pickles_that_were_changed_cause_no_panic(
        changes in prop::collection::vec(change(), 1..8),
        legacy in any::<bool>(),
    ) {
        let tensors = [("a".to_owned(), TensorData::new(vec![1.0_f64, 2.0], [2]))];
        let mut torch = Torch::state_dict(&tensors);
        torch.pickle = changed(torch.pickle, &changes);
        let bytes = if legacy { torch.legacy() } else { torch.zip(Stored) };
        let _ = use_file(&bytes);
    }
}
