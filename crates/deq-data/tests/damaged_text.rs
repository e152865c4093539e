//! Damaged and malicious files of texts: they are refused, or read as something else, but nothing
//! panics, and nothing asks for more memory than the files are large.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{CachePlace, Corpus, CorpusEvent, CorpusReader, Level, survey};
use deq_testkit::fuzz;
use std::fs::{read, write};
use std::path::PathBuf;
use std::sync::Mutex;
use xxhash_rust::xxh3::xxh3_64;

#[test]
fn mutations_of_texts_and_vocabularies_are_refused_or_read() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| write(folder.path().join(name), bytes).unwrap();
    let samples = [
        "\u{FEFF}a b 戦\r\nc <unk> a\rb\0\0\0a b c\n\0\0\0\u{FEFF}<eos>\na\r\nb\n<unk>\n",
        "a\n\0\0\0a\n\0\0\0<eos>\na\n",
    ];
    let samples = samples.map(|sample| sample.as_bytes().to_vec());
    fuzz("texts and vocabularies", &samples, 2000, |bytes| {
        let mut parts = bytes
            .split(|byte| *byte == 0)
            .filter(|part| !part.is_empty());
        for name in ["train.txt", "valid.txt", "vocab.txt"] {
            put(name, parts.next().unwrap_or_default());
        }
        for level in [Level::Byte, Level::Word] {
            if let Ok(corpus) = Corpus::open(folder.path(), level) {
                let ids = corpus.train.to_vec();
                corpus.vocabulary.decode(&ids).unwrap();
                corpus.fingerprint();
            }
        }
    });
}

/// A text with a token file at the word level.
struct Kept {
    folder: tempfile::TempDir,
    file: PathBuf,
    corpus: Corpus,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        std::fs::create_dir(&text).unwrap();
        for name in ["train.txt", "valid.txt", "test.txt"] {
            write(text.join(name), "a b <unk>\nc a\n").unwrap();
        }
        let place = CachePlace::In(folder.path().join("cache"));
        let reader = CorpusReader::new(&text, Level::Word);
        // In memory, since the token file is overwritten.
        let corpus = reader.read().unwrap();
        reader.cache(place.clone()).read().unwrap();
        let mut cached = survey(&text, &place, false).unwrap().cached;
        Self {
            file: cached.remove(0).file,
            folder,
            corpus,
        }
    }

    fn text(&self) -> PathBuf {
        self.folder.path().join("text")
    }

    /// Reads the text with this content in the token file, and returns what was wrong with it.
    fn read(&self, content: &[u8]) -> Option<String> {
        write(&self.file, content).unwrap();
        let problem = Mutex::new(None);
        let listen = |event: &CorpusEvent<'_>| {
            if let CorpusEvent::Discarded { problem: found, .. } = event {
                *problem.lock().unwrap() = Some(found.to_string());
            }
        };
        let text = self.text();
        let place = CachePlace::In(self.folder.path().join("cache"));
        survey(&text, &place, true).unwrap();
        let reader = CorpusReader::new(&text, Level::Word).on_event(&listen);
        let corpus = reader.cache(place).read().unwrap();
        assert_eq!(corpus.vocabulary, self.corpus.vocabulary);
        let splits = (&corpus.train, &corpus.valid, &corpus.test);
        let expected = &self.corpus;
        assert_eq!(splits, (&expected.train, &expected.valid, &expected.test));
        problem.into_inner().unwrap()
    }
}

/// The header of a token file, and what follows it.
fn parts(file: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let len = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    (file[24..24 + len].to_vec(), file[24 + len..].to_vec())
}

/// A token file whose checksum of the header is right.
fn sealed(header: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut file = b"deqtoken\x02\0\0\0".to_vec();
    file.extend((header.len() as u32).to_le_bytes());
    file.extend(xxh3_64(header).to_le_bytes());
    [&file, header, rest].concat()
}

#[test]
fn token_files_that_lie_are_not_used() {
    let kept = Kept::new();
    let whole = read(&kept.file).unwrap();
    let (header, rest) = parts(&whole);
    assert_eq!(sealed(&header, &rest), whole);
    assert_eq!(kept.read(&whole), None);
    let json: serde_json::Value = serde_json::from_slice(&header).unwrap();
    let lie = |change: &dyn Fn(&mut serde_json::Value, &mut Vec<u8>)| {
        let (mut json, mut rest) = (json.clone(), rest.clone());
        change(&mut json, &mut rest);
        kept.read(&sealed(&serde_json::to_vec(&json).unwrap(), &rest))
    };
    // Lengths that add up to more than there are numbers.
    let problem = lie(&|json, _| json["tokens"][0] = u64::MAX.into());
    assert!(problem.unwrap().contains("bytes instead of"));
    let problem = lie(&|json, _| json["vocabulary_bytes"] = u64::MAX.into());
    assert!(problem.unwrap().contains("bytes instead of"));
    let problem = lie(&|json, _| json["width"] = 3.into());
    assert_eq!(problem.unwrap(), "its header is damaged");
    let problem = lie(&|json, _| {
        let sum = json["tokens"][0].as_u64().unwrap() + json["tokens"][1].as_u64().unwrap();
        json["tokens"][0] = 0.into();
        json["tokens"][1] = sum.into();
    });
    assert_eq!(problem.unwrap(), "its header is damaged");
    let problem = lie(&|json, _| json["vocabulary_len"] = 900.into());
    assert_eq!(problem.unwrap(), "its vocabulary is damaged");
    // An id that the vocabulary does not have, with the checksum that it gives.
    let problem = lie(&|json, rest| {
        let ids = json["vocabulary_bytes"].as_u64().unwrap() as usize;
        rest[ids] = 200;
        json["tokens_checksum"] = xxh3_64(&rest[ids..]).into();
    });
    assert_eq!(problem.unwrap(), "its tokens are damaged");
}

#[test]
fn mutations_of_token_files_are_never_used() {
    let kept = Kept::new();
    let whole = read(&kept.file).unwrap();
    let (header, rest) = parts(&whole);
    fuzz("token files", std::slice::from_ref(&whole), 400, |raw| {
        assert!(raw == whole || kept.read(raw).is_some());
    });
    // With the right checksum of a header that may be changed in a way that does not matter.
    fuzz("headers of token files", &[header], 400, |header| {
        kept.read(&sealed(header, &rest));
    });
}

#[cfg(feature = "tokenizers")]
mod tokenizers {
    use super::*;
    use deq_data::Vocabulary;
    use std::path::Path;

    const SAMPLES: [&str; 4] = [
        r#"{"version": "1.0", "added_tokens": [{"id": 7, "content": "<end>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst",
        "stride": 0},
        "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": 8,
        "pad_id": 7, "pad_type_id": 0, "pad_token": "<end>"},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true}, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true}, "model": {"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
        "byte_fallback": false, "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 4, "Ċ": 5, "ab": 6},
        "merges": ["a b"]}}"#,
        r###"{"version": "1.0", "added_tokens": [], "normalizer": {"type": "BertNormalizer",
        "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
        "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["b", 1], "cls": ["a", 0]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"a": 0, "b": 1, "[UNK]": 2, "##c": 3}}}"###,
        r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
        "split": true}, "decoder": {"type": "Metaspace", "replacement": "▁",
        "prepend_scheme": "always", "split": true}, "model": {"type": "Unigram", "unk_id": 0,
        "vocab": [["<unk>", 0.0], ["▁a", -1.5], ["b", -2.0]], "byte_fallback": false}}"#,
        r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2},
        "unk_token": "[UNK]"}}"#,
    ];

    fn load(path: &Path, bytes: &[u8]) -> Result<Vocabulary, String> {
        write(path, bytes).unwrap();
        Vocabulary::load(path).map_err(|error| error.to_string())
    }

    #[test]
    fn mutations_of_tokenizers_are_refused_or_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let mut used = 0;
        let samples = SAMPLES.map(|sample| sample.as_bytes().to_vec());
        for sample in &samples {
            load(&path, sample).unwrap();
        }
        fuzz("tokenizers", &samples, 4000, |bytes| {
            match load(&path, bytes) {
                Ok(vocabulary) => {
                    used += 1;
                    if let Ok(ids) = vocabulary.encode("ab c\n aa 戦 <end>") {
                        assert!(ids.iter().all(|id| (*id as usize) < vocabulary.len()));
                        let _ = vocabulary.decode(&ids);
                    }
                }
                Err(message) => assert!(message.len() < 1000, "{message}"),
            }
        });
        // Many changes do not matter, so that what is used is tested as well.
        assert!(used > 50, "{used}");
    }

    #[test]
    fn one_large_id_does_not_make_a_large_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let sample = SAMPLES[3].replace("\"b\": 1", "\"b\": 4000000000");
        let message = load(&path, sample.as_bytes()).unwrap_err();
        let expected = "it has 3 tokens, but one of them has the id 4000000000";
        assert!(message.contains(expected), "{message}");
        let none = SAMPLES[3].replace(r#"{"a": 0, "b": 1, "[UNK]": 2}"#, "{}");
        let message = load(&path, none.as_bytes()).unwrap_err();
        assert!(message.contains("it has no token"), "{message}");
    }

    #[test]
    fn marks_are_no_part_of_a_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Tokenizer.JSON");
        let plain = load(&path, SAMPLES[0].as_bytes()).unwrap();
        let marked = ["\u{FEFF}", SAMPLES[0]].concat();
        assert_eq!(load(&path, marked.as_bytes()).unwrap(), plain);
        let utf16 = SAMPLES[0].encode_utf16().flat_map(u16::to_le_bytes);
        let utf16: Vec<u8> = [0xFF, 0xFE].into_iter().chain(utf16).collect();
        assert!(load(&path, &utf16).unwrap_err().contains("is UTF-16"));
        let control = "{\"version\": \"\u{1b}[31m\"}";
        let message = load(&path, control.as_bytes()).unwrap_err();
        assert!(!message.contains('\u{1b}'), "{message}");
    }
}
