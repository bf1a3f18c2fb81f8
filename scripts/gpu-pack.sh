#!/usr/bin/env bash
# Builds what a machine with a GPU needs and has no Rust for: .gpu/mpa.gz (release, with kernels, stripped), an ignored folder to carry there.
# Usage: scripts/gpu-pack.sh [--benches]     --benches: the criterion benches as well (.gpu/benches.gz)
# Needs nvcc here (scripts/setup-nvcc.sh). The binary starts on machines with this one's glibc or a later one.
set -euo pipefail
cd "$(dirname "$0")/.."

benches=0
case ${1:-} in
"") ;;
--benches) benches=1 ;;
*) echo "usage: scripts/gpu-pack.sh [--benches]" >&2; exit 2 ;;
esac
# Measurements name the commit, so it is that of the sources as they are.
commit=$(git rev-parse --short HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit="$commit with changes"
export MPA_COMMIT=$commit MPA_REQUIRE_NVCC=1
target=${CARGO_TARGET_DIR:-target}

cargo build --release --locked --bin mpa
rm -rf .gpu
mkdir .gpu
strip -o .gpu/mpa "$target/release/mpa"
if ((benches)); then
    built=$(cargo bench --locked --bench ops --no-run 2>&1 | tee >(cat >&2) | sed -nE 's/.*Executable .*\((.*)\)$/\1/p')
    [ -f "$built" ] || { echo "gpu-pack: cargo named no bench executable" >&2; exit 1; }
    strip -o .gpu/benches "$built"
fi
gzip -9f .gpu/*
# What is lent to sessions takes so much of the working tree and what is carried, together.
most=$((64 << 20))
size=$({ git ls-files -z -co --exclude-standard; find .gpu -type f -print0; } | du -cb --files0-from=- 2>/dev/null | tail -n 1 | cut -f 1)
du -h .gpu/*
echo "with the working tree $size bytes of at most $most"
((size <= most)) || { echo "gpu-pack: that is too much to carry" >&2; exit 1; }
echo "commit $commit; there: scripts/gpu-check.sh .gpu OUTDIR"
