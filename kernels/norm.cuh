// What rms_norm and layer_norm share: a warp goes over a row, an added residual, sums over rows for the gradients of weights.
#pragma once
#include "common.cuh"

// --- forward: one warp a row, four rows a block ---

constexpr int ROWS = 4;

// --- backward: eight warps a block, two rows each. What the block's rows add to dweight it leaves in its row of `partial`. ---

constexpr int BACKWARD_WARPS = 8;
constexpr int BACKWARD_ROWS = 16;

// Elements that move as one, for `each_pack`.
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

// x[c .. c + N), after x += residual, rounded to T, where there is one.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_with_residual(T* x, const T* residual, int c) {
  Pack<T, N> a = load_pack<N>(x + c);
  if (residual != nullptr) {
    const Pack<T, N> b = load_pack<N>(residual + c);
    for (int i = 0; i < N; i++) a[i] = from_f32<T>(to_f32(a[i]) + to_f32(b[i]));
    store_pack(x + c, a);
  }
  return a;
}

// dx[c .. c + N) = gradient(i) (+ residual), rounded once.
template <int N, class T, class F>
__device__ __forceinline__ void store_gradient(T* dx, const T* residual, int c, F gradient) {
  Pack<T, N> d;
  if (residual != nullptr) {
    d = load_pack<N>(residual + c);
    for (int i = 0; i < N; i++) d[i] = from_f32<T>(gradient(i) + to_f32(d[i]));
  } else {
    for (int i = 0; i < N; i++) d[i] = from_f32<T>(gradient(i));
  }
  store_pack(dx + c, d);
}
