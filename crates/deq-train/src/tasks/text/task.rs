//! Text to learn to predict, as a task.

use super::data::{DataSource, kept_vocabulary, open};
use super::error::TextError;
use super::model::{TextBatch, TextModel};
use crate::error::{ExchangeError, RunError, TrainError, require};
use crate::measure::{Measure, Quality};
use crate::presets::{Preset, presets};
use crate::recipe::Network;
use crate::task::{BatchPlan, Batches, BatchesFn, Opening, Split, Task};
use burn::tensor::{Device, TensorData};
use deq_data::{Corpus, CorpusFingerprint, Level, StreamBatcher, Tokens, unigram_perplexity};
use deq_models::checkpoint::{LoadReport, StateDict, load, state_dict};
use deq_models::{DeqTransformerLmConfig, StepNumbers};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A text, and a model that learns to predict it token by token.
///
/// The batch of its recipe is a number of parallel streams of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextTask {
    /// Where the text comes from.
    pub data: DataSource,
    /// What a token is.
    pub level: Level,
    /// The `tokenizer.json` that makes the tokens, at the tokenizer level. Default: the one in the
    /// folder of the data.
    pub tokenizer: Option<PathBuf>,
    /// The fingerprint of the vocabulary, once the text has been read.
    pub vocabulary: Option<u64>,
    /// The fingerprint of the text, once it has been read. A test split may come and go.
    #[serde(default)]
    pub fingerprint: Option<CorpusFingerprint>,
    /// Tokens per stream and training step.
    pub segment: usize,
    /// The model. The size of its vocabulary is filled in when the text is read.
    pub model: DeqTransformerLmConfig,
}

/// Small ones first. `wt103` is the original model, from the scripts of the repository; `jr` adds
/// the Jacobian penalty, `preln` has layer norms before the sublayers, and `paper` what is printed
/// instead of the scripts' values.
const PRESETS: &[Preset] = presets!["text";
    "tiny",
    "wt2",
    "wt103",
    "wt103-preln",
    "wt103-jr",
    "wt103-jr-preln",
    "wt103-paper",
    "wt103-preln-paper",
    "wt103-jr-paper",
    "wt103-jr-preln-paper",
];

/// The tokens of a held-out split, if the text has it.
fn held_out(corpus: &Corpus, split: Split) -> Option<&Tokens> {
    match split {
        Split::Valid => Some(&corpus.valid),
        Split::Test => corpus.test.as_ref(),
    }
}

impl Task for TextTask {
    const NAME: &'static str = "text";
    const PLACES: &'static [&'static str] = &["data", "tokenizer"];

    type Model = TextModel;
    type Data = Corpus;

    fn open(&mut self, from: &Opening<'_>) -> Result<Corpus, TrainError> {
        let corpus = open(self, from)?;
        self.vocabulary = Some(corpus.vocabulary.fingerprint());
        self.fingerprint = Some(CorpusFingerprint {
            test: None,
            ..corpus.fingerprint()
        });
        self.model.vocab_size = corpus.vocabulary.len();
        // A small vocabulary has no tokens for the later clusters of a preset.
        let size = self.model.vocab_size;
        self.model.cutoffs.retain(|cutoff| *cutoff < size);
        Ok(corpus)
    }

    fn init(&self, network: Network, device: &Device) -> Result<TextModel, TrainError> {
        Ok(match network {
            Network::Layers { depth } => {
                TextModel::Layers(self.model.init_explicit(depth, device)?)
            }
            _ => TextModel::Deq(self.model.init(device)?),
        })
    }

    fn training(
        &self,
        corpus: &Corpus,
        plan: &BatchPlan,
    ) -> Result<Box<dyn Batches<TextBatch>>, TrainError> {
        let streams = StreamBatcher::new(&corpus.train, plan.batch, self.segment)?;
        let per_pass = streams.num_full_segments().max(1);
        // Segments of full length, over any number of passes.
        let segment = move |place, device: &Device| {
            Ok(TextBatch::new(streams.training_segment(place), device))
        };
        Ok(Box::new(BatchesFn::new(per_pass, segment)))
    }

    fn held_out(
        &self,
        corpus: &Corpus,
        split: Split,
        plan: &BatchPlan,
    ) -> Result<Box<dyn Batches<TextBatch>>, TrainError> {
        let name = split.name();
        let tokens = held_out(corpus, split).ok_or(RunError::NoSplit { split: name })?;
        let streams = StreamBatcher::new(tokens, plan.batch, self.segment)?;
        let per_pass = streams.num_segments();
        // The shorter last segment included.
        let segment =
            move |place, device: &Device| Ok(TextBatch::new(streams.segment(place), device));
        Ok(Box::new(BatchesFn::new(per_pass, segment)))
    }

    fn measure(&self) -> Measure {
        Measure::Perplexity
    }

    fn quality(&self, loss: f64, (): &()) -> Quality {
        Quality::new(Measure::Perplexity, loss.exp())
    }

    fn validate(&self) -> Result<(), TrainError> {
        let segment = self.segment;
        require(segment >= 1, "task.segment", segment as f64, "at least 1")?;
        // Attention takes the square of it.
        let most = "at most 10,000";
        require(segment <= 10_000, "task.segment", segment as f64, most)?;
        let mut model = self.model.clone();
        if self.vocabulary.is_none() {
            // Not known before the text has been read.
            let last = model.cutoffs.last();
            model.vocab_size = last.map_or(1, |last| last.saturating_add(1));
        }
        Ok(model.validate()?)
    }

    /// Before the text has been read, bytes are taken to be 256, and words those of WikiText-103,
    /// or of WikiText-2 if the clusters are smaller.
    fn step_numbers(&self, batch: usize, on_host: bool) -> Option<StepNumbers> {
        let mut model = self.model.clone();
        if self.vocabulary.is_none() {
            let most = model.cutoffs.last().copied().unwrap_or_default();
            model.vocab_size = match self.level {
                Level::Byte => 256,
                _ if most < 33_278 => 33_278,
                _ => 267_735,
            };
        }
        Some(model.step_numbers(batch, self.segment, on_host))
    }

    fn place(&self) -> String {
        self.data.to_string()
    }

    fn presets() -> &'static [Preset] {
        PRESETS
    }

    fn keep(&self, corpus: &Corpus, run: &Path) -> Result<(), TrainError> {
        if kept_vocabulary(run, self)?.is_none() {
            corpus.vocabulary.save_in(run)?;
        }
        Ok(())
    }

    /// The data, and the perplexity of the split under the frequencies of the tokens in train,
    /// which any language model must fall below.
    fn facts(&self, corpus: &Corpus, split: Split) -> Vec<(String, String)> {
        let data = format!("{}, {} level", self.data, self.level);
        let mut facts = vec![("data".to_owned(), data)];
        if let Some(tokens) = held_out(corpus, split).filter(|tokens| !tokens.is_empty()) {
            let unigram = unigram_perplexity(&corpus.train, tokens, corpus.vocabulary.len());
            facts.push(("unigram perplexity".to_owned(), format!("{unigram:.2}")));
        }
        let unknown: u64 = corpus.unknown_words.iter().sum();
        if unknown > 0 {
            facts.push(("words read as <unk>".to_owned(), unknown.to_string()));
        }
        facts
    }

    fn left_out(&self, corpus: &Corpus) -> Vec<(PathBuf, String)> {
        let reason = "it is not part of the text".to_owned();
        let files = corpus.left_out.iter();
        files.map(|file| (file.clone(), reason.clone())).collect()
    }

    /// Shapes say what the model is; where layer norms stand, memory, window and dropout stay.
    fn sized_by(&mut self, file: &StateDict) -> Result<(), TrainError> {
        self.model = DeqTransformerLmConfig::from_state_dict(file, &self.model)?;
        Ok(())
    }

    fn fits(&self, before: &Self, file: &Path) -> Result<(), TrainError> {
        let (expected, found) = (before.model.vocab_size, self.model.vocab_size);
        match expected == found {
            true => Ok(()),
            false => Err(TextError::VocabularySize {
                path: file.to_owned(),
                expected,
                found,
            }
            .into()),
        }
    }

    fn takes_weights_of(&self, before: &Self, run: &Path) -> Result<(), TrainError> {
        match before.vocabulary == self.vocabulary {
            true => Ok(()),
            false => {
                let path = run.to_owned();
                Err(TextError::WeightsOfOtherVocabulary { path }.into())
            }
        }
    }

    fn load(
        &self,
        model: TextModel,
        file: &StateDict,
    ) -> Result<(TextModel, LoadReport), TrainError> {
        match model {
            TextModel::Deq(model) => {
                let (model, report) = load(model, file)?;
                Ok((TextModel::Deq(model), report))
            }
            TextModel::Layers(_) => Err(ExchangeError::ExplicitNetwork.into()),
        }
    }

    fn state_dict(&self, model: &TextModel) -> Result<Vec<(String, TensorData)>, TrainError> {
        match model {
            TextModel::Deq(model) => Ok(state_dict(model)?),
            TextModel::Layers(_) => Err(ExchangeError::ExplicitNetwork.into()),
        }
    }
}
