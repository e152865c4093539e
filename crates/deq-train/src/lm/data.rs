//! The text of a run, and the vocabulary that is kept with it.

use super::recipe::{DataSource, LmRecipe};
use crate::error::TrainError;
use deq_data::{CachePlace, Corpus, CorpusEvent, CorpusReader, Level, Vocabulary};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Is told what happens while a text is read; by default nobody is.
///
/// ```
/// use deq_train::lm::DataListener;
///
/// let listener = DataListener::new(|event| eprintln!("{event:?}"));
/// # let _ = listener;
/// ```
#[derive(Clone, Default)]
pub struct DataListener(Option<Arc<Listen>>);

type Listen = dyn Fn(&CorpusEvent<'_>) + Send + Sync;

impl DataListener {
    /// Tells `listen`, from any thread.
    pub fn new(listen: impl Fn(&CorpusEvent<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listen)))
    }

    pub(crate) fn hear(&self, event: &CorpusEvent<'_>) {
        if let Some(listen) = &self.0 {
            listen(event);
        }
    }
}

impl fmt::Debug for DataListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Some(_) => "DataListener(..)",
            None => "DataListener",
        })
    }
}

impl LmRecipe {
    /// Reads the text of the recipe.
    ///
    /// `kept` is the vocabulary of a model that exists; it says what a token is, and which id it has. Without one, the tokenizer of the recipe, or else the text
    /// itself, says so. The ids of larger texts are kept in token files, see [`CachePlace::Auto`].
    ///
    /// # Errors
    ///
    /// [`TrainError::Data`] naming the file and what would be right; [`TrainError::TokenizerAtOtherLevel`] if there is a tokenizer to read words or bytes.
    pub fn open_data(
        &self,
        kept: Option<Vocabulary>,
        listener: &DataListener,
    ) -> Result<Corpus, TrainError> {
        let vocabulary = match (kept, &self.tokenizer) {
            (Some(kept), _) => Some(kept),
            (None, Some(_)) if self.level != Level::Tokenizer => {
                return Err(TrainError::TokenizerAtOtherLevel { level: self.level });
            }
            (None, Some(tokenizer)) => Some(Vocabulary::load(tokenizer)?),
            (None, None) => None,
        };
        Ok(match (&self.data, vocabulary) {
            (DataSource::Builtin, None) => Corpus::builtin(self.level)?,
            (DataSource::Builtin, Some(vocabulary)) => Corpus::builtin_with(vocabulary)?,
            (DataSource::Path(path), vocabulary) => {
                let reader = match vocabulary {
                    Some(vocabulary) => CorpusReader::with_vocabulary(path, vocabulary),
                    None => CorpusReader::new(path, self.level),
                };
                let reader = reader.cache(CachePlace::Auto);
                reader.on_event(&|event| listener.hear(event)).read()?
            }
        })
    }
}

/// The vocabulary kept in a run, or nothing if the run is older than the keeping of vocabularies.
///
/// # Errors
///
/// [`TrainError::Data`] if it is broken, [`TrainError::OtherVocabulary`] if it is not that of the recipe.
pub(crate) fn kept_vocabulary(
    run: &Path,
    recipe: &LmRecipe,
) -> Result<Option<Vocabulary>, TrainError> {
    match Vocabulary::load_from(run) {
        Ok(kept) if recipe.vocabulary == Some(kept.fingerprint()) => Ok(Some(kept)),
        Ok(_) => Err(TrainError::KeptVocabulary {
            path: run.to_owned(),
        }),
        Err(deq_data::DataError::NoVocabulary { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_is_for_the_tokenizer_level() {
        let mut recipe = LmRecipe::preset("tiny").unwrap();
        recipe.tokenizer = Some("tokenizer.json".into());
        let error = recipe
            .open_data(None, &DataListener::default())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "a tokenizer was given, but the level is byte: set it to tokenizer"
        );
    }

    #[test]
    fn the_vocabulary_of_a_run_must_be_its_own() {
        let run = tempfile::tempdir().unwrap();
        let mut recipe = LmRecipe::preset("tiny").unwrap();
        let words = Vocabulary::of_words(["the", "<unk>", "the"]);
        recipe.vocabulary = Some(words.fingerprint());
        // Runs of the first versions have none.
        assert!(kept_vocabulary(run.path(), &recipe).unwrap().is_none());
        words.save_in(run.path()).unwrap();
        let kept = kept_vocabulary(run.path(), &recipe).unwrap();
        assert_eq!(kept.as_ref(), Some(&words));
        let corpus = recipe.open_data(kept, &DataListener::default()).unwrap();
        assert_eq!(corpus.vocabulary, words);

        Vocabulary::of_bytes().save_in(run.path()).unwrap();
        let message = kept_vocabulary(run.path(), &recipe)
            .unwrap_err()
            .to_string();
        assert!(message.contains("is not that of the run"), "{message}");
    }
}
