// For kernels in which a warp, or a block, goes over a row.
#pragma once
#include "common.cuh"

constexpr int ROWS = 4;  // warps of a block, one a row

// How many elements move as one: `constexpr int N = decltype(width)::N_ELEMENTS` in what `each_pack` calls.
template <int N>
struct Width {
  static constexpr int N_ELEMENTS = N;
};

// f(Width<N>, c) for each pack [c, c + N) of a row that is this thread's, of so many that share the row. Packs of 16 bytes need aligned rows:
// other widths go element by element.
template <class T, class F>
__device__ __forceinline__ void each_pack(int cols, int thread, int threads, F f) {
  constexpr int N = 16 / sizeof(T);
  // mutant: condition: false sends every width there, which only takes longer.
  if (cols % N == 0) {
    for (int c = thread * N; c < cols; c += threads * N) f(Width<N>(), c);
  } else {
    for (int c = thread; c < cols; c += threads) f(Width<1>(), c);
  }
}

// The same where a warp has the row.
template <class T, class F>
__device__ __forceinline__ void each_pack(int cols, F f) {
  each_pack<T>(cols, lane_id(), 32, f);
}

// The same where a block has it.
template <class T, class F>
__device__ __forceinline__ void each_pack_of_block(int cols, F f) {
  each_pack<T>(cols, threadIdx.x, blockDim.x, f);
}

// to[0..cols) = from[0..cols) by one warp; they are not the same memory.
template <class T>
__device__ __forceinline__ void copy_row(T* __restrict__ to, const T* __restrict__ from, int cols) {
  each_pack<T>(cols, [&](auto width, int c) { store_pack(to + c, load_pack<decltype(width)::N_ELEMENTS>(from + c)); });
}
