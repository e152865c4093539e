//! Panics of libraries on files of users, which become errors.

use crate::error::excerpt;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Calls a library that may panic on what a file holds.
///
/// # Errors
///
/// What the panic said, cut where it is long.
pub fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_payload(call).map_err(|panic| panic_text(&*panic))
}

/// [`catch_panic`] for a caller that tells panics apart.
///
/// # Errors
///
/// What the panic carries.
pub fn catch_payload<T>(call: impl FnOnce() -> T) -> std::thread::Result<T> {
    let before = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    CAUGHT.set(before);
    result
}

/// What a panic said, cut where it is long.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    excerpt(text.unwrap_or("it panicked"))
}

/// Whether a panic of this thread becomes an error of [`catch_panic`], so that a panic hook need
/// not report it.
pub fn panic_is_caught() -> bool {
    CAUGHT.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_what_it_said_and_is_known_while_it_is_caught() {
        assert_eq!(catch_panic(panic_is_caught), Ok(true));
        assert!(!panic_is_caught());
        let message = catch_panic(|| -> () { panic!("rank {}\u{1b}", 9) }).unwrap_err();
        assert_eq!(message, "rank 9\\u{1b}");
        assert!(!panic_is_caught());
    }
}
