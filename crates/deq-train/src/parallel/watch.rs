//! Work that ends when a worker hangs.

use super::STACK;
use crate::devices::{DevicesError, Ping};
use crate::error::TrainError;
use deq_data::catch_panic;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long work on workers goes on without reading a batch until they are asked whether they are
/// there, and how long they may take to answer. Longer than a worker is tried to be reached.
pub(super) const PAUSE: Duration = Duration::from_secs(15);
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Does the work on a thread of its own, until it is done or a worker does not answer. `done`
/// counts the batches read.
///
/// # Errors
///
/// Those of the work; [`DevicesError::Lost`] for a worker that does not answer,
/// [`DevicesError::BrokenOff`] if the work panics and all of them answer.
pub(super) fn watch<R: Send + 'static>(
    workers: &[(String, Ping)],
    [pause, patience]: [Duration; 2],
    done: impl Fn() -> usize,
    work: impl FnOnce() -> Result<R, TrainError> + Send + 'static,
) -> Result<R, TrainError> {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().stack_size(STACK);
    let started = thread.spawn(move || {
        // Nobody listens any more once a worker was lost.
        let _ = sender.send(catch_panic(work));
    });
    started.map_err(|source| TrainError::io("start", "a thread".as_ref(), source))?;
    let mut before = done();
    loop {
        match receiver.recv_timeout(pause) {
            Ok(Ok(result)) => return result,
            Ok(Err(reason)) => {
                // The panic does not say whose connection broke, nor whether one did.
                ask_all(workers, patience)?;
                let names: Vec<&str> = workers.iter().map(|(name, _)| name.as_str()).collect();
                return Err(DevicesError::broken_off(names.join(" and "), &reason).into());
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => unreachable!("the work answers"),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let now = done();
                if now == before {
                    ask_all(workers, patience)?;
                }
                before = now;
            }
        }
    }
}

/// Asks every worker whether it is there.
fn ask_all(workers: &[(String, Ping)], patience: Duration) -> Result<(), DevicesError> {
    let (sender, receiver) = mpsc::channel();
    for (name, ping) in workers {
        let (name, ping, sender) = (name.clone(), ping.clone(), sender.clone());
        thread::spawn(move || {
            let answer = ping();
            let _ = sender.send((name, answer));
        });
    }
    drop(sender);
    let mut silent: Vec<&str> = workers.iter().map(|(name, _)| name.as_str()).collect();
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok((name, Ok(()))) => silent.retain(|other| *other != name),
            Ok((name, Err(reason))) => return Err(DevicesError::Lost { name, reason }),
            // All have answered.
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(DevicesError::Lost {
                    name: silent.join(" and "),
                    reason: format!("no answer within {} seconds", patience.as_secs()),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn work_ends_when_a_worker_does_not_answer() {
        let times = [Duration::from_millis(1), Duration::from_millis(200)];
        let worker = |ping: Ping| vec![("far".to_owned(), ping)];
        let there: Ping = Arc::new(|| Ok(()));
        // It lives through some questions.
        let still = || 0;
        let done = watch(&worker(there.clone()), times, still, || {
            thread::sleep(Duration::from_millis(20));
            Ok(3)
        });
        assert_eq!(done.unwrap(), 3);
        let never = || -> Result<(), TrainError> {
            loop {
                thread::park();
            }
        };
        let silent: Ping = Arc::new(|| {
            thread::park();
            Ok(())
        });
        // As long as batches are read nobody is asked.
        let count = AtomicUsize::new(0);
        let read = || count.fetch_add(1, Ordering::Relaxed);
        let done = watch(&worker(silent.clone()), times, read, || {
            thread::sleep(Duration::from_millis(20));
            Ok(3)
        });
        assert_eq!(done.unwrap(), 3);
        for (ping, reason) in [
            (silent, "no answer within 0 seconds"),
            (
                Arc::new(|| Err("it hung up".to_owned())) as Ping,
                "it hung up",
            ),
        ] {
            let message = watch(&worker(ping), times, still, never)
                .unwrap_err()
                .to_string();
            let expected = format!("the worker at far was lost ({reason})");
            assert!(message.starts_with(&expected), "{message}");
        }
        let panicking = || -> Result<(), TrainError> { panic!("channel closed") };
        let gone: Ping = Arc::new(|| Err("it is gone".to_owned()));
        let mut workers = worker(there);
        let failed = |workers: &[(String, Ping)]| {
            let failed = watch(workers, times, still, panicking);
            failed.unwrap_err().to_string()
        };
        let message = failed(&workers);
        let expected = "work with far broke off (channel closed), though every worker answers";
        assert!(message.starts_with(expected), "{message}");
        workers.push(("farther".to_owned(), gone));
        let message = failed(&workers);
        let expected = "the worker at farther was lost (it is gone)";
        assert!(message.starts_with(expected), "{message}");
    }
}
