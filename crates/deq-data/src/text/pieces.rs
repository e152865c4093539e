//! Long texts in pieces that can be read side by side.

use super::lines::line_end;

/// The least bytes of a piece: large enough that a piece is a thousand times the work of handing it
/// to a thread, small enough that a corpus of a few megabytes keeps several threads busy.
pub(crate) const PIECE: usize = 1 << 18;

/// Cuts a text into pieces of at least `least` bytes that end with a line, or before a space or tab
/// where a line is longer than another `least` bytes. Where the cuts are depends on the text alone.
pub(crate) fn pieces(text: &str, least: usize) -> Vec<&str> {
    let mut pieces = Vec::with_capacity(text.len() / least + 1);
    let mut rest = text;
    while rest.len() > least {
        let (piece, after) = rest.split_at(end(rest.as_bytes(), least));
        pieces.push(piece);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// Where the first piece of a longer text ends. ASCII bytes are never part of another character, so
/// this is between two characters.
fn end(text: &[u8], least: usize) -> usize {
    if let Some(end) = line_end(&text[least - 1..], least + 1) {
        return least - 1 + end;
    }
    let far = &text[least..];
    let space = far
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    match space {
        Some(at) => least + at + line_end(&far[at..], 1).unwrap_or(0),
        None => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_a_line() {
        assert_eq!(
            pieces("ab\ncd\nef\n", 2),
            ["ab\n", "cd\n", "ef\n"],
            "a line end just after the least length"
        );
        assert_eq!(pieces("ab\ncd\nef", 3), ["ab\n", "cd\n", "ef"]);
        assert_eq!(pieces("\n\n\n", 1), ["\n", "\n", "\n"]);
        assert_eq!(pieces("ab\r\ncd\ref", 3), ["ab\r\n", "cd\r", "ef"]);
        assert_eq!(pieces("ab", 3), ["ab"]);
        assert!(pieces("", 3).is_empty());
    }

    #[test]
    fn a_long_line_is_cut_before_a_space() {
        assert_eq!(pieces("abcdef gh ij", 2), ["abcdef", " gh", " ij"]);
        assert_eq!(pieces("戦戦戦戦 戦", 4), ["戦戦戦戦", " 戦"]);
        assert_eq!(pieces("abcdefgh", 2), ["abcdefgh"]);
        assert_eq!(pieces("abcdefgh\nx", 2), ["abcdefgh\n", "x"]);
        assert_eq!(pieces("abcdefgh\r\nx", 2), ["abcdefgh\r\n", "x"]);
    }
}
