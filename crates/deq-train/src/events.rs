//! The numbers of a run once more, as event files that TensorBoard reads.
//!
//! An event file is a sequence of TFRecords, each an `Event` of `event.proto` in protobuf. Scalars
//! need so few of its fields that they are written by hand.

use crate::error::TrainError;
use crate::records::{EvalRecord, Record, SolveRecord, StepRecord};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The open event file of one session of a run.
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a file in the folder of a run that has made `step` steps. TensorBoard reads the files
    /// of a folder in the order of their names, and forgets the steps after `step` that an earlier
    /// file has: a killed run may have made some that its last checkpoint does not contain.
    pub(crate) fn begin(run: &Path, step: usize) -> Result<Self, TrainError> {
        let now = seconds_now();
        let name = format!("events.out.tfevents.{:010}.{step:010}", now as u64);
        let path = run.join(name);
        let mut options = OpenOptions::new();
        // A session that begins at the same step within the same second goes on with the file.
        let file = options.append(true).create(true).open(&path);
        let file = file.map_err(|source| TrainError::io("write", &path, source))?;
        let mut events = Self { path, file };
        events.write(&version(now))?;
        // At step 0 too: a run that was ended before its first checkpoint begins again there.
        events.write(&restart(now, step + 1))?;
        Ok(events)
    }

    /// Appends the scalars of a record, if it has any.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), TrainError> {
        let (step, scalars) = match record {
            Record::Step(record) => (record.step, step_scalars(record)),
            Record::Eval(record) => (record.step, eval_scalars(record)),
            Record::Change(_) => return Ok(()),
        };
        self.write(&summary(seconds_now(), step, &scalars))
    }

    fn write(&mut self, event: &[u8]) -> Result<(), TrainError> {
        let written = self.file.write_all(&framed(event));
        written.map_err(|source| TrainError::io("write", &self.path, source))
    }
}

fn seconds_now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

type Scalars = Vec<(String, f64)>;

fn step_scalars(record: &StepRecord) -> Scalars {
    let (forward, backward) = (record.forward.as_ref(), record.backward.as_ref());
    let penalty = record.penalty.as_ref();
    let converged = SolveRecord::converged;
    let values = [
        ("train/loss", Some(record.loss)),
        ("train/quality", record.quality),
        ("train/learning_rate", Some(record.learning_rate)),
        ("forward/evaluations", Some(record.forward_nfe as f64)),
        ("forward/steps", forward.map(|solve| solve.steps)),
        ("forward/residual", forward.map(|solve| solve.residual)),
        ("forward/converged", forward.and_then(converged)),
        ("backward/products", backward.map(|solve| solve.nfe as f64)),
        ("backward/steps", backward.map(|solve| solve.steps)),
        ("backward/residual", backward.map(|solve| solve.residual)),
        ("backward/converged", backward.and_then(converged)),
        ("penalty/value", penalty.map(|penalty| penalty.value)),
        ("penalty/weight", penalty.map(|penalty| penalty.weight)),
    ];
    let named = |(name, value): (&str, Option<f64>)| Some((name.to_owned(), value?));
    values.into_iter().filter_map(named).collect()
}

fn eval_scalars(record: &EvalRecord) -> Scalars {
    let quality = &record.quality;
    let others = quality.others.iter();
    let others = others.map(|other| (other.measure.name(), other.value));
    let values = [
        ("loss", Some(record.loss)),
        (quality.measure.name(), Some(quality.value)),
        ("evaluations", Some(record.nfe_per_solve)),
        ("steps", record.steps),
        ("residual", record.residual),
        ("converged", record.converged()),
        ("spectral_radius", record.spectral_radius),
    ];
    let named =
        |(name, value): (&str, Option<f64>)| Some((format!("{}/{name}", record.split), value?));
    values.into_iter().chain(others).filter_map(named).collect()
}

/// An `Event` with a wall time, a step, and what it is about, a field of this number.
fn event(time: f64, step: usize, field: u8, content: &[u8]) -> Vec<u8> {
    let mut event = vec![key(1, FIXED_64)];
    event.extend(time.to_le_bytes());
    if step > 0 {
        event.push(key(2, VARINT));
        varint(&mut event, step as u64);
    }
    delimited(&mut event, field, content);
    event
}

/// The first event of a file: which version of the format it is in.
fn version(time: f64) -> Vec<u8> {
    event(time, 0, 3, b"brain.Event:2")
}

/// That a session starts with `step`, and what is there from it on does not count.
fn restart(time: f64, step: usize) -> Vec<u8> {
    const START: u8 = 1;
    event(time, step, 7, &[key(1, VARINT), START])
}

/// The scalars of a step.
fn summary(time: f64, step: usize, scalars: &Scalars) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut scalar = Vec::new();
        delimited(&mut scalar, 1, tag.as_bytes());
        scalar.push(key(2, FIXED_32));
        scalar.extend((*value as f32).to_le_bytes());
        delimited(&mut summary, 1, &scalar);
    }
    event(time, step, 5, &summary)
}

/// How the value of a field is stored in protobuf.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const DELIMITED: u8 = 2;
const FIXED_32: u8 = 5;

fn key(field: u8, kind: u8) -> u8 {
    field << 3 | kind
}

fn delimited(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(key(field, DELIMITED));
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Seven bits a byte, the lowest first; the eighth says that there is more.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A TFRecord: length and data, each followed by its checksum.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [
        &length,
        &masked_crc(&length).to_le_bytes(),
        data,
        &masked_crc(data).to_le_bytes(),
    ];
    parts.concat()
}

/// A CRC-32C as TFRecords store it: rotated and shifted, so that a checksum of data with checksums
/// in it means something.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let shifted = |crc: u32| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
    let next = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shifted(crc));
    !bytes.iter().fold(!0, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// What the Python package `tensorboard` writes for the same events.
    #[test]
    fn events_are_those_of_tensorboard() {
        let recorded = "\
            1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c\
            100000000000000095fbfe1809000000000000f83f10ad023a020801d17949d4\
            3a000000000000001295eae209000000000000f83f10ad022a2c0a110a0a747261696e2f6c6f7373\
            150000803e0a170a10666f72776172642f726573696475616c156f12833a40ecdc6b";
        let scalars = vec![
            ("train/loss".to_owned(), 0.25),
            ("forward/residual".to_owned(), 1e-3),
        ];
        let events = [version(1.5), restart(1.5, 301), summary(1.5, 301, &scalars)];
        let bytes = events.map(|event| framed(&event)).concat();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, recorded);
    }

    #[test]
    fn a_resumed_session_has_a_file_of_its_own_behind_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::Step(StepRecord {
            step: 1,
            loss: f64::NAN,
            ..StepRecord::default()
        });
        let scalars = step_scalars(record.as_step().unwrap());
        assert!(scalars[0].1.is_nan() && scalars.len() == 3);
        let mut begun = Vec::new();
        for step in [0, 20, 100] {
            let mut events = EventFile::begin(folder.path(), step).unwrap();
            events.append(&record).unwrap();
            // It begins with a version and a restart, and has the loss as it is.
            let bytes = std::fs::read(&events.path).unwrap();
            let expected = [
                version(0.0),
                restart(0.0, step + 1),
                summary(0.0, 1, &scalars),
            ];
            let sizes = expected.map(|event| framed(&event).len());
            assert_eq!(bytes.len(), sizes.iter().sum::<usize>());
            begun.push(events.path);
        }
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names, begun);
    }
}
