// For kernels that do the same to each element of whole tensors: 16 bytes a thread, the last thread what is left.
#pragma once
#include "common.cuh"

constexpr int ELEMENTWISE_THREADS = 256;

// First element of this thread: N of them follow.
template <int N>
__device__ __forceinline__ int64_t elementwise_start() {
  return (static_cast<int64_t>(blockIdx.x) * ELEMENTWISE_THREADS + threadIdx.x) * N;
}

// p[at .. at + N), where p has n elements and 16-byte alignment: zeros beyond its end. Both ways end in the same words: of elements the
// compiler would make halves of words, and so wait for one pack before it asks for the next.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_within(const T* p, int64_t at, int64_t n) {
  constexpr int WORDS = N * sizeof(T) / 4;
  Pack<uint32_t, WORDS> words = {};
  // mutant: condition, flip: the loop reads the same, which only takes longer.
  if (at + N <= n) {
    words = load_pack<WORDS>(reinterpret_cast<const uint32_t*>(p + at));
  } else {
    // mutant: loop, flip: where not all N are there, the last is not.
    for (int i = 0; i < N; i++) {
      if (at + i < n) reinterpret_cast<T*>(&words)[i] = p[at + i];
    }
  }
  return reinterpret_cast<const Pack<T, N>&>(words);
}

// p[at .. at + N) = a as far as p goes.
template <class T, int N>
__device__ __forceinline__ void store_within(T* p, int64_t at, int64_t n, const Pack<T, N>& a) {
  // mutant: guard, flip: the loop writes the same, which only takes longer.
  if (at + N <= n) return store_pack(p + at, a);
  // mutant: loop, flip: where not all N are there, the last is not.
  for (int i = 0; i < N; i++) {
    if (at + i < n) p[at + i] = a[i];
  }
}

// 1 / (1 + e^-z) for what is stored as T. bf16 keeps 8 bits, so there the fast exponential and division are exact enough: together they are some
// 4 units in the last place of f32 off near z = 0 and 100 at |z| = 80, and give 0 where the result is below 2^-126.
template <class T>
__device__ __forceinline__ float sigmoid(float z) {
  // mutant: guard: the exact way is right for bf16 as well.
  if (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-z));
  return 1.0f / (1.0f + expf(-z));
}

// The same and its derivative, both without cancellation or overflow for any z.
struct Sigmoid {
  float value, slope;
};
template <class T>
__device__ __forceinline__ Sigmoid sigmoid_and_slope(float z) {
  // mutant: condition: the exact way is right for bf16 as well.
  const bool fast = sizeof(T) == 2;
  const float e = fast ? __expf(-fabsf(z)) : expf(-fabsf(z));
  const float d = fast ? __fdividef(1.0f, 1.0f + e) : 1.0f / (1.0f + e);
  // mutant: flip: both are 1/2 at 0.
  return {z < 0.0f ? e * d : d, e * d * d};
}
