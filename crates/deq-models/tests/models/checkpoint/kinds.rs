//! Files that are no checkpoint are called what they are, and damage is found where it is.

use super::write::{Torch, archive, file, safetensors, tar};
use burn::tensor::TensorData;
use deq_models::checkpoint::StateDict;
use zip::CompressionMethod::Stored;

fn reason(bytes: &[u8]) -> String {
    let (_folder, path) = file(bytes);
    let error = StateDict::open(&path).unwrap_err().to_string();
    let start = format!("cannot read the checkpoint {}: ", path.display());
    error
        .strip_prefix(&start)
        .unwrap_or_else(|| panic!("{error}"))
        .to_owned()
}

fn assert_reason(bytes: &[u8], expected: &str) {
    let reason = reason(bytes);
    assert!(
        reason.contains(expected),
        "{reason}\ndoes not say: {expected}"
    );
    assert!(reason.len() < 600, "{reason}");
    assert!(!reason.contains(char::is_control), "{reason:?}");
}

fn pair() -> Vec<(String, TensorData)> {
    let tensor = |name: &str| (name.to_owned(), TensorData::new(vec![1.0_f64, 2.0], [2]));
    vec![tensor("first"), tensor("second")]
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for (bytes, expected) in [
        (&b""[..], "it is empty"),
        (&[0; 100], "it begins with zeros only"),
        (pointer.as_bytes(), "it is a pointer of Git LFS"),
        (b"\n <!DOCTYPE html><html>", "it is a web page"),
        (b"<html><body>404</body></html>", "it is a web page"),
        (b"<?xml version=\"1.0\"?><Error/>", "it is XML"),
        (b"not a checkpoint at all", "it is text, not a checkpoint"),
        (
            b"{\"model\": {\"d_model\": 12}}",
            "it is text, not a checkpoint",
        ),
        (b"config: here\n", "it is text, not a checkpoint"),
        (b"\x89HDF\r\n\x1a\n rest", "it is a file of HDF5"),
        (b"\x93NUMPY\x01\0", "it is an array of NumPy"),
        (b"GGUF\x03\0\0\0", "it is a GGUF file"),
        (b"\x1f\x8b\x08\0", "compressed with gzip: unpack it first"),
        (
            b"\x07\xff\xfe\x01",
            "neither a checkpoint of PyTorch nor a safetensors file",
        ),
        (
            b"PK\x03\x04 cut off here",
            "its zip archive is damaged or cut off",
        ),
        // Pickles of other things.
        (b"\x80\x02](K\x01K\x02e.", "it is a pickle of a list"),
        (b"\x80\x04}\x94.", "it is a pickle of a dictionary"),
        (
            b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.",
            "it is a pickle of an object of os.system",
        ),
        (b"(dp0\nS'a'\nI1\ns.", "it is a pickle of a dictionary"),
        (
            b"\x80\x02}q",
            "read as a pickle, its pickle is damaged: it is cut off",
        ),
    ] {
        assert_reason(bytes, expected);
    }
    let members = [("a.npy".to_owned(), vec![1])];
    assert_reason(
        &archive(&members, Stored),
        "it is an archive of NumPy's arrays",
    );
    let members = [("weights.bin".to_owned(), vec![1])];
    assert_reason(
        &archive(&members, Stored),
        "but not one of PyTorch's: it has no data.pkl",
    );
    let mut empty = Torch::new();
    empty.dict(|torch| {
        torch.text("epoch");
        torch.int(1);
    });
    let expected = "it holds an object of collections.OrderedDict, but no tensors";
    assert_reason(&empty.zip(Stored), expected);
    assert_reason(&safetensors("{}", &[]), "it holds no tensors");
}

#[test]
fn a_missing_file_and_a_folder_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = StateDict::open(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("it is a folder"), "{error}");
    let error = StateDict::open(&folder.path().join("none.pth"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("none.pth: No such file"), "{error}");
}

#[test]
fn big_endian_files_are_refused() {
    let members = [
        ("data.pkl".to_owned(), b"\x80\x02}.".to_vec()),
        ("byteorder".to_owned(), b"big".to_vec()),
    ];
    assert_reason(
        &archive(&members, Stored),
        "written on a big-endian machine",
    );
    let mut legacy = Torch::state_dict(&pair()).legacy();
    let at = legacy
        .windows(3)
        .position(|bytes| bytes == b"\x88u.")
        .unwrap();
    legacy[at] = 0x89;
    assert_reason(&legacy, "written on a big-endian machine");
}

#[test]
fn no_damage_to_numbers_goes_unnoticed() {
    // In the middle of the numbers of the first tensor.
    let mut bytes = Torch::state_dict(&pair()).zip(Stored);
    let number = 1.0_f64.to_le_bytes();
    let at = bytes
        .windows(8)
        .position(|window| window == number)
        .unwrap();
    bytes[at] ^= 1;
    let (_folder, path) = file(&bytes);
    let dict = StateDict::open(&path).unwrap();
    let error = dict.read("first").unwrap_err().to_string();
    assert!(
        error.contains("archive/data/0 cannot be unpacked"),
        "{error}"
    );
    assert!(dict.read("second").unwrap().is_some());
}

#[test]
fn files_that_are_cut_off_are_refused() {
    let legacy = Torch::state_dict(&pair()).legacy();
    assert_reason(&legacy[..legacy.len() - 1], "it is cut off or damaged");
    let zip = Torch::state_dict(&pair()).zip(Stored);
    assert_reason(
        &zip[..zip.len() / 2],
        "its zip archive is damaged or cut off",
    );
    let tar = tar(&pair());
    let end = tar
        .windows(6)
        .rposition(|bytes| bytes == b"pickle")
        .unwrap();
    assert_reason(&tar[..end + 540], "cut off");
    let header = r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
    assert_reason(
        &safetensors(header, &[0; 7]),
        "the tensor a is said to lie at bytes 0 to 8 of 7",
    );
    assert_reason(
        &safetensors(header, &[0; 9]),
        "its tensors take 8 bytes, but it has 9",
    );
    let mut long = safetensors(header, &[0; 8]);
    long[1] = 1;
    assert_reason(&long, "its safetensors header is said to be");
    assert_reason(&safetensors(&header[1..], &[0; 8]), "neither a checkpoint");
    assert_reason(
        &safetensors(&header[..9], &[]),
        "its safetensors header is damaged",
    );
}
