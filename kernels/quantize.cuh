// Symmetric int8 by row: scale = max|x| / 127, q = round(x * (127 / max|x|)), ties to even. The CPU's bits (src/ops/quantize.rs): a product and a
// rounding an element, nothing that a compiler could fuse. Rows may be rotated before: each `rotation` elements, a power of two up to 128 that
// divides the row, times the Hadamard matrix, as sums and differences in the CPU's order.
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

// values[i]: element i of N that this lane has of a row, the next lanes the next ones. All lanes of the warp must call it.
template <int N>
__device__ __forceinline__ void rotate(float (&values)[N], int rotation) {
#pragma unroll
  for (int stride = 1; stride < N; stride *= 2) {
    if (stride >= rotation) return;
#pragma unroll
    for (int i = 0; i < N; i++) {  // mutant: loop: the last element is the upper one of its pair whatever the stride.
      if (i & stride) continue;
      const float a = values[i], b = values[i + stride];
      values[i] = a + b;
      values[i + stride] = a - b;
    }
  }
  for (int lanes = 1; N * lanes < rotation; lanes *= 2) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float other = __shfl_xor_sync(FULL_WARP, values[i], lanes);
      values[i] = lane_id() & lanes ? other - values[i] : values[i] + other;
    }
  }
}

// use(c, values) for each pack [c, c + N) of a row that is this thread's, of a block that has the row; load(Width<N>, c, values) gives the pack before
// it is rotated. All threads of the block must call it.
template <int N, class Load, class Use>
__device__ __forceinline__ void each_rotated(int cols, int rotation, Load load, Use use) {
  // mutant: flip: one more round is one of zeros.
  for (int first = 0; first < cols; first += blockDim.x * N) {
    const int c = first + threadIdx.x * N;
    float values[N] = {};
    if (c < cols) load(Width<N>(), c, values);
    rotate(values, rotation);
    if (c < cols) use(c, values);
  }
}

// Writes a row, rotated and quantised, by a block; its scale. load as above. Rows that are no multiple of a pack of T wide go element by element: a
// rotation that divides them is smaller than a pack. scratch: 32 numbers of shared memory, used this once.
template <class T, class Load>
__device__ __forceinline__ float quantize_row(int8_t* q, int cols, int rotation, unsigned* scratch, Load load) {
  auto go = [&](auto width) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    unsigned most = 0;
    each_rotated<N>(cols, rotation, load, [&](int, const float(&values)[N]) {
      for (int i = 0; i < N; i++) most = max(most, magnitude(values[i]));
    });
    const Levels levels(block_max(most, scratch));
    each_rotated<N>(cols, rotation, load, [&](int c, const float(&values)[N]) {
      Pack<int8_t, N> small;
      for (int i = 0; i < N; i++) small[i] = levels(values[i]);
      store_pack(q + c, small);
    });
    return levels.scale;
  };
  constexpr int N = 16 / sizeof(T);
  return cols % N == 0 ? go(Width<N>()) : go(Width<1>());
}
