#!/usr/bin/env bash
# Self-test of the CPU execution layer (kernels/host): primitives against plain loops, and planted bugs that each build has to notice.
# Builds plain, with AddressSanitizer + UBSan, with ThreadSanitizer; and for the device where nvcc is (scripts/setup-nvcc.sh), without spills.
# Usage: scripts/test-host-layer.sh [plain|asan|tsan|device]...
set -euo pipefail
cd "$(dirname "$0")/.."

host=kernels/host
out=${CARGO_TARGET_DIR:-target}/host-layer
cxx=${CXX:-g++}
flags=(-std=c++20 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-psabi -fno-strict-aliasing -ftrivial-auto-var-init=pattern)
mkdir -p "$out"

# What each build must notice: a bug's name, then words of the report. "wrong" is a wrong or NaN result in at least one of eight seeds.
common='
copies-outside-shared    cp.async.s destination is outside the block.s shared memory
ldmatrix-outside-shared  ldmatrix_x4 is outside the block.s shared memory
misaligned-pack          load_pack is not 16-byte aligned
misaligned-ldmatrix      ldmatrix_x4 is not 16-byte aligned
missing-commit           wrong: .*nan
missing-wait             wrong: .*nan
ends-while-copying       returns while its cp.async are under way
divergent-barrier        divergent __syncthreads: some threads at .*faults.cu:[0-9]+, others at .*faults.cu:[0-9]+
returns-early            threads at __syncthreads, .*faults.cu
divergent-shuffle        lanes of one warp diverge: __shfl_
some-lanes-shuffle       threads at __shfl_xor_sync
wrong-mask               __shfl_xor_sync by a lane that is not in its mask
uninitialised-sum        wrong
missing-arrive           threads wait for phase [01] of mbarrier .* 1 arrivals and 0 bytes are missing
too-many-arrivals        (more arrivals in a phase than the barrier.s count|ThreadSanitizer: data race)
expects-too-much         threads wait for phase 0 of mbarrier .* 16 bytes are missing
uninitialised-mbarrier   mbarrier that is not initialised
tile-outside-shared      tile_load.s destination is outside the block.s shared memory
misaligned-tile          tile_load.s destination is not 1024-byte aligned
ends-while-loading       (the block ends while a tile is under way|ThreadSanitizer: data race)
missing-product-fence    without a wgmma_fence, since
missing-product-commit   (wrong: .*nan|returns while its wgmma are under way)
missing-product-wait     (wrong: .*nan|returns while its wgmma are under way)
touches-sum-early        sums of a wgmma are written before its wgmma_wait
touches-operand-early    wrong
three-warps-multiply     (have not all issued the same number of wgmma|issue different products)
'
plain="$common
missing-barrier          wrong
missing-warp-barrier     wrong
overwrites-too-early     wrong
missing-tile-wait        wrong: .*nan
wrong-parity             (wrong: .*nan|threads wait for phase)
missing-expect           (wrong: .*nan|-[0-9]+ bytes are missing)
filled-too-early         (wrong|more arrivals in a phase)
freed-too-early          wrong
missing-barrier-after-init not initialised"
asan="$common
reads-past-global        AddressSanitizer: heap-buffer-overflow
writes-past-global       AddressSanitizer: heap-buffer-overflow
reads-past-shared        AddressSanitizer: heap-buffer-overflow
misaligned-vector        runtime error: .*misaligned address
tile-past-global         AddressSanitizer: heap-buffer-overflow"
tsan="$common
missing-barrier          ThreadSanitizer: data race
missing-warp-barrier     ThreadSanitizer: data race
missing-fence            ThreadSanitizer: data race
overwrites-too-early     ThreadSanitizer: data race
blocks-race              ThreadSanitizer: data race
missing-tile-wait        ThreadSanitizer: data race
wrong-parity             ThreadSanitizer: data race
missing-expect           ThreadSanitizer: data race
filled-too-early         (ThreadSanitizer: data race|more arrivals in a phase)
freed-too-early          ThreadSanitizer: data race
missing-barrier-after-init (ThreadSanitizer: data race|not initialised)"

compile() {  # folder, files..., then -- and flags: one object per file, two at a time
    local folder=$1 files=() file
    shift
    while [[ $1 != -- ]]; do files+=("$1"); shift; done
    shift
    mkdir -p "$folder"
    printf '%s\n' "${files[@]}" | xargs -P 2 -I{} sh -c \
        'file=$1; folder=$2; shift 2; "$@" -c "$file" -o "$folder/$(basename "$file" .cpp).o"' sh {} "$folder" "$cxx" "${flags[@]}" "$@"
}

check_fault() {  # program, name, pattern
    local log=$1.$2.log rc=0
    "$1" "$2" >"$log" 2>&1 || rc=$?
    if ((rc == 0 || rc == 2 || rc == 4)) || ! grep -Eq -- "$3" "$log"; then
        echo "MISSED: $2 (exit code $rc, wanted '$3'), see $log"
        return 1
    fi
}

test_build() {  # name, expectations, flags
    local name=$1 expected=$2 program=$out/selftest-$1 missed=0 count=0 fault pattern
    shift 2
    compile "$out/$name" $host/*.cpp $host/selftest/kernels.cpp -- -x c++ -include $host/cuda_host.h "$@" || return 1
    "$cxx" "$@" "$out/$name"/*.o "$out"/tests/*.o -o "$program" || return 1
    "$program" || { echo "$name: the good kernels fail"; return 1; }
    while read -r fault pattern; do
        [[ -n $fault ]] || continue
        count=$((count + 1))
        check_fault "$program" "$fault" "$pattern" || missed=$((missed + 1))
    done <<<"$expected"
    echo "$name: $((count - missed)) of $count planted bugs noticed"
    ((missed == 0))
}

test_device() {  # the same sources as real kernels
    local nvcc=.cuda/nvidia/cu13/bin/nvcc arch file
    [[ -x $nvcc ]] || { echo "device: skipped, no $nvcc"; return 0; }
    for arch in sm_80 sm_89 sm_90a; do
        for file in $host/selftest/*.cu; do
            "$nvcc" -std=c++17 -O3 -cubin -arch=$arch -Xptxas -v -o "$out/device.cubin" "$file" >"$out/device.log" 2>&1 ||
                { cat "$out/device.log"; return 1; }
            if grep "bytes spill" "$out/device.log" | grep -v " 0 bytes spill stores, 0 bytes spill loads"; then
                echo "device: $file spills registers on $arch"
                return 1
            fi
        done
    done
    echo "device: compiled for sm_80, sm_89, sm_90a, no spills"
}

export ASAN_OPTIONS=abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=0 TSAN_OPTIONS=halt_on_error=1
builds=("$@")
((${#builds[@]})) || builds=(plain asan tsan device)
# The tests themselves are built once: the sanitizers have to look at kernels and layer only.
compile "$out/tests" $host/selftest/{main,test_*}.cpp -- -O1
failed=0
for build in "${builds[@]}"; do
    case $build in
    plain) test_build plain "$plain" -O2 || failed=1 ;;
    asan) test_build asan "$asan" -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined || failed=1 ;;
    tsan) test_build tsan "$tsan" -O1 -fsanitize=thread || failed=1 ;;
    device) test_device || failed=1 ;;
    *) echo "unknown build $build" >&2; exit 2 ;;
    esac
done
exit $failed
