#!/usr/bin/env bash
# All that a machine with a GPU is needed for, in four goes of at most ten minutes each:
#   ops     facts, self-test, compute-sanitizer, benchmarks of ops, peers, one table
#   models  whole models with random weights: decoding and steps of LoRA, beside transformers and peft on the same weights, one table
#   qwen    the same of Qwen2-VL-2B's shape, and answers of the 7B's in int8
#   engine  pictures a second of a teacher, beside transformers' generate
# Usage: scripts/gpu-check.sh BINDIR OUTDIR [ops|models|qwen|engine]
#   BINDIR has the binary mpa (scripts/gpu-pack.sh makes .gpu); OUTDIR gets the CSV files and logs. To be committed: table.csv and ops.csv, or
#   models.csv and models.txt, and so on.
# Nothing else of the project is needed than this repository's scripts/ and benches/peers/; of the machine python3 with torch (and transformers)
# for the peers and compute-sanitizer. What is missing is said, and its part is skipped.
# A part that fails or runs out of its time does not keep the others from running. Exit code: 1 if a part failed, else 3 if one was skipped, else 0.
# Environment: MPA_CHECK_BACKEND=host|cuda (cuda). host: kernels on the CPU, small shapes: tries this script out where there is no GPU.
set -uo pipefail
go=${3:-ops}
[[ ($# -eq 2 || $# -eq 3) && $go =~ ^(ops|models|qwen|engine)$ ]] || { echo "usage: scripts/gpu-check.sh BINDIR OUTDIR [ops|models|qwen|engine]" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
mpa=$(realpath "$1")/mpa
[ -x "$mpa" ] || chmod +x "$mpa" 2>/dev/null || { echo "gpu-check: there is no $mpa (scripts/gpu-pack.sh builds it)" >&2; exit 2; }
mkdir -p "$2" || exit 2
out=$(realpath "$2")
backend=${MPA_CHECK_BACKEND:-cuda}
case $backend in
cuda) quick=() torch=(--device cuda) ;;
host) quick=(--quick) torch=(--device cpu --quick) ;;
*) echo "gpu-check: MPA_CHECK_BACKEND: expected cuda or host, got $backend" >&2; exit 2 ;;
esac
scratch=$(mktemp -d)
shapes=$scratch/shapes.json
trap 'rm -rf "$scratch"' EXIT
failed=() skipped=()

part() { # name, seconds, file for the output, command
    local name=$1 seconds=$2 log=$3 code=0 began=$SECONDS
    shift 3
    printf '\n== %s ==\n' "$name"
    timeout -k 5 "$seconds" "$@" 2>&1 | tee -a "$log" || code=$?
    if ((code == 124 || code == 137)); then
        echo "gpu-check: $name ran out of its $seconds s"
    fi
    if ((code)); then failed+=("$name (exit code $code)"); fi
    echo "($((SECONDS - began)) s)"
}

skip() { # name, why
    printf '\n== %s ==\nskipped: %s\n' "$1" "$2"
    skipped+=("$1 ($2)")
}

facts() {
    date -u
    uname -srm
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
    else
        echo "there is no nvidia-smi"
    fi
    "$mpa" doctor
}

sanitize() { # tool; its log is the end of what it prints
    if command -v compute-sanitizer >/dev/null; then
        part "$1" 60 "$out/$1.txt" compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
            env MPA_CUBLASLT=0 "$mpa" selftest --quick --backend "$backend"
    else
        skip "$1" "there is no compute-sanitizer"
    fi
}

peer() { # script, seconds, module it needs
    if ! command -v python3 >/dev/null; then
        skip "peer $1" "there is no python3"
    elif ! python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('$3') is None)" 2>/dev/null; then
        skip "peer $1" "python3 has no $3"
    else
        part "peer $1" "$2" "$out/peers.txt" python3 "benches/peers/$1.py" --shapes "$shapes" --csv "$out/peers.csv" --commit "$commit" "${torch[@]}"
    fi
}

# torch's wheels bring cuBLASLt where the loader does not look for it.
blas=$(python3 -c "
import glob, sys
found = [f for p in sys.path if p for f in glob.glob(p + '/nvidia/*/lib/libcublasLt.so*')]
print(found[0].rsplit('/', 1)[0] if found else '')" 2>/dev/null)
[ -z "$blas" ] || export LD_LIBRARY_PATH="$blas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
facts 2>&1 | tee "$out/facts.txt"
command -v nvidia-smi >/dev/null || skipped+=("nvidia-smi (there is none)")
# The limits of each go add up to less than ten minutes.
check_ops() {
    rm -f "$out"/{mpa.txt,memcheck.txt,racecheck.txt,ops.csv,peers.csv,peers.txt,table.csv}
    part selftest 70 "$out/mpa.txt" "$mpa" selftest --backend "$backend" "${quick[@]}"
    # Without cuBLASLt our own kernel has all of linear's and lora's work.
    for op in linear lora; do
        part "selftest $op, no cuBLASLt" 20 "$out/mpa.txt" env MPA_CUBLASLT=0 "$mpa" selftest --backend "$backend" "${quick[@]}" --filter "$op"
    done
    # A card with Hopper's kernels takes no others unless it is told to.
    part "selftest attention, no Hopper" 30 "$out/mpa.txt" env MPA_NO_HOPPER=1 "$mpa" selftest --backend "$backend" "${quick[@]}" --filter attention
    part "selftest gemm_int8, no Hopper" 20 "$out/mpa.txt" env MPA_NO_HOPPER=1 "$mpa" selftest --backend "$backend" "${quick[@]}" --filter gemm_int8
    sanitize memcheck
    sanitize racecheck
    part bench 70 "$out/mpa.txt" "$mpa" bench ops --backend "$backend" "${quick[@]}" --csv "$out/ops.csv"
    part "bench linear, no cuBLASLt" 20 "$out/mpa.txt" env MPA_CUBLASLT=0 "$mpa" bench ops --backend "$backend" "${quick[@]}" --filter linear
    "$mpa" bench ops --shapes --json >"$shapes"
    commit=$(sed -n '2s/.*,"\([^"]*\)",[^,]*$/\1/p' "$out/ops.csv" 2>/dev/null)
    : "${commit:=unknown}"
    peer products 30 torch
    peer gemm_int8 30 torch
    peer attention 60 torch
    peer attention_backward 70 torch
    peer patching 30 torch
    if command -v python3 >/dev/null; then
        part table 5 "$out/peers.txt" python3 benches/peers/table.py "$out/table.csv" "$out/ops.csv" "$out/peers.csv"
    else
        skip table "there is no python3"
    fi
}

model() { # name, seconds, shape, options of `bench model`: mpa, then the peer on the checkpoint that mpa writes
    local name=$1 seconds=$2 shape=$3 options=("${@:4}") csv
    csv=$scratch/$((++models)).csv rows+=("$csv")
    part "mpa $name" "$seconds" "$out/$go.txt" "$mpa" bench model --backend "$backend" --shape "$shape" "${options[@]}" --csv "$csv"
}

model_peer() { # name, seconds, shape, what the peer does, options of `bench model`
    local name=$1 seconds=$2 shape=$3 what=$4 options=("${@:5}") missing
    missing=$(python3 -c "import importlib.util as u; print(*[m for m in ('torch', 'transformers', 'peft') if u.find_spec(m) is None])" 2>&1)
    if [ -n "$missing" ]; then
        skip "peer $name" "python3 has no $missing"
        return
    fi
    "$mpa" bench model --shape "$shape" "${options[@]}" --write "$scratch/peer" >/dev/null 2>&1 || { failed+=("peer $name (nothing written)"); return; }
    part "peer $name" "$seconds" "$out/$go.txt" python3 benches/peers/model.py "$scratch/peer" --csv "$scratch/peers.csv" --what "$what" "${torch[@]:0:2}"
    rm -rf "$scratch/peer"
}

begin_models() {
    rm -f "$out/$go".{txt,csv}
    models=0 rows=()
}

models_table() {
    if command -v python3 >/dev/null; then
        part table 5 "$out/$go.txt" python3 benches/peers/table.py "$out/$go.csv" "${rows[@]}" "$scratch/peers.csv"
    else
        skip table "there is no python3"
    fi
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
    models_table
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
    models_table
}

engine() { # name, seconds, shape, options of `bench engine`
    local csv
    csv=$scratch/$((++models)).csv rows+=("$csv")
    part "mpa $1" "$2" "$out/$go.txt" "$mpa" bench engine --backend "$backend" --shape "$3" "${@:4}" --csv "$csv"
}

# Batches of 8 are what the paper's code has.
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
    models_table
}

"check_$go"

printf '\n== summary, %d s ==\n' "$SECONDS"
((${#failed[@]})) && printf 'FAILED   %s\n' "${failed[@]}"
((${#skipped[@]})) && printf 'skipped  %s\n' "${skipped[@]}"
if ((${#failed[@]})); then exit 1; fi
if ((${#skipped[@]})); then exit 3; fi
echo "all parts ran, none failed"
