// out[i] = x[i] / (1 - p) where hash(first + i) is at least the threshold p 2^32, else 0: the same mask as the CPU's, bit for bit (src/ops/dropout.rs).
// The backward is the same kernel on dy.
//
// out, x of n elements. A thread takes 16 bytes; 256 threads a block. A multiple of a pack divides 2^32, so the high half of the index is constant in a
// thread and belongs to its key.
// Bytes: 2 n sizeof. Integer operations: 10 n, and 40 a thread for the key. Bound by memory: at 3.35 TB/s (H100) T = 8192, C = 960 in bf16 (SmolVLM-500M) takes 9.4 us.
// Reached: not yet run on a GPU.
#include "elementwise.cuh"

// The output function of SplitMix64.
__device__ __forceinline__ uint64_t mix(uint64_t seed) {
  uint64_t z = seed + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

__device__ __forceinline__ uint32_t hash(uint32_t index, uint32_t key, uint32_t second_key) {
  uint32_t h = index ^ key;
  h = (h ^ (h >> 16)) * 0x21F0AAADu;
  h = ((h ^ (h >> 15)) + second_key) * 0x735A2D97u;
  return h ^ (h >> 15);
}

// first: the index of x[0] as the mask counts, a multiple of 8.
template <class T>
__device__ __forceinline__ void dropout_forward(T* out, const T* x, uint64_t n, uint64_t first, uint64_t seed, uint64_t threshold, float factor) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  const uint64_t index = first + at, key = mix(seed ^ mix(index >> 32));
  Pack<T, N> a = load_within<N>(x, at, n);
  for (int i = 0; i < N; i++) {
    const bool drop = hash(static_cast<uint32_t>(index) + i, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)) < threshold;
    a[i] = from_f32<T>(drop ? 0.0f : to_f32(a[i]) * factor);
  }
  store_within(out, at, n, a);
}

extern "C" __global__ void __launch_bounds__(256) dropout_forward_bf16(bf16* out, const bf16* x, uint64_t n, uint64_t first, uint64_t seed,
                                                                       uint64_t threshold, float factor) {
  dropout_forward(out, x, n, first, seed, threshold, factor);
}

extern "C" __global__ void __launch_bounds__(256) dropout_forward_f32(float* out, const float* x, uint64_t n, uint64_t first, uint64_t seed,
                                                                      uint64_t threshold, float factor) {
  dropout_forward(out, x, n, first, seed, threshold, factor);
}
