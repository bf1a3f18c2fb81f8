// Sums of the columns of a matrix of floats, in one order: what blocks have left behind is added to a weight's gradient.
#pragma once
#include "common.cuh"

// out[c] += sum over r of partial[r, c]; partial [rows, cols]. A block of 8 warps has 32 columns: warp w adds rows w, w + 8, ..., then the first
// warp adds the warps' sums. Shared memory: 256 floats.
__device__ __forceinline__ void add_column_sums(float* out, const float* partial, int rows, int cols) {
  constexpr int WARPS = 8;
  float* sums = shared_memory<float>();
  const int c = blockIdx.x * 32 + lane_id();
  float sum = 0.0f;
  if (c < cols) {
#pragma unroll 8
    for (int r = warp_id(); r < rows; r += WARPS) sum += partial[static_cast<int64_t>(r) * cols + c];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_id() > 0 || c >= cols) return;
  for (int w = 1; w < WARPS; w++) sum += sums[w * 32 + lane_id()];
  out[c] += sum;
}
