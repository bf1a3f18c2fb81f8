// y = alpha x W^T (+ bias) (+ y)
//
// x [M, K]; W [N, K]; bias [N] or null; y [M, N]. The terms are added in float and rounded once to y's type.
//
// On a GPU most products go to cuBLASLt (src/tensor/cuda/blas.rs). These kernels stand in where it is absent and under host execution, and are
// always taken for few rows (decoding), where a product is a reading of W:
//   linear_forward_bf16*       a block makes a tile of y, 128x128 or, where that would leave SMs idle, 64x64 (_t64): gemm.cuh. The same bits.
//   linear_skinny_forward_*    M <= 16. A block takes 16 rows of W, its 8 warps every 8th stretch of 32 along K. x is the A operand of an mma,
//                              padded to 16 rows, straight from L2; a lane reads 16 bytes of two rows of W and of two of x, of four stretches
//                              before it uses one: 256 bytes on their way. The order of k within an mma is free as long as both sides have the
//                              same one: 16 bytes are two steps of two registers, so no element is moved. The warps' sums meet in shared memory.
//   linear_forward_f32         exact, for tests: 32x32 tiles of FMAs.
// A row of y has the same bits whatever M and the other rows are. M <= 16 and M > 16 add in another order: they differ by rounding, no more.
//
// FLOPs: 2 M N K. Bytes: 2 (M K + N K + M N). On an H100 (3.35 TB/s, 989 TFLOP/s): SmolVLM-500M's gate projection (N = 2560, K = 960) takes
// 41 us of arithmetic for M = 8192 and 1.5 us of reading W for M = 1.
// Reached: not yet run on a GPU.
// Considered for few rows: FMAs, one warp a row of W (16 rows of x cost more arithmetic than the bytes take); x in shared memory (no warp
// shares its part of x with another, so nothing is saved).
#include "gemm.cuh"

// What becomes of a sum.
template <class Out, class T>
struct Finish {
  const Out* y;
  const T* bias;
  int cols;
  float alpha;
  int accumulate;

  __device__ __forceinline__ float operator()(int row, int col, float sum) const {
    float value = alpha * sum;
    if (bias != nullptr) value += to_f32(bias[col]);
    if (accumulate) value += to_f32(y[static_cast<int64_t>(row) * cols + col]);
    return value;
  }
};

// The product of a Tile of T, written as Out.
template <class Tile, class Out, class T>
__device__ __forceinline__ void linear_forward(Out* y, const T* x, const T* weight, const T* bias, int rows, int cols, int depth, float alpha,
                                               int accumulate, int m0, int n0) {
  Tile tile;
  tile.multiply(shared_memory<T>(), Matrix<T>{x, rows, depth}, Matrix<T>{weight, cols, depth}, m0, n0, depth);
  tile.store(y, rows, cols, m0, n0, Finish<Out, T>{y, bias, cols, alpha, accumulate});
}

constexpr int SKINNY = 16;  // rows of x, and of W in a block
constexpr int WARPS = 8;    // of a block, which share K

// c[i] += x [16, K] times rows n0 + 8 i .. + 8 of W over this warp's stretches of K, AHEAD of which are on their way at once.
template <int AHEAD, bool WIDE>
__device__ __forceinline__ void skinny_sums(float (&c)[2][4], const Matrix<bf16>& x, const Matrix<bf16>& weight, int n0) {
  const int group = lane_id() / 4, quad = lane_id() % 4;
  const bf16* line_a[2] = {x.line(group), x.line(group + 8)};
  const bf16* line_b[2] = {weight.line(n0 + group), weight.line(n0 + group + 8)};
  for (int k0 = 32 * warp_id(); k0 < x.depth; k0 += 32 * WARPS * AHEAD) {  // mutant: flip: one more round is one of zeros
    Pack<uint32_t, 4> a[AHEAD][2], b[AHEAD][2];
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int k = k0 + 32 * WARPS * s + 8 * quad;
        a[s][i] = x.words8<WIDE>(line_a[i], k);
        b[s][i] = weight.words8<WIDE>(line_b[i], k);
      }
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int step = 0; step < 4; step += 2) {
          const uint32_t both[4] = {a[s][0][step], a[s][1][step], a[s][0][step + 1], a[s][1][step + 1]};
          mma_bf16(c[i], both, b[s][i][step], b[s][i][step + 1]);
        }
  }
}

template <class Out>
__device__ __forceinline__ void linear_skinny_forward(Out* y, const bf16* x, const bf16* weight, const bf16* bias, int rows, int cols, int depth,
                                                      float alpha, int accumulate) {
  const int group = lane_id() / 4, quad = lane_id() % 4, n0 = blockIdx.x * SKINNY;
  const Matrix<bf16> a{x, rows, depth}, b{weight, cols, depth};
  float c[2][4] = {};
  if (a.aligned()) {
    skinny_sums<4, true>(c, a, b, n0);
  } else {
    skinny_sums<1, false>(c, a, b, n0);
  }

  float* sums = shared_memory<float>();  // [WARPS][SKINNY rows of x][SKINNY rows of W]
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) sums[(warp_id() * SKINNY + group + e / 2 * 8) * SKINNY + 8 * i + 2 * quad + e % 2] = c[i][e];
  __syncthreads();
  const int row = threadIdx.x / SKINNY, col = n0 + threadIdx.x % SKINNY;
  if (row >= rows || col >= cols) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) sum += sums[w * SKINNY * SKINNY + threadIdx.x];
  const Finish<Out, bf16> finish{y, bias, cols, alpha, accumulate};
  y[static_cast<int64_t>(row) * cols + col] = from_f32<Out>(finish(row, col, sum));
}

extern "C" __global__ void __launch_bounds__(256) linear_forward_bf16(bf16* y, const bf16* x, const bf16* weight, const bf16* bias, int rows,
                                                                      int cols, int depth, float alpha, int accumulate) {
  linear_forward<LargeTile>(y, x, weight, bias, rows, cols, depth, alpha, accumulate, blockIdx.x * 128, blockIdx.y * 128);
}

extern "C" __global__ void __launch_bounds__(256) linear_forward_bf16_to_f32(float* y, const bf16* x, const bf16* weight, const bf16* bias,
                                                                             int rows, int cols, int depth, float alpha, int accumulate) {
  linear_forward<LargeTile>(y, x, weight, bias, rows, cols, depth, alpha, accumulate, blockIdx.x * 128, blockIdx.y * 128);
}

extern "C" __global__ void __launch_bounds__(128) linear_forward_bf16_t64(bf16* y, const bf16* x, const bf16* weight, const bf16* bias, int rows,
                                                                          int cols, int depth, float alpha, int accumulate) {
  linear_forward<SmallTile>(y, x, weight, bias, rows, cols, depth, alpha, accumulate, blockIdx.x * 64, blockIdx.y * 64);
}

extern "C" __global__ void __launch_bounds__(128) linear_forward_bf16_t64_to_f32(float* y, const bf16* x, const bf16* weight, const bf16* bias,
                                                                                 int rows, int cols, int depth, float alpha, int accumulate) {
  linear_forward<SmallTile>(y, x, weight, bias, rows, cols, depth, alpha, accumulate, blockIdx.x * 64, blockIdx.y * 64);
}

extern "C" __global__ void __launch_bounds__(256, 2) linear_skinny_forward_bf16(bf16* y, const bf16* x, const bf16* weight, const bf16* bias,
                                                                                int rows, int cols, int depth, float alpha, int accumulate) {
  linear_skinny_forward(y, x, weight, bias, rows, cols, depth, alpha, accumulate);
}

extern "C" __global__ void __launch_bounds__(256, 2) linear_skinny_forward_bf16_to_f32(float* y, const bf16* x, const bf16* weight,
                                                                                       const bf16* bias, int rows, int cols, int depth,
                                                                                       float alpha, int accumulate) {
  linear_skinny_forward(y, x, weight, bias, rows, cols, depth, alpha, accumulate);
}

extern "C" __global__ void __launch_bounds__(64) linear_forward_f32(float* y, const float* x, const float* weight, const float* bias, int rows,
                                                                    int cols, int depth, float alpha, int accumulate) {
  linear_forward<ExactTile>(y, x, weight, bias, rows, cols, depth, alpha, accumulate, blockIdx.x * 32, blockIdx.y * 32);
}
