//! The text of a run, and the vocabulary that is kept with it.

use super::error::TextError;
use super::task::TextTask;
use crate::error::{TrainError, with_causes};
use crate::task::Opening;
use deq_data::{CachePlace, Corpus, CorpusEvent, CorpusReader, DataError, Level, Vocabulary};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// The handbook compiled into `deq-data`.
    Builtin,
    /// A folder or a file, see [`deq_data::CorpusReader`].
    Path(PathBuf),
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataSource::Builtin => f.write_str("built-in handbook"),
            DataSource::Path(path) => path.display().fmt(f),
        }
    }
}

/// The text of a task, with the vocabulary of the run that it is opened for, if there is one.
///
/// A run gives tokens the ids that it was trained with. Words that were derived anew could differ
/// with a test split that has come or gone.
pub(super) fn open(task: &TextTask, from: &Opening<'_>) -> Result<Corpus, TrainError> {
    let Some(run) = from.run else {
        return read(task, None, from);
    };
    let corpus = read(task, kept_vocabulary(run, task)?, from)?;
    if !from.training && task.vocabulary != Some(corpus.vocabulary.fingerprint()) {
        let path = run.to_owned();
        return Err(TextError::OtherVocabulary { path }.into());
    }
    Ok(corpus)
}

/// Reads the text. A vocabulary says what a token is, and which id it has; without one, the
/// tokenizer of the task does, or else the text itself. The ids of larger texts are kept in token
/// files, see [`CachePlace::Auto`].
fn read(
    task: &TextTask,
    kept: Option<Vocabulary>,
    from: &Opening<'_>,
) -> Result<Corpus, TrainError> {
    let level = task.level;
    let vocabulary = match (kept, &task.tokenizer) {
        (_, Some(_)) if level != Level::Tokenizer => {
            return Err(TextError::TokenizerAtOtherLevel { level }.into());
        }
        (None, Some(tokenizer)) => Some(Vocabulary::load(tokenizer)?),
        (kept, _) => kept,
    };
    Ok(match (&task.data, vocabulary) {
        (DataSource::Builtin, None) => Corpus::builtin(level)?,
        (DataSource::Builtin, Some(vocabulary)) => Corpus::builtin_with(vocabulary)?,
        (DataSource::Path(path), vocabulary) => {
            let reader = match vocabulary {
                Some(vocabulary) => CorpusReader::with_vocabulary(path, vocabulary),
                None => CorpusReader::new(path, level),
            };
            let listen = |event: &CorpusEvent<'_>| {
                if let (Some(progress), Some(sentence)) = (from.progress, reading_text(event)) {
                    progress(&sentence);
                }
            };
            reader.cache(CachePlace::Auto).on_event(&listen).read()?
        }
    })
}

/// What happens while a text is read, as a sentence; `None` for what need not be told.
pub fn reading_text(event: &CorpusEvent<'_>) -> Option<String> {
    let percent = |done: &u64, total: &u64| 100 * u128::from(*done) / u128::from(*total.max(&1));
    Some(match event {
        CorpusEvent::Counting { done, total } => {
            format!("counting words: {} %", percent(done, total))
        }
        CorpusEvent::Encoding { done, total } => {
            format!("reading tokens: {} %", percent(done, total))
        }
        CorpusEvent::Discarded { file, problem } => {
            let file = file.display();
            format!("reading the text anew, since {file} cannot be used: {problem}")
        }
        CorpusEvent::Written { file } => format!("tokens kept in {}", file.display()),
        CorpusEvent::NotWritten { error } => {
            let reason = with_causes(*error);
            format!("the tokens are not kept for the next time: {reason}")
        }
        _ => return None,
    })
}

/// The vocabulary kept in a run, if there is one; it must be that of the task.
pub(super) fn kept_vocabulary(
    run: &Path,
    task: &TextTask,
) -> Result<Option<Vocabulary>, TrainError> {
    let kept = match Vocabulary::load_from(run) {
        Err(DataError::NoVocabulary { .. }) => return Ok(None),
        other => other?,
    };
    // A recipe that is not from the run's folder does not know the vocabulary.
    let known = task.vocabulary.unwrap_or(kept.fingerprint());
    let path = run.to_owned();
    match known == kept.fingerprint() {
        true => Ok(Some(kept)),
        false => Err(TextError::KeptVocabulary { path }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;
    use crate::task::Task;

    fn tiny() -> TextTask {
        Recipe::<TextTask>::preset("tiny").unwrap().task
    }

    #[test]
    fn the_vocabulary_of_a_run_must_be_its_own() {
        let run = tempfile::tempdir().unwrap();
        let evaluating = Opening {
            run: Some(run.path()),
            ..Opening::default()
        };
        let mut task = tiny();
        let words = Vocabulary::of_words(["the", "<unk>", "the"]);
        task.vocabulary = Some(words.fingerprint());
        assert!(kept_vocabulary(run.path(), &task).unwrap().is_none());
        // The text alone is read by bytes.
        let refused = |error: TrainError| {
            let message = error.to_string();
            assert!(message.contains("is not that of the run"), "{message}");
        };
        refused(task.clone().open(&evaluating).unwrap_err());
        words.save_in(run.path()).unwrap();
        let kept = kept_vocabulary(run.path(), &task).unwrap();
        assert_eq!(kept.as_ref(), Some(&words));
        let corpus = task.open(&evaluating).unwrap();
        assert_eq!(corpus.vocabulary, words);
        assert_eq!(task.model.vocab_size, words.len());

        Vocabulary::of_bytes().save_in(run.path()).unwrap();
        refused(kept_vocabulary(run.path(), &task).unwrap_err());
        refused(task.keep(&corpus, run.path()).unwrap_err());
    }

    #[test]
    fn words_stay_where_a_test_split_goes() {
        let [text, run] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let file = |name: &str| text.path().join(name);
        // For the words of test there is <unk>, which the only c in train becomes too.
        for (name, words) in [
            ("train", "a b a b c\n"),
            ("valid", "a b\n"),
            ("test", "d\n"),
        ] {
            std::fs::write(file(&format!("{name}.txt")), words).unwrap();
        }
        let mut task = tiny();
        (task.data, task.level) = (DataSource::Path(text.path().to_owned()), Level::Word);
        let corpus = task.open(&Opening::default()).unwrap();
        task.keep(&corpus, run.path()).unwrap();
        let resumed = || {
            let mut resumed = task.clone();
            let resuming = Opening {
                run: Some(run.path()),
                training: true,
                ..Opening::default()
            };
            resumed.open(&resuming).unwrap();
            resumed
        };
        std::fs::remove_file(file("test.txt")).unwrap();
        assert_eq!(resumed(), task);
        // Another text is noticed.
        std::fs::write(file("train.txt"), "a b b b c\n").unwrap();
        assert_ne!(resumed().fingerprint, task.fingerprint);
    }

    #[test]
    fn a_run_keeps_the_vocabulary_of_its_text() {
        let run = tempfile::tempdir().unwrap();
        let mut task = tiny();
        task.level = Level::Word;
        let corpus = task.open(&Opening::default()).unwrap();
        task.keep(&corpus, run.path()).unwrap();
        let kept = kept_vocabulary(run.path(), &task).unwrap();
        assert_eq!(kept, Some(corpus.vocabulary));
    }
}
