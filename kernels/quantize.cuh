// Symmetric int8 by row: scale = max|x| / 127, q = round(x * (127 / max|x|)), ties to even. The CPU's bits (src/ops/quantize.rs): a product and a
// rounding an element, nothing that a compiler could fuse.
#pragma once
#include "rows.cuh"

// |x| as an integer: numbers in their order, infinity above all of them, NaN above that. A maximum has no order, so it has the same bits however
// it is taken, and what is not finite is found out at the end.
__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }

// All threads of the block must call it. scratch: 32 numbers of shared memory, used this once.
__device__ __forceinline__ unsigned block_max(unsigned x, unsigned* scratch) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x = max(x, __shfl_xor_sync(FULL_WARP, x, bit));
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = scratch[lane_id() % (static_cast<int>(blockDim.x) / 32)];  // a maximum does not mind to be there twice
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x = max(x, __shfl_xor_sync(FULL_WARP, x, bit));
  return x;
}

// What a row's largest magnitude makes of it. A row with NaN or infinity: scale NaN, all zero. One with nothing above TINY, 127 / which must not
// overflow: scale 0, all zero.
struct Levels {
  float scale, inverse;  // inverse 0: NaN * 0 is NaN, and as an integer that is 0 as well

  __device__ __forceinline__ explicit Levels(unsigned most) {
    constexpr float TINY = 1e-36f;
    const float top = __uint_as_float(most);
    const bool finite = most < 0x7f800000, is_some = finite && top >= TINY;
    inverse = is_some ? 127.0f / top : 0.0f;
    scale = is_some ? top / 127.0f : finite ? 0.0f : NAN;
  }

  __device__ __forceinline__ int8_t operator()(float x) const { return static_cast<int8_t>(__float2int_rn(x * inverse)); }
};

// The larger of `most` and the magnitudes of a[i].
template <class T, int N>
__device__ __forceinline__ unsigned larger(unsigned most, const Pack<T, N>& a) {
#pragma unroll
  for (int i = 0; i < N; i++) most = max(most, magnitude(to_f32(a[i])));
  return most;
}

template <class T, int N>
__device__ __forceinline__ Pack<int8_t, N> quantized(const Levels& levels, const Pack<T, N>& a) {
  Pack<int8_t, N> q;
#pragma unroll
  for (int i = 0; i < N; i++) q[i] = levels(to_f32(a[i]));
  return q;
}
