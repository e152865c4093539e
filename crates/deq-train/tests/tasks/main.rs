//! The tasks of the library and what they are made of, through the public interface.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod images;
mod images_presets;
mod names;
mod report;
mod sampling;
mod text;
mod text_model;
mod text_presets;
