//! The handbook compiled into this crate.

use super::layout::{SPLITS, split_of};
use super::source::Source;
use std::path::PathBuf;

/// The chapters, in order.
const CHAPTERS: [&str; 6] = [
    include_str!("../../corpus/01-fixed-points.md"),
    include_str!("../../corpus/02-gradients.md"),
    include_str!("../../corpus/03-stability.md"),
    include_str!("../../corpus/04-models.md"),
    include_str!("../../corpus/05-training.md"),
    include_str!("../../corpus/06-troubleshooting.md"),
];

/// Train, valid and test; which paragraph goes where is described at
/// [`Corpus::builtin`](super::Corpus::builtin).
pub(crate) fn sources() -> Vec<Source> {
    let mut splits = [String::new(), String::new(), String::new()];
    let paragraphs = CHAPTERS
        .iter()
        .flat_map(|chapter| chapter.split("\n\n"))
        .map(str::trim)
        .filter(|paragraph| !paragraph.is_empty());
    for (index, paragraph) in paragraphs.enumerate() {
        let split = split_of(index + 1);
        splits[split] += paragraph;
        splits[split] += "\n\n";
    }
    let sources = SPLITS.iter().zip(splits).map(|(split, text)| {
        let path = PathBuf::from(format!("built-in {split}"));
        Source::new(path, text.into_bytes())
    });
    sources.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_handbook_is_plain_text_of_a_useful_size_without_repetition() {
        let text = CHAPTERS.concat();
        assert!(text.is_ascii());
        assert!((90_000..200_000).contains(&text.len()), "{}", text.len());
        let paragraphs: Vec<&str> = text.split("\n\n").map(str::trim).collect();
        let distinct: HashSet<&str> = paragraphs.iter().copied().collect();
        // Chapters may share a heading such as "Questions and answers".
        assert!(distinct.len() + 3 >= paragraphs.len());
    }

    #[test]
    fn held_out_splits_are_a_twentieth_each() {
        let sources = sources();
        let sizes: Vec<f64> = sources
            .iter()
            .map(|source| source.bytes.len() as f64)
            .collect();
        let total: f64 = sizes.iter().sum();
        for size in &sizes[1..] {
            assert!((0.03..0.07).contains(&(size / total)), "{sizes:?}");
        }
    }
}
