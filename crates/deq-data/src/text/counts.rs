//! How often the words of a text occur.

use super::lines::words;
use super::pieces::{PIECE, pieces};
use rayon::prelude::*;
use std::collections::HashMap;

/// Distinct words with their counts, in the order of first appearance.
pub(crate) type Counts<'a> = Vec<(&'a str, usize)>;

/// Counts words in turn.
pub(crate) fn count<'a>(words: impl IntoIterator<Item = &'a str>) -> Counts<'a> {
    merge(words.into_iter().map(|word| (word, 1)))
}

/// Counts the words of a text, and an `<eos>` for every line end, on all threads of the current
/// pool. `done` is called with the bytes of every part that has been read.
///
/// The text is cut into ranges that are counted one by one and merged in their order, which gives
/// what counting in turn gives, wherever the cuts are.
pub(crate) fn count_text<'a>(text: &'a str, done: &(dyn Fn(usize) + Sync)) -> Counts<'a> {
    let pieces = pieces(text, PIECE);
    // Few ranges, since each has nearly all the frequent words to merge, but enough to even out the
    // threads.
    let ranges = 4 * rayon::current_num_threads();
    let counts: Vec<Counts<'a>> = pieces
        .par_chunks(pieces.len().div_ceil(ranges).max(1))
        .map(|range| {
            count(range.iter().flat_map(|piece| {
                done(piece.len());
                words(piece)
            }))
        })
        .collect();
    merge(counts.into_iter().flatten())
}

fn merge<'a>(parts: impl Iterator<Item = (&'a str, usize)>) -> Counts<'a> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut counts: Counts<'a> = Vec::new();
    for (word, count) in parts {
        let place = *places.entry(word).or_insert_with(|| {
            counts.push((word, 0));
            counts.len() - 1
        });
        counts[place].1 += count;
    }
    counts
}

/// Words by falling count; a stable sort keeps ties in order.
pub(crate) fn by_frequency<'a>(counts: impl Iterator<Item = (&'a str, usize)>) -> Vec<&'a str> {
    let mut counts: Counts<'a> = counts.collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.into_iter().map(|(word, _)| word).collect()
}
