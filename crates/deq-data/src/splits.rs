//! The names under which the parts of a data set are found, for text and images alike.

/// The accepted names of a split, ours first; the others are common for `valid`.
pub(crate) fn aliases(split: &str) -> &'static [&'static str] {
    match split {
        "valid" => &["valid", "validation", "val", "dev"],
        "test" => &["test"],
        _ => &["train"],
    }
}
