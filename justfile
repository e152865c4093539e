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

# The same on a graphics card, the most important figure first: `just bench-gpu solver --quick`.
bench-gpu *ARGS:
    ./benches/compare/run --device cuda --timeout 240 {{ARGS}}

# Damages everything that is parsed at random, each kind of file for so many minutes.
fuzz MINUTES='10':
    DEQ_FUZZ_MINUTES={{MINUTES}} cargo test -p deq-data -p deq-models -p deq-train mutations -- --nocapture

# Kills trainings at random moments and compares them with uninterrupted ones, for so many minutes.
soak MINUTES='5':
    ./.ci/soak {{MINUTES}}

# The packaged crates in an empty crate outside of the workspace; builds Burn once more.
package:
    ./.ci/package
