// dx = dy W (+ dx),   dW += dy^T x,   db += sum_m dy[m]          (of y = x W^T + b)
//
// dx, x [M, K]; dy [M, N]; W [N, K]; dW [N, K] and db [N] float, added to.
//
// On a GPU the two products go to cuBLASLt (src/tensor/cuda/blas.rs). These kernels stand in where it is absent and under host execution:
//   linear_input_backward_*    rows of dy times W, which lies across the depth N (gemm.cuh, Across): a block makes a tile of dx, 128x128 or, where
//                              that would leave SMs idle, 64x64 (_t64). The same bits, and a row's depend on no other row.
//   linear_weight_backward_*   both operands lie across the depth M. M is not cut: a stand-in is to be simple, and its 225 tiles of 64x64 for
//                              N = K = 960 keep a GPU busy; where N and K are small, time is too.
//   *_f32                      exact, for tests: 32x32 tiles of FMAs.
// The bias is always ours:
//   linear_bias_backward_*     a block sums a piece of rows, 256 or less, of 32 packs of 16 bytes; a warp takes every 8th row, eight of them on
//                              their way at once, and the warps meet in shared memory, in order. Sums of pieces go to scratch [pieces, N],
//   linear_bias_reduce_*       which adds them up in order, a thread a column.
//
// FLOPs: 2 M N K each. Bytes: dx 2 (M N + N K + M K), dW 2 (M N + M K) + 8 N K, db 2 M N. On an H100 (3.35 TB/s, 989 TFLOP/s): SmolVLM-500M's
// gate (M = 8192, N = 2560, K = 960) takes 41 us of arithmetic for dx and for dW; db of N = 960 takes 4.7 us of memory.
// Reached: not yet run on a GPU.
// Considered: W and dy transposed in memory first (another pass over both, and room for them); db as a row of ones in dW's product (cuBLASLt has
// an epilogue for it, but not into sums that are kept).
#include "gemm.cuh"

// value (+ what is there).
template <class Out>
struct Finish {
  const Out* there;
  int cols, accumulate;

  __device__ __forceinline__ float operator()(int row, int col, float sum) const {
    return accumulate ? sum + to_f32(there[static_cast<int64_t>(row) * cols + col]) : sum;
  }
};

// dx [rows, cols] from dy [rows, depth] and W [depth, cols].
template <class Tile, class Out, class T>
__device__ __forceinline__ void linear_input_backward(Out* dx, const T* dy, const T* weight, int rows, int cols, int depth, int accumulate) {
  const int m0 = blockIdx.x * Tile::ROWS, n0 = blockIdx.y * Tile::COLS;
  Tile tile;
  tile.multiply(shared_memory<T>(), Matrix<T>{dy, rows, depth}, Across<Matrix<T>>{{weight, depth, cols}}, m0, n0, depth);
  tile.store(dx, rows, cols, m0, n0, Finish<Out>{dx, cols, accumulate});
}

// dW [rows, cols] from dy [depth, rows] and x [depth, cols].
template <class Tile, class T>
__device__ __forceinline__ void linear_weight_backward(float* dweight, const T* dy, const T* x, int rows, int cols, int depth) {
  const int m0 = blockIdx.x * Tile::ROWS, n0 = blockIdx.y * Tile::COLS;
  Tile tile;
  tile.multiply(shared_memory<T>(), Across<Matrix<T>>{{dy, depth, rows}}, Across<Matrix<T>>{{x, depth, cols}}, m0, n0, depth);
  tile.store(dweight, rows, cols, m0, n0, Finish<float>{dweight, cols, 1});
}

constexpr int WARPS = 8;
constexpr int PIECE = 256;  // rows that a block sums

// sums += rows first to end of dy, every WARPS-th of them, as get(row) gives the lane's elements; AHEAD rows are on their way at once.
template <int AHEAD, int N, class Get>
__device__ __forceinline__ void add_rows(float (&sums)[N], int first, int end, Get get) {
#pragma unroll AHEAD
  for (int row = first + warp_id(); row < end; row += WARPS) {
    const auto pack = get(row);
#pragma unroll
    for (int i = 0; i < N; i++) sums[i] += to_f32(pack[i]);
  }
}

template <class T>
__device__ __forceinline__ void linear_bias_backward(float* partials, const T* dy, int rows, int cols) {
  constexpr int N = 16 / sizeof(T), WIDTH = 32 * N;
  const int c0 = blockIdx.x * WIDTH, c = c0 + lane_id() * N;
  const int first = blockIdx.y * PIECE, end = min(first + PIECE, rows);
  float sum[N] = {};
  // Packs need aligned rows: other widths go element by element.
  // mutant: condition: false sends every width there, which only takes longer.
  if (cols % N == 0) {
    const T* column = dy + min(c, cols - N);  // beyond dy: what is not stored
    add_rows<8>(sum, first, end, [=](int row) { return load_pack<N>(column + static_cast<int64_t>(row) * cols); });
  } else {
    const Matrix<T> lines{dy, rows, cols};
    add_rows<1>(sum, first, end, [=](int row) {
      Pack<T, N> pack;
#pragma unroll
      for (int i = 0; i < N; i++) pack[i] = lines.at(lines.line(row), c + i);
      return pack;
    });
  }
  float* sums = shared_memory<float>();  // [WARPS][WIDTH]
#pragma unroll
  for (int i = 0; i < N; i++) sums[warp_id() * WIDTH + lane_id() * N + i] = sum[i];
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine >= WIDTH || c0 + mine >= cols) return;
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) total += sums[w * WIDTH + mine];
  partials[static_cast<int64_t>(blockIdx.y) * cols + c0 + mine] = total;
}

extern "C" __global__ void __launch_bounds__(256) linear_input_backward_bf16(bf16* dx, const bf16* dy, const bf16* weight, int rows, int cols,
                                                                             int depth, int accumulate) {
  linear_input_backward<LargeTile>(dx, dy, weight, rows, cols, depth, accumulate);
}

extern "C" __global__ void __launch_bounds__(256) linear_input_backward_bf16_to_f32(float* dx, const bf16* dy, const bf16* weight, int rows,
                                                                                    int cols, int depth, int accumulate) {
  linear_input_backward<LargeTile>(dx, dy, weight, rows, cols, depth, accumulate);
}

extern "C" __global__ void __launch_bounds__(128) linear_input_backward_bf16_t64(bf16* dx, const bf16* dy, const bf16* weight, int rows, int cols,
                                                                                 int depth, int accumulate) {
  linear_input_backward<SmallTile>(dx, dy, weight, rows, cols, depth, accumulate);
}

extern "C" __global__ void __launch_bounds__(128) linear_input_backward_bf16_t64_to_f32(float* dx, const bf16* dy, const bf16* weight, int rows,
                                                                                        int cols, int depth, int accumulate) {
  linear_input_backward<SmallTile>(dx, dy, weight, rows, cols, depth, accumulate);
}

extern "C" __global__ void __launch_bounds__(64) linear_input_backward_f32(float* dx, const float* dy, const float* weight, int rows, int cols,
                                                                           int depth, int accumulate) {
  linear_input_backward<ExactTile>(dx, dy, weight, rows, cols, depth, accumulate);
}

extern "C" __global__ void __launch_bounds__(256) linear_weight_backward_bf16(float* dweight, const bf16* dy, const bf16* x, int rows, int cols,
                                                                              int depth) {
  linear_weight_backward<LargeTile>(dweight, dy, x, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(128) linear_weight_backward_bf16_t64(float* dweight, const bf16* dy, const bf16* x, int rows,
                                                                                  int cols, int depth) {
  linear_weight_backward<SmallTile>(dweight, dy, x, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(64) linear_weight_backward_f32(float* dweight, const float* dy, const float* x, int rows, int cols,
                                                                            int depth) {
  linear_weight_backward<ExactTile>(dweight, dy, x, rows, cols, depth);
}

extern "C" __global__ void __launch_bounds__(256, 4) linear_bias_backward_bf16(float* partials, const bf16* dy, int rows, int cols) {
  linear_bias_backward(partials, dy, rows, cols);
}

extern "C" __global__ void __launch_bounds__(256, 4) linear_bias_backward_f32(float* partials, const float* dy, int rows, int cols) {
  linear_bias_backward(partials, dy, rows, cols);
}

extern "C" __global__ void __launch_bounds__(256) linear_bias_reduce_backward_f32(float* dbias, const float* partials, int pieces, int cols) {
  const int col = blockIdx.x * 256 + threadIdx.x;
  if (col >= cols) return;
  float sum = 0.0f;
  for (int i = 0; i < pieces; i++) sum += partials[static_cast<int64_t>(i) * cols + col];
  dbias[col] += sum;
}
