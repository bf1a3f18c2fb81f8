#!/usr/bin/env bash
# Runs the tests of the kernels (tests/kernels) on the CPU: plain, under ASan + UBSan, under ThreadSanitizer; all three unless some are named.
#   scripts/test-kernels.sh [--tests BINARY] [--library FILE.so] [--filter NAME] [plain|asan|tsan]...
# --tests: this test binary, else cargo builds it (release). --library: this build of the kernels, else kernels/host/build.sh makes it.
# --filter: only tests whose name contains NAME, as for cargo test; rms_norm:: is one kernel's.
set -euo pipefail
cd "$(dirname "$0")/.."

tests="" library="" filter="" modes=()
while [ $# -gt 0 ]; do
    case $1 in
    --tests | --library | --filter)
        [ $# -ge 2 ] || { echo "test-kernels: $1 needs a value" >&2; exit 2; }
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    plain | asan | tsan) modes+=("$1"); shift ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
[ ${#modes[@]} -gt 0 ] || modes=(plain asan tsan)
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
run() { # mode, library: its exit code is the tests'
    local variables=(MPA_HOST_KERNELS="$2" RUST_BACKTRACE=0) wrapper=()
    case $1 in
    asan) variables+=(LD_PRELOAD="$("$cxx" -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1) ;;
    tsan)
        echo "called_from_lib:$(basename "$tests")" >"$scratch/suppressions"
        variables+=(MPA_KERNEL_SEEDS="${MPA_KERNEL_SEEDS:-1,2}") # one that lets a warp run ahead, one that steps them together
        variables+=(LD_PRELOAD="$("$cxx" -print-file-name=libtsan.so)" TSAN_OPTIONS="halt_on_error=1:suppressions=$scratch/suppressions")
        # gcc's ThreadSanitizer cannot place its shadow where a kernel places libraries at very random addresses.
        if setarch "$(uname -m)" -R true 2>/dev/null; then wrapper=(setarch "$(uname -m)" -R); fi
        ;;
    esac
    local code=0
    "${wrapper[@]}" env "${variables[@]}" "$(realpath "$tests")" ${filter:+"$filter"} >"$scratch/log" 2>&1 || code=$?
    cat "$scratch/log"
    # A filter that fits nothing would pass.
    if [ $code = 0 ] && ! grep -Eq '^running [1-9]' "$scratch/log"; then code=3; fi
    return $code
}

cxx=${CXX:-c++}
failed=()
for mode in "${modes[@]}"; do
    begin=$SECONDS
    so=$library
    if [ -z "$so" ]; then
        so=$out/$mode.so
        bash kernels/host/build.sh "$mode" "$so" || { echo "test-kernels: $mode: the kernels do not compile" >&2; exit 1; }
        echo "test-kernels: $mode: built in $((SECONDS - begin)) s"
    fi
    built=$SECONDS code=0
    run "$mode" "$(realpath "$so")" || code=$?
    case $code in
    0) echo "test-kernels: $mode: passed in $((SECONDS - built)) s" ;;
    3) echo "test-kernels: $mode: FAILED, no test ran" ;;
    *) echo "test-kernels: $mode: FAILED after $((SECONDS - built)) s (exit code $code)" ;;
    esac
    [ $code = 0 ] || failed+=("$mode")
done
[ ${#failed[@]} = 0 ] || { echo "test-kernels: FAILED: ${failed[*]}" >&2; exit 1; }
