#!/usr/bin/env bash
# Fetches the CUDA compiler (no driver, no GPU needed) as pinned wheels into .cuda, where build.rs finds it. Running it again does nothing.
# 100 MB to fetch, 271 MB on disk. Delete .cuda to undo. CUDA 13.0 on purpose: PTX of a newer compiler may not load on a 580 driver.
set -euo pipefail
cd "$(dirname "$0")/.."

wheels=(
    nvidia-cuda-nvcc==13.0.88    # nvcc, ptxas, fatbinary
    nvidia-cuda-crt==13.0.88     # headers that nvcc includes by itself
    nvidia-nvvm==13.0.88         # cicc, the device compiler
    nvidia-cuda-runtime==13.0.96 # cuda_bf16.h, cuda_fp16.h, ...
    nvidia-cuda-cccl==13.0.85    # cuda_fp16.h includes nv/target from here
)
nvcc=.cuda/nvidia/cu13/bin/nvcc
stamp=.cuda/wheels.txt

if [[ -x $nvcc && -f $stamp && $(<"$stamp") == "${wheels[*]}" ]]; then
    echo "already there: $nvcc"
    exit 0
fi
if command -v pip >/dev/null; then
    pip=(pip)
elif python3 -m pip --version >/dev/null 2>&1; then
    pip=(python3 -m pip)
else
    echo "setup-nvcc: no pip found. Install it (Debian: apt-get install python3-pip), or install the CUDA toolkit 13.0 and set CUDA_HOME." >&2
    exit 1
fi
rm -rf .cuda
"${pip[@]}" install --quiet --disable-pip-version-check --no-deps --target .cuda "${wheels[@]}"
"$nvcc" --version | tail -2
printf '%s' "${wheels[*]}" >"$stamp"
echo "installed: $nvcc"
