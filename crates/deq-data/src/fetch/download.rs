//! A file over HTTP, resumed where it was cut.

use super::FetchEvent;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;
use ureq::Agent;
use ureq::http::{Response, StatusCode, header};

/// How often a cut connection is taken up again by itself, if each time brought something.
const RETRIES: usize = 4;
/// A server that is silent for so long is taken to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a download failed.
pub(super) enum Failure {
    /// The network or the server, in the words of a sentence.
    Remote(String),
    /// The file.
    Local(io::Error),
}

/// Downloads `url` to `part`, of which there may be a beginning.
pub(super) fn download(
    url: &str,
    part: &Path,
    on_event: &mut dyn FnMut(FetchEvent),
) -> Result<(), Failure> {
    let config = Agent::config_builder()
        // Some servers refuse programs without a name.
        .user_agent(concat!("deq-data/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .build();
    let agent = Agent::new_with_config(config);
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(part)
        .map_err(Failure::Local)?;
    let done = take(&agent, url, &mut file, on_event);
    if done.is_err() && length(&file).is_ok_and(|bytes| bytes == 0) {
        // Nothing to go on from; whatever is wrong here has been said already.
        let _ = std::fs::remove_file(part);
    }
    done
}

/// Takes up a cut connection a few times.
fn take(
    agent: &Agent,
    url: &str,
    file: &mut File,
    on_event: &mut dyn FnMut(FetchEvent),
) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let before = length(file)?;
        let reason = match attempt(agent, url, file, on_event)? {
            Outcome::Complete => return file.sync_all().map_err(Failure::Local),
            Outcome::Again => continue,
            Outcome::Cut(reason) => reason,
        };
        tries += 1;
        let done = length(file)?;
        if tries > RETRIES || done <= before {
            return Err(Failure::Remote(format!(
                "{reason}; {done} bytes are kept, and the same command goes on from there"
            )));
        }
        on_event(FetchEvent::Resuming { done });
    }
}

enum Outcome {
    Complete,
    /// The beginning was of no use and has been dropped.
    Again,
    /// Why the connection ended early.
    Cut(String),
}

/// Asks for what is missing and appends it.
fn attempt(
    agent: &Agent,
    url: &str,
    file: &mut File,
    on_event: &mut dyn FnMut(FetchEvent),
) -> Result<Outcome, Failure> {
    let here = length(file)?;
    let mut request = agent.get(url);
    if here > 0 {
        request = request.header(header::RANGE, format!("bytes={here}-"));
    }
    let response = request.call();
    let response = response.map_err(|error| Failure::Remote(error.to_string()))?;
    let total = match response.status() {
        StatusCode::OK => {
            // The whole file, though only the rest may have been asked for.
            file.set_len(0).map_err(Failure::Local)?;
            number(&response, header::CONTENT_LENGTH, |text| text.parse().ok())
        }
        StatusCode::PARTIAL_CONTENT => match range(&response) {
            Some((first, total)) if first == here => total,
            _ => return restart(file, here, "the server sends another part than asked for"),
        },
        StatusCode::RANGE_NOT_SATISFIABLE => {
            // Nothing is missing if the file has as many bytes as there are.
            let total = number(&response, header::CONTENT_RANGE, |text| {
                text.strip_prefix("bytes */")?.parse().ok()
            });
            return match total {
                Some(total) if total == here => Ok(Outcome::Complete),
                _ => restart(file, here, "the server has no such part"),
            };
        }
        status => return Err(Failure::Remote(format!("the server answers {status}"))),
    };
    let mut body = response.into_body().into_reader();
    let mut done = length(file)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        on_event(FetchEvent::Downloading { done, total });
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => return Ok(Outcome::Cut(format!("the connection was cut ({error})"))),
        };
        file.write_all(&buffer[..read]).map_err(Failure::Local)?;
        done += read as u64;
    }
    match total {
        Some(total) if done < total => {
            let reason = format!("the connection was cut after {done} of {total} bytes");
            Ok(Outcome::Cut(reason))
        }
        _ => Ok(Outcome::Complete),
    }
}

/// Drops a beginning that the server cannot complete.
fn restart(file: &mut File, here: u64, why: &str) -> Result<Outcome, Failure> {
    if here == 0 {
        return Err(Failure::Remote(why.to_owned()));
    }
    file.set_len(0).map_err(Failure::Local)?;
    Ok(Outcome::Again)
}

fn length(file: &File) -> Result<u64, Failure> {
    let mut file = file;
    file.seek(io::SeekFrom::End(0)).map_err(Failure::Local)
}

fn number<B>(
    response: &Response<B>,
    name: header::HeaderName,
    parse: impl Fn(&str) -> Option<u64>,
) -> Option<u64> {
    parse(response.headers().get(name)?.to_str().ok()?)
}

/// The first byte and the total of `bytes 5-9/10`.
fn range<B>(response: &Response<B>) -> Option<(u64, Option<u64>)> {
    let value = response.headers().get(header::CONTENT_RANGE)?;
    let (range, total) = value
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()))
}
