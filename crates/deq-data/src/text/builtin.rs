//! The handbook compiled into this crate.

/// The chapters, in order.
const CHAPTERS: [&str; 6] = [
    include_str!("../../corpus/01-fixed-points.md"),
    include_str!("../../corpus/02-gradients.md"),
    include_str!("../../corpus/03-stability.md"),
    include_str!("../../corpus/04-models.md"),
    include_str!("../../corpus/05-training.md"),
    include_str!("../../corpus/06-troubleshooting.md"),
];

/// Train, valid and test text; which paragraph goes where is described at [`Corpus::builtin`](super::Corpus::builtin).
pub(crate) fn splits() -> [String; 3] {
    let mut splits = [String::new(), String::new(), String::new()];
    let paragraphs = CHAPTERS
        .iter()
        .flat_map(|chapter| chapter.split("\n\n"))
        .map(str::trim)
        .filter(|paragraph| !paragraph.is_empty());
    for (index, paragraph) in paragraphs.enumerate() {
        let split = match (index + 1) % 20 {
            10 => 1,
            0 => 2,
            _ => 0,
        };
        splits[split] += paragraph;
        splits[split] += "\n\n";
    }
    splits
}
