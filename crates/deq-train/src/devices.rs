//! Several devices by name.

use crate::device::{device, find};
use crate::error::TrainError;
use burn::tensor::Device;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// The devices of a training or an evaluation, by name.
///
/// Every batch is divided over them by its samples: each device holds the streams of a text, or the
/// images, of its part. Gradients are added up, among themselves by different CUDA devices of this
/// machine with NCCL and on the first device otherwise, and the first device makes the step.
///
/// ```
/// use deq_train::Devices;
///
/// let two = Devices::from("cuda:0,cuda:1");
/// assert_eq!(two.names, ["cuda:0", "cuda:1"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// Their names:
    ///
    /// - those that [`device`] knows;
    /// - `cuda:all` and `rocm:all`, all that the machine has;
    /// - `remote:ws://HOST:PORT`, a device that a worker hosts elsewhere (cargo feature `remote`),
    ///   or `remote:ID@HOST:PORT` or `remote:ID` over Iroh; its first one, or another one with
    ///   `:INDEX` behind it.
    ///
    /// A device that is named several times does several parts, one after the other: a batch then
    /// takes the memory of a part.
    pub names: Vec<String>,
    /// The file of the token that workers ask for. Default: none.
    pub token_file: Option<PathBuf>,
}

impl From<&str> for Devices {
    /// Names separated by commas.
    fn from(names: &str) -> Self {
        let names = names.split(',').map(|name| name.trim().to_owned());
        Self {
            names: names.collect(),
            token_file: None,
        }
    }
}

impl From<&String> for Devices {
    fn from(names: &String) -> Self {
        names.as_str().into()
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names.join(","))
    }
}

/// What can be wrong with several devices, or with one elsewhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevicesError {
    /// A task whose batches cannot be divided is given several devices.
    #[error("the task {task} does not divide its batches: give one device")]
    Indivisible {
        /// The task.
        task: &'static str,
    },
    /// There is no device of a kind all of whose devices were asked for.
    #[error("this machine has no {kind} device")]
    None {
        /// The kind.
        kind: &'static str,
    },
    /// The address of a worker is malformed.
    #[error(
        "{name:?} is no address of a worker: write remote:ws://HOST:PORT, or remote:ID@HOST:PORT \
         over Iroh, and :INDEX behind it for one of several devices"
    )]
    Address {
        /// The name given.
        name: String,
    },
    /// A file holds no token.
    #[error("{path} holds no token: write a long random word into it")]
    EmptyToken {
        /// The file.
        path: PathBuf,
    },
    /// A worker does not know the token.
    #[error("the worker at {name} refuses the token: give its own by --token-file")]
    Refused {
        /// The device.
        name: String,
    },
    /// A worker cannot be reached.
    #[error("the worker at {name} cannot be used: {reason}")]
    Unreachable {
        /// The device.
        name: String,
        /// Why.
        reason: String,
    },
    /// A worker was there, and is no more. The folder of a run stays locked until the program ends
    /// or the worker answers, after which nothing more is written to it.
    #[error(
        "the worker at {name} was lost ({reason}): resume the run, with or without it, to go on \
         from the last checkpoint"
    )]
    Lost {
        /// The device.
        name: String,
        /// What happened.
        reason: String,
    },
    /// Work with workers ended in a panic, and all of them answer.
    #[error(
        "work with {names} broke off ({reason}), though every worker answers: try again, a run by \
         resuming it; if it breaks off there again, the connection was not the cause"
    )]
    BrokenOff {
        /// The workers.
        names: String,
        /// The panic.
        reason: String,
    },
    /// A worker would be open to everybody.
    #[error(
        "without a token a worker listens on loopback addresses only, not on {listen}: give one by \
         --token-file"
    )]
    NeedsToken {
        /// The address.
        listen: SocketAddr,
    },
    /// A worker cannot be started.
    #[error("no worker can listen on {listen}: {reason}")]
    CannotServe {
        /// The address.
        listen: SocketAddr,
        /// Why.
        reason: String,
    },
}

impl DevicesError {
    /// The worker of that name was lost, as a panic of Burn says.
    pub(crate) fn lost(name: String, panic: &str) -> Self {
        let reason = in_words(panic);
        Self::Lost { name, reason }
    }

    /// Work with the workers of these names broke off, as a panic of Burn or of the work says.
    pub(crate) fn broken_off(names: String, panic: &str) -> Self {
        let reason = in_words(panic);
        Self::BrokenOff { names, reason }
    }
}

/// What a panic says that may be about a connection.
fn in_words(panic: &str) -> String {
    // What became of a request whose answer can no longer come.
    let broken = panic.contains("RecvError");
    let reason = if broken { "a connection broke" } else { panic };
    reason.to_owned()
}

/// Asks a worker whether it is there; says why not.
pub(crate) type Ping = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A device that was found.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// Without autodiff.
    pub(crate) device: Device,
    /// How to ask the worker that hosts it, if one does.
    pub(crate) ping: Option<Ping>,
}

impl Found {
    fn local(name: String, device: Device) -> Self {
        Self {
            name,
            device,
            ping: None,
        }
    }
}

impl Devices {
    /// The devices, at least one.
    ///
    /// # Errors
    ///
    /// [`DeviceError`](crate::DeviceError) for a name that is unknown or whose cargo feature is
    /// off, [`DevicesError`] for a worker that cannot be reached or refuses its token.
    pub(crate) fn find(&self) -> Result<Vec<Found>, TrainError> {
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let mut found = Vec::new();
        for name in &self.names {
            match name.as_str() {
                "cuda:all" => found.extend(all("cuda")?),
                "rocm:all" => found.extend(all("rocm")?),
                name if name.starts_with("remote:") => found.push(remote(name, token.as_deref())?),
                name => found.push(Found::local(name.to_owned(), device(name)?)),
            }
        }
        Ok(found)
    }
}

/// All devices of a kind that the machine has.
fn all(kind: &'static str) -> Result<Vec<Found>, TrainError> {
    // Says so if the kind is not compiled in.
    device(kind)?;
    let devices = find(kind).into_iter().enumerate();
    let found: Vec<Found> = devices
        .map(|(index, device)| Found::local(format!("{kind}:{index}"), device))
        .collect();
    match found.is_empty() {
        true => Err(DevicesError::None { kind }.into()),
        false => Ok(found),
    }
}

/// The token in a file, without the end of its line.
pub(crate) fn read_token(path: &std::path::Path) -> Result<String, TrainError> {
    let bytes = crate::files::read(path)?;
    let token = String::from_utf8_lossy(&bytes).trim().to_owned();
    match token.is_empty() {
        true => Err(DevicesError::EmptyToken {
            path: path.to_owned(),
        }
        .into()),
        false => Ok(token),
    }
}

#[cfg(feature = "remote")]
fn remote(name: &str, token: Option<&str>) -> Result<Found, TrainError> {
    crate::remote::connect(name, token)
}

#[cfg(not(feature = "remote"))]
fn remote(name: &str, _: Option<&str>) -> Result<Found, TrainError> {
    Err(crate::error::DeviceError::NotCompiled {
        name: name.to_owned(),
        feature: "remote",
        compiled: crate::device::any_device().to_owned(),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_separated_by_commas_and_checked() {
        let found = Devices::from("flex, flex").find().unwrap();
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["flex", "flex"]);
        let wrong = |names: &str| match Devices::from(names).find() {
            Ok(_) => panic!("{names} was taken"),
            Err(error) => error.to_string(),
        };
        assert!(wrong("flex,flux").contains("there is no device \"flux\""));
        assert!(wrong("flex,").contains("there is no device \"\""));
        let path = std::path::Path::new("/nowhere/token");
        let devices = Devices {
            token_file: Some(path.to_owned()),
            ..Devices::from("flex")
        };
        let error = devices.find().err().unwrap().to_string();
        assert!(error.contains("/nowhere/token"), "{error}");
    }
}
