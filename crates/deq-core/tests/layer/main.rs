//! The equilibrium layer on small cells with known answers, in f64 (or in f32 on another device,
//! see `support`).

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod behaviour;
mod evaluation;
mod exact;
mod normalization;
mod own;
mod states;
mod strategies;
mod support;
