#!/usr/bin/env bash
# Builds the library that runs kernels/*.cu on the CPU: build.sh [--kernels FOLDER] [--only STEM] plain|asan|tsan OUT.so
# Objects are kept in OUT.so.d and made again when a source or a header changes; they hold no path of this machine's.
# scripts/mutate-kernels: --kernels takes a changed copy of kernels/; --only compiles FOLDER/STEM.cu and links it with the objects that are there.
set -euo pipefail
host=$(cd "$(dirname "$0")" && pwd)
kernels=$(dirname "$host") only=""
while [ $# -gt 2 ]; do
    case $1 in
    --kernels) kernels=$(cd "$2" && pwd) ;;
    --only) only=$2 ;;
    *) break ;;
    esac
    shift 2
done
[ $# -eq 2 ] || { echo "usage: build.sh [--kernels FOLDER] [--only STEM] plain|asan|tsan OUT.so" >&2; exit 2; }
mode=$1 out=$2
cxx=${CXX:-c++}
flags=(-std=c++20 -fPIC -g -fno-strict-aliasing -ftrivial-auto-var-init=pattern -Wall -Wno-unknown-pragmas -Wno-psabi -Wno-unused -Wno-unused-variable -I "$kernels" -I "$host"
    -ffile-prefix-map="$kernels"=kernels)
case $mode in
plain) flags+=(-O2) ;;
asan) flags+=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer) ;;
tsan) flags+=(-O1 -fsanitize=thread) ;;
*) echo "build.sh: expected plain, asan or tsan, got $mode" >&2; exit 2 ;;
esac
shown=${flags[*]//"$host"/host}
shown=${shown//"$kernels"/kernels}
objects=$out.d
mkdir -p "$objects"

# One C++ file a kernel: the kernel itself, and a line that registers each of its entries with its most threads a block. On a device each .cu
# is a module of its own, here a namespace.
registration() {
    local kernel=$1
    printf '#include "common.cuh"\n#include "hopper.cuh"\nnamespace {\n#include "%s"\n' "$(basename "$kernel")"
    tr '\n' ' ' <"$kernel" | sed -nE 's/extern "C" __global__ void __launch_bounds__\(([0-9]+)[^)]*\) +([A-Za-z0-9_]+)/\n@ \2 \1\n/gp' |
        awk '$1 == "@" { printf "const bool registered_%s = host::add(\"%s\", &%s, %s);\n", $2, $2, $2, $3 }'
    echo "}  // namespace"
}

compile() { # source, object, what it depends on
    local source=$1 object=$2 key
    key=$(cat "$source" "${3:-$source}" "$kernels"/*.cuh "$host"/*.h | cksum; echo "$shown $cxx")
    if [ -f "$object" ] && [ "$(cat "$object.key" 2>/dev/null)" = "$key" ]; then return; fi
    "$cxx" "${flags[@]}" ${3:+-include "$host/cuda_host.h"} -c "$source" -o "$object"
    echo "$key" >"$object.key"
}

pids=()
wanted=()
start() { # the same, beside as many others as there are processors
    wanted+=("$2")
    if [ -n "$only" ] && [ "$2" != "$objects/$only.o" ]; then return; fi
    compile "$@" &
    pids+=($!)
    if [ ${#pids[@]} -ge "$(nproc)" ]; then wait "${pids[0]}"; pids=("${pids[@]:1}"); fi
}
for source in "$host"/*.cpp; do start "$source" "$objects/host-$(basename "$source" .cpp).o"; done
for kernel in "$kernels"/*.cu; do
    stem=$(basename "$kernel" .cu)
    [ -n "$only" ] || registration "$kernel" >"$objects/$stem.cpp"
    start "$objects/$stem.cpp" "$objects/$stem.o" "$kernel"
done
for pid in "${pids[@]}"; do wait "$pid"; done
"$cxx" "${flags[@]}" -shared "${wanted[@]}" -o "$out"
