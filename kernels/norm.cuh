// What rms_norm and layer_norm share.
#pragma once
#include "rows.cuh"

// Of the backward: eight warps a block, two rows each.

constexpr int BACKWARD_WARPS = 8;
constexpr int BACKWARD_ROWS = 16;

// f(pack) for each pack of the row x that is this thread's, of so many that share the row; after x += residual, rounded to T, where there is one.
// Two loops: with the question in one, a pack would be waited for before the next is asked for.
template <class T, class F>
__device__ __forceinline__ void each_with_residual(T* __restrict__ x, const T* __restrict__ residual, int cols, int thread, int threads, F f) {
  if (residual == nullptr) {
    each_pack<T>(cols, thread, threads, [&](auto width, int c) { f(load_pack<decltype(width)::N_ELEMENTS>(x + c)); });
    return;
  }
  each_pack<T>(cols, thread, threads, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    Pack<T, N> a = load_pack<N>(x + c);
    const Pack<T, N> b = load_pack<N>(residual + c);
    for (int i = 0; i < N; i++) a[i] = from_f32<T>(to_f32(a[i]) + to_f32(b[i]));
    store_pack(x + c, a);
    f(a);
  });
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
