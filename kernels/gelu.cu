// out[i] = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))          (Hendrycks & Gimpel 2016, the tanh approximation)
// Computed as x * sigmoid(z), z = 2 sqrt(2/pi) (x + 0.044715 x^3): the same function, without the cancellation of 1 + tanh for x < 0.
//
// out, x [T, I], n = T I elements. A thread takes 16 bytes; 256 threads a block.
// Bytes: 2 n sizeof. FLOPs: 7 n and two of the special unit. Bound by memory: at 3.35 TB/s (H100) 17 tiles x 1024 patches, I = 3072 in bf16
// (SmolVLM-500M's vision tower) takes 64 us; that is 0.84e12 elements/s, half of what the special unit (3.6e12/s) can do.
// Reached: not yet run on a GPU.
//
// backward: dx = dy (s + x z' s (1 - s)), s = sigmoid(z), z' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2). Bytes: 3 n sizeof, 96 us for the same shape.
// FLOPs: 14 n. Reached: not yet run on a GPU.
#include "elementwise.cuh"

constexpr float SLOPE = 1.595769f;  // 2 sqrt(2/pi)
constexpr float CUBIC = 0.044715f;

// Overflow is harmless, unlike in the derivative: where x^3 is infinite so is z, with its sign, and sigmoid is 1 or 0.
template <class T>
__device__ __forceinline__ void gelu_forward(T* out, const T* x, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  Pack<T, N> a = load_within<N>(x, at, n);
  for (int i = 0; i < N; i++) {
    const float c = to_f32(a[i]);
    a[i] = from_f32<T>(c * sigmoid<T>(c * fmaf(c * c, SLOPE * CUBIC, SLOPE)));
  }
  store_within(out, at, n, a);
}

// x where sigmoid(z) is not yet 0 or 1 to the last bit, or the nearest such: there x^3 does not overflow. NaN stays NaN.
__device__ __forceinline__ float bounded(float x) {
  constexpr float SATURATED = 32.0f;
  // mutant: flip: the same at the ends themselves.
  x = x > SATURATED ? SATURATED : x;
  // mutant: flip: the same at the ends themselves.
  return x < -SATURATED ? -SATURATED : x;
}

template <class T>
__device__ __forceinline__ void gelu_backward(T* dx, const T* dy, const T* x, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  const Pack<T, N> d = load_within<N>(dy, at, n);
  Pack<T, N> a = load_within<N>(x, at, n);
  for (int i = 0; i < N; i++) {
    const float c = bounded(to_f32(a[i])), square = c * c;
    const Sigmoid s = sigmoid_and_slope<T>(c * fmaf(square, SLOPE * CUBIC, SLOPE));
    a[i] = from_f32<T>(to_f32(d[i]) * fmaf(c * s.slope, fmaf(square, 3.0f * SLOPE * CUBIC, SLOPE), s.value));
  }
  store_within(dx, at, n, a);
}

extern "C" __global__ void __launch_bounds__(256) gelu_forward_bf16(bf16* out, const bf16* x, uint64_t n) { gelu_forward(out, x, n); }

extern "C" __global__ void __launch_bounds__(256) gelu_forward_f32(float* out, const float* x, uint64_t n) { gelu_forward(out, x, n); }

extern "C" __global__ void __launch_bounds__(256) gelu_backward_bf16(bf16* dx, const bf16* dy, const bf16* x, uint64_t n) {
  gelu_backward(dx, dy, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_backward_f32(float* dx, const float* dy, const float* x, uint64_t n) {
  gelu_backward(dx, dy, x, n);
}
