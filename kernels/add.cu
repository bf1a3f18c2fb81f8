// out[i] += x[i], the residual connection.
//
// out, x: any shape, n elements. A thread takes 16 bytes; 256 threads a block.
// Bytes: 3 n sizeof. FLOPs: n. Bound by memory: at 3.35 TB/s (H100) T = 8192, C = 960 in bf16 (SmolVLM-500M) takes 14 us.
// Reached: not yet run on a GPU.
// Where a norm follows within the block, the addition is part of it (rms_norm.cu, layer_norm.cu).
#include "elementwise.cuh"

template <class T>
__device__ __forceinline__ void add_forward(T* out, const T* x, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  Pack<T, N> a = load_within<N>(out, at, n);
  const Pack<T, N> b = load_within<N>(x, at, n);
  for (int i = 0; i < N; i++) a[i] = from_f32<T>(to_f32(a[i]) + to_f32(b[i]));
  store_within(out, at, n, a);
}

extern "C" __global__ void __launch_bounds__(256) add_forward_bf16(bf16* out, const bf16* x, uint64_t n) { add_forward(out, x, n); }

extern "C" __global__ void __launch_bounds__(256) add_forward_f32(float* out, const float* x, uint64_t n) { add_forward(out, x, n); }
