//! Files of every kind, broken ones among them, and loaders over them.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod files;
mod fingerprints;
mod folders;
mod loader;
mod masks;
mod mutations;
mod shapes;
mod support;
