// What all kernels of attention share: which keys a query sees, and exponentials to base 2 (the scale of the scores takes log2(e) in).
#pragma once
#include "common.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// 2^x, off by 2^-22 of it; below 2^-126 it is 0. On the host it is exact.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef MPA_HOST
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// A sequence: rows of q (and out), rows of k and v.
//
// Blocks: grid.x = query heads, grid.y = tiles of the longest span, grid.z = spans. Heads run fastest: blocks that run together share a span's
// keys and values in L2, and where a span's longest tiles come first, what is left for its end is short.
struct Span {
  int q_start, q_len, k_start, k_len;
  int reach;  // query i sees the first min(k_len, i + reach) keys

  __device__ __forceinline__ Span(int4 raw, bool causal)
      : q_start(raw.x), q_len(raw.y), k_start(raw.z), k_len(raw.w), reach(causal ? raw.w - raw.y + 1 : raw.w) {}
  __device__ __forceinline__ int seen(int query) const { return min(k_len, query + reach); }
};

// The number of the block's tile if the last comes first: with a causal mask it has the most keys.
__device__ __forceinline__ int tile_from_last() { return gridDim.y - 1 - blockIdx.y; }

// 1 / total; 0 for a query without keys, whose output is zeros.
__device__ __forceinline__ float inverse(float total) { return total == 0.0f ? 0.0f : 1.0f / total; }

// The natural logarithm of total * 2^top: -inf for a query without keys.
__device__ __forceinline__ float log_sum(float top, float total) { return (top + log2f(total)) * LN_2; }
