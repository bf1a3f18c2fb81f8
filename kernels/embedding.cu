// forward: out[t] = table[ids[t]], the embedding of tokens and the gathering of rows.
// splice:  out[positions[t]] = features[sources[t]], picture features into the rows of picture tokens, keys and values into the cache. The
//          positions differ from one another (the launcher checks), so no two warps write one row.
//
// Rows of C elements. One warp a row, four rows a block; a lane copies every 32nd pack of 16 bytes.
// Bytes: 2 T C sizeof + 4 T (8 T for splice). No FLOPs. Bound by memory: at 3.35 TB/s (H100) T = 8192, C = 960 in bf16 (SmolVLM-500M) takes 9.4 us.
// Reached: not yet run on a GPU.
#include "common.cuh"

constexpr int ROWS = 4;  // warps of a block

// to[0..cols) = from[0..cols) by one warp. Packs need aligned rows: other widths go element by element.
template <class T>
__device__ __forceinline__ void copy_row(T* to, const T* from, int cols) {
  constexpr int N = 16 / sizeof(T);
  if (cols % N == 0) {
    for (int c = lane_id() * N; c < cols; c += 32 * N) store_pack(to + c, load_pack<N>(from + c));
  } else {
    for (int c = lane_id(); c < cols; c += 32) to[c] = from[c];
  }
}

template <class T>
__device__ __forceinline__ void embedding_forward(T* out, const uint32_t* ids, const T* table, int rows, int cols) {
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  copy_row(out + static_cast<int64_t>(row) * cols, table + static_cast<int64_t>(ids[row]) * cols, cols);
}

template <class T>
__device__ __forceinline__ void splice_forward(T* out, const T* features, const uint32_t* positions, const uint32_t* sources, int rows, int cols) {
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  copy_row(out + static_cast<int64_t>(positions[row]) * cols, features + static_cast<int64_t>(sources[row]) * cols, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_forward_bf16(bf16* out, const uint32_t* ids, const bf16* table, int rows, int cols) {
  embedding_forward(out, ids, table, rows, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_forward_f32(float* out, const uint32_t* ids, const float* table, int rows, int cols) {
  embedding_forward(out, ids, table, rows, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_splice_forward_bf16(bf16* out, const bf16* features, const uint32_t* positions,
                                                                                const uint32_t* sources, int rows, int cols) {
  splice_forward(out, features, positions, sources, rows, cols);
}

extern "C" __global__ void __launch_bounds__(128) embedding_splice_forward_f32(float* out, const float* features, const uint32_t* positions,
                                                                               const uint32_t* sources, int rows, int cols) {
  splice_forward(out, features, positions, sources, rows, cols);
}
