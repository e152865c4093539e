//! Text from a trained model, token by token.

use super::data::kept_vocabulary;
use super::error::TextError;
use super::model::TextModel;
use super::sampling::Sampling;
use super::task::TextTask;
use crate::error::TrainError;
use crate::run::Trained;
use burn::tensor::{Device, Int, Tensor, TensorData};
use deq_core::Depth;
use deq_core::random::uniform;
use deq_data::Vocabulary;
use deq_models::LmMemory;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// What to generate, and how.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The device's name, see [`device`](crate::device).
    pub device: String,
    /// The text that the model goes on from. Empty for the beginning of a line.
    pub prompt: String,
    /// Tokens to generate.
    pub tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Whether `<unk>` may come.
    pub unknown: bool,
    /// The seed of the draws.
    pub seed: u64,
    /// The most solver steps for a token, instead of those of the run.
    pub max_steps: Option<usize>,
    /// Every how many tokens the solve is repeated from zero, to tell what starting from the
    /// previous equilibrium saves; 0 for never.
    pub compare_every: usize,
}

/// What was generated, and what it cost.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    /// The text behind the prompt.
    pub text: String,
    /// Tokens generated.
    pub tokens: usize,
    /// Evaluations of the layer for a token, mean.
    pub evaluations: f64,
    /// The mean for the tokens that were solved from zero too: from the previous equilibrium, and
    /// from zero. Absent for an explicit network.
    pub compared: Option<[f64; 2]>,
    /// Seconds for the generated tokens, without the comparison.
    pub seconds: f64,
}

/// Goes on from a prompt with the newest checkpoint of a run.
///
/// Each token is one position whose equilibrium is solved for, beginning at the equilibrium of the
/// token before; the memory holds what is further back, as far as in training. `on_text` is called
/// with the text as it comes.
///
/// # Errors
///
/// [`TrainError`] if the run has no checkpoint or vocabulary, a setting is out of range, the prompt
/// has words that the vocabulary does not have, or the model says nothing about the next token.
pub fn generate(
    run: &Path,
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str),
) -> Result<Generation, TrainError> {
    options.sampling.validate()?;
    let trained = Trained::<TextTask>::open(run, &options.device, options.max_steps)?;
    let task = &trained.recipe.task;
    let vocabulary = kept_vocabulary(run, task)?.ok_or_else(|| TextError::NoVocabulary {
        path: run.to_owned(),
    })?;
    let prompt = prompt_ids(&vocabulary, &options.prompt)?;

    let mut reader = Reader::new(&trained);
    for segment in prompt.chunks(task.segment) {
        reader.read(segment);
    }
    let never = match options.unknown {
        true => None,
        false => vocabulary.id(Vocabulary::UNKNOWN),
    };
    let mut writer = Writer::new(&vocabulary, options.prompt.clone(), prompt);
    let (mut evaluations, mut seconds, mut compared) = (0, 0.0, Vec::new());
    for place in 0..options.tokens {
        let started = Instant::now();
        let u = uniform(options.seed, place as u64);
        let token = options.sampling.draw(&reader.log_probs, never, u)?;
        writer.push(token, on_text)?;
        let every = options.compare_every;
        let compare = every > 0 && (place + 1).is_multiple_of(every);
        let mut cold = reader.clone();
        let nfe = reader.read(&[token]);
        evaluations += nfe;
        seconds += started.elapsed().as_secs_f64();
        if compare && reader.last.is_some() {
            cold.last = None;
            compared.push([nfe, cold.read(&[token])]);
        }
    }
    let mean = |sum: usize, count: usize| sum as f64 / count.max(1) as f64;
    Ok(Generation {
        text: writer.finish(on_text)?,
        tokens: options.tokens,
        evaluations: mean(evaluations, options.tokens),
        compared: (!compared.is_empty()).then(|| {
            [0, 1].map(|k| mean(compared.iter().map(|pair| pair[k]).sum(), compared.len()))
        }),
        seconds,
    })
}

/// The ids of a prompt. One without tokens is the end of a line, if the vocabulary has a token for
/// it.
fn prompt_ids(vocabulary: &Vocabulary, prompt: &str) -> Result<Vec<u32>, TrainError> {
    for text in [prompt, "\n"].into_iter().filter(|text| !text.is_empty()) {
        let ids = vocabulary.encode(text)?;
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Err(TextError::NoPrompt.into())
}

/// A model in the middle of a text.
#[derive(Clone)]
struct Reader<'a> {
    model: &'a TextModel,
    depth: Depth<'a>,
    device: &'a Device,
    memory: LmMemory,
    /// The equilibrium of the last position, `[1, 1, d_model]`.
    last: Option<Tensor<3>>,
    /// Of the token that comes next.
    log_probs: Vec<f64>,
}

impl<'a> Reader<'a> {
    fn new(trained: &'a Trained<TextTask>) -> Self {
        Self {
            model: &trained.model,
            depth: trained.depth(),
            device: &trained.device,
            memory: LmMemory::empty(),
            last: None,
            log_probs: Vec::new(),
        }
    }

    /// Reads some tokens and returns the evaluations it took.
    fn read(&mut self, tokens: &[u32]) -> usize {
        let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
        let time = ids.len();
        let ids = TensorData::new(ids, [1, time]);
        let ids = Tensor::<2, Int>::from_data(ids, self.device);
        // A start is only at hand for the one position behind the last.
        let start = self.last.take().filter(|_| time == 1);
        let out = self.model.read_from(ids, &self.memory, self.depth, start);
        self.memory = out.memory;
        let last = |of_all: Tensor<3>| of_all.narrow(1, time - 1, 1);
        // So many applications of a cell from elsewhere would be another function.
        let solved = out
            .solved
            .filter(|_| matches!(self.depth, Depth::Equilibrium(_)));
        self.last = solved.map(|solved| last(solved.equilibrium.z));
        let log_probs = self.model.log_probs(last(out.output));
        self.log_probs = log_probs.into_data().iter::<f64>().collect();
        out.nfe
    }
}

/// Makes text of ids as they come, and tells what is new as soon as it is whole.
struct Writer<'a> {
    vocabulary: &'a Vocabulary,
    ids: Vec<u32>,
    /// What the ids say so far, from the beginning of the prompt.
    said: String,
    prompt_len: usize,
}

impl<'a> Writer<'a> {
    fn new(vocabulary: &'a Vocabulary, prompt: String, ids: Vec<u32>) -> Self {
        // What the vocabulary makes of the prompt, which for words may differ from it in spaces.
        let said = vocabulary.decode(&ids).unwrap_or(prompt);
        Self {
            vocabulary,
            ids,
            prompt_len: said.len(),
            said,
        }
    }

    fn push(&mut self, token: u32, on_text: &mut dyn FnMut(&str)) -> Result<(), TrainError> {
        self.ids.push(token);
        let all = self.vocabulary.decode(&self.ids)?;
        // Half a letter waits for its other half.
        if !all.ends_with('\u{fffd}') {
            self.say(all, on_text);
        }
        Ok(())
    }

    fn say(&mut self, all: String, on_text: &mut dyn FnMut(&str)) {
        if let Some(new) = all.get(self.said.len()..) {
            on_text(new);
            self.said = all;
        }
    }

    /// The text behind the prompt.
    fn finish(mut self, on_text: &mut dyn FnMut(&str)) -> Result<String, TrainError> {
        let all = self.vocabulary.decode(&self.ids)?;
        self.say(all, on_text);
        let text = self.said.get(self.prompt_len..);
        Ok(text.unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_without_tokens_is_the_end_of_a_line() {
        let bytes = Vocabulary::of_bytes();
        assert_eq!(prompt_ids(&bytes, "ab").unwrap(), [97, 98]);
        assert_eq!(prompt_ids(&bytes, "").unwrap(), [10]);
        let words = Vocabulary::of_words(["<eos>", "a"]);
        let eos = words.id("<eos>").unwrap();
        assert_eq!(prompt_ids(&words, " ").unwrap(), [eos]);
    }

    #[test]
    fn text_is_told_as_soon_as_it_is_whole() {
        let bytes = Vocabulary::of_bytes();
        let mut told = Vec::new();
        let mut writer = Writer::new(&bytes, "a".to_owned(), vec![97]);
        let mut tell = |text: &str| told.push(text.to_owned());
        for byte in "b\u{e9}".bytes() {
            writer.push(byte.into(), &mut tell).unwrap();
        }
        let text = writer.finish(&mut tell).unwrap();
        assert_eq!(text, "b\u{e9}");
        // Half a letter is not told.
        told.retain(|text| !text.is_empty());
        assert_eq!(told, ["b", "\u{e9}"]);
    }
}
