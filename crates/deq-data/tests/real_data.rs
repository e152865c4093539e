//! Real corpora, in the folder that `DEQ_DATA` names.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{Corpus, Level, StreamBatcher, Tokens, Vocabulary, unigram_perplexity};
use std::path::PathBuf;

/// The folder `name`, or nothing where `DEQ_DATA` is not set and `DEQ_REQUIRE_FIXTURES=1` does not ask for it.
fn folder(name: &str) -> Option<PathBuf> {
    let required = std::env::var("DEQ_REQUIRE_FIXTURES").as_deref() == Ok("1");
    match std::env::var_os("DEQ_DATA") {
        Some(data) => {
            let folder = PathBuf::from(data).join(name);
            assert!(folder.exists(), "there is no {}", folder.display());
            Some(folder)
        }
        None if required => panic!("DEQ_DATA is not set, but DEQ_REQUIRE_FIXTURES=1 asks for it"),
        None => {
            eprintln!("skipped: DEQ_DATA is not set");
            None
        }
    }
}

#[test]
fn wikitext_2_has_the_official_counts_and_vocabulary() {
    let Some(folder) = folder("wikitext-2") else {
        return;
    };
    let corpus = Corpus::open(&folder, Level::Word).unwrap();
    let counts = [&corpus.train, &corpus.valid, &corpus.test].map(Tokens::len);
    assert_eq!(counts, [2_088_628, 217_646, 245_569]);
    assert_eq!(corpus.vocabulary.len(), 33_278);

    // The file lists the words of train in the order of their appearance.
    let listed = Vocabulary::load(&folder.join("vocab.txt")).unwrap();
    let text = std::fs::read_to_string(folder.join("train.txt")).unwrap();
    assert_eq!(Vocabulary::by_appearance(text.split_whitespace()), listed);

    // With the file or without it, ids follow the frequency.
    let spread = tempfile::tempdir().unwrap();
    for split in ["train.txt", "valid.txt", "test.txt"] {
        std::fs::copy(folder.join(split), spread.path().join(split)).unwrap();
    }
    let without_file = Corpus::open(spread.path(), Level::Word).unwrap();
    assert_eq!(without_file.vocabulary, corpus.vocabulary);
    // The same hash of what Python's `Counter.most_common` makes of train, with `<eos>` first.
    assert_eq!(corpus.vocabulary.fingerprint(), 0xbcf8_ca86_b7cb_90b9);

    // The ids of the file can be kept; the text is the same.
    let kept = Corpus::open_with(&folder, listed).unwrap();
    assert_ne!(kept.valid, corpus.valid);
    let text = |corpus: &Corpus| corpus.vocabulary.decode(&corpus.valid.to_vec()).unwrap();
    assert_eq!(text(&kept), text(&corpus));
    assert!(
        kept.vocabulary
            .require(corpus.vocabulary.fingerprint())
            .is_err()
    );

    let unigram =
        |corpus: &Corpus| unigram_perplexity(&corpus.train, &corpus.valid, corpus.vocabulary.len());
    assert!((unigram(&kept) - unigram(&corpus)).abs() < 1e-6);

    // One stream predicts every token but the first.
    let batches = StreamBatcher::new(&corpus.valid, 1, 64).unwrap();
    let targets: usize = batches.iter().map(|segment| segment.targets.len()).sum();
    assert_eq!(targets, 217_645);
    // Ten streams of 21,764 tokens; the remaining 6 are trimmed, the last segment is shorter but counts.
    let batches = StreamBatcher::new(&corpus.valid, 10, 150).unwrap();
    assert_eq!(batches.num_targets(), 10 * 21_763);
    let last = batches.iter().last().unwrap();
    assert_eq!((last.index, last.len), (145, 21_763 - 145 * 150));
}

#[test]
fn a_single_file_is_divided_by_bytes() {
    let Some(folder) = folder("tinyshakespeare") else {
        return;
    };
    let corpus = Corpus::open(&folder.join("input.txt"), Level::Byte).unwrap();
    let counts = [&corpus.train, &corpus.valid, &corpus.test].map(Tokens::len);
    assert_eq!(counts.iter().sum::<usize>(), 1_115_394);
    let share = counts[0] as f64 / 1_115_394.0;
    assert!((0.9..0.901).contains(&share), "{share}");
}
