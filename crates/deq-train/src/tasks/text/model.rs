//! The models of text, and what they read in a step.

use crate::task::{Reading, TaskModel};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use deq_core::Depth;
use deq_data::Segment;
use deq_models::{DeqTransformerLm, LmMemory, TransformerCell, TransformerXlLm};
use std::ops::Range;

/// A language model.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a process has one of them")]
pub enum TextModel {
    /// One cell: its equilibrium, or a fixed number of applications of it.
    Deq(DeqTransformerLm),
    /// Layers with weights of their own.
    Layers(TransformerXlLm),
}

/// One segment of every stream.
#[derive(Clone, Debug)]
pub struct TextBatch {
    /// Token ids, `[batch, time]`.
    pub tokens: Tensor<2, Int>,
    /// The token after each of these, row by row.
    pub targets: Vec<i32>,
    /// Whether the streams begin here, so that no memory applies.
    pub starts_stream: bool,
}

impl TextBatch {
    /// The segment on `device`.
    pub fn new(segment: Segment, device: &Device) -> Self {
        let tokens = TensorData::new(segment.inputs, [segment.batch, segment.len]);
        Self {
            tokens: Tensor::from_data(tokens, device),
            targets: segment.targets,
            starts_stream: segment.starts_stream,
        }
    }
}

impl TextModel {
    /// Reads tokens, with a state to start the solve from; none for zeros, as in training.
    ///
    /// # Shapes
    ///
    /// - tokens: `[batch, time]`
    /// - start: `[batch, time, d_model]`
    pub fn read_from(
        &self,
        tokens: Tensor<2, Int>,
        memory: &LmMemory,
        depth: Depth<'_>,
        start: Option<Tensor<3>>,
    ) -> Reading<Self> {
        match self {
            TextModel::Deq(model) => {
                let out = model.forward_from(tokens, memory, depth, start);
                Reading::solved(out.hidden, out.memory, out.equilibrium, out.context)
            }
            TextModel::Layers(model) => {
                let out = model.forward(tokens, memory);
                Reading {
                    output: out.hidden,
                    memory: out.memory,
                    nfe: model.layers.len(),
                    solved: None,
                }
            }
        }
    }

    /// Log-probabilities of every token at every position, `[batch * time, vocab_size]`, of what
    /// [`read`](TaskModel::read) put out, `[batch, time, d_model]`.
    pub fn log_probs(&self, output: Tensor<3>) -> Tensor<2> {
        match self {
            TextModel::Deq(model) => model.log_probs(output),
            TextModel::Layers(model) => model.log_probs(output),
        }
    }
}

impl TaskModel for TextModel {
    type Batch = TextBatch;
    type Memory = LmMemory;
    type Cell = TransformerCell;
    /// Hidden states, `[batch, time, d_model]`: likelihoods of whole vocabularies need not exist.
    type Output = Tensor<3>;
    type Tally = ();

    fn read(&self, batch: &TextBatch, memory: &LmMemory, depth: Depth<'_>) -> Reading<Self> {
        let none = LmMemory::empty();
        let memory = match batch.starts_stream {
            true => &none,
            false => memory,
        };
        self.read_from(batch.tokens.clone(), memory, depth, None)
    }

    fn cell(&self) -> Option<&TransformerCell> {
        match self {
            TextModel::Deq(model) => Some(&model.cell),
            TextModel::Layers(_) => None,
        }
    }

    fn loss(&self, output: &Tensor<3>, batch: &TextBatch) -> Tensor<1> {
        let nll = match self {
            TextModel::Deq(model) => model.nll(output.clone(), &batch.targets),
            TextModel::Layers(model) => model.nll(output.clone(), &batch.targets),
        };
        nll.mean()
    }

    fn targets(&self, batch: &TextBatch) -> usize {
        batch.targets.len()
    }

    fn tally(&self, _: &Tensor<3>, _: &TextBatch) {}

    fn samples(&self, batch: &TextBatch) -> Option<usize> {
        Some(batch.tokens.dims()[0])
    }

    fn part(&self, batch: &TextBatch, rows: Range<usize>, device: &Device) -> TextBatch {
        let [_, time] = batch.tokens.dims();
        let tokens = batch.tokens.clone().narrow(0, rows.start, rows.len());
        TextBatch {
            tokens: tokens.to_device(device),
            targets: batch.targets[rows.start * time..rows.end * time].to_vec(),
            starts_stream: batch.starts_stream,
        }
    }
}
