//! What a run measures, and the file of JSON lines that keeps it.

use crate::error::TrainError;
use crate::files;
use deq_core::solvers::StatusCounts;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// How a step passes the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A fixed number of applications of `f`, differentiated through.
    Unrolled,
    /// The equilibrium.
    Equilibrium,
}

/// One solve, forward or backward, summed up over its batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SolveRecord {
    /// Evaluations of `f` (forward) or vector-Jacobian products (backward), on the whole batch.
    pub nfe: usize,
    /// The mean steps of a sample.
    pub steps: f64,
    /// The mean relative residual at the answer.
    pub residual: f64,
    /// Samples by outcome.
    pub status: StatusCounts,
}

impl From<&deq_core::solvers::SolveStats> for SolveRecord {
    fn from(stats: &deq_core::solvers::SolveStats) -> Self {
        Self {
            nfe: stats.nfe,
            steps: stats.mean_steps(),
            residual: stats.mean_rel_residual(),
            status: stats.status_counts(),
        }
    }
}

/// The Jacobian penalty of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PenaltyRecord {
    /// The estimate of `|J|_F^2 / dim`.
    pub value: f64,
    /// Its weight in the loss.
    pub weight: f64,
    /// Evaluations of `f` that it cost.
    pub nfe: usize,
    /// Vector-Jacobian products that it cost.
    pub products: usize,
}

/// One training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, counted from 1.
    pub step: usize,
    /// How it passed the layer.
    pub phase: Phase,
    /// The mean negative log-likelihood per target, in nats, without the penalty; weighted by class if the recipe has such weights.
    pub loss: f64,
    /// What is predicted in the batch: tokens, pictures, or pixels that have a label.
    #[serde(alias = "tokens")]
    pub targets: usize,
    /// The share of pictures or pixels whose likeliest class is the right one; absent for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Evaluations of `f` forward, the tracked one included, the penalty's not.
    pub forward_nfe: usize,
    /// The forward solve; absent in the unrolled phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<SolveRecord>,
    /// The backward solve; absent in the unrolled phase and in evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward: Option<SolveRecord>,
    /// The penalty, on the steps that applied it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty: Option<PenaltyRecord>,
    /// The learning rate; 0 in evaluation.
    pub learning_rate: f64,
    /// Wall time of the step in seconds.
    pub seconds: f64,
}

/// One evaluation of a whole split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Training steps made so far.
    pub step: usize,
    /// `valid` or `test`.
    pub split: String,
    /// The mean negative log-likelihood per target, in nats.
    pub loss: f64,
    /// How good that is, in the terms of the task.
    #[serde(flatten)]
    pub quality: Quality,
    /// Tokens, pictures, or labelled pixels evaluated.
    #[serde(alias = "tokens")]
    pub targets: usize,
    /// Batches evaluated, each one solve: segments of text, or batches of pictures.
    #[serde(alias = "segments")]
    pub batches: usize,
    /// Mean evaluations of `f` per batch.
    #[serde(alias = "nfe_per_segment")]
    pub nfe_per_solve: f64,
    /// Mean steps of a sample; absent for an explicit network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<f64>,
    /// Mean relative residual at the answers; absent for an explicit network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<f64>,
    /// Solves by outcome, over all samples.
    pub status: StatusCounts,
    /// Spectral radius of the Jacobian at the equilibrium of the first batch, mean over its samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spectral_radius: Option<f64>,
    /// Mean relative residual at each step of one solve of the first batch that is given a long budget and no tolerance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub residual_by_step: Vec<f64>,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl EvalRecord {
    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// The measure of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quality {
    /// Of language models.
    Text {
        /// `exp(loss)`.
        perplexity: f64,
    },
    /// Of the segmentation of pictures.
    Segmentation {
        /// The mean of `iou` over the classes that occur.
        miou: f64,
        /// The share of labelled pixels whose class is right.
        accuracy: f64,
        /// For each class, the pixels where prediction and label agree on it over those where at least one says it; null for a class that neither says.
        iou: Vec<Option<f64>>,
    },
    /// Of the classification of pictures.
    Classification {
        /// The share of pictures whose likeliest class is right.
        accuracy: f64,
    },
}

impl Quality {
    /// Its name and its main number: perplexity, mean intersection over union, or accuracy.
    pub fn main(&self) -> (&'static str, f64) {
        match self {
            Quality::Text { perplexity } => ("perplexity", *perplexity),
            Quality::Segmentation { miou, .. } => ("mean IoU", *miou),
            Quality::Classification { accuracy } => ("accuracy", *accuracy),
        }
    }

    /// The share of right predictions, for pictures.
    pub fn accuracy(&self) -> Option<f64> {
        match self {
            Quality::Text { .. } => None,
            Quality::Segmentation { accuracy, .. } | Quality::Classification { accuracy } => {
                Some(*accuracy)
            }
        }
    }

    /// The mean intersection over union, for segmentation.
    pub fn miou(&self) -> Option<f64> {
        match self {
            Quality::Segmentation { miou, .. } => Some(*miou),
            Quality::Text { .. } | Quality::Classification { .. } => None,
        }
    }
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Record {
    /// A training step.
    Step(StepRecord),
    /// An evaluation.
    Eval(EvalRecord),
}

impl Record {
    /// The training step, if it is one.
    pub fn as_step(&self) -> Option<&StepRecord> {
        match self {
            Record::Step(step) => Some(step),
            Record::Eval(_) => None,
        }
    }

    fn step(&self) -> usize {
        match self {
            Record::Step(record) => record.step,
            Record::Eval(record) => record.step,
        }
    }
}

/// The open `metrics.jsonl` of a run.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
}

impl RunLog {
    /// Opens the log, keeping only what happened up to `step`: a killed run may have logged steps that its last
    /// checkpoint does not contain, and half a line.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if the file cannot be rewritten.
    pub fn open(path: &Path, step: usize) -> Result<Self, TrainError> {
        // Lines are kept as they are: parsing a float and printing it again may move its last digit.
        let mut kept = String::new();
        if path.exists() {
            let bytes = files::read(path)?;
            let text = String::from_utf8_lossy(&bytes);
            for (json, record) in parse(path, &text)? {
                if record.step() <= step {
                    kept += json;
                    kept.push('\n');
                }
            }
        }
        files::write_whole(path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|source| TrainError::io("write", path, source))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends one record.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] if the file cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<(), TrainError> {
        self.file
            .write_all(line(record).as_bytes())
            .map_err(|source| TrainError::io("write", &self.path, source))
    }
}

fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).expect("records have string keys only");
    json + "\n"
}

/// Reads every whole record of a `metrics.jsonl`. A last line cut short by a kill is left out.
///
/// # Errors
///
/// [`TrainError::Io`] if the file cannot be read, [`TrainError::Malformed`] for a broken line before the last.
pub fn read_records(path: &Path) -> Result<Vec<Record>, TrainError> {
    let bytes = files::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let records = parse(path, &text)?;
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

/// Every whole record with its line.
fn parse<'a>(path: &Path, text: &'a str) -> Result<Vec<(&'a str, Record)>, TrainError> {
    let whole = text.ends_with('\n');
    let lines: Vec<&str> = text.lines().collect();
    let mut records = Vec::with_capacity(lines.len());
    for (index, json) in lines.iter().enumerate() {
        match serde_json::from_str(json) {
            Ok(record) => records.push((*json, record)),
            Err(_) if index + 1 == lines.len() && !whole => break,
            Err(error) => {
                return Err(TrainError::Malformed {
                    path: path.to_owned(),
                    what: "log of a run",
                    reason: format!("line {}: {error}", index + 1),
                });
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> Record {
        Record::Step(StepRecord {
            step,
            phase: Phase::Equilibrium,
            loss: 1.5,
            targets: 8,
            accuracy: None,
            forward_nfe: 7,
            forward: Some(SolveRecord::default()),
            backward: None,
            penalty: None,
            learning_rate: 1e-3,
            seconds: 0.1,
        })
    }

    #[test]
    fn a_reopened_log_forgets_what_the_checkpoint_does_not_know_and_half_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = RunLog::open(&path, 0).unwrap();
        for n in 1..=4 {
            log.append(&step(n)).unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 10);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read_records(&path).unwrap().len(), 3);

        let mut log = RunLog::open(&path, 2).unwrap();
        log.append(&step(3)).unwrap();
        let steps: Vec<usize> = read_records(&path)
            .unwrap()
            .iter()
            .map(Record::step)
            .collect();
        assert_eq!(steps, [1, 2, 3]);
    }

    #[test]
    fn evaluations_keep_their_measure_and_old_names_are_read() {
        let text = r#"{"event":"eval","step":3,"split":"valid","loss":1.5,"perplexity":4.5,"tokens":7,"segments":2,"nfe_per_segment":9.5,
            "status":{"converged":1,"max_steps":0,"stalled":0,"diverged":0,"non_finite":0,"breakdown":0},"seconds":0.1}"#;
        let Record::Eval(eval) = serde_json::from_str(text).unwrap() else {
            panic!("an evaluation");
        };
        assert_eq!((eval.targets, eval.batches), (7, 2));
        for quality in [
            Quality::Text {
                perplexity: 0.1 + 0.2,
            },
            Quality::Classification {
                accuracy: 0.1 + 0.2,
            },
            Quality::Segmentation {
                miou: 0.25,
                accuracy: 0.75,
                iou: vec![Some(0.25), None],
            },
        ] {
            let record = Record::Eval(EvalRecord {
                quality,
                ..eval.clone()
            });
            assert_eq!(
                serde_json::from_str::<Record>(&line(&record)).unwrap(),
                record
            );
        }
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(
            &path,
            format!("{}broken\n{}", line(&step(1)), line(&step(2))),
        )
        .unwrap();
        let message = read_records(&path).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }
}
