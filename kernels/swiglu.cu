// out[i] = silu(gate[i]) * up[i], silu(z) = z / (1 + e^-z)          (Shazeer 2020)
//
// out, gate, up [T, I], n = T I elements. A thread takes 16 bytes of each; 256 threads a block.
// Bytes: 3 n sizeof. FLOPs: 5 n and two of the special unit. Bound by memory: at 3.35 TB/s (H100) T = 8192, I = 2560 in bf16 (SmolVLM-500M)
// takes 38 us; that is 0.56e12 elements/s, a third of what the special unit (3.6e12/s) can do.
// Reached: not yet run on a GPU.
//
// backward: dgate = dout up (s + gate s (1 - s)), dup = dout gate s, s = sigmoid(gate). Bytes: 5 n sizeof, 63 us for the same shape. FLOPs: 11 n.
// Reached: not yet run on a GPU.
#include "elementwise.cuh"

template <class T>
__device__ __forceinline__ void swiglu_forward(T* out, const T* gate, const T* up, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  Pack<T, N> a = load_within<N>(gate, at, n);
  const Pack<T, N> b = load_within<N>(up, at, n);
  for (int i = 0; i < N; i++) {
    const float z = to_f32(a[i]);
    a[i] = from_f32<T>(z * sigmoid<T>(z) * to_f32(b[i]));
  }
  store_within(out, at, n, a);
}

template <class T>
__device__ __forceinline__ void swiglu_backward(T* dgate, T* dup, const T* dout, const T* gate, const T* up, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  const Pack<T, N> d = load_within<N>(dout, at, n);
  Pack<T, N> a = load_within<N>(gate, at, n), b = load_within<N>(up, at, n);
  for (int i = 0; i < N; i++) {
    const float z = to_f32(a[i]), dy = to_f32(d[i]);
    const Sigmoid s = sigmoid_and_slope<T>(z);
    a[i] = from_f32<T>(dy * to_f32(b[i]) * (s.value + z * s.slope));
    b[i] = from_f32<T>(dy * (z * s.value));
  }
  store_within(dgate, at, n, a);
  store_within(dup, at, n, b);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_forward_bf16(bf16* out, const bf16* gate, const bf16* up, uint64_t n) {
  swiglu_forward(out, gate, up, n);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_forward_f32(float* out, const float* gate, const float* up, uint64_t n) {
  swiglu_forward(out, gate, up, n);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward_bf16(bf16* dgate, bf16* dup, const bf16* dout, const bf16* gate, const bf16* up,
                                                                       uint64_t n) {
  swiglu_backward(dgate, dup, dout, gate, up, n);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward_f32(float* dgate, float* dup, const float* dout, const float* gate, const float* up,
                                                                      uint64_t n) {
  swiglu_backward(dgate, dup, dout, gate, up, n);
}
