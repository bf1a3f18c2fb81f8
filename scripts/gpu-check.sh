#!/usr/bin/env bash
# All that a machine with a GPU is needed for, in four goes of at most ten minutes each:
#   ops     facts, self-test, benchmarks of ops, peers, one table, compute-sanitizer
#   models  whole models with random weights: decoding and steps of LoRA, beside transformers and peft on the same weights, one table
#   qwen    the same of Qwen2-VL-2B's shape, and answers of the 7B's in int8
#   engine  pictures a second of a teacher, beside transformers' generate
# Usage: scripts/gpu-check.sh BINDIR OUTDIR [ops|models|qwen|engine]
#   BINDIR has the binary mpa, or mpa.gz (scripts/gpu-pack.sh makes .gpu); OUTDIR gets the CSV files and logs, at most eight of a go. To be
#   committed: table.csv and ops.csv, or models.csv and models.txt, and so on.
# Nothing else of the project is needed than this repository's scripts/ and benches/peers/; of the machine python3 with torch (and transformers)
# for the peers and compute-sanitizer. What is missing is said, and its part is skipped; so is what the time is too short for.
# A part that fails or runs out of its time does not keep the others from running; if the whole is killed, what was done by then is in OUTDIR, the
# table included. Exit code: 1 if a part failed, else 3 if one was skipped, else 0.
# Environment: MPA_CHECK_BACKEND=host|cuda (cuda). host: kernels on the CPU, small shapes: tries this script out where there is no GPU.
# MPA_CHECK_SECONDS (570): for all parts together.
set -uo pipefail
go=${3:-ops}
[[ ($# -eq 2 || $# -eq 3) && $go =~ ^(ops|models|qwen|engine)$ ]] || { echo "usage: scripts/gpu-check.sh BINDIR OUTDIR [ops|models|qwen|engine]" >&2; exit 2; }
mpa=$(realpath "$1")/mpa
mkdir -p "$2" || exit 2
out=$(realpath "$2")
cd "$(dirname "$0")/.." || exit 2
[ ! -f "$mpa.gz" ] || gunzip -kf "$mpa.gz" || exit 2
[ -x "$mpa" ] || chmod +x "$mpa" 2>/dev/null || { echo "gpu-check: there is no $mpa (scripts/gpu-pack.sh builds it)" >&2; exit 2; }
backend=${MPA_CHECK_BACKEND:-cuda}
case $backend in
cuda) quick=() torch=(--device cuda) ;;
host) quick=(--quick) torch=(--device cpu --quick) ;;
*) echo "gpu-check: MPA_CHECK_BACKEND: expected cuda or host, got $backend" >&2; exit 2 ;;
esac
budget=${MPA_CHECK_SECONDS:-570}
scratch=$(mktemp -d)
shapes=$scratch/shapes.json commit=unknown
trap 'rm -rf "$scratch"' EXIT
failed=() skipped=()

part() { # name, seconds, file for the output, command
    local name=$1 seconds=$2 log=$3 code=0 began=$SECONDS left=$((budget - SECONDS)) before
    shift 3
    if ((left < 5)); then
        skip "$name" "no time is left"
        return 1
    fi
    ((seconds < left)) || seconds=$left
    printf '\n== %s ==\n' "$name"
    before=$(stat -c %s "$log" 2>/dev/null)
    # Not through a pipe: that ends when the last that holds it does, and a stuck grandchild outlives its parent.
    timeout -k 5 "$seconds" "$@" </dev/null >>"$log" 2>&1 || code=$?
    tail -c "+$((${before:-0} + 1))" "$log"
    if ((code == 124 || code == 137)); then
        echo "gpu-check: $name ran out of its $seconds s"
    fi
    if ((code)); then failed+=("$name (exit code $code)"); fi
    echo "($((SECONDS - began)) s)"
    return "$code"
}

skip() { # name, why
    printf '\n== %s ==\nskipped: %s\n' "$1" "$2"
    skipped+=("$1 ($2)")
}

facts() {
    date -u
    uname -srm
    if command -v nvidia-smi >/dev/null; then
        timeout -k 5 15 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
    else
        echo "there is no nvidia-smi"
    fi
    timeout -k 5 20 "$mpa" doctor
}

# After each part that brings rows: a kill leaves the table as it was by then.
join() {
    timeout 10 python3 benches/peers/table.py "$table" "${rows[@]}"
}

measure() { # what `part` takes; rows come of it
    local code=0
    part "$@" || code=$?
    join >/dev/null 2>&1
    return "$code"
}

peer() { # script, seconds
    if [[ $modules != *torch* ]]; then
        skip "peer $1" "python3 has no torch"
    else
        measure "peer $1" "$2" "$out/peers.txt" python3 "benches/peers/$1.py" --shapes "$shapes" --csv "$out/peers.csv" --commit "$commit" \
            "${torch[@]}"
    fi
}

selftest() { # name, seconds, filter, settings of the environment
    part "selftest$1" "$2" "$out/mpa.txt" env "${@:4}" "$mpa" selftest --backend "$backend" "${quick[@]}" --filter "$3"
}

# An op that hangs, or leaves the device broken for those behind it, shall cost itself alone: all that were not found right get a process each.
# Between them these parts of names are those of all ops.
selftest_each() {
    local op found
    for op in norm add swiglu gelu rope embedding splice pixel_shuffle linear quantize gemm_int8 lora attention kv_cache patch_embed sample dropout \
        adamw cross_entropy; do
        # Rows of the table, which a run that was killed has not printed: not what was said to have begun.
        found=$(grep -E "^[a-z0-9_]*$op.*(  ok *|FAIL: .*)$" "$out/mpa.txt")
        [[ -n $found && $found != *FAIL:* ]] || selftest " $op" 20 "$op"
    done
}

# The same of the benchmark: rows of ops that are not yet there are added.
bench_each() {
    local op
    for op in attention_paged attention_backward attention norm linear lora quantize gemm_int8 kv_cache patch_embed gelu swiglu rope embedding \
        splice pixel_shuffle sample add adamw cross_entropy; do
        rm -f "$scratch/op.csv"
        part "bench $op" 20 "$out/mpa.txt" "$mpa" bench ops --backend "$backend" "${quick[@]}" --filter "$op" --csv "$scratch/op.csv"
        [ -s "$scratch/op.csv" ] || continue
        touch "$out/ops.csv"
        # By op and shape, of which the header has none.
        awk '{ match($0, /^[^,]*,("[^"]*")?/); key = substr($0, 1, RLENGTH) } FILENAME == ARGV[1] { seen[key]; next } !(key in seen)' \
            "$out/ops.csv" "$scratch/op.csv" >"$scratch/new.csv"
        cat "$scratch/new.csv" >>"$out/ops.csv"
        join >/dev/null 2>&1
    done
}

sanitize() { # tool; its log is the end of what it prints
    local log=$out/sanitizer.txt before
    if ! command -v compute-sanitizer >/dev/null; then
        skip "$1" "there is no compute-sanitizer"
        return
    fi
    before=$(stat -c %s "$log" 2>/dev/null)
    part "$1" 60 "$log" env MPA_CUBLASLT=0 MPA_ARENA=exact compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
        "$mpa" selftest --quick --backend "$backend" && return
    # So it is where the machine is virtualised: nothing was looked at, and nothing found.
    if tail -c "+$((${before:-0} + 1))" "$log" | grep -q "Device not supported"; then
        unset 'failed[-1]'
        skip "$1" "compute-sanitizer: device not supported"
    fi
}

check_ops() {
    rm -f "$out"/{mpa.txt,sanitizer.txt,ops.csv,peers.csv,peers.txt}
    rows=("$out/ops.csv" "$out/peers.csv")
    selftest "" 120 "" || selftest_each
    # Without cuBLASLt our own kernel has all of linear's and lora's work.
    selftest " linear, no cuBLASLt" 20 linear MPA_CUBLASLT=0
    selftest " lora, no cuBLASLt" 20 lora MPA_CUBLASLT=0
    # A card with Hopper's kernels takes no others unless it is told to.
    selftest " attention, no Hopper" 30 attention MPA_NO_HOPPER=1
    selftest " gemm_int8, no Hopper" 30 gemm_int8 MPA_NO_HOPPER=1
    measure bench 70 "$out/mpa.txt" "$mpa" bench ops --backend "$backend" "${quick[@]}" --csv "$out/ops.csv" || bench_each
    part "bench linear, no cuBLASLt" 20 "$out/mpa.txt" env MPA_CUBLASLT=0 "$mpa" bench ops --backend "$backend" "${quick[@]}" --filter linear
    timeout 10 "$mpa" bench ops --shapes --json >"$shapes"
    commit_of "$out/ops.csv"
    peer products 30
    peer gemm_int8 40
    peer attention 60
    peer attention_backward 90
    peer patching 45
    sanitize memcheck
    sanitize racecheck
}

commit_of() { # rows of mpa
    commit=$(sed -n '2s/.*,"\([^"]*\)",[^,]*$/\1/p' "$1" 2>/dev/null)
    : "${commit:=unknown}"
}

model() { # name, seconds, shape, options of `bench model`
    local csv
    csv=$scratch/$((++models)).csv rows+=("$csv")
    measure "mpa $1" "$2" "$out/$go.txt" "$mpa" bench model --backend "$backend" --shape "$3" "${@:4}" --csv "$csv"
}

model_peer() { # name, seconds, shape, what the peer does, options of `bench model`: on the checkpoint that mpa writes
    local name=$1 seconds=$2 shape=$3 what=$4 options=("${@:5}")
    if [[ $modules != "torch transformers peft" ]]; then
        skip "peer $name" "python3 has of torch, transformers and peft only: ${modules:-none}"
        return
    fi
    if part "write $name" 120 "$out/$go.txt" "$mpa" bench model --shape "$shape" "${options[@]}" --write "$scratch/peer"; then
        measure "peer $name" "$seconds" "$out/$go.txt" python3 benches/peers/model.py "$scratch/peer" --csv "$scratch/peers.csv" --what "$what" \
            --commit "$commit" "${torch[@]:0:2}"
    fi
    rm -rf "$scratch/peer"
}

# The copy bandwidth that percents refer to: the ceilings pass any filter.
begin_models() {
    rm -f "$out/$go.txt"
    models=0 rows=("$scratch/ceilings.csv" "$scratch/peers.csv")
    part ceilings 30 "$out/$go.txt" "$mpa" bench ops --backend "$backend" "${quick[@]}" --filter none-of-them --csv "$scratch/ceilings.csv"
    commit_of "$scratch/ceilings.csv"
}

check_models() {
    begin_models
    local size step answers=(--tiles 1 --words 90)
    for step in "smolvlm-500m 90" "smolvlm-2.2b 120"; do
        read -r size seconds <<<"$step"
        local train=(--batch 4 --tiles 17 --words 90 --new 8)
        if [ "$backend" = host ]; then size=tiny train=(--batch 1 --tiles 1 --words 4 --new 3 --runs 1); fi
        model "$size, LoRA" 45 "$size" --train "${train[@]}"
        model "$size, LoRA, recompute" 45 "$size" --train --recompute "${train[@]}"
        model_peer "$size, LoRA" "$seconds" "$size" step "${train[@]}"
        if [ "$backend" = host ]; then break; fi
    done
    size=smolvlm-500m
    if [ "$backend" = host ]; then size=tiny answers=(--tiles 1 --words 4 --new 3 --runs 1); fi
    model "$size, answers, batch 1" 30 "$size" --batch 1 "${answers[@]}"
    [ "$backend" = host ] || model "$size, answers, batch 32" 40 "$size" --batch 32 "${answers[@]}"
    model_peer "$size, answers, batch 1" 60 "$size" decode --batch 1 "${answers[@]}"
}

check_qwen() {
    begin_models
    local size=qwen2-vl-2b large=qwen2-vl-7b batch
    local train=(--batch 4 --tiles 1 --words 90 --new 8) answers=(--tiles 1 --words 90)
    if [ "$backend" = host ]; then
        size=qwen2-vl-tiny large=qwen2-vl-tiny
        train=(--batch 1 --tiles 1 --words 4 --new 3 --runs 1) answers=(--tiles 1 --words 4 --new 3 --runs 1)
    fi
    model "$size, LoRA" 45 "$size" --train "${train[@]}"
    model "$size, LoRA, recompute" 45 "$size" --train --recompute "${train[@]}"
    model_peer "$size, LoRA" 150 "$size" step "${train[@]}"
    model "$size, answers, batch 1" 40 "$size" --batch 1 "${answers[@]}"
    for batch in 8 32; do
        if [ "$backend" = host ] && [ "$batch" = 32 ]; then break; fi
        model "$large, int8 answers, batch $batch" 120 "$large" --int8=text --batch "$batch" "${answers[@]}"
    done
}

engine() { # name, seconds, shape, options of `bench engine`
    local csv
    csv=$scratch/$((++models)).csv rows+=("$csv")
    measure "mpa $1" "$2" "$out/$go.txt" "$mpa" bench engine --backend "$backend" --shape "$3" "${@:4}" --csv "$csv"
}

# Batches of 8 are what the paper's code has; one of ours' size says how much of the speedup is the batch's.
check_engine() {
    begin_models
    local small=smolvlm-500m large=qwen2-vl-7b some=(--pictures 512 --batch 64) load=(--tiles 1 --words 90 --new 40)
    if [ "$backend" = host ]; then
        small=tiny large=qwen2-vl-tiny some=(--pictures 3 --batch 2) load=(--tiles 1 --words 4 --new 3)
    fi
    engine "$small, pictures" 60 "$small" "${some[@]}" "${load[@]}"
    model_peer "$small, pictures" 90 "$small" pictures --batch 8 "${load[@]}"
    engine "$large, int8, pictures" 120 "$large" --int8 "${some[@]}" "${load[@]}"
    engine "$large, int8, cache int8, pictures" 120 "$large" --int8 --kv-cache int8 "${some[@]}" "${load[@]}"
    model_peer "$large, pictures" 160 "$large" pictures --batch 8 "${load[@]}"
    model_peer "$small, pictures, batch 64" 90 "$small" pictures --batch 64 "${load[@]}"
}

# From a cold disk torch takes a minute to load: it is read while mpa is at work.
python3 -c 'import torch, transformers, peft' </dev/null >/dev/null 2>&1 &
# torch's wheels bring cuBLASLt where the loader does not look for it.
blas=$(timeout 10 python3 -c "
import glob, sys
found = [f for p in sys.path if p for f in glob.glob(p + '/nvidia/*/lib/libcublasLt.so*')]
print(found[0].rsplit('/', 1)[0] if found else '')" 2>/dev/null)
[ -z "$blas" ] || export LD_LIBRARY_PATH="$blas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
modules=$(timeout 10 python3 -c "
import importlib.util as u
print(*[m for m in ('torch', 'transformers', 'peft') if u.find_spec(m)])" 2>/dev/null)
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
facts >"$out/facts.txt" 2>&1
cat "$out/facts.txt"
command -v nvidia-smi >/dev/null || skipped+=("nvidia-smi (there is none)")
table=$out/$go.csv
[ "$go" != ops ] || table=$out/table.csv
rm -f "$table"
"check_$go"

if command -v python3 >/dev/null; then
    join || failed+=("table")
else
    skip table "there is no python3"
fi
printf '\n== summary, %d s ==\n' "$SECONDS"
((${#failed[@]})) && printf 'FAILED   %s\n' "${failed[@]}"
((${#skipped[@]})) && printf 'skipped  %s\n' "${skipped[@]}"
if ((${#failed[@]})); then exit 1; fi
if ((${#skipped[@]})); then exit 3; fi
echo "all parts ran, none failed"
