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

# The kernels' tests on the CPU, plain and under sanitizers: just kernels, or just kernels --filter rope:: plain
kernels *args:
    bash scripts/test-kernels.sh {{args}}

# Break kernels in single places; their tests must notice: just mutate attention
mutate *args:
    scripts/mutate-kernels {{args}}

# Renew kernels/resources.tsv: registers, shared memory and occupancy of each kernel
resources:
    bash scripts/setup-nvcc.sh
    MPA_REQUIRE_NVCC=1 cargo run --release -- doctor --kernels >target/resources.tsv
    cp target/resources.tsv kernels/resources.tsv
