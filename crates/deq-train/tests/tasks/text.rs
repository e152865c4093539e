//! Text as a task.

use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{Opening, Recipe, Task};
use std::path::Path;

fn tiny() -> TextTask {
    Recipe::<TextTask>::preset("tiny").unwrap().task
}

#[test]
fn a_tokenizer_is_for_the_tokenizer_level() {
    let mut task = tiny();
    task.tokenizer = Some("tokenizer.json".into());
    assert_eq!(
        task.open(&Opening::default()).unwrap_err().to_string(),
        "a tokenizer was given, but the level is byte: set it to tokenizer"
    );
}

#[test]
fn clusters_that_the_vocabulary_does_not_reach_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, "a line of a few words\n".repeat(100)).unwrap();
    let mut recipe = Recipe::<TextTask>::preset("wt2").unwrap();
    assert_eq!(recipe.task.model.cutoffs, [2_000, 10_000]);
    recipe.task.data = DataSource::Path(path);
    recipe.task.open(&Opening::default()).unwrap();
    assert!(recipe.task.model.cutoffs.is_empty());
    recipe.validate().unwrap();
}

#[test]
fn a_text_is_known_by_its_content_wherever_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let text = "a line of text\n".repeat(100);
    let [here, there] = ["here.txt", "there.txt"].map(|name| folder.path().join(name));
    std::fs::write(&here, &text).unwrap();
    std::fs::write(&there, &text).unwrap();
    let known = |path: &Path| {
        let mut task = tiny();
        task.data = DataSource::Path(path.to_owned());
        task.open(&Opening::default()).unwrap();
        task.fingerprint.unwrap()
    };
    let before = known(&here);
    assert_eq!(known(&there), before);
    // Another first byte of the same length is another text, although bytes are bytes.
    std::fs::write(&there, format!("A{}", &text[1..])).unwrap();
    assert_ne!(known(&there), before);
}
