use super::*;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, SeqDeserializer};

fn tokens(vocabulary: Vocabulary) -> Vec<String> {
    vocabulary.into()
}

#[test]
fn words_are_sorted_by_frequency_then_appearance() {
    let vocabulary = Vocabulary::of_words("b a <eos> c a b a <eos> d".split(' '));
    assert_eq!(tokens(vocabulary.clone()), ["<eos>", "a", "b", "c", "d"]);
    assert_eq!(vocabulary.id("c"), Some(3));
    assert_eq!(vocabulary.id("missing"), None);
    assert_eq!(vocabulary.token(4), Some("d"));
}

#[test]
fn the_other_orders_are_as_described() {
    let words = || "b a <eos> c a b a <eos> d".split(' ');
    let appearance = Vocabulary::by_appearance(words());
    assert_eq!(tokens(appearance.clone()), ["<eos>", "b", "a", "c", "d"]);
    // Two rare words together are as frequent as b, and come after it.
    let frequent = Vocabulary::of_frequent(count(words()), 2);
    assert_eq!(tokens(frequent), ["<eos>", "a", "b", "<unk>"]);
    let listed = ["z", "<unk>", "d", "a", "<eos>"].map(str::to_owned);
    let listed = Vocabulary::try_from(listed.to_vec()).unwrap();
    let sorted = listed.sorted_for(count(words()));
    assert_eq!(tokens(sorted), ["<eos>", "<unk>", "a", "d", "z"]);
}

#[test]
fn unknown_words_become_unk_or_an_error() {
    let with = Vocabulary::of_words(["x", "<unk>", "x"]);
    assert_eq!(with.id("y"), with.id("<unk>"));
    let without = Vocabulary::of_words(["x"]);
    assert_eq!(
        without.encode("x y").unwrap_err().to_string(),
        "the vocabulary has neither \"y\" nor <unk>: use words of the training text"
    );
    assert_eq!(
        without.decode(&[2]).unwrap_err().to_string(),
        "there is no token 2: the ids of this vocabulary are below 2"
    );
}

#[test]
fn bytes_survive_encode_and_decode() {
    let bytes = Vocabulary::of_bytes();
    assert_eq!((bytes.len(), bytes.level()), (256, Level::Byte));
    assert_eq!(bytes.token(10), Some("<0x0A>"));
    let text = "naïve\n\ttext ~";
    assert_eq!(bytes.decode(&bytes.encode(text).unwrap()).unwrap(), text);
    assert_eq!(bytes.decode(&[b'a'.into(), 0xC3]).unwrap(), "a\u{FFFD}");
}

#[test]
fn fingerprints_are_stable_and_tell_orders_apart() {
    // FNV-1a of "a", 0, "b", 0, computed apart from this crate.
    let list = |tokens: [&str; 2]| Vocabulary::try_from(tokens.map(str::to_owned).to_vec());
    let vocabulary = list(["a", "b"]).unwrap();
    assert_eq!(vocabulary.fingerprint(), FNV_OF_A_B);
    assert!(vocabulary.require(FNV_OF_A_B).is_ok());
    let turned = list(["b", "a"]).unwrap();
    let message = turned.require(FNV_OF_A_B).unwrap_err().to_string();
    assert!(
        message.contains(&format!("{FNV_OF_A_B:016x}")) && message.contains("same data"),
        "{message}"
    );
}

const FNV_OF_A_B: u64 = 0xab40_d782_0d40_8076;

#[test]
fn vocabularies_survive_files_and_serde() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.txt");
    for vocabulary in [
        Vocabulary::of_bytes(),
        Vocabulary::of_words(["x", "戦場", "x"]),
    ] {
        vocabulary.save(&path).unwrap();
        assert_eq!(Vocabulary::load(&path).unwrap(), vocabulary);
        let list = tokens(vocabulary.clone());
        let value: SeqDeserializer<_, Error> = list.into_deserializer();
        assert_eq!(Vocabulary::deserialize(value).unwrap(), vocabulary);
    }
}

#[test]
fn marks_and_line_ends_are_no_part_of_a_listed_word() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.txt");
    for end in ["\n", "\r", "\r\n"] {
        for mark in ["", "\u{FEFF}"] {
            for last in ["", end] {
                let text = format!("{mark}<eos>{end}a{end}<unk>{last}");
                std::fs::write(&path, text).unwrap();
                let words = tokens(Vocabulary::load(&path).unwrap());
                assert_eq!(words, ["<eos>", "a", "<unk>"]);
            }
        }
    }
}

#[test]
fn broken_vocabulary_files_are_refused_with_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.txt");
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Vocabulary::load(&path).unwrap_err().to_string()
    };
    assert!(
        message(b"a\nb\na\n").ends_with("repeats \"a\" in line 3: every token must have one line")
    );
    assert!(message(b"a\n\nb\n").ends_with("nothing in line 2: every line must hold one token"));
    assert!(message(b"").contains("is empty"));
    assert!(message(b"\xEF\xBB\xBF").contains("is empty"));
    assert!(message(b"\xFF\xFEa\0").contains("is UTF-16 text"));
    assert!(message(b"a\n\xff").contains("(byte 2)"));
    let absent = Vocabulary::load(&folder.path().join("none")).unwrap_err();
    assert!(absent.to_string().starts_with("cannot read"));
}
