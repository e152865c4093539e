//! The tasks that this crate brings along.

pub mod images;
pub mod text;
