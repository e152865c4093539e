use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn texts_of(path: &Path) -> [String; 3] {
    let (sources, _) = Layout::find(path).unwrap().read().unwrap();
    sources.map(|source| source.text().unwrap().to_owned())
}

#[test]
fn sub_folders_are_splits_and_their_files_are_joined_in_order() {
    let folder = folder(&[
        ("train/b.txt", "two\n"),
        ("train/a.txt", "one"),
        ("train/deep/c.txt", "three\n"),
        ("train/.hidden.txt", "no\n"),
        ("train/readme.md", "no\n"),
        ("validation/x.txt", "v\n"),
        ("test.txt", "t\n"),
    ]);
    let expected = ["one\ntwo\nthree\n", "v\n", "t\n"].map(str::to_owned);
    assert_eq!(texts_of(folder.path()), expected);
}

#[test]
fn many_files_without_splits_are_divided_one_by_one() {
    let names: Vec<String> = (1..=45).map(|n| format!("part/{n:02}.txt")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x\n")).collect();
    let folder = folder(&files);
    let Layout::Splits([train, valid, test]) = Layout::find(folder.path()).unwrap() else {
        panic!("45 files are divided one by one");
    };
    let stems = |split: &Split| -> Vec<String> {
        let stem = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        split.files.iter().map(stem).collect()
    };
    assert_eq!(stems(&valid), ["10", "30"]);
    assert_eq!(stems(&test), ["20", "40"]);
    assert_eq!(
        (train.files.len(), &stems(&train)[..2]),
        (41, &["01".to_owned(), "02".to_owned()][..])
    );
}

#[test]
fn few_files_without_splits_are_joined_and_cut_as_one() {
    let lines = |word: &str| format!("{word} goes on\n").repeat(100);
    let (a, b) = (lines("a"), lines("b"));
    let folder = folder(&[
        ("b.txt", b.trim_end()),
        ("a.txt", &a),
        ("vocab.txt", "a\nb\n"),
    ]);
    let [train, valid, test] = texts_of(folder.path());
    let joined = format!("{train}{valid}{test}");
    assert_eq!(joined, format!("{a}{}", b.trim_end()));
    assert!(train.starts_with("a goes") && train.ends_with('\n') && train.contains("b goes"));
    let share = train.len() as f64 / joined.len() as f64;
    assert!((0.9..0.92).contains(&share), "{share}");
}

#[test]
fn a_folder_must_have_all_splits_or_none() {
    let partial = folder(&[("train.txt", "a"), ("dev/x.txt", "a")]);
    let message = Layout::find(partial.path()).unwrap_err().to_string();
    assert!(message.contains("has no test split"), "{message}");
    let bare = folder(&[("train/x.md", "a"), ("valid.txt", "a"), ("test.txt", "a")]);
    let message = Layout::find(bare.path()).unwrap_err().to_string();
    assert!(message.contains("train holds no .txt file"), "{message}");
    let none = folder(&[]);
    let message = Layout::find(none.path()).unwrap_err().to_string();
    assert!(message.contains("has no train split"), "{message}");
}

#[test]
fn text_that_is_not_utf_8_is_found_in_its_own_file() {
    let folder = folder(&[
        ("train/a.txt", "fine\n"),
        ("valid.txt", "a"),
        ("test.txt", "a"),
    ]);
    let bad = folder.path().join("train/b.txt");
    std::fs::write(&bad, b"ab\xff").unwrap();
    let ([train, ..], _) = Layout::find(folder.path()).unwrap().read().unwrap();
    let message = train.text().unwrap_err().to_string();
    assert!(
        message.contains("b.txt is not UTF-8 text (byte 2)"),
        "{message}"
    );
}
