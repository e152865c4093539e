//! The models of the crate, and their checkpoints. One binary, since every test runs in f64.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod checkpoint;
mod mdeq;
mod resnet;
mod support;
mod transformer;
