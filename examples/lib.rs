//! Programs that show the crates in use; run one with `cargo run --release -p deq-examples
//! --example NAME`.
