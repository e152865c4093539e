//! What is held out is looked at before anything is trained.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use deq_data::{ImageSource, Level, Picture};
use deq_train::records::{Record, read_records};
use deq_train::tasks::images::{ImagesTask, preset_for};
use deq_train::tasks::text::{DataSource, TextTask};
use deq_train::{Opening, Recipe, Start, Task, TrainOptions, train};
use std::path::Path;
use std::sync::Mutex;

/// Two images of each part in a class, with the second held-out one replaced.
fn images(folder: &Path, held_out: &[u8]) -> ImagesTask {
    for part in ["train", "val"] {
        let class = folder.join(part).join("a");
        std::fs::create_dir_all(&class).unwrap();
        for name in ["0.png", "1.png"] {
            let picture = Picture::filled(8, 8, [40, 80, 120]);
            picture.save_png(&class.join(name)).unwrap();
        }
    }
    std::fs::write(folder.join("val/a/1.png"), held_out).unwrap();
    preset_for("mini", &ImageSource::ImageFolder(folder.to_owned()))
        .unwrap()
        .task
}

#[test]
fn images_that_cannot_be_read_are_named_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let mut task = images(folder.path(), b"no picture");
    let said = Mutex::new(Vec::new());
    let progress = |sentence: &str| said.lock().unwrap().push(sentence.to_owned());
    let training = Opening {
        training: true,
        progress: Some(&progress),
        ..Opening::default()
    };
    let data = task.open(&training).unwrap();
    let said = said.lock().unwrap().join("\n");
    assert!(said.contains("val/a/1.png: it is not JPEG"), "{said}");
    let left_out = task.left_out(&data);
    assert!(
        left_out.len() == 1 && left_out[0].0.ends_with("val/a/1.png"),
        "{left_out:?}"
    );

    std::fs::write(folder.path().join("val/a/0.png"), b"").unwrap();
    let message = task.open(&training).unwrap_err().to_string();
    let expected = "none of the 2 held-out images can be used";
    assert!(
        message.contains(expected) && message.contains("val/a/0.png"),
        "{message}"
    );
}

#[test]
fn a_file_that_cannot_be_read_does_not_make_the_last_evaluation_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::<ImagesTask>::preset("mini").unwrap();
    recipe.task = images(folder.path(), b"no picture");
    (recipe.batch, recipe.steps, recipe.rounds) = (1, 1, 1);
    (recipe.pretrain_steps, recipe.warmup_steps) = (0, 0);
    let run = folder.path().join("run");
    let options = |start| TrainOptions {
        start,
        plain: true,
        ..TrainOptions::new("flex", run.clone())
    };
    let summary = train(recipe.clone(), &options(Start::New)).unwrap();
    let records = read_records(&run.join("metrics.jsonl")).unwrap();
    let evals: Vec<_> = records.iter().filter_map(Record::as_eval).collect();
    // The very one, whose time it has.
    assert_eq!(evals, [&summary.eval]);
    assert_eq!(summary.eval.batches, 1);
    let again = train(recipe, &options(Start::Resume)).unwrap();
    assert_eq!(again.eval, summary.eval);
}

#[test]
fn text_that_cannot_be_read_is_named_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("train.txt", &b"a line of text\n".repeat(100));
    write("test.txt", &b"a line of text\n".repeat(100));
    let mut task = Recipe::<TextTask>::preset("tiny").unwrap().task;
    (task.data, task.level) = (DataSource::Path(folder.path().to_owned()), Level::Word);
    let training = Opening {
        training: true,
        ..Opening::default()
    };
    for (bytes, reason) in [
        (&b"caf\xe9\n"[..], "valid.txt is not UTF-8 text"),
        (b"\xff\xfea\0", "valid.txt is UTF-16 text"),
        (b"", "valid.txt is empty"),
    ] {
        write("valid.txt", bytes);
        let message = task.clone().open(&training).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
