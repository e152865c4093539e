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
    assert_eq!(tokens(&corpus, &corpus.test), ["a", "<eos>"]);
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
    let text = message(folder.path(), Level::Word);
    assert!(text.contains("train.txt holds \"rare\""), "{text}");
}

#[test]
fn a_single_file_is_cut_at_line_ends() {
    let folder = folder([("text", "0123456789\n".repeat(1000).as_bytes())]);
    let corpus = Corpus::open(&folder.path().join("text"), Level::Byte).unwrap();
    let splits = [&corpus.train, &corpus.valid, &corpus.test];
    assert_eq!(splits.map(Tokens::len), [9911, 550, 539]);
    assert!(splits.iter().all(|split| split.iter().last() == Some(10)));
}

#[test]
fn a_single_file_of_one_line_is_cut_between_characters() {
    let folder = folder([
        ("text", "戦場 ".repeat(100).as_bytes()),
        ("short", b"0123456789"),
    ]);
    let corpus = Corpus::open(&folder.path().join("text"), Level::Byte).unwrap();
    let splits = [&corpus.train, &corpus.valid, &corpus.test];
    assert_eq!(splits.map(Tokens::len).iter().sum::<usize>(), 700);
    for split in splits {
        let bytes: Vec<u8> = split.iter().map(|id| id as u8).collect();
        assert!(String::from_utf8(bytes).is_ok() && split.len() > 30);
    }
    let text = message(&folder.path().join("short"), Level::Byte);
    assert!(text.contains("10 bytes, too few to cut"), "{text}");
}

#[test]
fn the_built_in_text_can_be_read_at_both_levels() {
    let bytes = Corpus::builtin(Level::Byte).unwrap();
    assert_eq!(bytes.vocabulary, Vocabulary::of_bytes());
    let words = Corpus::builtin(Level::Word).unwrap();
    let unknown = words.vocabulary.id(Vocabulary::UNKNOWN).unwrap();
    let knows = |split: &Tokens| split.iter().any(|id| id == unknown);
    assert!(knows(&words.train) && knows(&words.test));
    assert!((1000..5000).contains(&words.vocabulary.len()));
}

#[test]
fn what_is_wrong_is_said_with_the_path() {
    let missing = message(Path::new("/nowhere"), Level::Byte);
    assert!(missing.starts_with("there is no /nowhere"), "{missing}");

    let no_test = folder([("train.txt", b"a"), ("valid.txt", b"a")]);
    let text = message(no_test.path(), Level::Byte);
    let names = "test.txt, wiki.test.tokens, wiki.test.raw, ptb.test.txt, or";
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

    let unknown = folder([("train.txt", b"a"), ("valid.txt", b"z"), ("test.txt", b"a")]);
    assert!(message(unknown.path(), Level::Word).contains("valid.txt holds \"z\""));
}
