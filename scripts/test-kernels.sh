#!/usr/bin/env bash
# Runs the tests of the kernels (tests/kernels) on the CPU: plain, under ASan + UBSan, under ThreadSanitizer; all three unless some are named.
#   scripts/test-kernels.sh [--tests BINARY] [--library FILE.so] [--filter NAME] [--jobs N] [--fail-fast] [plain|asan|tsan]...
# --tests: this test binary, else cargo builds it (release). --library: this build of the kernels, else kernels/host/build.sh makes it.
# --filter: only tests whose name contains NAME, as for cargo test; rms_norm:: is one kernel's.
# --jobs: so many processes side by side (as many as processors), one for each seed of the scheduler (MPA_KERNEL_SEEDS), since kernels of one
# process run one at a time; 1 runs all seeds in one process. --fail-fast: no other test of a process starts after one has failed.
set -euo pipefail
cd "$(dirname "$0")/.."

tests="" library="" filter="" jobs=$(nproc) options=() modes=()
while [ $# -gt 0 ]; do
    case $1 in
    --tests | --library | --filter | --jobs)
        [ $# -ge 2 ] || { echo "test-kernels: $1 needs a value" >&2; exit 2; }
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --fail-fast) options=(-Zunstable-options --fail-fast); shift ;;
    plain | asan | tsan) modes+=("$1"); shift ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
[ ${#modes[@]} -gt 0 ] || modes=(plain asan tsan)
[[ $jobs =~ ^[1-9][0-9]*$ ]] || { echo "test-kernels: --jobs $jobs, expected a number from 1 on" >&2; exit 2; }
if [ -n "$library" ] && [ ${#modes[@]} -ne 1 ]; then
    echo "test-kernels: a library is of one mode: name it" >&2
    exit 2
fi
out=${CARGO_TARGET_DIR:-target}/kernel-tests
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -z "$tests" ]; then
    # The path is in cargo's last words: "Executable tests/kernels/main.rs (target/release/deps/kernels-...)".
    tests=$(cargo test --release --locked --features host-kernels --test kernels --no-run 2>&1 | tee >(cat >&2) |
        sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
fi
[ -x "$tests" ] || { echo "test-kernels: no test binary${tests:+ $tests}" >&2; exit 1; }

# Only the kernels and the layer below them are instrumented, Rust is not: its accesses are not seen, and what they order is not either. So
# ThreadSanitizer is told to pass over the copies that Rust's own channels make through memcpy. Nothing of the kernels is passed over.
run() { # mode, library, seeds, log: its exit code is the tests'
    # The test harness takes its unstable option, --fail-fast, under RUSTC_BOOTSTRAP.
    local variables=(MPA_HOST_KERNELS="$2" MPA_KERNEL_SEEDS="$3" RUST_BACKTRACE=0 RUSTC_BOOTSTRAP=1) wrapper=()
    case $1 in
    asan) variables+=(LD_PRELOAD="$("$cxx" -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1) ;;
    tsan)
        variables+=(LD_PRELOAD="$("$cxx" -print-file-name=libtsan.so)" TSAN_OPTIONS="halt_on_error=1:suppressions=$scratch/suppressions")
        # gcc's ThreadSanitizer cannot place its shadow where a kernel places libraries at very random addresses.
        if setarch "$(uname -m)" -R true 2>/dev/null; then wrapper=(setarch "$(uname -m)" -R); fi
        ;;
    esac
    local code=0
    "${wrapper[@]}" env "${variables[@]}" "$(realpath "$tests")" "${options[@]}" ${filter:+"$filter"} >"$4" 2>&1 || code=$?
    # A filter that fits nothing would pass.
    if [ $code = 0 ] && ! grep -Eq '^running [1-9]' "$4"; then code=3; fi
    return $code
}

seeds() { # mode: what one process runs, a line each
    local all=1,2,3
    [ "$1" != tsan ] || all=1,2 # one that lets a warp run ahead, one that steps them together
    all=${MPA_KERNEL_SEEDS:-$all}
    if [ "$jobs" = 1 ]; then echo "$all"; else tr , '\n' <<<"$all"; fi
}

finish() { # mode, library, seeds, log: runs and says how it went
    local begin=$SECONDS code=0
    run "$@" || code=$?
    cat "$4"
    case $code in
    0) echo "test-kernels: $1, seeds $3: passed in $((SECONDS - begin)) s" ;;
    3) echo "test-kernels: $1, seeds $3: FAILED, no test ran" ;;
    *) echo "test-kernels: $1, seeds $3: FAILED after $((SECONDS - begin)) s (exit code $code)" ;;
    esac
    [ $code = 0 ] || echo "$1" >>"$scratch/failed"
}

cxx=${CXX:-c++}
echo "called_from_lib:$(basename "$tests")" >"$scratch/suppressions"
if [ -z "$library" ]; then
    for mode in "${modes[@]}"; do
        begin=$SECONDS
        bash kernels/host/build.sh "$mode" "$out/$mode.so" || { echo "test-kernels: $mode: the kernels do not compile" >&2; exit 1; }
        echo "test-kernels: $mode: built in $((SECONDS - begin)) s"
    done
fi
# The slowest come first: what is left for the end is short.
for mode in tsan asan plain; do
    [[ " ${modes[*]} " == *" $mode "* ]] || continue
    while read -r some; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
        finish "$mode" "$(realpath "${library:-$out/$mode.so}")" "$some" "$scratch/$mode-$some.log" >"$scratch/$mode-$some.said" &
    done < <(seeds "$mode")
done
wait
cat "$scratch"/*.said
[ ! -f "$scratch/failed" ] || { echo "test-kernels: FAILED: $(sort -u "$scratch/failed" | xargs)" >&2; exit 1; }
