//! What can be wrong with a text, its vocabulary, or a language model.

use std::path::PathBuf;

/// What can be wrong with a text, its vocabulary, or a language model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "messages say what the fields are")]
pub enum TextError {
    /// A tokenizer was given for text that is read by words or bytes.
    #[error("a tokenizer was given, but the level is {level}: set it to tokenizer")]
    TokenizerAtOtherLevel { level: deq_data::Level },
    /// The vocabulary in the folder of a run is not the one that the run was trained with.
    #[error(
        "the vocabulary kept in {path} is not that of the run: \
         restore vocab.txt or tokenizer.json from a copy"
    )]
    KeptVocabulary { path: PathBuf },
    /// The text makes another vocabulary than the one that a run was trained with.
    #[error(
        "the vocabulary of the text is not that of the run {path}: \
         give the text it was trained on"
    )]
    OtherVocabulary { path: PathBuf },
    /// Training is to begin with the weights of a run for other tokens.
    #[error(
        "the weights of {path} are for another vocabulary: begin with a run on the same words or \
         by the same tokenizer, or without init"
    )]
    WeightsOfOtherVocabulary { path: PathBuf },
    /// The folder of a run holds no vocabulary.
    #[error(
        "{path} holds no vocabulary to make text with: restore vocab.txt or tokenizer.json from a \
         copy, or resume the run with its data, which writes it anew"
    )]
    NoVocabulary { path: PathBuf },
    /// The text has another number of tokens than the model of another program.
    #[error(
        "the model in {path} knows {expected} tokens, but the vocabulary of the text has {found}: \
         give the text it was trained on"
    )]
    VocabularySize {
        path: PathBuf,
        expected: usize,
        found: usize,
    },
    /// Nothing to go on from.
    #[error("the vocabulary has no token for the end of a line to begin with: give a prompt")]
    NoPrompt,
    /// A model that does not say which token comes next.
    #[error(
        "no token can be drawn: log-probabilities are not numbers, or no token is possible; \
         the model may have diverged in training"
    )]
    NothingToDraw,
}
