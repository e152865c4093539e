//! Lines and words, as Python's text mode and `str.split` find them.
//!
//! A line ends with a line feed, a carriage return, or both in this order. White space is that of
//! Unicode and the four separators of ASCII.

use super::vocabulary::Vocabulary;

/// The words of a text, with `<eos>` for every line end.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    lines(text).flat_map(|(line, ended)| {
        let words = line.split(is_space).filter(|word| !word.is_empty());
        words.chain(ended.then_some(Vocabulary::END_OF_LINE))
    })
}

/// The lines of a text without their ends, and whether they had one; only the last may have none.
pub(crate) fn lines(mut text: &str) -> impl Iterator<Item = (&str, bool)> {
    std::iter::from_fn(move || {
        let end = line_end(text.as_bytes(), text.len()).unwrap_or(text.len());
        let (line, rest) = text.split_at(end);
        text = rest;
        let body = line.trim_end_matches(['\n', '\r']);
        (!line.is_empty()).then_some((body, body.len() < line.len()))
    })
}

/// What separates words.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1C'..='\x1F')
}

/// Whether the last line of a text has its end.
pub(crate) fn ends_with_line(text: &str) -> bool {
    text.ends_with(['\n', '\r'])
}

/// The place after the first line end, if that begins within the first `near` bytes.
pub(crate) fn line_end(bytes: &[u8], near: usize) -> Option<usize> {
    let mut head = bytes.iter().take(near);
    let at = head.position(|byte| matches!(byte, b'\n' | b'\r'))?;
    Some(match bytes[at..].starts_with(b"\r\n") {
        true => at + 2,
        false => at + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_line_ends_of_python_count_once() {
        // What `for line in open(path): line.split() + ["<eos>"]` gives in Python, where each text
        // ends with a line end.
        for text in [
            "a b\n\nc\n",
            "a b\r\rc\r",
            "a b\r\n\r\nc\r\n",
            " a\tb \r\n\nc\r",
        ] {
            let found: Vec<&str> = words(text).collect();
            assert_eq!(
                found,
                ["a", "b", "<eos>", "<eos>", "c", "<eos>"],
                "{text:?}"
            );
        }
        let found: Vec<&str> = words("a\r\r\nb").collect();
        assert_eq!(found, ["a", "<eos>", "<eos>", "b"]);
        assert_eq!(words("\r\n").collect::<Vec<_>>(), ["<eos>"]);
        assert_eq!(words("").next(), None);
    }

    #[test]
    fn white_space_is_that_of_python() {
        // `"...".split()` in Python: the no-break space and the separators of ASCII divide words,
        // the zero-width space does not; neither of the Unicode line ends ends a line.
        let found: Vec<&str> = words("a\u{A0}b\x1Cc\u{200B}d\u{2028}e\u{85}f").collect();
        assert_eq!(found, ["a", "b", "c\u{200B}d", "e", "f"]);
    }

    #[test]
    fn a_line_end_is_whole() {
        assert_eq!(line_end(b"ab\ncd", 3), Some(3));
        assert_eq!(line_end(b"ab\rcd", 3), Some(3));
        assert_eq!(line_end(b"ab\r\ncd", 3), Some(4));
        assert_eq!(line_end(b"ab\n", 2), None);
    }
}
