//! Interruption by signals: the first asks training to stop with a checkpoint, the second ends the
//! program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The signal that asked training to stop; 0 for none.
static ASKED: AtomicI32 = AtomicI32::new(0);

/// The exit code of a program that a signal ended, as shells have it.
pub(crate) fn exit_code() -> u8 {
    match ASKED.load(Ordering::Relaxed) {
        // The dashboard's own key asked.
        0 => 130,
        signal => 128 + signal as u8,
    }
}

/// A flag that is set when the program is asked to end. A closed terminal does not ask for it: a
/// training goes on after a logout.
#[cfg(unix)]
pub(crate) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let flag = stop.clone();
    std::thread::spawn(move || {
        for signal in signals.forever().filter(|signal| *signal != SIGHUP) {
            ASKED.store(signal, Ordering::Relaxed);
            if flag.swap(true, Ordering::Relaxed) {
                deq_train::restore_terminal();
                std::process::exit(i32::from(exit_code()));
            }
        }
    });
    Ok(stop)
}

/// Other systems end the program, whose last checkpoint stays.
#[cfg(not(unix))]
pub(crate) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    Ok(Arc::new(AtomicBool::new(false)))
}
