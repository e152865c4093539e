//! What became of the tensors of a state dict.

use super::printable;
use std::fmt;

/// What became of every tensor of a state dict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// What stands before the names of the model's tensors in the file, without the parts that
    /// wrappers add; empty if nothing does.
    pub group: String,
    /// What stands before other sets of the same model's tensors, which were left out.
    pub other_groups: Vec<String>,
    /// Names whose tensors are in the model now, as the original has them.
    pub loaded: Vec<String>,
    /// Names that the model needs and the file does not have.
    pub missing: Vec<String>,
    /// Names in the file, as the file has them, that the model has no use for.
    pub unused: Vec<String>,
    /// Tensors of another shape than the model's.
    pub mismatched: Vec<ShapeMismatch>,
    /// Names whose tensor must equal that of the second name, since the model has one parameter for
    /// both, but does not.
    pub untied: Vec<(String, String)>,
}

/// A tensor of the wrong shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapeMismatch {
    /// Its name.
    pub name: String,
    /// The shape that the model needs.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

impl LoadReport {
    /// Whether every parameter was loaded and nothing contradicts the model; tensors without a use
    /// do no harm.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty() && self.untied.is_empty()
    }
}

/// Lines of one kind that are shown. The state of an optimiser has two for each tensor of the
/// model.
const SHOWN: usize = 20;

/// One line for each tensor that does not fit, or the first twenty of each kind.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors match", self.loaded.len())?;
        if !self.group.is_empty() {
            write!(f, ", all in {}", printable(&self.group))?;
        }
        lines(f, &self.other_groups, |group| {
            format!(
                "left out: other weights of the same model in {}",
                label(group)
            )
        })?;
        lines(f, &self.missing, |name| {
            format!("missing: {}", printable(name))
        })?;
        lines(f, &self.mismatched, |wrong| {
            format!(
                "wrong shape: {} is {:?}, but the model needs {:?}",
                printable(&wrong.name),
                wrong.found,
                wrong.expected
            )
        })?;
        lines(f, &self.untied, |(name, other)| {
            format!(
                "not tied: {} differs from {}, but the model has one parameter for both",
                printable(name),
                printable(other)
            )
        })?;
        lines(f, &self.unused, |name| {
            format!("unused: {}", printable(name))
        })
    }
}

fn label(group: &str) -> String {
    match group {
        "" => "the file itself".to_owned(),
        group => printable(group),
    }
}

fn lines<T>(f: &mut fmt::Formatter<'_>, items: &[T], line: impl Fn(&T) -> String) -> fmt::Result {
    for item in items.iter().take(SHOWN) {
        write!(f, "\n  {}", line(item))?;
    }
    match items.len().checked_sub(SHOWN + 1) {
        None => Ok(()),
        // The kind of the lines is that of the first.
        Some(more) => {
            let first = line(&items[0]);
            let kind = first.split(':').next().unwrap_or_default();
            write!(f, "\n  {kind}: {} more", more + 1)
        }
    }
}
