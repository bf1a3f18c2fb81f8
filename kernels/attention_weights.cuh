// What the kernels of attention's gradient share.
#pragma once
#include "attention_span.cuh"

// P = 2^(score scale - lse), with scale and lse times log2(e). It is at most 1, but for the rounding of large scores, which must not make an
// infinity of it.
__device__ __forceinline__ float weight(float score, float scale, float lse) {
  const float x = fmaf(score, scale, -lse);
  // NaN stays.
  // mutant: flip: 0 is 0.
  return exp2_approx(x > 0.0f ? 0.0f : x);
}
