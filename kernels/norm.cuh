// What rms_norm and layer_norm share.
#pragma once
#include "rows.cuh"

// Of the backward: eight warps a block, two rows each.

constexpr int BACKWARD_WARPS = 8;
constexpr int BACKWARD_ROWS = 16;

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
