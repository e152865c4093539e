use super::*;
use std::fs::write;

fn folder<const N: usize>(files: [(&str, &[u8]); N]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn tokens<'a>(corpus: &'a Corpus, ids: &Tokens) -> Vec<&'a str> {
    let token = |id| corpus.vocabulary.token(id).unwrap();
    ids.iter().map(token).collect()
}

fn message(path: &Path, level: Level) -> String {
    Corpus::open(path, level).unwrap_err().to_string()
}

#[test]
fn words_and_line_ends_are_read_as_the_original_does() {
    let folder = folder([
        ("wiki.train.tokens", b" \n a b <unk> \n"),
        ("valid.txt", b"b z\n"),
        ("ptb.test.txt", b"a"),
    ]);
    let corpus = Corpus::open(folder.path(), Level::Word).unwrap();
    let train = tokens(&corpus, &corpus.train);
    assert_eq!(train, ["<eos>", "a", "b", "<unk>", "<eos>"]);
    let valid = tokens(&corpus, &corpus.valid);
    assert_eq!(valid, ["b", "<unk>", "<eos>"]);
    assert_eq!(
        tokens(&corpus, corpus.require_test().unwrap()),
        ["a", "<eos>"]
    );
    assert_eq!(corpus.unknown_words, [0, 1, 0]);
}

#[test]
fn line_ends_and_marks_make_no_difference_to_words() {
    let text = |mark: &str, end: &str| format!("{mark}a b{end}{end}b <unk>{end}c a");
    let read = |mark: &str, end: &str| {
        let text = text(mark, end);
        let (name, valid) = (text.as_bytes(), "c\n".as_bytes());
        let folder = folder([("train.txt", name), ("valid.txt", valid)]);
        Corpus::open(folder.path(), Level::Word).unwrap()
    };
    let plain = read("", "\n");
    let expected = [
        "a", "b", "<eos>", "<eos>", "b", "<unk>", "<eos>", "c", "a", "<eos>",
    ];
    assert_eq!(tokens(&plain, &plain.train), expected);
    for mark in ["", "\u{FEFF}"] {
        for end in ["\n", "\r", "\r\n"] {
            let other = read(mark, end);
            assert_eq!(other.vocabulary, plain.vocabulary);
            assert_eq!(other.train, plain.train, "{mark:?} {end:?}");
        }
    }
}

#[test]
fn words_that_train_lacks_become_unk() {
    let text =
        |valid: &'static [u8]| folder([("train.txt", b"a b a once\nb a\n"), ("valid.txt", valid)]);
    // All words are known: the text keeps them.
    let closed = text(b"once a\n");
    let corpus = Corpus::open(closed.path(), Level::Word).unwrap();
    let words: Vec<String> = corpus.vocabulary.clone().into();
    assert_eq!(words, ["<eos>", "a", "b", "once"]);
    assert_eq!(corpus.unknown_words, [0; 3]);
    assert!(corpus.test.is_none() && corpus.require_test().is_err());

    // One is not: it becomes <unk>, and so does what a model could not learn.
    let open = text(b"a new once b\n");
    let corpus = Corpus::open(open.path(), Level::Word).unwrap();
    let words: Vec<String> = corpus.vocabulary.clone().into();
    assert_eq!(words, ["<eos>", "a", "b", "<unk>"]);
    let train = tokens(&corpus, &corpus.train);
    assert_eq!(train, ["a", "b", "a", "<unk>", "<eos>", "b", "a", "<eos>"]);
    let valid = tokens(&corpus, &corpus.valid);
    assert_eq!(valid, ["a", "<unk>", "<unk>", "b", "<eos>"]);
    assert_eq!(corpus.unknown_words, [1, 2, 0]);
}

#[test]
fn any_plain_text_can_be_read_at_its_default_level() {
    let text = "Call me Ishmael.\r\nSome years ago \u{2014} never mind how long\r\n".repeat(40);
    let folder = folder([("book.TXT", text.as_bytes())]);
    for path in [folder.path().to_owned(), folder.path().join("book.TXT")] {
        let level = Level::default_for(&path).unwrap();
        assert_eq!(level, Level::Byte);
        let corpus = Corpus::open(&path, level).unwrap();
        assert_eq!(corpus.unknown_words, [0; 3]);
        let words = Corpus::open(&path, Level::Word).unwrap();
        assert!(words.unknown_words.iter().all(|count| *count == 0));
    }
}

#[test]
fn what_is_left_out_is_named() {
    let folder = folder([
        ("train.txt", b"a\n"),
        ("valid.txt", b"a\n"),
        ("more.md", b"a\n"),
    ]);
    let heard = std::sync::Mutex::new(Vec::new());
    let listen = |event: &crate::CorpusEvent<'_>| {
        if let crate::CorpusEvent::LeftOut { files } = event {
            heard.lock().unwrap().extend(files.to_vec());
        }
    };
    let reader = CorpusReader::new(folder.path(), Level::Word).on_event(&listen);
    let corpus = reader.read().unwrap();
    assert_eq!(corpus.left_out, [folder.path().join("more.md")]);
    assert_eq!(*heard.lock().unwrap(), corpus.left_out);
}

#[test]
fn a_vocabulary_file_says_which_words_there_are_but_not_their_order() {
    let folder = folder([
        ("train.txt", b"a b b rare\n"),
        ("valid.txt", b"a\n"),
        ("test.txt", b"b\n"),
        ("vocab.txt", b"extra\n<eos>\n<unk>\na\nb\n"),
    ]);
    let corpus = Corpus::open(folder.path(), Level::Word).unwrap();
    let words: Vec<String> = corpus.vocabulary.clone().into();
    assert_eq!(words, ["<eos>", "b", "a", "<unk>", "extra"]);
    assert_eq!(corpus.train, [2, 1, 1, 3, 0]);

    let listed = Vocabulary::load(&folder.path().join("vocab.txt")).unwrap();
    let kept = Corpus::open_with(folder.path(), listed.clone()).unwrap();
    assert_eq!(kept.vocabulary, listed);
    assert_eq!(kept.train, [3, 4, 4, 2, 1]);

    write(folder.path().join("vocab.txt"), "<unk>\na\n").unwrap();
    let text = message(folder.path(), Level::Word);
    assert!(text.contains("vocab.txt has no <eos>"), "{text}");
    assert!(Corpus::open(folder.path(), Level::Byte).is_ok());

    write(folder.path().join("vocab.txt"), "<eos>\na\nb\n").unwrap();
    let corpus = Corpus::open(folder.path(), Level::Word).unwrap();
    let words: Vec<String> = corpus.vocabulary.clone().into();
    assert_eq!(words, ["<eos>", "b", "a", "<unk>"]);
    assert_eq!(corpus.unknown_words, [1, 0, 0]);

    // A list that is given is not added to.
    let listed = Vocabulary::load(&folder.path().join("vocab.txt")).unwrap();
    let text = Corpus::open_with(folder.path(), listed)
        .unwrap_err()
        .to_string();
    assert!(text.contains("train.txt holds \"rare\""), "{text}");
}

#[test]
fn a_single_file_is_cut_at_line_ends() {
    let folder = folder([("text", "0123456789\n".repeat(1000).as_bytes())]);
    let corpus = Corpus::open(&folder.path().join("text"), Level::Byte).unwrap();
    let splits = [&corpus.train, &corpus.valid, corpus.require_test().unwrap()];
    assert_eq!(splits.map(Tokens::len), [9911, 550, 539]);
    assert!(splits.iter().all(|split| split.iter().last() == Some(10)));
}

#[test]
fn a_file_that_is_too_small_to_cut_is_refused() {
    let folder = folder([("short", b"0123456789"), ("empty", b"")]);
    let text = message(&folder.path().join("short"), Level::Byte);
    assert!(text.contains("10 bytes, too few to cut"), "{text}");
    let text = message(&folder.path().join("empty"), Level::Byte);
    assert!(text.contains("empty is empty"), "{text}");
}

#[test]
fn the_built_in_text_can_be_read_at_both_levels() {
    let bytes = Corpus::builtin(Level::Byte).unwrap();
    assert_eq!(bytes.vocabulary, Vocabulary::of_bytes());
    let words = Corpus::builtin(Level::Word).unwrap();
    let unknown = words.vocabulary.id(Vocabulary::UNKNOWN).unwrap();
    let knows = |split: &Tokens| split.iter().any(|id| id == unknown);
    assert!(knows(&words.train) && knows(words.require_test().unwrap()));
    assert!((1000..5000).contains(&words.vocabulary.len()));
}

#[test]
fn what_is_wrong_is_said_with_the_path() {
    let missing = message(Path::new("/nowhere"), Level::Byte);
    assert!(missing.starts_with("there is no /nowhere"), "{missing}");

    let no_valid = folder([("train.txt", b"a"), ("test.txt", b"a")]);
    let text = message(no_valid.path(), Level::Byte);
    let names = "valid.txt, validation.txt, val.txt, dev.txt, wiki.valid.tokens";
    assert!(text.contains(names), "{text}");

    let empty = folder([("train.txt", b"a"), ("valid.txt", b""), ("test.txt", b"a")]);
    assert!(message(empty.path(), Level::Word).contains("valid.txt is empty"));

    let binary: [(&str, &[u8]); 3] = [
        ("train.txt", b"ab\xff"),
        ("valid.txt", b"a"),
        ("test.txt", b"a"),
    ];
    let binary = folder(binary);
    let text = message(binary.path(), Level::Word);
    assert!(
        text.contains("(byte 2)") && text.contains("byte level"),
        "{text}"
    );
    assert!(Corpus::open(binary.path(), Level::Byte).is_ok());
}
