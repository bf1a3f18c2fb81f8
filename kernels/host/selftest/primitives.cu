// Kernels for the self-test of the CPU execution layer: one primitive each, results compared with plain loops in test_primitives.cpp.
#include "../../mma.cuh"

// c[16][8] = a[16][16] b[16][8], one warp.
extern "C" __global__ void __launch_bounds__(32) selftest_mma_bf16(float* c, const bf16* a, const bf16* b) {
  bf16* shared_a = shared_memory<bf16>();
  bf16* shared_b = shared_a + 16 * 16;
  const int lane = lane_id();
  cp_async16(shared_a + lane * 8, a + lane * 8, true);
  if (lane < 16) cp_async16(shared_b + lane * 8, b + lane * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  ldmatrix_x4(fragment_a, shared_a + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix_x2_trans(fragment_b, shared_b + lane % 16 * 8);
  float sum[4] = {};
  mma_bf16(sum, fragment_a, fragment_b[0], fragment_b[1]);
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// c[16][8] = a[16][32] b^T, b[8][32], one warp.
extern "C" __global__ void __launch_bounds__(32) selftest_mma_s8(int* c, const int8_t* a, const int8_t* b) {
  int8_t* shared_a = shared_memory<int8_t>();
  int8_t* shared_b = shared_a + 16 * 32;
  const int lane = lane_id();
  cp_async16(shared_a + lane * 16, a + lane * 16, true);
  if (lane < 16) cp_async16(shared_b + lane * 16, b + lane * 16, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  ldmatrix_x4(fragment_a, shared_a + lane % 16 * 32 + lane / 16 * 16);
  ldmatrix_x2(fragment_b, shared_b + lane % 8 * 32 + lane / 8 % 2 * 16);
  int sum[4] = {};
  mma_s8(sum, fragment_a, fragment_b[0], fragment_b[1]);
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// The registers of each ldmatrix over four 8x8 matrices whose elements are their own index: out[12][32].
extern "C" __global__ void __launch_bounds__(32) selftest_ldmatrix(uint32_t* out) {
  uint16_t* matrices = shared_memory<uint16_t>();
  const int lane = lane_id();
  for (int i = lane; i < 256; i += 32) matrices[i] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t four[4], four_trans[4], two[2], two_trans[2];
  ldmatrix_x4(four, matrices + lane * 8);
  ldmatrix_x4_trans(four_trans, matrices + lane * 8);
  ldmatrix_x2(two, matrices + lane % 16 * 8);
  ldmatrix_x2_trans(two_trans, matrices + lane % 16 * 8);
  for (int i = 0; i < 4; i++) out[i * 32 + lane] = four[i], out[(4 + i) * 32 + lane] = four_trans[i];
  for (int i = 0; i < 2; i++) out[(8 + i) * 32 + lane] = two[i], out[(10 + i) * 32 + lane] = two_trans[i];
}

// out = x for n words, through a two-stage ring of cp.async: 16 bytes a thread, or 4 where wide is 0. Out of range: zeros, not copied out.
extern "C" __global__ void __launch_bounds__(64) selftest_cp_async(uint32_t* out, const uint32_t* x, int n, int wide) {
  uint32_t* ring = shared_memory<uint32_t>();  // [2][words]
  const int each = wide ? 4 : 1, words = 64 * each, steps = (n + words - 1) / words;
  auto issue = [&](int step) {
    int to = step % 2 * words + threadIdx.x * each, from = step * words + threadIdx.x * each;
    bool inside = from < n;
    if (wide) cp_async16(ring + to, x + (inside ? from : 0), inside);
    if (!wide) cp_async4(ring + to, x + (inside ? from : 0), inside);
    cp_async_commit();
  };
  issue(0);
  for (int step = 0; step < steps; step++) {
    issue(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    for (int i = threadIdx.x; i < words; i += 64) {
      int mirrored = words - 1 - i;  // written by another thread
      uint32_t word = ring[step % 2 * words + mirrored];
      if (step * words + mirrored < n) out[step * words + mirrored] = word;
      else if (word != 0) out[0] = ~0u;
    }
    __syncthreads();
  }
  cp_async_wait<0>();
}

// out[18][32]: each shuffle at widths 32, 16 and 8, then votes.
extern "C" __global__ void __launch_bounds__(32) selftest_shuffle(int* out) {
  const int lane = lane_id(), value = lane * 10;
  int row = 0;
  for (int width = 32; width >= 8; width /= 2) {
    out[row++ * 32 + lane] = __shfl_xor_sync(FULL_WARP, value, 5, width);
    out[row++ * 32 + lane] = __shfl_down_sync(FULL_WARP, value, 3, width);
    out[row++ * 32 + lane] = __shfl_up_sync(FULL_WARP, value, 3, width);
    out[row++ * 32 + lane] = __shfl_sync(FULL_WARP, value, 7 + lane, width);
  }
  out[row++ * 32 + lane] = static_cast<int>(__ballot_sync(FULL_WARP, lane % 3 == 0));
  out[row++ * 32 + lane] = __any_sync(FULL_WARP, lane == 31);
  out[row++ * 32 + lane] = __any_sync(FULL_WARP, lane == 32);
  out[row++ * 32 + lane] = __all_sync(FULL_WARP, lane < 32);
  out[row++ * 32 + lane] = __all_sync(FULL_WARP, lane < 31);
  if (lane < 8) out[row * 32 + lane] = __shfl_xor_sync(0xff, value, 1);  // half the warp elsewhere
}

// out[0], out[1]: sum and maximum of x[blockDim.x], from each thread; out[2]: the number of threads that agree with thread 0.
extern "C" __global__ void __launch_bounds__(1024) selftest_reduce(float* out, const float* x) {
  float* scratch = shared_memory<float>();
  float sum = block_sum(x[threadIdx.x], scratch), greatest = block_max(x[threadIdx.x], scratch);
  float agree = block_sum(sum == block_sum(x[threadIdx.x], scratch) ? 1.0f : 0.0f, scratch);
  if (threadIdx.x == 0) out[0] = sum, out[1] = greatest, out[2] = agree;
}

// counts[8]: a histogram of the index modulo 8; limits: maximum and minimum. total: the block that comes last sums all blocks' part.
extern "C" __global__ void __launch_bounds__(64) selftest_atomics(int* counts, int* limits, float* part, unsigned* arrived, float* total) {
  float* is_last = shared_memory<float>();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(counts + i % 8, 1);
  atomicMax(limits, i);
  atomicMin(limits + 1, i);
  if (threadIdx.x == 0) {
    part[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
    __threadfence();
    *is_last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1 ? 1.0f : 0.0f;
    __threadfence();
  }
  __syncthreads();
  if (*is_last == 0.0f) return;
  if (threadIdx.x == 0) {
    float sum = 0;
    for (unsigned block = 0; block < gridDim.x; block++) sum += part[block];
    *total = sum;
  }
}

// Every index of a three-dimensional launch: out[linear] = threadIdx and blockIdx packed.
extern "C" __global__ void selftest_indices(int* out) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * static_cast<int>(blockDim.x * blockDim.y * blockDim.z) + thread] =
      blockIdx.z << 20 | blockIdx.y << 16 | blockIdx.x << 12 | threadIdx.z << 8 | threadIdx.y << 4 | threadIdx.x;
}

// Arguments of every size arrive as they were sent.
struct Odd {
  char bytes[5];
};
extern "C" __global__ void __launch_bounds__(32) selftest_arguments(double* out, int8_t a, bf16 b, int c, float d, long long e, double f, const Odd g) {
  if (threadIdx.x == 0) {
    out[0] = a;
    out[1] = to_f32(b);
    out[2] = c;
    out[3] = d;
    out[4] = static_cast<double>(e);
    out[5] = f;
    out[6] = g.bytes[4];
  }
}

// Time: 32 shuffles and a barrier per thread.
extern "C" __global__ void __launch_bounds__(256) selftest_speed(float* out, int rounds) {
  float x = static_cast<float>(threadIdx.x);
  for (int i = 0; i < rounds; i++) x = __shfl_xor_sync(FULL_WARP, x, 1);
  __syncthreads();
  out[blockIdx.x * 256 + threadIdx.x] = x;
}
