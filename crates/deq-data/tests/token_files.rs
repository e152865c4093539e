//! Token files: written, found again, refused when damaged or out of date, and the same ids
//! whatever the number of threads.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{
    CachePlace, Corpus, CorpusEvent, CorpusReader, DataError, Level, Vocabulary, survey,
};
use std::fs::{read, write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// A folder with a text in three splits and a place for token files.
struct Text {
    folder: tempfile::TempDir,
}

impl Text {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = Self { folder };
        std::fs::create_dir(text.path()).unwrap();
        for (split, lines) in [("train", 400), ("valid", 20), ("test", 30)] {
            text.write(&format!("{split}.txt"), &sentences(lines));
        }
        text
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("text")
    }

    fn write(&self, name: &str, content: &str) {
        write(self.path().join(name), content).unwrap();
    }

    fn place(&self) -> CachePlace {
        CachePlace::In(self.folder.path().join("cache"))
    }

    /// Reads the text, and returns what was said meanwhile, without progress.
    fn read(&self, reader: CorpusReader<'_>) -> (Corpus, Vec<String>) {
        let said = Mutex::new(Vec::new());
        let listen = |event: &CorpusEvent<'_>| {
            let text = match event {
                CorpusEvent::Discarded { problem, .. } => problem.to_string(),
                CorpusEvent::Written { .. } => "written".to_owned(),
                CorpusEvent::NotWritten { error } => error.to_string(),
                _ => return,
            };
            said.lock().unwrap().push(text);
        };
        let corpus = reader.cache(self.place()).on_event(&listen).read().unwrap();
        (corpus, said.into_inner().unwrap())
    }

    fn words(&self) -> (Corpus, Vec<String>) {
        self.read(CorpusReader::new(&self.path(), Level::Word))
    }

    fn token_files(&self) -> Vec<PathBuf> {
        let survey = survey(&self.path(), &self.place(), false).unwrap();
        survey
            .cached
            .into_iter()
            .map(|cached| cached.file)
            .collect()
    }
}

fn sentences(lines: usize) -> String {
    (0..lines)
        .map(|n| format!("the state {} settles after {} steps\n", n % 40, 7 * n % 31))
        .collect()
}

fn same(a: &Corpus, b: &Corpus) {
    assert_eq!(a.vocabulary, b.vocabulary);
    assert_eq!((&a.train, &a.valid, &a.test), (&b.train, &b.valid, &b.test));
    assert_eq!(a.unknown_words, b.unknown_words);
}

#[test]
fn the_second_reading_maps_what_the_first_one_wrote() {
    let text = Text::new();
    text.write("valid.txt", "the unknown state\n");
    text.write("train.txt", &format!("{}<unk>\n", sentences(400)));
    text.write("test.txt", "the state");
    for level in [Level::Word, Level::Byte] {
        let plain = Corpus::open(&text.path(), level).unwrap();
        assert!(!plain.train.is_mapped());
        let (first, said) = text.read(CorpusReader::new(&text.path(), level));
        assert_eq!(said, ["written"]);
        let (second, said) = text.read(CorpusReader::new(&text.path(), level));
        assert!(said.is_empty() && second.train.is_mapped());
        same(&plain, &first);
        same(&plain, &second);
    }
    assert_eq!(text.token_files().len(), 2);
}

#[test]
fn a_vocabulary_that_is_given_shares_the_file_of_the_same_words_only() {
    let text = Text::new();
    text.write("vocab.txt", "<unk>\n<eos>\nthe\nstate\n");
    let (derived, said) = text.words();
    assert_eq!(said, ["written"]);
    let given = |vocabulary: &Vocabulary| {
        let reader = CorpusReader::with_vocabulary(&text.path(), vocabulary.clone());
        text.read(reader)
    };
    let (shared, said) = given(&derived.vocabulary);
    assert!(said.is_empty() && shared.train.is_mapped());
    same(&derived, &shared);
    let other = Vocabulary::of_words(["<unk>", "steps", "steps"]);
    let (read, said) = given(&other);
    assert_eq!(
        (said, &read.vocabulary),
        (vec!["written".to_owned()], &other)
    );
    same(
        &read,
        &Corpus::open_with(&text.path(), other.clone()).unwrap(),
    );
    assert!(given(&other).1.is_empty() && text.words().1.is_empty());
    assert_eq!(text.token_files().len(), 2);

    // A new list of words makes other ids, but not for those who bring their own.
    text.write("vocab.txt", "<unk>\n<eos>\nsteps\n");
    assert!(given(&derived.vocabulary).1.is_empty() && given(&other).1.is_empty());
    let (relisted, said) = text.words();
    assert_eq!(said, ["vocab.txt has changed", "written"]);
    assert_eq!(relisted.vocabulary.len(), 3);
}

#[test]
fn damaged_token_files_are_never_used() {
    let text = Text::new();
    let (good, _) = text.words();
    let file = text.token_files().remove(0);
    let whole = read(&file).unwrap();
    let header = u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    let ids: usize = [&good.train, &good.valid, good.require_test().unwrap()]
        .map(|split| 2 * split.len())
        .iter()
        .sum();

    // Every byte before the ids counts: any other value in it is noticed when the file is opened.
    for at in (0..whole.len() - ids)
        .step_by(7)
        .chain([8, 12, 16, whole.len() - ids - 1])
    {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        write(&file, &bytes).unwrap();
        let (corpus, said) = text.read(CorpusReader::new(&text.path(), Level::Word).check(false));
        assert_eq!((said.len(), said[1].as_str()), (2, "written"), "byte {at}");
        same(&corpus, &good);
        assert_eq!(read(&file).unwrap(), whole, "the file is written anew");
    }
    let cases: [(&str, Vec<u8>); 7] = [
        ("its tokens are damaged", flipped(&whole, whole.len() - 1)),
        ("its tokens are damaged", flipped(&whole, whole.len() - ids)),
        (
            "its vocabulary is damaged",
            flipped(&whole, 24 + header + 3),
        ),
        ("its header is damaged", flipped(&whole, 24 + header / 2)),
        ("bytes instead of", whole[..whole.len() - 1].to_vec()),
        ("bytes instead of", [&whole[..], b"x"].concat()),
        ("it is not a token file", Vec::new()),
    ];
    for (expected, bytes) in cases {
        write(&file, bytes).unwrap();
        let (corpus, said) = text.words();
        assert!(
            said[0].contains(expected) && said[1] == "written",
            "{said:?}"
        );
        same(&corpus, &good);
    }
    // A version to come.
    let mut bytes = whole.clone();
    bytes[8] = 3;
    write(&file, &bytes).unwrap();
    assert_eq!(text.words().1[0], "its format has version 3, not 2");
    assert!(text.words().1.is_empty());
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

#[test]
fn a_text_that_has_changed_is_read_anew() {
    let text = Text::new();
    let (first, _) = text.words();
    let valid = text.path().join("valid.txt");
    let age = |seconds| {
        let file = std::fs::File::options().write(true).open(&valid).unwrap();
        let time = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    // A copy has another time, but the same content.
    age(1000);
    assert!(text.words().1.is_empty());
    // Other content of the same length.
    let changed = std::fs::read_to_string(&valid)
        .unwrap()
        .replace("state 0", "state 1");
    text.write("valid.txt", &changed);
    age(2000);
    let (second, said) = text.words();
    assert_eq!(said, ["valid.txt has changed", "written"]);
    assert_eq!(second.train, first.train);
    assert_ne!(second.valid, first.valid);
    text.write("valid.txt", "the state\n");
    assert_eq!(text.words().1[0], "valid.txt has changed");
    // Other files.
    std::fs::rename(&valid, text.path().join("dev.txt")).unwrap();
    assert_eq!(text.words().1[0], "the text has other files now");
    assert!(text.words().1.is_empty());
}

#[test]
fn a_survey_finds_damage_only_if_it_is_thorough() {
    let text = Text::new();
    let (corpus, _) = text.words();
    let look = |thorough| survey(&text.path(), &text.place(), thorough).unwrap();
    let cached = look(true).cached.remove(0);
    assert!(cached.problem.is_none());
    let splits = [&corpus.train, &corpus.valid, corpus.require_test().unwrap()];
    let lengths = splits.map(|split| split.len() as u64);
    assert_eq!(
        (cached.level, cached.tokens),
        (Some(Level::Word), Some(lengths))
    );
    assert_eq!(cached.vocabulary, Some(corpus.vocabulary.len() as u64));

    let file = text.token_files().remove(0);
    let bytes = read(&file).unwrap();
    write(&file, flipped(&bytes, bytes.len() - 1)).unwrap();
    assert!(look(false).cached[0].problem.is_none());
    let problem = look(true).cached.remove(0).problem.unwrap();
    assert_eq!(problem.to_string(), "its tokens are damaged");
}

#[test]
fn readers_at_the_same_time_get_whole_files() {
    let text = Text::new();
    let plain = Corpus::open(&text.path(), Level::Word).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let (corpus, _) = text.words();
                    same(&corpus, &plain);
                    // Others go on writing and reading while this one removes files.
                    text.token_files()
                        .iter()
                        .for_each(|file| drop(std::fs::remove_file(file)));
                }
            });
        }
    });
    let cache = text.folder.path().join("cache");
    let left: Vec<String> = std::fs::read_dir(cache)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "CACHEDIR.TAG" && !name.ends_with(".word.tokens"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn where_nothing_can_be_written_the_text_is_read_all_the_same() {
    let text = Text::new();
    let blocked = text.folder.path().join("blocked");
    write(&blocked, "a file, not a folder").unwrap();
    let said = Mutex::new(Vec::new());
    let listen = |event: &CorpusEvent<'_>| {
        if let CorpusEvent::NotWritten { error } = event {
            said.lock().unwrap().push(error.to_string());
        }
    };
    let path = text.path();
    let reader = CorpusReader::new(&path, Level::Word).on_event(&listen);
    let corpus = reader.cache(CachePlace::In(blocked)).read().unwrap();
    same(&corpus, &Corpus::open(&path, Level::Word).unwrap());
    let said = said.into_inner().unwrap();
    assert!(
        said.len() == 1 && said[0].starts_with("cannot write"),
        "{said:?}"
    );
}

#[test]
fn small_texts_leave_no_files_and_large_ones_lie_beside_the_text() {
    let text = Text::new();
    let path = text.path();
    let auto = || {
        CorpusReader::new(&path, Level::Byte)
            .cache(CachePlace::Auto)
            .read()
            .unwrap()
    };
    assert!(!auto().train.is_mapped());
    text.write("train.txt", &"0123456789abcde\n".repeat(1 << 18));
    assert!(auto().train.is_mapped());
    assert!(path.join(".deq-cache/text.byte.tokens").is_file());
    assert!(path.join(".deq-cache/CACHEDIR.TAG").is_file());
    // The folder does not become part of the text.
    assert_eq!(survey(&path, &CachePlace::Auto, true).unwrap().files, 3);
}

#[test]
fn token_files_belong_to_the_text_that_they_are_named_after() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join(".deq-cache");
    std::fs::create_dir(&cache).unwrap();
    for name in ["enwik8", "enwik8.txt"] {
        write(folder.path().join(name), sentences(100)).unwrap();
        for rest in ["byte", "word.0123456789abcdef"] {
            write(cache.join(format!("{name}.{rest}.tokens")), "").unwrap();
        }
    }
    for name in ["enwik8", "enwik8.txt"] {
        let path = folder.path().join(name);
        let cached = survey(&path, &CachePlace::Auto, false).unwrap().cached;
        let names = cached.iter().map(|cached| {
            let name = cached.file.file_name().unwrap();
            name.to_str().unwrap()
        });
        let expected = ["byte", "word.0123456789abcdef"];
        let expected = expected.map(|rest| format!("{name}.{rest}.tokens"));
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn ids_do_not_depend_on_the_number_of_threads() {
    let text = Text::new();
    // Pieces of 256 KiB: several, whose first appearances and ties cross their ends, with a long
    // line and no line feed at the end.
    let mut train: String = (0..90_000_u64)
        .map(|n| match n % 2000 {
            0 => "x ".repeat(30_000) + "\n",
            _ => format!("w{} w{}\n", n * n % 7919, n % 101),
        })
        .collect();
    train.push_str("the end");
    assert!(train.len() > 8 << 18);
    text.write("train.txt", &train);
    text.write("valid.txt", "w1 w2\n");
    text.write("test.txt", "w3 x\n");
    let read = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap()
            .install(|| Corpus::open(&text.path(), Level::Word).unwrap())
    };
    // In turn, without the library's reader.
    let words: Vec<&str> = train
        .lines()
        .flat_map(|line| line.split_whitespace().chain(["<eos>"]))
        .collect();
    let vocabulary = Vocabulary::of_words(words.iter().copied());
    let ids: Vec<u32> = words
        .iter()
        .map(|word| vocabulary.id(word).unwrap())
        .collect();
    for threads in [1, 2, 3, 7] {
        let corpus = read(threads);
        assert_eq!(corpus.vocabulary, vocabulary);
        assert!(corpus.train == ids, "{threads} threads");
    }
}

#[test]
fn progress_reaches_the_end_and_errors_name_the_file() {
    let text = Text::new();
    let seen = Mutex::new([(0, 0); 2]);
    let listen = |event: &CorpusEvent<'_>| {
        let (phase, share) = match event {
            CorpusEvent::Counting { done, total } => (0, (*done, *total)),
            CorpusEvent::Encoding { done, total } => (1, (*done, *total)),
            _ => return,
        };
        let mut seen = seen.lock().unwrap();
        seen[phase] = seen[phase].max(share);
    };
    let path = text.path();
    text.write("valid.txt", "state\n");
    text.write("test.txt", "state\n");
    let reader = CorpusReader::new(&path, Level::Word).on_event(&listen);
    reader.read().unwrap();
    let train = read(path.join("train.txt")).unwrap().len() as u64;
    assert_eq!(
        *seen.lock().unwrap(),
        [(train, train), (train + 12, train + 12)]
    );

    let words = Vocabulary::of_words(["the", "state"]);
    let error = Corpus::open_with(&path, words).unwrap_err();
    let DataError::UnknownWord { path: file, word } = error else {
        panic!("{error}");
    };
    assert_eq!((file, word.as_str()), (path.join("train.txt"), "0"));
    assert!(Corpus::open(Path::new("/nowhere"), Level::Word).is_err());
}

#[test]
fn a_text_without_a_test_split_is_kept_too() {
    let text = Text::new();
    std::fs::remove_file(text.path().join("test.txt")).unwrap();
    text.write("valid.txt", "the unknown state\n");
    let (first, _) = text.words();
    let (second, said) = text.words();
    assert!(said.is_empty() && second.train.is_mapped());
    same(&first, &second);
    assert_eq!((second.test, second.unknown_words), (None, [0, 1, 0]));
    let cached = survey(&text.path(), &text.place(), true)
        .unwrap()
        .cached
        .remove(0);
    assert!(cached.problem.is_none());
    assert_eq!(cached.tokens.unwrap()[1..], [4, 0]);
}
