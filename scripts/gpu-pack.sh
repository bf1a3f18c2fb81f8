#!/usr/bin/env bash
# Builds what a machine with a GPU needs and has no Rust for: .gpu/mpa (release, with kernels, stripped), an ignored folder to carry there.
# Usage: scripts/gpu-pack.sh [--benches]     --benches: the criterion benches as well (.gpu/benches)
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
du -h .gpu/*
echo "commit $commit; there: scripts/gpu-check.sh .gpu OUTDIR"
