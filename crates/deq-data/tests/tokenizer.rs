//! Texts read by a `tokenizer.json`.

#![cfg(feature = "tokenizers")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{Corpus, Level, Vocabulary};
use std::path::{Path, PathBuf};

/// A byte-pair encoding of the letters `a` to `d` and `Ġ`, the sign for a space, with merges `a b`,
/// `ab c` and `Ġ ab`. It cuts and fills texts, and puts special tokens around them, none of which a
/// corpus wants.
const BPE: &str = r#"{
  "version": "1.0",
  "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
  "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 8, "pad_type_id": 0, "pad_token": "<end>"},
  "added_tokens": [{"id": 9, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<end>", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<end>": {"id": "<end>", "ids": [9], "tokens": ["<end>"]}}},
  "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
    "byte_fallback": false, "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "Ġ": 4, "Ċ": 5, "ab": 6, "abc": 7, "Ġab": 10},
    "merges": ["a b", "ab c", "Ġ ab"]}
}"#;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn a_folder_with_a_tokenizer_is_read_by_it_whole_and_without_special_tokens() {
    let folder = folder(&[
        ("tokenizer.json", BPE),
        ("train.txt", "abc abd\nabcab\n"),
        ("valid.txt", "d d\n"),
        ("test.txt", "a"),
    ]);
    let corpus = Corpus::open(folder.path(), Level::Tokenizer).unwrap();
    // abc, Ġab, d, Ċ, abc, ab, Ċ, by hand.
    assert_eq!(corpus.train, [7, 10, 3, 5, 7, 6, 5]);
    assert_eq!(corpus.valid, [3, 4, 3, 5]);
    let vocabulary = &corpus.vocabulary;
    assert_eq!(vocabulary.level(), Level::Tokenizer);
    // Ids up to 10, though 8 has no token in the file.
    assert_eq!(vocabulary.len(), 11);
    assert_eq!(vocabulary.token(10), Some("Ġab"));
    assert_eq!(vocabulary.token(8), Some("<id 8>"));
    let text = vocabulary.decode(&corpus.train.to_vec()).unwrap();
    assert_eq!(text, "abc abd\nabcab\n");
    assert_eq!(vocabulary.encode("abd<end>").unwrap(), [6, 3, 9]);
    assert_eq!(vocabulary.decode(&[6, 3, 9]).unwrap(), "abd<end>");
    let message = vocabulary.decode(&[11]).unwrap_err().to_string();
    assert!(message.contains("no token 11"), "{message}");
}

#[test]
fn a_tokenizer_is_kept_byte_for_byte_with_the_same_ids() {
    let source = folder(&[("any-name.json", BPE)]);
    let vocabulary = Vocabulary::load(&source.path().join("any-name.json")).unwrap();
    let run = folder(&[]);
    let saved = vocabulary.save_in(run.path()).unwrap();
    assert_eq!(saved, run.path().join("tokenizer.json"));
    assert_eq!(std::fs::read_to_string(&saved).unwrap(), BPE);
    let loaded = Vocabulary::load_from(run.path()).unwrap();
    assert_eq!(loaded, vocabulary);
    loaded.require(vocabulary.fingerprint()).unwrap();
    let json = serde_json::to_string(&vocabulary).unwrap();
    let back: Vocabulary = serde_json::from_str(&json).unwrap();
    assert_eq!(back, vocabulary);

    let corpus = Corpus::builtin_with(loaded).unwrap();
    assert!(corpus.train.iter().all(|id| id < 11));

    // Another merge is another tokenizer, though the tokens are the same.
    let other = BPE.replace("\"Ġ ab\"]", "\"Ġ a\"]").replace("Ġab", "Ġa");
    let other = folder(&[("tokenizer.json", &other)]);
    let other = Vocabulary::load_from(other.path()).unwrap();
    assert!(vocabulary.require(other.fingerprint()).is_err());
}

#[test]
fn words_and_bytes_are_kept_in_a_folder_too() {
    let run = folder(&[]);
    for vocabulary in [
        Vocabulary::of_bytes(),
        Vocabulary::of_words(["x", "y", "x"]),
    ] {
        vocabulary.save_in(run.path()).unwrap();
        assert_eq!(Vocabulary::load_from(run.path()).unwrap(), vocabulary);
    }
    let message = Vocabulary::load_from(Path::new("/nowhere"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("neither vocab.txt nor tokenizer.json"),
        "{message}"
    );
}

#[test]
fn what_is_wrong_with_a_tokenizer_is_said_with_the_file() {
    let folder = folder(&[
        ("tokenizer.json", "{\"version\": 3}"),
        ("train.txt", "a"),
        ("valid.txt", "a"),
        ("test.txt", "a"),
    ]);
    let message = || {
        Corpus::open(folder.path(), Level::Tokenizer)
            .unwrap_err()
            .to_string()
    };
    assert!(
        message().contains("tokenizer.json is not a tokenizer"),
        "{}",
        message()
    );
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(message().contains("has no tokenizer.json"), "{}", message());
    let builtin = Corpus::builtin(Level::Tokenizer).unwrap_err().to_string();
    assert!(
        builtin.contains("the built-in handbook has no tokenizer.json"),
        "{builtin}"
    );
}

/// GPT-2's tokenizer, or nothing where `DEQ_DATA` is not set and `DEQ_REQUIRE_FIXTURES=1` does not
/// ask for it.
fn gpt_2() -> Option<(Vocabulary, PathBuf)> {
    let required = std::env::var("DEQ_REQUIRE_FIXTURES").as_deref() == Ok("1");
    let Some(data) = std::env::var_os("DEQ_DATA").map(PathBuf::from) else {
        assert!(
            !required,
            "DEQ_DATA is not set, but DEQ_REQUIRE_FIXTURES=1 asks for it"
        );
        eprintln!("skipped: DEQ_DATA is not set");
        return None;
    };
    let file = data.join("gpt2-tokenizer/tokenizer.json");
    Some((Vocabulary::load(&file).unwrap(), data))
}

#[test]
fn gpt_2_reads_text_as_published_and_gives_it_back() {
    let Some((vocabulary, data)) = gpt_2() else {
        return;
    };
    assert_eq!(vocabulary.len(), 50_257);
    // The ids that OpenAI's own encoder gives.
    assert_eq!(vocabulary.encode("Hello world").unwrap(), [15496, 995]);
    assert_eq!(
        vocabulary.encode("\n\n<|endoftext|>").unwrap(),
        [628, 50256]
    );
    let text = "naïve 戦場 \t  two  spaces\r\n\n🙂 end";
    let ids = vocabulary.encode(text).unwrap();
    assert_eq!(vocabulary.decode(&ids).unwrap(), text);
    // Half of a letter in several tokens.
    let half = vocabulary.encode("🙂").unwrap();
    assert!(vocabulary.decode(&half[..1]).unwrap().contains('\u{FFFD}'));

    // A whole text, also across the pieces that it is read in, and whatever the number of threads.
    let file = data.join("tinyshakespeare/input.txt");
    let read = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let open = || Corpus::open_with(&file, vocabulary.clone()).unwrap();
        pool.unwrap().install(open)
    };
    let corpus = read(1);
    let splits = [&corpus.train, &corpus.valid, corpus.require_test().unwrap()];
    let back: String = splits
        .map(|split| vocabulary.decode(&split.to_vec()).unwrap())
        .concat();
    assert_eq!(back, std::fs::read_to_string(&file).unwrap());
    assert_eq!(corpus.train, read(3).train);
}
