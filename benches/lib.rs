//! Benchmarks; run them with `cargo bench -p deq-benches`.
