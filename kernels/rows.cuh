// For kernels in which a warp goes over a row.
#pragma once
#include "common.cuh"

constexpr int ROWS = 4;  // warps of a block, one a row

// How many elements move as one: `constexpr int N = decltype(width)::N_ELEMENTS` in what `each_pack` calls.
template <int N>
struct Width {
  static constexpr int N_ELEMENTS = N;
};

// f(Width<N>, c) for each pack [c, c + N) of a row that is this lane's. Packs of 16 bytes need aligned rows: other widths go element by element.
template <class T, class F>
__device__ __forceinline__ void each_pack(int cols, F f) {
  constexpr int N = 16 / sizeof(T);
  // mutant: condition: false sends every width there, which only takes longer.
  if (cols % N == 0) {
    for (int c = lane_id() * N; c < cols; c += 32 * N) f(Width<N>(), c);
  } else {
    for (int c = lane_id(); c < cols; c += 32) f(Width<1>(), c);
  }
}

// to[0..cols) = from[0..cols) by one warp.
template <class T>
__device__ __forceinline__ void copy_row(T* to, const T* from, int cols) {
  each_pack<T>(cols, [&](auto width, int c) { store_pack(to + c, load_pack<decltype(width)::N_ELEMENTS>(from + c)); });
}
