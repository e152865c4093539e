# Everything that must pass before a change lands.
check:
    ./.ci/checks

# The tests alone.
test:
    cargo test --workspace

# The demonstration of the README.
demo:
    cargo run --release -p deq-cli -- train lm

# Speed and memory beside PyTorch, in turn in one run: `just compare --list`, `just compare mdeq --quick`.
compare *ARGS:
    ./benches/compare/run {{ARGS}}
