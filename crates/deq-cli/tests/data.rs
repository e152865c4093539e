//! `deq data`, and training on text by a tokenizer, as a user meets them.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn deq(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deq"));
    command.current_dir(folder).args(arguments);
    // The user's own cache folder is left alone.
    command.env("XDG_CACHE_HOME", folder.join("user-cache"));
    command.output().unwrap()
}

fn success(output: &Output) -> (String, String) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    (stdout, stderr)
}

fn refused(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    stderr
}

/// A folder with a text of 5 MB, large enough for a token file.
fn large_text() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::create_dir(&text).unwrap();
    let line = "the state settles after some steps of the solver\n";
    for (split, lines) in [("train", 100_000), ("valid", 100), ("test", 200)] {
        std::fs::write(text.join(format!("{split}.txt")), line.repeat(lines)).unwrap();
    }
    (folder, text)
}

#[test]
fn info_says_what_a_text_is_and_verify_finds_damage() {
    let (folder, text) = large_text();
    let run = |arguments: &[&str]| deq(folder.path(), arguments);
    let (plain, _) = success(&run(&["data", "info", "text", "--level", "word"]));
    for line in [
        "kind:         a folder with train, valid and test",
        "train:            1,000,000 tokens",
        "test:                 2,000 tokens",
        "vocabulary:               9 tokens",
        "token files:  none",
    ] {
        assert!(plain.contains(line), "{line} is missing in\n{plain}");
    }
    success(&run(&["data", "verify", "text"]));

    let (kept, progress) = success(&run(&["data", "info", "text", "--level", "word", "--keep"]));
    let file = text.join(".deq-cache/text.word.tokens");
    assert!(
        file.is_file() && progress.contains("tokens kept in"),
        "{progress}"
    );
    assert!(
        kept.contains("word level, 1,000,000 / 1,000 / 2,000 tokens")
            && kept.contains("up to date"),
        "{kept}"
    );
    success(&run(&["data", "verify", "text"]));

    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let output = run(&["data", "verify", "text"]);
    assert!(refused(&output).contains("a token file does not match"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        stdout.contains("CANNOT BE USED: its tokens are damaged"),
        "{stdout}"
    );
    // Reading the text writes it anew and says why.
    let (_, progress) = success(&run(&["data", "info", "text", "--level", "word", "--keep"]));
    assert!(
        progress.contains("cannot be used: its tokens are damaged")
            && progress.contains("tokens kept in"),
        "{progress}"
    );
    success(&run(&["data", "verify", "text"]));

    std::fs::write(folder.path().join("small.txt"), "a b\n".repeat(100)).unwrap();
    let (small, _) = success(&run(&["data", "info", "small.txt", "--keep"]));
    assert!(
        small.contains("nothing is kept of so small a text"),
        "{small}"
    );

    let message = refused(&run(&["data", "info", "nowhere"]));
    assert!(message.contains("there is no nowhere"), "{message}");
    let message = refused(&run(&["data", "info", "text", "--level", "tokenizer"]));
    assert!(message.contains("text has no tokenizer.json"), "{message}");
}

#[cfg(feature = "fetch")]
#[test]
fn fetch_says_what_to_do_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| refused(&deq(folder.path(), arguments));
    let message = run(&[
        "data",
        "fetch",
        "wikitext-2",
        "--mirror",
        "http://127.0.0.1:9",
    ]);
    for part in [
        "cannot fetch http://127.0.0.1:9/wikitext-2-v1.zip",
        "put wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens from it into data/wikitext-2",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let message = run(&["data", "fetch", "wikitext-4"]);
    assert!(
        message.contains("choose one of wikitext-2, wikitext-103"),
        "{message}"
    );
}

/// One token for each letter, and a few for what follows a space.
#[cfg(feature = "tokenizers")]
fn tokenizer() -> String {
    let letters = ('a'..='z')
        .map(String::from)
        .chain(["Ġ".to_owned(), "Ċ".to_owned()]);
    let pairs = ["Ġs", "Ġt", "th", "st"].map(str::to_owned);
    let vocab: serde_json::Map<String, serde_json::Value> = letters
        .chain(pairs)
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": ["Ġ s", "Ġ t", "t h", "s t"]},
    })
    .to_string()
}

#[cfg(feature = "tokenizers")]
#[test]
fn a_run_keeps_its_tokenizer_and_needs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "the state settles after some steps of the solver\n".repeat(60);
    std::fs::write(folder.path().join("text.txt"), lines).unwrap();
    std::fs::write(folder.path().join("letters.json"), tokenizer()).unwrap();
    let train = [
        "train",
        "lm",
        "--preset",
        "tiny",
        "--data",
        "text.txt",
        "--tokenizer",
        "letters.json",
        "--batch",
        "2",
        "--steps",
        "4",
        "--pretrain",
        "1",
        "--rounds",
        "2",
        "--run",
        "run",
        "--json",
    ];
    let (trained, _) = success(&deq(folder.path(), &train));
    let kept = std::fs::read_to_string(folder.path().join("run/tokenizer.json")).unwrap();
    assert_eq!(kept, tokenizer());
    let config = std::fs::read_to_string(folder.path().join("run/config.json")).unwrap();
    assert!(config.contains("\"level\": \"tokenizer\"") && config.contains("\"vocab_size\": 32"));

    // Neither evaluation nor going on needs the file that it was given.
    std::fs::remove_file(folder.path().join("letters.json")).unwrap();
    let (evaluated, _) = success(&deq(folder.path(), &["eval", "run", "--json"]));
    let perplexity = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["eval"]["quality"]["value"].as_f64().unwrap()
    };
    let difference = perplexity(&trained) - perplexity(&evaluated);
    assert!(difference.abs() < 1e-9, "{difference}");
    let resume = [&train[..], &["--resume"]].concat();
    success(&deq(folder.path(), &resume));

    // Other text is read with the same ids.
    std::fs::write(
        folder.path().join("other.txt"),
        "so settles the rest of it\n".repeat(60),
    )
    .unwrap();
    success(&deq(folder.path(), &["eval", "run", "--data", "other.txt"]));
    std::fs::write(
        folder.path().join("run/tokenizer.json"),
        tokenizer().replace("\"Ġ t\",", ""),
    )
    .unwrap();
    let message = refused(&deq(folder.path(), &["eval", "run"]));
    assert!(
        message.contains("vocabulary kept in run is not that of the run"),
        "{message}"
    );
}
