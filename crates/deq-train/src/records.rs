//! What a run measures, and the file of JSON lines that keeps it.

use crate::error::{RunError, TrainError};
use crate::files::{self, FileSum};
use crate::measure::Quality;
use deq_core::solvers::StatusCounts;
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// How a step passes the layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A fixed number of applications of `f`, differentiated through.
    Unrolled,
    /// The equilibrium.
    #[default]
    Equilibrium,
}

/// One solve, forward or backward, summed up over its batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SolveRecord {
    /// Evaluations of `f` (forward) or vector-Jacobian products (backward), on the whole batch.
    pub nfe: usize,
    /// The mean steps of a sample.
    #[serde(with = "any_float")]
    pub steps: f64,
    /// The mean relative residual at the answer.
    #[serde(with = "any_float")]
    pub residual: f64,
    /// Samples by outcome.
    pub status: StatusCounts,
}

impl SolveRecord {
    /// The share of samples that met the tolerance; `None` if none is counted.
    pub fn converged(&self) -> Option<f64> {
        converged(&self.status)
    }
}

fn converged(status: &StatusCounts) -> Option<f64> {
    let total = status.total();
    (total > 0).then(|| status.converged as f64 / total as f64)
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
    #[serde(with = "any_float")]
    pub value: f64,
    /// Its weight in the loss.
    pub weight: f64,
    /// Evaluations of `f`, or products with its Jacobian, that were recorded for it.
    pub nfe: usize,
    /// Vector-Jacobian products that it cost.
    pub products: usize,
}

/// One training step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, counted from 1.
    pub step: usize,
    /// How it passed the layer.
    pub phase: Phase,
    /// The mean loss per target, without the penalty; in nats where targets are predicted by their
    /// likelihood.
    #[serde(with = "any_float")]
    pub loss: f64,
    /// What is predicted in the batch: tokens, images, or pixels that have a label.
    pub targets: usize,
    /// The task's measure of quality on the batch; absent for a perplexity, which follows from the
    /// loss.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_float")]
    pub quality: Option<f64>,
    /// Evaluations of `f` forward, the recorded one included, the penalty's not.
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

/// One evaluation of a split, or of the batches that
/// [`valid_batches`](crate::Recipe::valid_batches) picks from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Training steps made so far.
    pub step: usize,
    /// `valid` or `test`.
    pub split: String,
    /// The mean loss per target.
    #[serde(with = "any_float")]
    pub loss: f64,
    /// How good that is, in the terms of the task.
    pub quality: Quality,
    /// Tokens, images, or labelled pixels evaluated.
    pub targets: usize,
    /// Batches evaluated, each one solve: segments of text, or batches of images.
    pub batches: usize,
    /// Mean evaluations of `f` per batch.
    pub nfe_per_solve: f64,
    /// Mean steps of a sample; absent for an explicit network.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_float")]
    pub steps: Option<f64>,
    /// Mean relative residual at the answers; absent for an explicit network.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_float")]
    pub residual: Option<f64>,
    /// Solves by outcome, over all samples.
    pub status: StatusCounts,
    /// Spectral radius of the Jacobian at the equilibrium of the first batch, mean over its
    /// samples.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "any_float")]
    pub spectral_radius: Option<f64>,
    /// Mean relative residual at each step of one solve of the first batch that is given a long
    /// budget and no tolerance.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "any_float")]
    pub residual_by_step: Vec<f64>,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl EvalRecord {
    /// The share of solves that met the tolerance; `None` for an explicit network.
    pub fn converged(&self) -> Option<f64> {
        converged(&self.status)
    }
}

/// What was changed when a run was resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// The steps made before.
    pub step: usize,
    /// The field of the recipe, by its path in JSON.
    pub field: String,
    /// Its value before.
    pub from: serde_json::Value,
    /// Its value from here on.
    pub to: serde_json::Value,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Record {
    /// A training step.
    Step(StepRecord),
    /// An evaluation.
    Eval(EvalRecord),
    /// A field of the recipe that a resumed run changed.
    Change(ChangeRecord),
}

impl Record {
    /// The training step, if it is one.
    pub fn as_step(&self) -> Option<&StepRecord> {
        match self {
            Record::Step(step) => Some(step),
            _ => None,
        }
    }

    /// The evaluation, if it is one.
    pub fn as_eval(&self) -> Option<&EvalRecord> {
        match self {
            Record::Eval(eval) => Some(eval),
            _ => None,
        }
    }
}

/// The open `metrics.jsonl` of a run.
pub(crate) struct RunLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Xxh3,
}

impl RunLog {
    /// Opens the log, keeping only what the checkpoint knows, by its length and checksum: a killed
    /// run may have logged steps that its last checkpoint does not contain, and half a line.
    pub(crate) fn open(path: &Path, known: &FileSum) -> Result<Self, TrainError> {
        let error = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => altered(path, "it is missing"),
            _ => TrainError::io("write", path, source),
        };
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(known.bytes == 0);
        let mut file = options.open(path).map_err(error)?;
        let mut kept = Vec::new();
        let read = (&mut file).take(known.bytes).read_to_end(&mut kept);
        if (read.map_err(error)? as u64) < known.bytes {
            return Err(altered(path, "it has become shorter"));
        }
        if known.bytes > 0 && FileSum::of(&kept) != *known {
            return Err(altered(path, "it does not match its checksum"));
        }
        let mut hash = Xxh3::new();
        hash.update(&kept);
        file.set_len(known.bytes).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes: known.bytes,
            hash,
        })
    }

    /// Appends one record, if the file at its place is still the one that was opened.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), TrainError> {
        self.check()?;
        let line = line(record);
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|source| TrainError::io("write", &self.path, source))?;
        self.bytes += line.len() as u64;
        self.hash.update(line.as_bytes());
        Ok(())
    }

    /// Waits until what was written is on the disk.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        let synced = self.file.sync_data();
        synced.map_err(|source| TrainError::io("write", &self.path, source))
    }

    /// Length and checksum of what was written.
    pub(crate) fn sum(&self) -> FileSum {
        FileSum::new(self.bytes, self.hash.digest())
    }

    /// That the file at its place is the one that was opened, and nobody else has written to it.
    fn check(&self) -> Result<(), TrainError> {
        let there = std::fs::metadata(&self.path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => altered(&self.path, "it was removed or moved during training"),
            _ => TrainError::io("read", &self.path, source),
        })?;
        let ours = self.file.metadata();
        let ours = ours.map_err(|source| TrainError::io("read", &self.path, source))?;
        match same_file(&there, &ours) && there.len() == self.bytes {
            true => Ok(()),
            false => {
                let how = "it was replaced or written to during training";
                Err(altered(&self.path, how))
            }
        }
    }
}

#[cfg(unix)]
fn same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// That a file of a run is not what training has written.
pub(crate) fn altered(path: &Path, how: &'static str) -> TrainError {
    let path = path.to_owned();
    RunError::Altered { path, how }.into()
}

fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).expect("records have string keys only");
    json + "\n"
}

/// Reads every whole record of a `metrics.jsonl`. A last line cut short by a kill is left out.
///
/// # Errors
///
/// [`TrainError::Io`] if the file cannot be read, [`RunError::Malformed`] for a broken line before
/// the last.
pub fn read_records(path: &Path) -> Result<Vec<Record>, TrainError> {
    let bytes = files::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let mut records = Vec::with_capacity(lines.len());
    for (index, json) in lines.iter().enumerate() {
        match serde_json::from_str(json) {
            Ok(record) => records.push(record),
            Err(_) if index + 1 == lines.len() && !text.ends_with('\n') => break,
            Err(error) => {
                let reason = format!("line {}: {error}", index + 1);
                return Err(files::malformed(path, "log of a run", reason));
            }
        }
    }
    Ok(records)
}

/// Floats that JSON has no number for, as the strings `NaN`, `inf` and `-inf`: a diverged run is
/// logged as what it is.
pub(crate) mod any_float {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use serde_json::Value;

    /// One float, or several.
    pub(crate) trait Floats: Sized {
        fn to_value(&self) -> Value;
        fn from_value(value: Value) -> Option<Self>;
    }

    impl Floats for f64 {
        fn to_value(&self) -> Value {
            match self.is_finite() {
                true => Value::from(*self),
                false => Value::from(self.to_string()),
            }
        }

        fn from_value(value: Value) -> Option<Self> {
            value.as_f64().or_else(|| value.as_str()?.parse().ok())
        }
    }

    impl Floats for Option<f64> {
        fn to_value(&self) -> Value {
            self.as_ref().map_or(Value::Null, f64::to_value)
        }

        fn from_value(value: Value) -> Option<Self> {
            match value.is_null() {
                true => Some(None),
                false => f64::from_value(value).map(Some),
            }
        }
    }

    impl Floats for Vec<f64> {
        fn to_value(&self) -> Value {
            self.iter().map(f64::to_value).collect()
        }

        fn from_value(value: Value) -> Option<Self> {
            let values = value.as_array()?.iter().cloned();
            values.map(f64::from_value).collect()
        }
    }

    pub(crate) fn serialize<T: Floats, S: Serializer>(
        floats: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        floats.to_value().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Floats, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = value.to_string();
        T::from_value(value).ok_or_else(|| D::Error::custom(format!("{text} is not a number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> Record {
        Record::Step(StepRecord {
            step,
            loss: 1.5,
            forward: Some(SolveRecord::default()),
            ..StepRecord::default()
        })
    }

    fn steps(path: &Path) -> Vec<usize> {
        let records = read_records(path).unwrap();
        let steps = records.iter().filter_map(Record::as_step);
        steps.map(|step| step.step).collect()
    }

    #[test]
    fn a_reopened_log_forgets_what_the_checkpoint_does_not_know_and_half_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = RunLog::open(&path, &FileSum::default()).unwrap();
        for n in 1..=2 {
            log.append(&step(n)).unwrap();
        }
        let known = log.sum();
        for n in 3..=4 {
            log.append(&step(n)).unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 10);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(steps(&path), [1, 2, 3]);

        let mut log = RunLog::open(&path, &known).unwrap();
        log.append(&step(3)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3]);
        assert_eq!(log.sum(), FileSum::of(&std::fs::read(&path).unwrap()));
    }

    #[test]
    fn a_log_that_was_emptied_cut_edited_or_removed_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = RunLog::open(&path, &FileSum::default()).unwrap();
        (1..=3).for_each(|n| log.append(&step(n)).unwrap());
        let known = log.sum();
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            RunLog::open(&path, &known).err().unwrap().to_string()
        };
        assert!(refused(b"").contains("it has become shorter"));
        assert!(refused(&whole[..whole.len() - 5]).contains("it has become shorter"));
        let edited = String::from_utf8(whole.clone())
            .unwrap()
            .replace("1.5", "2.5");
        assert!(refused(edited.as_bytes()).contains("checksum"));
        std::fs::remove_file(&path).unwrap();
        let message = RunLog::open(&path, &known).err().unwrap().to_string();
        assert!(message.contains("it is missing"), "{message}");

        // And while it is open.
        std::fs::write(&path, &whole).unwrap();
        let mut log = RunLog::open(&path, &known).unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let mut next = || log.append(&step(4)).unwrap_err().to_string();
        assert!(next().contains("removed or moved"));
        std::fs::write(&path, &whole).unwrap();
        assert!(cfg!(not(unix)) || next().contains("replaced"));
    }

    #[test]
    fn records_keep_every_number_whatever_it_is() {
        let mut record = EvalRecord {
            step: 3,
            split: "valid".to_owned(),
            loss: f64::INFINITY,
            quality: Quality::new(crate::Measure::share("accuracy"), 0.1 + 0.2),
            targets: 7,
            batches: 2,
            nfe_per_solve: 9.5,
            steps: Some(f64::NEG_INFINITY),
            residual: None,
            status: StatusCounts::default(),
            spectral_radius: Some(0.7),
            residual_by_step: vec![1.0, f64::INFINITY],
            seconds: 0.1,
        };
        let again = |record: &EvalRecord| {
            let record = Record::Eval(record.clone());
            serde_json::from_str::<Record>(&line(&record)).unwrap()
        };
        assert_eq!(again(&record), Record::Eval(record.clone()));
        record.loss = f64::NAN;
        let Record::Eval(back) = again(&record) else {
            panic!("an evaluation");
        };
        assert!(back.loss.is_nan());
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines = [line(&step(1)), "broken\n".to_owned(), line(&step(2))];
        std::fs::write(&path, lines.concat()).unwrap();
        let message = read_records(&path).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }
}
