//! The words of a text.

use super::counts::count_text;
use super::lines::words;
use super::pieces::{PIECE, pieces};
use super::source::Source;
use super::vocabulary::Vocabulary;
use crate::error::DataError;
use rayon::prelude::*;
use std::collections::HashSet;

/// A word must occur this often in train to be kept where others become `<unk>`: one that occurs
/// once cannot be learnt, and only by leaving some out does `<unk>` occur in train at all.
const LEAST: usize = 2;

/// The vocabulary of a text at the word level: the words of train, or the `list` of a `vocab.txt`,
/// by their frequency in train.
///
/// If a split has a word that is not among them, and `<unk>` is not either, `<unk>` is added, and
/// words found only once in train are left out unless a list has them. `done` is called with the
/// bytes of every part of train that has been counted.
pub(crate) fn derive(
    sources: &[Source],
    list: Option<Vocabulary>,
    done: &(dyn Fn(usize) + Sync),
) -> Result<Vocabulary, DataError> {
    let counts = count_text(sources[0].text()?, done);
    let known: HashSet<&str> = match &list {
        Some(list) => list.tokens().collect(),
        None => counts.iter().map(|(word, _)| *word).collect(),
    };
    let knows = |word: &str| word == Vocabulary::END_OF_LINE || known.contains(word);
    let mut complete = known.contains(Vocabulary::UNKNOWN);
    if !complete {
        complete = counts.iter().all(|(word, _)| knows(word));
        for held_out in &sources[1..] {
            let pieces = pieces(held_out.text()?, PIECE).into_par_iter();
            complete = complete && pieces.all(|piece| words(piece).all(knows));
        }
    }
    Ok(match (list, complete) {
        (None, true) => Vocabulary::of_counts(counts),
        (None, false) => Vocabulary::of_frequent(counts, LEAST),
        (Some(list), true) => list.sorted_for(counts),
        (Some(list), false) => list.with_unknown().sorted_for(counts),
    })
}
