//! No file of a megabyte takes gigabytes. A binary of its own, since it counts every allocation of
//! the process.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

#[path = "models/checkpoint/write.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod write;

use burn::tensor::{Device, TensorData};
use deq_models::checkpoint::{StateDict, load, printable, state_dict};
use deq_models::{
    DeqTransformerLmConfig, MdeqClassifierConfig, MdeqSegmenterConfig, ModelError, ResNetConfig,
};
use peak_alloc::PeakAlloc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use write::{Torch, View, archive, file, safetensors, tar};
use zip::CompressionMethod::{Deflated, Stored};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// What a file of a megabyte may take: 64 MiB and 16 times its size for its tensors, a pickle of 64
/// MiB and two million values of it.
const MOST: usize = 512 << 20;

/// Keeps the other tests from allocating.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes of `work`, whose memory is counted.
fn bounded<T>(work: impl FnOnce() -> T) -> T {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let result = work();
    let peak = HEAP.peak_usage() - before;
    assert!(peak < MOST, "{} MB were taken", peak >> 20);
    result
}

/// Reads everything and makes the model that a file describes.
fn used(bytes: &[u8]) -> Result<(), ModelError> {
    assert!(bytes.len() <= 1 << 20, "{} bytes", bytes.len());
    let (_folder, path) = file(bytes);
    bounded(|| {
        let dict = StateDict::open(&path)?;
        let names: Vec<_> = dict.infos().map(|info| info.name).collect();
        for name in names {
            dict.read(&name)?;
        }
        made(&dict)
    })
}

/// Makes the model that a state dict describes, of whichever kind.
fn made(dict: &StateDict) -> Result<(), ModelError> {
    let device = Device::flex();
    let transformer = DeqTransformerLmConfig::new(1, 1, 1, 1);
    match DeqTransformerLmConfig::from_state_dict(dict, &transformer) {
        Ok(config) => return load(config.init(&device)?, dict).map(|_| ()),
        Err(ModelError::OtherModel { reason, .. }) if reason.starts_with("there is no") => {}
        Err(error) => return Err(error),
    }
    let classifier = MdeqClassifierConfig::imagenet_small();
    match MdeqClassifierConfig::from_state_dict(dict, &classifier) {
        Ok(config) => return load(config.init(&device)?, dict).map(|_| ()),
        Err(ModelError::OtherModel { reason, .. }) if reason.starts_with("there is no") => {}
        Err(error) => return Err(error),
    }
    match ResNetConfig::from_state_dict(dict) {
        Ok(config) => load(config.init(&device)?, dict).map(|_| ()),
        Err(error) => Err(error),
    }
}

fn assert_refused(bytes: &[u8], expected: &str) {
    let error = used(bytes).unwrap_err().to_string();
    assert!(
        error.contains(expected),
        "{error}\ndoes not say: {expected}"
    );
    assert!(
        error.len() < 1000 && !error.contains(char::is_control),
        "{error:?}"
    );
}

/// A state dict of views of one storage of eight numbers.
fn views(views: &[(String, View<'_>)]) -> Torch {
    let mut torch = Torch::new();
    torch.storages.push(("DoubleStorage", vec![0; 64]));
    torch.dict(|torch| {
        for (name, view) in views {
            torch.text(name);
            torch.view(view);
        }
    });
    torch
}

fn view<'v>(shape: &'v [usize], strides: &'v [usize]) -> View<'v> {
    View {
        storage: 0,
        elements: 8,
        offset: 0,
        shape,
        strides,
    }
}

#[test]
fn numbers_that_are_repeated_are_counted() {
    let _alone = alone();
    let name = |k: usize| format!("t{k}");
    let one = [(name(0), view(&[1 << 30], &[0]))];
    let expected = "promise tensors of more than";
    assert_refused(&views(&one).zip(Stored), expected);
    assert_refused(&views(&one).legacy(), expected);
    let wide = [(name(0), view(&[1 << 31, 1 << 31, 1 << 31], &[0, 0, 0]))];
    assert_refused(&views(&wide).zip(Stored), "is larger than any file");
    // Each of them within what one tensor may be.
    let many: Vec<_> = (0..2000)
        .map(|k| (name(k), view(&[1 << 20], &[0])))
        .collect();
    assert_refused(&views(&many).zip(Stored), expected);
    // A bias of ones is no attack.
    let small = [(name(0), view(&[512, 3], &[0, 1]))];
    let (_folder, path) = file(&views(&small).zip(Stored));
    let data = StateDict::open(&path).unwrap().read("t0").unwrap().unwrap();
    assert_eq!(data.shape().as_slice(), [512, 3]);
}

#[test]
fn tensors_lie_within_their_storages() {
    let _alone = alone();
    for (shape, strides, offset) in [
        (&[9][..], &[1][..], 0),
        (&[2], &[8], 0),
        (&[8], &[1], 1),
        (&[2], &[usize::MAX >> 1], 0),
        (&[2, 2], &[1], 0),
        (&[1], &[1], usize::MAX >> 1),
    ] {
        let view = View {
            offset,
            ..view(shape, strides)
        };
        let bytes = views(&[("t".to_owned(), view)]).zip(Stored);
        assert_refused(&bytes, "t: a tensor of shape");
    }
    let axes = [1; 9];
    let bytes = views(&[("t".to_owned(), view(&axes, &axes))]).zip(Stored);
    assert_refused(&bytes, "t: a tensor has 9 axes, more than 8");
    // What a view leaves out is not read from its neighbours.
    let part = View {
        offset: 1,
        ..view(&[2, 2], &[4, 2])
    };
    let mut torch = views(&[("t".to_owned(), part)]);
    let numbers = (0..8).flat_map(|k| f64::from(k).to_le_bytes());
    torch.storages[0].1 = numbers.collect();
    let (_folder, path) = file(&torch.zip(Stored));
    let data = StateDict::open(&path).unwrap().read("t").unwrap().unwrap();
    assert_eq!(data.iter::<f64>().collect::<Vec<_>>(), [1.0, 3.0, 5.0, 7.0]);
}

#[test]
fn compressed_zeros_are_bounded() {
    let _alone = alone();
    // A pickle and a storage that are a thousand times as large as the file.
    let pickle = [("data.pkl".to_owned(), vec![b'N'; 200 << 20])];
    assert_refused(
        &archive(&pickle, Deflated),
        "it is longer than 67108864 bytes",
    );
    let pickle = [("data.pkl".to_owned(), vec![b'N'; 60 << 20])];
    assert_refused(
        &archive(&pickle, Deflated),
        "more than 2097152 instructions",
    );
    let numbers = 40 << 20;
    let mut torch = Torch::new();
    torch.storages.push(("DoubleStorage", vec![0; numbers * 8]));
    torch.dict(|torch| {
        torch.text("t");
        torch.view(&View {
            elements: numbers,
            ..view(&[numbers], &[1])
        });
    });
    assert_refused(&torch.zip(Deflated), "promise tensors of more than");
}

#[test]
fn objects_that_are_shared_are_not_copied() {
    let _alone = alone();
    // Each list holds the one before twice: two to the power of forty in the end.
    let mut torch = Torch::new();
    torch.raw(b"]q\0");
    for _ in 0..40 {
        torch.raw(b"](h\0h\0eq\0");
    }
    assert_refused(&torch.zip(Stored), "nested beyond all measure");
    // The same long text a hundred thousand times.
    let mut torch = Torch::new();
    torch.text(&"x".repeat(500_000));
    torch.raw(b"q\0(");
    (0..100_000).for_each(|_| torch.raw(b"h\0"));
    torch.raw(b"l");
    assert_refused(&torch.zip(Stored), "it holds a list, but no tensors");
    // Lists within lists, deeper than any stack.
    let mut torch = Torch::new();
    torch.raw(b"](");
    torch.raw(&b"]("[..].repeat(200_000));
    torch.raw(&b"e"[..].repeat(200_001));
    assert_refused(&torch.zip(Stored), "nested beyond all measure");
    // A list that holds itself, beside a tensor.
    let mut torch = Torch::new();
    torch.dict(|torch| {
        torch.text("self");
        torch.raw(b"]q\0h\0a");
        torch.text("t");
        torch.tensor(&TensorData::new(vec![1.0_f64], [1]));
    });
    let (_folder, path) = file(&torch.zip(Stored));
    let dict = StateDict::open(&path).unwrap();
    assert_eq!(dict.infos().count(), 1);
}

#[test]
fn an_archive_says_no_more_members_than_it_has() {
    let _alone = alone();
    let mut bytes = Torch::new().zip(Stored);
    let end = bytes
        .windows(4)
        .rposition(|bytes| bytes == b"PK\x05\x06")
        .unwrap();
    bytes[end + 8..end + 12].fill(0xff);
    assert!(used(&bytes).is_err());
    let mut tar = tar(&[("t".to_owned(), TensorData::new(vec![1.0_f64], [1]))]);
    // The number of storages, a long of eight bytes at the start of that member.
    let long = tar
        .windows(2)
        .enumerate()
        .filter(|(_, bytes)| *bytes == [0x8a, 8]);
    let first = long.map(|(at, _)| at).next().unwrap();
    tar[first + 2..first + 9].fill(0xff);
    assert!(used(&tar).is_err());
}

#[test]
fn safetensors_hold_what_they_say() {
    let _alone = alone();
    let header = |shape: &str, to: u64| {
        format!(r#"{{"a":{{"dtype":"F64","shape":{shape},"data_offsets":[0,{to}]}}}}"#)
    };
    let refused = |shape: &str, expected: &str| {
        assert_refused(&safetensors(&header(shape, 8), &[0; 8]), expected);
    };
    refused("[1000000000,1000000000]", "a tensor of shape");
    refused("[4294967296,4294967296,4294967296]", "a tensor of shape");
    refused("[1,1,1,1,1,1,1,1,1]", "a: a tensor has 9 axes, more than 8");
    refused("[-1]", "its safetensors header is damaged");
    refused("[0]", "does not take 8 bytes");
    // Two tensors in one place.
    let entry = r#"{"dtype":"F64","shape":[1],"data_offsets":[0,8]}"#;
    let both = format!(r#"{{"a":{entry},"b":{entry}}}"#);
    assert_refused(
        &safetensors(&both, &[0; 8]),
        "the tensor b is said to lie at bytes 0 to 8",
    );
    let mut claim = u64::MAX.to_le_bytes().to_vec();
    claim[4..].fill(0);
    claim.extend(b"{}");
    assert_refused(
        &claim,
        "its safetensors header is said to be 4294967295 bytes long",
    );
}

/// A state dict of zeros.
fn zeros(shapes: &[(&str, &[usize])]) -> StateDict {
    StateDict::from_tensors(shapes.iter().map(|(name, shape)| {
        let count = shape.iter().product();
        (
            (*name).to_owned(),
            TensorData::new(vec![0.0_f32; count], *shape),
        )
    }))
}

#[test]
fn the_model_is_not_much_larger_than_the_file() {
    let _alone = alone();
    let refused = |dict: &StateDict, expected: &str| {
        let error = bounded(|| made(dict)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let dict = zeros(&[
        ("word_emb.emb_layers.0.weight", &[2, 1]),
        ("inject_conv.weight", &[1, 100_000, 1]),
        ("func.dec_attn.r_w_bias", &[1, 1]),
        ("func.pos_ff.ff1_net.weight", &[100_000, 1]),
    ]);
    refused(&dict, "make a model far larger than it");
    let block = |branch: usize| format!("fullstage.branches.{branch}.blocks.0");
    let [first, second] = [block(0), block(1)];
    let (first1, first2) = (
        format!("{first}.conv1.weight"),
        format!("{first}.conv2.weight"),
    );
    let second2 = format!("{second}.conv2.weight");
    let dict = zeros(&[
        (&first1, &[10_000, 1]),
        (&first2, &[10_000, 1]),
        (&second2, &[10_000, 1]),
        ("incre_modules.0.0.conv1.weight", &[1, 1]),
        ("incre_modules.1.0.conv1.weight", &[1, 1]),
        ("classifier.weight", &[1, 1]),
        ("final_layer.0.weight", &[1, 1]),
    ]);
    refused(&dict, "far larger than the file");
    // Thousands of wide layers.
    let names: Vec<_> = (0..1000)
        .map(|k| format!("layer1.{k}.conv1.weight"))
        .collect();
    let mut shapes: Vec<(&str, &[usize])> = names.iter().map(|name| (&**name, &[1][..])).collect();
    shapes.extend([("conv1.weight", &[16_000][..]), ("fc.weight", &[10])]);
    refused(&zeros(&shapes), "far larger than the file");
}

#[test]
fn ranks_that_no_model_has_are_an_error() {
    let _alone = alone();
    let transformer = [
        ("word_emb.emb_layers.0.weight", &[4, 4][..]),
        ("inject_conv.weight", &[12, 4, 1]),
        ("func.dec_attn.r_w_bias", &[2, 2]),
        ("func.pos_ff.ff1_net.weight", &[8, 4]),
        ("crit.cluster_bias", &[1]),
    ];
    let config = MdeqSegmenterConfig::cityscapes_small();
    let segmenter = [
        (
            "fullstage.branches.0.blocks.0.conv1.weight",
            &[4, 4, 3, 3][..],
        ),
        ("fullstage.branches.0.blocks.0.conv2.weight", &[4, 4, 3, 3]),
        ("last_layer.3.weight", &[2, 4, 1, 1]),
        ("incre_modules.0.0.conv1.weight", &[4, 4, 1, 1]),
        ("classifier.weight", &[2, 4]),
        ("final_layer.0.weight", &[4, 4, 1, 1]),
    ];
    let resnet = [
        ("conv1.weight", &[4, 3, 3, 3][..]),
        ("layer1.0.conv1.weight", &[4, 4, 3, 3]),
        ("fc.weight", &[2, 4]),
    ];
    for names in [&transformer[..], &segmenter, &resnet] {
        for wrong in 0..names.len() {
            for shape in [&[][..], &[0], &[0, 0], &[0, 0, 0, 0], &[1], &[1; 5]] {
                let mut shapes = names.to_vec();
                shapes[wrong].1 = shape;
                let dict = zeros(&shapes);
                let _ = made(&dict);
                let _ = MdeqSegmenterConfig::from_state_dict(&dict, &config);
            }
        }
    }
    let mut shapes = transformer.to_vec();
    shapes[0].1 = &[4];
    let error = made(&zeros(&shapes)).unwrap_err().to_string();
    let expected = "word_emb.emb_layers.0.weight is [4], which is not of rank 2";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn names_from_files_are_escaped_and_cut() {
    let _alone = alone();
    assert_eq!(
        printable("layer.0.weight_größe'\"\\"),
        "layer.0.weight_größe'\"\\"
    );
    assert_eq!(printable("a\x1b[31m\n\0"), "a\\u{1b}[31m\\n\\0");
    assert_eq!(
        printable(&"é".repeat(1000)),
        format!("{}…", "é".repeat(160))
    );
    let name = format!("\x1b]0;owned\x07{}", "x".repeat(100_000));
    let entry = r#"{"dtype":"F64","shape":[2],"data_offsets":[0,8]}"#;
    let escaped = name.replace('\x1b', "\\u001b").replace('\x07', "\\u0007");
    let header = format!(r#"{{"{escaped}":{entry}}}"#);
    assert_refused(
        &safetensors(&header, &[0; 8]),
        "the tensor \\u{1b}]0;owned\\u{7}xxx",
    );
    let mut torch = Torch::new();
    torch.dict(|torch| {
        torch.text(&name[..900]);
        torch.storages.push(("DoubleStorage", vec![0; 8]));
        torch.view(&view(&[9], &[1]));
    });
    assert_refused(&torch.zip(Stored), "\\u{1b}]0;owned\\u{7}xxx");
    let mut class = b"\x80\x02c".to_vec();
    class.extend(name.as_bytes());
    class.extend(b"\nf\n)R.");
    assert_refused(&class, "it is a pickle of an object of \\u{1b}]0;owned");
}

#[test]
fn numbers_beyond_the_range_of_the_model_are_refused() {
    let _alone = alone();
    // The model is of f32 here, the file of f64.
    let config = DeqTransformerLmConfig::new(30, 12, 3, 20);
    let fresh = || config.init(&Device::flex()).unwrap();
    let mut tensors = state_dict(&fresh()).unwrap();
    let bias = tensors
        .iter_mut()
        .find(|(name, _)| name == "inject_conv.bias");
    bias.unwrap().1 = TensorData::new(vec![1e300_f64; 36], [36]);
    let error = load(fresh(), &StateDict::from_tensors(tensors)).unwrap_err();
    assert!(
        matches!(error, ModelError::NotFinite { numbers: 36, .. }),
        "{error}"
    );
}
