// What every kernel includes first: storage types, shared memory, wide loads, reductions over a warp and a block.
// Compiled by nvcc for the device and, with kernels/host/cuda_host.h included by force (MPA_HOST), by g++ for tests on a CPU.
#pragma once
#ifdef MPA_HOST
// Faults are reported with the caller's line: the last parameter of what can fail. Nothing on the device.
#define MPA_CALLER , host::Location caller = host::Location::current()
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#define MPA_CALLER
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr unsigned FULL_WARP = 0xffffffff;  // mask of all 32 lanes

// --- conversions: kernels store bf16, f16 or float and compute in float ---

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_f32(int8_t x) { return x; }

// Round to nearest, ties to even.
template <class T>
__device__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
  return __float2half(x);
}

// --- shared memory ---

// The block's shared memory, as long as the launch asked for, 1024-byte aligned (the strictest need: a 128-byte swizzled tile). It is the
// only way to shared memory, for every kernel: a size the launcher knows is checked in one place, and on the host its end is guarded.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#ifdef MPA_HOST
  return reinterpret_cast<T*>(host::machine.shared);
#else
  extern __shared__ __align__(1024) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#endif
}

// --- wide loads and stores ---

// N elements that move as one: 16 bytes for Pack<bf16, 8> and Pack<float, 4>, the widest access a thread has; or one element.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(N == 1 || sizeof(T) * N == 4 || sizeof(T) * N == 8 || sizeof(T) * N == 16, "a pack is 4, 8 or 16 bytes");
  T at[N];
  __device__ __forceinline__ T& operator[](int i) { return at[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return at[i]; }
};

// p[0..N); p is aligned to the pack's size.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p MPA_CALLER) {
#ifdef MPA_HOST
  host::check_aligned(p, sizeof(Pack<T, N>), "load_pack", caller);
#endif
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <class T, int N>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack MPA_CALLER) {
#ifdef MPA_HOST
  host::check_aligned(p, sizeof(Pack<T, N>), "store_pack", caller);
#endif
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// --- who am I (blocks are one-dimensional, a multiple of 32 threads) ---

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / 32; }

// --- reductions: every thread that takes part gets the result. The order of additions is fixed, so the bits are too. ---

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x += __shfl_xor_sync(FULL_WARP, x, bit);
  return x;
}

// NaN is left out, as fmaxf does; all NaN gives NaN.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, bit));
  return x;
}

// scratch: 32 floats of shared memory, free to use again on return. All threads of the block must call it.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = warp_sum(lane_id() < static_cast<int>(blockDim.x) / 32 ? scratch[lane_id()] : 0.0f);
  __syncthreads();  // all have read scratch
  return x;
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
  x = warp_max(x);
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = warp_max(scratch[lane_id() % (static_cast<int>(blockDim.x) / 32)]);  // a maximum does not mind to be there twice
  __syncthreads();  // all have read scratch
  return x;
}
