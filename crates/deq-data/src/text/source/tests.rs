use super::*;
use std::path::Path;

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn sources(path: &Path) -> Result<Vec<Source>, DataError> {
    read(&Layout::find(path).unwrap()).map(|(sources, _)| sources)
}

fn texts_of(path: &Path) -> Vec<String> {
    let text = |source: &Source| source.text().unwrap().to_owned();
    sources(path).unwrap().iter().map(text).collect()
}

/// The texts of the three splits of one file.
fn divided(text: &str) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    texts_of(file.path())
}

#[test]
fn the_files_of_a_split_are_joined_in_order_and_without_their_marks() {
    let folder = folder(&[
        ("train/b.txt", b"\xEF\xBB\xBFtwo\r"),
        ("train/a.txt", b"\xEF\xBB\xBFone"),
        ("train/deep/c.txt", b"\nthree\n"),
        ("valid.txt", b"\xEF\xBB\xBFv\n"),
    ]);
    let expected = ["one\ntwo\r\n\nthree\n", "v\n"];
    assert_eq!(texts_of(folder.path()), expected);
    // The checksums are those of the files as they are.
    let (_, checksums) = read(&Layout::find(folder.path()).unwrap()).unwrap();
    assert_eq!(checksums[3], xxh3_64(b"\xEF\xBB\xBFv\n"));
}

#[test]
fn few_files_without_splits_are_joined_and_cut_as_one() {
    let lines = |word: &str| format!("{word} goes on\n").repeat(100);
    let (a, b) = (lines("a"), lines("b"));
    let folder = folder(&[
        ("b.txt", b.trim_end().as_bytes()),
        ("a.txt", a.as_bytes()),
        ("vocab.txt", b"a\nb\n"),
    ]);
    let splits = texts_of(folder.path());
    let joined = splits.concat();
    assert_eq!(joined, format!("{a}{}", b.trim_end()));
    let train = &splits[0];
    assert!(train.starts_with("a goes") && train.ends_with('\n') && train.contains("b goes"));
    let share = train.len() as f64 / joined.len() as f64;
    assert!((0.9..0.92).contains(&share), "{share}");
}

#[test]
fn a_text_of_one_line_is_cut_between_words() {
    for space in [" ", "\u{3000}", "\t"] {
        // Words of different lengths, so that the places at 90 and 95 % lie inside of some.
        for words in [90, 101, 500, 1013] {
            let words: Vec<String> = (0..words)
                .map(|n| format!("w{}", "é".repeat(n * 7 % 31)))
                .collect();
            let text = words.join(space);
            let splits = divided(&text);
            assert_eq!(splits.concat(), text);
            let found: Vec<&str> = splits.iter().flat_map(|part| part.split(space)).collect();
            let found: Vec<&str> = found.into_iter().filter(|word| !word.is_empty()).collect();
            assert_eq!(found, words);
            let share = splits[0].len() as f64 / text.len() as f64;
            assert!((0.88..0.95).contains(&share), "{share}");
        }
    }
}

#[test]
fn the_last_words_may_be_longer_than_a_split() {
    let words = ["a ".repeat(40), "b".repeat(10), " ".into(), "c".repeat(12)];
    let splits = divided(&words.concat());
    assert_eq!(splits[1..], ["bbbbbbbbbb ", "cccccccccccc"]);
}

#[test]
fn a_text_without_words_is_cut_between_characters() {
    let splits = divided(&"戦場".repeat(2000));
    assert_eq!(splits.concat().len(), 12_000);
    assert!(splits.iter().all(|split| split.len() >= 600), "{splits:?}");
}

#[test]
fn every_kind_of_line_end_is_a_place_to_cut() {
    for end in ["\n", "\r", "\r\n"] {
        let text = format!("0123 56789{end}").repeat(1000);
        let splits = divided(&text);
        assert_eq!(splits.concat(), text);
        assert!(
            splits
                .iter()
                .all(|split| split.starts_with('0') && split.ends_with(end))
        );
    }
    // Also where the line is longer than 1 % of the text.
    let text = format!("{}\r\n", "x".repeat(50)).repeat(20);
    let splits = divided(&text);
    assert!(
        splits.iter().all(|split| split.ends_with("\r\n")),
        "{splits:?}"
    );
}

#[test]
fn text_that_is_not_utf_8_is_found_in_its_own_file() {
    let folder = folder(&[
        ("train/a.txt", b"fine\n"),
        ("train/b.txt", b"ab\xff"),
        ("valid.txt", b"\xEF\xBB\xBFab\xff"),
    ]);
    let sources = sources(folder.path()).unwrap();
    let message = sources[0].text().unwrap_err().to_string();
    assert!(
        message.contains("b.txt is not UTF-8 text (byte 2)"),
        "{message}"
    );
    let message = sources[1].text().unwrap_err().to_string();
    assert!(
        message.contains("valid.txt is not UTF-8 text (byte 5)"),
        "{message}"
    );
}

#[test]
fn places_count_from_the_beginning_of_the_file_in_every_split() {
    let mut lines = "0123456789\n".repeat(100).into_bytes();
    lines[1005] = 0xFF;
    let folder = folder(&[("a.txt", b"first\n"), ("b.txt", &lines)]);
    let sources = sources(folder.path()).unwrap();
    assert!(sources[0].text().is_ok());
    let message = sources[1].text().unwrap_err().to_string();
    assert!(
        message.contains("b.txt is not UTF-8 text (byte 1005)"),
        "{message}"
    );
}

#[test]
fn utf_16_is_refused_by_name() {
    let folder = folder(&[
        ("train/a.txt", b"a\n"),
        ("train/b.txt", b"\xFF\xFEa\0\n\0"),
        ("valid.txt", b"a"),
    ]);
    let message = sources(folder.path()).err().unwrap().to_string();
    assert!(message.contains("b.txt is UTF-16 text"), "{message}");
}
