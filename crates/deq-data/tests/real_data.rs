//! Real corpora, in the folder that `DEQ_DATA` names.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{Corpus, Level};
use std::collections::BTreeSet;
use std::path::PathBuf;

fn folder() -> Option<PathBuf> {
    match std::env::var_os("DEQ_DATA") {
        Some(folder) => Some(folder.into()),
        None if std::env::var("DEQ_REQUIRE_FIXTURES").as_deref() == Ok("1") => {
            panic!("DEQ_DATA is not set, but DEQ_REQUIRE_FIXTURES=1 asks for it")
        }
        None => {
            eprintln!("skipped: DEQ_DATA is not set");
            None
        }
    }
}

#[test]
fn wikitext_2_has_the_official_counts_and_vocabulary() {
    let Some(folder) = folder() else { return };
    let folder = folder.join("wikitext-2");
    let corpus = Corpus::open(&folder, Level::Word).unwrap();
    assert_eq!(corpus.train.len(), 2_088_628);
    assert_eq!(corpus.valid.len(), 217_646);
    assert_eq!(corpus.test.len(), 245_569);
    let official = std::fs::read_to_string(folder.join("vocab.txt")).unwrap();
    let official: BTreeSet<&str> = official.lines().collect();
    let tokens: Vec<String> = corpus.vocabulary.into();
    let ours: BTreeSet<&str> = tokens.iter().map(String::as_str).collect();
    assert_eq!(ours.len(), 33_278);
    assert_eq!(ours, official);
}
