//! Text as a task.

use burn::tensor::Device;
use deq_data::Tokens;
use deq_train::tasks::text::{DataSource, TextBatch, TextTask};
use deq_train::{BatchPlan, Batches, Opening, Recipe, Split, Task};
use std::path::Path;

fn tiny() -> TextTask {
    Recipe::<TextTask>::preset("tiny").unwrap().task
}

/// Training reads segments of full length, over and over; what is held out is read once to its end.
#[test]
fn training_wraps_around_and_held_out_text_is_read_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    std::fs::write(&path, "a line of a few words\n".repeat(50)).unwrap();
    let mut task = tiny();
    (task.data, task.segment) = (DataSource::Path(path), 5);
    let corpus = task.open(&Opening::default()).unwrap();
    let plan = BatchPlan {
        batch: 2,
        seed: 1,
        workers: 0,
    };
    let device = Device::flex();
    let read = |batches: &dyn Batches<TextBatch>, places| -> Vec<(Vec<i32>, bool)> {
        let batches = batches.batches(places, &device).map(Result::unwrap);
        let first = |batch: &TextBatch| batch.tokens.clone().narrow(0, 0, 1).into_data();
        let ids = |batch: &TextBatch| first(batch).iter::<i32>().collect();
        batches
            .map(|batch| (ids(&batch), batch.starts_stream))
            .collect()
    };
    let training = task.training(&corpus, &plan).unwrap();
    let passes = read(&*training, 0..2 * training.per_pass());
    let (first, second) = passes.split_at(training.per_pass());
    assert_eq!(first, second);
    let text = |tokens: &Tokens, places| -> Vec<i32> {
        tokens.range(places).map(|id| id as i32).collect()
    };
    let expected = (0..first.len()).map(|place| {
        let ids = text(&corpus.train, 5 * place..5 * place + 5);
        (ids, place == 0)
    });
    assert_eq!(first, expected.collect::<Vec<_>>());

    let held_out = task.held_out(&corpus, Split::Valid, &plan).unwrap();
    let read = read(&*held_out, 0..held_out.per_pass());
    let ids: Vec<i32> = read.iter().flat_map(|(ids, _)| ids.clone()).collect();
    // All of a stream but its last token, which is only predicted.
    assert_eq!(ids, text(&corpus.valid, 0..corpus.valid.len() / 2 - 1));
    assert!(!ids.len().is_multiple_of(5) && read[0].1 && !read[1].1);
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
fn the_largest_number_is_no_cluster() {
    let mut recipe = Recipe::<TextTask>::preset("tiny").unwrap();
    recipe.task.model.cutoffs = vec![usize::MAX];
    assert!(recipe.validate().is_err());
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
