//! Estimates against exact values, in f64 unless a test says otherwise.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod arnoldi;
mod golden;
mod penalty;
mod spectral;
mod support;
mod variants;
