//! What the ids of label maps mean.

use super::decode::read_bounded;
use super::raster::IGNORE_LABEL;
use crate::error::{DataError, excerpt};
use std::collections::HashSet;
use std::path::Path;

/// What names an id that is no class.
const IGNORED_NAME: &str = "ignore";
/// The largest list of classes that is read; names of 255 classes take a few kilobytes.
const LARGEST_LIST: u64 = 1 << 20;

/// What an id of a label map means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelMeaning {
    /// The class of this number.
    Class(u8),
    /// No class: its pixels are ignored on purpose.
    Ignored,
    /// Nothing that was declared; its pixels are ignored too.
    Unknown,
}

/// The classes of label maps and the ids that stand for them.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    pub(super) classes: Vec<String>,
    meanings: Box<[LabelMeaning; 256]>,
}

impl Labels {
    /// From ids with their names, in the order of the classes. The name `ignore` declares an id
    /// that is no class, and so does the id 255 as in PASCAL VOC, unless it has a name.
    fn new(named: impl IntoIterator<Item = (u8, String)>) -> Self {
        let mut meanings = Box::new([LabelMeaning::Unknown; 256]);
        meanings[usize::from(IGNORE_LABEL)] = LabelMeaning::Ignored;
        let mut classes = Vec::new();
        for (id, name) in named {
            meanings[usize::from(id)] = match name == IGNORED_NAME {
                true => LabelMeaning::Ignored,
                false => {
                    classes.push(name);
                    LabelMeaning::Class((classes.len() - 1) as u8)
                }
            };
        }
        Self { classes, meanings }
    }

    /// From names alone, which count from the id 0.
    pub(super) fn counted(names: Vec<String>, path: &Path) -> Result<Self, DataError> {
        // An id is a byte, and one of them stands for no class.
        if names.len() > usize::from(IGNORE_LABEL) {
            return Err(DataError::TooManyClasses {
                path: path.to_owned(),
                classes: names.len(),
            });
        }
        Ok(Self::new((0..=u8::MAX).zip(names)))
    }

    /// From the names of a published data set, all of whose ids up to `last` are known.
    pub(super) fn published(named: &[(u8, &str)], last: u8) -> Self {
        let mut labels = Self::new(named.iter().map(|(id, name)| (*id, (*name).to_owned())));
        for meaning in &mut labels.meanings[..=usize::from(last)] {
            if *meaning == LabelMeaning::Unknown {
                *meaning = LabelMeaning::Ignored;
            }
        }
        labels
    }

    /// Reads a list of classes: the names of the ids from 0 on, one a line, or lines `ID: NAME`. A
    /// line may end in any way that text files have, and a byte-order mark is no part of a name.
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let bytes = read_bounded(path, LARGEST_LIST)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| DataError::BadImage {
            path: path.to_owned(),
            reason: format!(
                "a list of classes is UTF-8 text, but its byte {} is not",
                error.valid_up_to()
            ),
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let names: Vec<&str> = text.lines().map(str::trim).collect();
        if names.is_empty() {
            return Err(DataError::Empty {
                path: path.to_owned(),
            });
        }
        if let Some(blank) = names.iter().position(|name| name.is_empty()) {
            return Err(DataError::BlankLine {
                path: path.to_owned(),
                line: blank + 1,
            });
        }
        let bad = |reason| DataError::BadImage {
            path: path.to_owned(),
            reason,
        };
        let numbered: Option<Vec<_>> = names.iter().map(|line| numbered(line)).collect();
        let repeated = match &numbered {
            Some(numbered) => repeated(numbered.iter().map(|(_, name)| *name)),
            None => repeated(names.iter().copied()),
        };
        if let Some(name) = repeated {
            let name = excerpt(name);
            return Err(bad(format!("it gives the name {name} to two ids")));
        }
        let Some(numbered) = numbered else {
            let names = names.into_iter().map(str::to_owned);
            return Self::counted(names.collect(), path);
        };
        let mut named = Vec::with_capacity(numbered.len());
        for (id, name) in numbered {
            let id = u8::try_from(id)
                .map_err(|_| bad(format!("its id {id} is too large: ids are 0 to 255")))?;
            if named.iter().any(|(other, _)| *other == id) {
                return Err(bad(format!("it gives the id {id} two names")));
            }
            named.push((id, name.to_owned()));
        }
        // Label 255 stands for no class, so that there is room for 255.
        let classes = named.iter().filter(|(_, name)| name != IGNORED_NAME);
        if classes.count() > usize::from(IGNORE_LABEL) {
            return Err(DataError::TooManyClasses {
                path: path.to_owned(),
                classes: named.len(),
            });
        }
        Ok(Self::new(named))
    }

    /// What every id means.
    pub(super) fn meanings(&self) -> &[LabelMeaning; 256] {
        &self.meanings
    }

    /// The class of every id, or [`IGNORE_LABEL`].
    pub(super) fn map(&self) -> [u8; 256] {
        self.meanings.map(|meaning| match meaning {
            LabelMeaning::Class(class) => class,
            LabelMeaning::Ignored | LabelMeaning::Unknown => IGNORE_LABEL,
        })
    }
}

/// The parts of `ID: NAME`.
fn numbered(line: &str) -> Option<(u32, &str)> {
    let (id, name) = line.split_once(':')?;
    let name = name.trim();
    Some((id.trim().parse().ok()?, name)).filter(|_| !name.is_empty())
}

/// The first class that has the name of another one; several ids may be ignored.
fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    let mut classes = names.filter(|name| *name != IGNORED_NAME);
    classes.find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Labels, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("classes.txt");
        std::fs::write(&path, bytes).unwrap();
        Labels::read(&path)
    }

    #[test]
    fn line_ends_and_a_byte_order_mark_are_no_part_of_a_name() {
        for text in [
            "road\nsky\n",
            "road\r\nsky\r\n",
            "road\rsky\r",
            "\u{feff}road\nsky",
            "\u{feff} road \r\nsky",
        ] {
            assert_eq!(read(text.as_bytes()).unwrap().classes, ["road", "sky"]);
        }
        assert!(matches!(read(b"").unwrap_err(), DataError::Empty { .. }));
        let mark_only = read("\u{feff}".as_bytes()).unwrap_err();
        assert!(matches!(mark_only, DataError::Empty { .. }));
        let blank = read(b"road\r\rsky").unwrap_err();
        assert!(matches!(blank, DataError::BlankLine { line: 2, .. }));
        for (bytes, expected) in [
            (&b"\xff\xfer\0o\0"[..], "its byte 0 is not"),
            (&[b'x'; (1 << 20) + 1], "larger than the 1048576 bytes"),
        ] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn ids_may_be_given() {
        let labels = read(b"0: ground\n128: ignore\n255: tree: old\n").unwrap();
        assert_eq!(labels.classes, ["ground", "tree: old"]);
        let map = labels.map();
        assert_eq!((map[0], map[255]), (0, 1));
        assert!((1..255).all(|id| map[id] == IGNORE_LABEL));
        assert_eq!(labels.meanings()[128], LabelMeaning::Ignored);
        assert_eq!(labels.meanings()[1], LabelMeaning::Unknown);
        let ignored = read(b"0: a\n1: ignore\n2: ignore\n").unwrap();
        assert_eq!(ignored.classes, ["a"]);
        // A line without an id makes all of them names.
        assert_eq!(read(b"0: a\nb\n").unwrap().classes, ["0: a", "b"]);
        for (list, expected) in [
            (&b"256: a\n"[..], "its id 256 is too large"),
            (b"1: a\n1: b\n", "the id 1 two names"),
            (b"0: a\n1: b\n2: a\n", "the name a to two ids"),
            (b"a\nb\na\n", "the name a to two ids"),
        ] {
            let error = read(list).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn there_is_room_for_255_classes() {
        let names = |count: usize| (0..count).map(|id| format!("c{id}\n")).collect::<String>();
        assert_eq!(read(names(255).as_bytes()).unwrap().classes.len(), 255);
        let many = read(names(256).as_bytes()).unwrap_err();
        assert!(matches!(
            many,
            DataError::TooManyClasses { classes: 256, .. }
        ));
        let given: String = (0..256).map(|id| format!("{id}: c{id}\n")).collect();
        let many = read(given.as_bytes()).unwrap_err();
        assert!(matches!(
            many,
            DataError::TooManyClasses { classes: 256, .. }
        ));
    }

    #[test]
    fn what_is_published_is_known() {
        let labels = Labels::published(&[(1, "a"), (3, "b")], 4);
        let meanings = labels.meanings();
        assert_eq!(meanings[1], LabelMeaning::Class(0));
        assert_eq!(meanings[4], LabelMeaning::Ignored);
        assert_eq!(meanings[5], LabelMeaning::Unknown);
        assert_eq!(meanings[255], LabelMeaning::Ignored);
    }
}
