// One small kernel that is right with fault 0, and one planted bug per other number. test_faults.cpp names them.
#include "../../mma.cuh"
#include "faults.h"

// y[block][i] = the sum of x[block][0..i] and x[block][n-1-i], for a block of 64 threads and n = 256 words of float: loaded with cp.async,
// mirrored through shared memory, summed over pairs of lanes. Shared: 256 + 64 floats.
extern "C" __global__ void __launch_bounds__(64) selftest_fault(float* y, const float* x, float* total, unsigned* arrived, int fault) {
  constexpr int N = 256;
  float* tile = shared_memory<float>();
  float* lanes = tile + N;
  const int t = threadIdx.x;
  x += blockIdx.x * N;
  y += blockIdx.x * N;

  if (fault == RETURNS_EARLY && t == 40) return;
  const float* from = x + t * 4 + (fault == READS_PAST_GLOBAL && t == 63 && blockIdx.x == gridDim.x - 1 ? 4 : 0);
  if (fault == COPIES_OUTSIDE_SHARED && t == 63) cp_async16(tile + N + 64, from, true);
  cp_async16(tile + t * 4, from, true);
  if (fault != MISSING_COMMIT) cp_async_commit();
  if (fault != MISSING_WAIT) cp_async_wait<0>();
  if (fault == DIVERGENT_BARRIER && t < 32) __syncthreads();
  else if (fault != MISSING_BARRIER) __syncthreads();

  // Mirrored, four at a time.
  const float* other = tile + N - 4 - t * 4;
  Pack<float, 4> pack = load_pack<4>(fault == MISALIGNED_PACK && t == 5 ? other + 1 : other);
  float4 same = *reinterpret_cast<const float4*>(tile + t * 4 + (fault == MISALIGNED_VECTOR && t == 5 ? 1 : 0));
  float4 out = {same.x + pack[3], same.y + pack[2], same.z + pack[1], same.w + pack[0]};
  if (fault == READS_PAST_SHARED && t == 63) out.x += tile[N + 64];

  // The sum of each pair of lanes, through shared memory within the warp and through a shuffle: they cancel.
  lanes[t] = out.x;
  if (fault != MISSING_WARP_BARRIER) __syncwarp();
  out.x += lanes[t ^ 1];
  unsigned mask = fault == WRONG_MASK ? 0x55555555 : FULL_WARP;
  if (fault == DIVERGENT_SHUFFLE && t % 32 == 3) out.y += 0 * __shfl_down_sync(FULL_WARP, out.x, 1);
  else out.x -= __shfl_xor_sync(mask, lanes[t], 1);
  if (fault == SOME_LANES_SHUFFLE && t % 32 < 16) out.x += __shfl_xor_sync(FULL_WARP, out.x, 1);

  if (fault == MISALIGNED_LDMATRIX || fault == LDMATRIX_OUTSIDE_SHARED) {
    uint32_t registers[4];
    ldmatrix_x4(registers, tile + t * 4 + (fault == MISALIGNED_LDMATRIX ? 1 : N));
  }
  if (fault == WRITES_PAST_GLOBAL && t == 63 && blockIdx.x == gridDim.x - 1) y[N] = 0;
  *reinterpret_cast<float4*>(y + t * 4) = out;

  // The block that comes last sums what all have written.
  if (fault == BLOCKS_RACE && t == static_cast<int>(blockIdx.x)) *total = 0;
  __syncthreads();
  if (fault == ENDS_WHILE_COPYING) cp_async16(tile + t * 4, from, true);
  else if (fault == MISSING_COMMIT || fault == MISSING_WAIT) {  // too late for what has been read
    cp_async_commit();
    cp_async_wait<0>();
  }
  if (t != 0) return;
  if (fault != MISSING_FENCE) __threadfence();
  bool last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
  if (fault != MISSING_FENCE) __threadfence();
  if (!last) return;
  float sum = 0;
  for (int i = 0; i < static_cast<int>(gridDim.x) * N; i++) sum += (y - blockIdx.x * N)[i];
  *total = sum;
}

// Two buffers in turn; without the second barrier a fast warp overwrites what a slow one still reads.
template <bool CLEARED>
__device__ void ring(float* y, const float* x, int steps, int fault) {
  float* tile = shared_memory<float>();
  float sum;
  if constexpr (CLEARED) sum = 0;
  for (int step = 0; step < steps; step++) {
    tile[threadIdx.x] = x[step * 64 + threadIdx.x];
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if (fault != OVERWRITES_TOO_EARLY) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(64) selftest_ring(float* y, const float* x, int steps, int fault) { ring<true>(y, x, steps, fault); }
extern "C" __global__ void __launch_bounds__(64) selftest_ring_unset(float* y, const float* x, int steps, int fault) { ring<false>(y, x, steps, fault); }
