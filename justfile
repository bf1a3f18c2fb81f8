# The commands of daily work; `just` lists them.

default:
    @just --list

# All that CI checks
ci:
    bash .ci/run

# The loop on two tiny models, about a minute
demo *args:
    cargo run --release -- demo {{args}}

# The README's test command
test *args:
    cargo test --release {{args}}

# Benches of one op, or of all: just bench attention
bench op="":
    cargo bench --bench ops -- {{op}}

# Train the demo's models from scratch (docs/demo.md)
demo-models out="target/demo-models":
    cargo run --release --example train_demo_models -- --out {{out}}
