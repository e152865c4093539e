use super::*;

fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x\n").unwrap();
    }
    folder
}

/// The files of every split as seen from the folder, and what is left out.
fn found(folder: &tempfile::TempDir) -> (Vec<Vec<String>>, Vec<String>) {
    let layout = Layout::find(folder.path()).unwrap();
    let relative = |path: &PathBuf| {
        let path = path.strip_prefix(folder.path()).unwrap();
        path.to_string_lossy().into_owned()
    };
    let splits = match &layout.content {
        Content::Splits(splits) => splits.clone(),
        Content::Whole(whole) => vec![whole.clone()],
    };
    let files = |split: &Split| split.files.iter().map(relative).collect();
    let left_out = layout.left_out.iter().map(relative).collect();
    (splits.iter().map(files).collect(), left_out)
}

fn message(folder: &tempfile::TempDir) -> String {
    Layout::find(folder.path()).unwrap_err().to_string()
}

#[test]
fn sub_folders_are_splits_and_everything_else_is_left_out() {
    let folder = folder(&[
        "train/b.txt",
        "train/a.txt",
        "train/deep/c.txt",
        "train/.hidden.txt",
        "train/readme.md",
        "validation/x.txt",
        "test.txt",
        "notes.txt",
        "vocab.txt",
        "old/train.txt",
    ]);
    let (splits, left_out) = found(&folder);
    let train = ["train/a.txt", "train/b.txt", "train/deep/c.txt"];
    assert_eq!(splits[0], train);
    assert_eq!(splits[1..], [["validation/x.txt"], ["test.txt"]]);
    assert_eq!(left_out, ["notes.txt", "old", "train/readme.md"]);
}

#[test]
fn names_are_compared_without_case() {
    let splits = folder(&["Train.TXT", "Valid/X.Txt", "TEST/z.TXT", "TEST/y.md"]);
    let (files, left_out) = found(&splits);
    assert_eq!(files, [["Train.TXT"], ["Valid/X.Txt"], ["TEST/z.TXT"]]);
    assert_eq!(left_out, ["TEST/y.md"]);

    let plain = folder(&["A.TXT", "b.txt", "VOCAB.TXT", "c.text", "d"]);
    let (files, left_out) = found(&plain);
    assert_eq!(files, [["A.TXT", "b.txt"]]);
    assert_eq!(left_out, ["c.text", "d"]);
    let vocabulary = find_file(plain.path(), WORDS_FILE).unwrap();
    assert!(is_named(&vocabulary, WORDS_FILE));
    assert_eq!(find_file(plain.path(), TOKENIZER_FILE), None);

    // Where both exist, the usual name is the right one.
    if cfg!(target_os = "linux") {
        let both = folder(&["Train.txt", "train.txt", "valid.txt"]);
        let (files, left_out) = found(&both);
        assert_eq!(files[0], ["train.txt"]);
        assert_eq!(left_out, ["Train.txt"]);
    }

    let published = folder(&["WIKI.TRAIN.TOKENS", "wiki.valid.tokens"]);
    assert_eq!(found(&published).0[0], ["WIKI.TRAIN.TOKENS"]);
}

#[test]
fn test_is_optional_but_train_and_valid_are_not() {
    let two = folder(&["train.txt", "dev/x.txt"]);
    assert_eq!(found(&two).0, [["train.txt"], ["dev/x.txt"]]);
    let text = message(&folder(&["train.txt", "test.txt"]));
    let names = "valid.txt, validation.txt, val.txt, dev.txt, wiki.valid.tokens";
    assert!(
        text.contains("has no valid split") && text.contains(names),
        "{text}"
    );
    let text = message(&folder(&["valid.txt", "test.txt"]));
    assert!(text.contains("has no train split"), "{text}");
    let text = message(&folder(&["train/x.md", "valid.txt"]));
    assert!(text.contains("train holds no .txt file"), "{text}");
    let text = message(&folder(&[]));
    assert!(text.contains("has no train split"), "{text}");
}

#[test]
fn many_files_without_splits_are_divided_one_by_one() {
    let names: Vec<String> = (1..=45).map(|n| format!("part/{n:02}.txt")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let folder = folder(&names);
    let (splits, _) = found(&folder);
    assert_eq!(splits[1], ["part/10.txt", "part/30.txt"]);
    assert_eq!(splits[2], ["part/20.txt", "part/40.txt"]);
    assert_eq!(splits[0].len(), 41);
    assert_eq!(splits[0][..2], ["part/01.txt", "part/02.txt"]);
    let layout = Layout::find(folder.path()).unwrap();
    assert_eq!(layout.arrangement(), Arrangement::DividedFiles);
}

#[test]
#[cfg(unix)]
fn links_to_folders_are_splits_but_are_not_followed_further() {
    let elsewhere = folder(&["a.txt"]);
    let here = folder(&["valid.txt", "test/a.txt"]);
    let link = |name: &str| {
        std::os::unix::fs::symlink(elsewhere.path(), here.path().join(name)).unwrap();
    };
    link("train");
    link("test/more");
    let (splits, left_out) = found(&here);
    assert_eq!(splits, [["train/a.txt"], ["valid.txt"], ["test/a.txt"]]);
    assert_eq!(left_out, ["test/more"]);
}
