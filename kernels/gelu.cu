// out[i] = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))          (Hendrycks & Gimpel 2016, the tanh approximation)
// and x sigmoid(1.702 x), and the exact x Phi(x), Phi(x) = erfc(-x / sqrt 2) / 2, as the vision tower and the merger of Qwen2-VL have them.
// The first is computed as x * sigmoid(z), z = 2 sqrt(2/pi) (x + 0.044715 x^3): the same function, without the cancellation of 1 + tanh for x < 0.
//
// out, x [T, I], n = T I elements. A thread takes 16 bytes; 256 threads a block.
// Bytes: 2 n sizeof. FLOPs: 7 n and two of the special unit. Bound by memory: at 3.35 TB/s (H100) 17 tiles x 1024 patches, I = 3072 in bf16
// (SmolVLM-500M's vision tower) takes 64 us; that is 0.84e12 elements/s, half of what the special unit (3.6e12/s) can do.
// Reached: not yet run on a GPU.
//
// backward, of the tanh form: dx = dy (s + x z' s (1 - s)), s = sigmoid(z), z' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x^2). Bytes: 3 n sizeof, 96 us for the same shape.
// FLOPs: 14 n. Reached: not yet run on a GPU.
#include "elementwise.cuh"

constexpr float SLOPE = 1.595769f;  // 2 sqrt(2/pi)
constexpr float CUBIC = 0.044715f;
constexpr float QUICK = 1.702f;

// x, or the end at which its weight is 0 or 1 to the last bit: beyond it x^2 and x^3 might overflow. NaN stays NaN.
__device__ __forceinline__ float bounded(float x, float end) {
  // mutant: flip: the same at the ends themselves.
  x = x > end ? end : x;
  // mutant: flip: the same at the ends themselves.
  return x < -end ? -end : x;
}

// What each kind multiplies x by, and the slope of the product.
struct Tanh {
  // Overflow is harmless, unlike in the derivative: where x^3 is infinite so is z, with its sign, and sigmoid is 1 or 0.
  template <class T>
  static __device__ __forceinline__ float weight(float x) {
    return sigmoid<T>(x * fmaf(x * x, SLOPE * CUBIC, SLOPE));
  }
  template <class T>
  static __device__ __forceinline__ float slope(float x) {
    const float c = bounded(x, 32.0f), square = c * c;
    const Sigmoid s = sigmoid_and_slope<T>(c * fmaf(square, SLOPE * CUBIC, SLOPE));
    return fmaf(c * s.slope, fmaf(square, 3.0f * SLOPE * CUBIC, SLOPE), s.value);
  }
};

struct Quick {
  template <class T>
  static __device__ __forceinline__ float weight(float x) {
    return sigmoid<T>(QUICK * x);
  }
  template <class T>
  static __device__ __forceinline__ float slope(float x) {
    const float z = QUICK * bounded(x, 64.0f);
    const Sigmoid s = sigmoid_and_slope<T>(z);
    return fmaf(z, s.slope, s.value);
  }
};

struct Exact {
  template <class T>
  static __device__ __forceinline__ float weight(float x) {
    return 0.5f * erfcf(x * -0.70710678f);
  }
  template <class T>
  static __device__ __forceinline__ float slope(float x) {
    const float c = bounded(x, 32.0f);
    return fmaf(c, 0.39894228f * expf(-0.5f * c * c), weight<T>(c));
  }
};

template <class Kind, class T>
__device__ __forceinline__ void gelu_forward(T* out, const T* x, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  Pack<T, N> a = load_within<N>(x, at, n);
  for (int i = 0; i < N; i++) {
    const float c = to_f32(a[i]);
    a[i] = from_f32<T>(c * Kind::template weight<T>(c));
  }
  store_within(out, at, n, a);
}

template <class Kind, class T>
__device__ __forceinline__ void gelu_backward(T* dx, const T* dy, const T* x, uint64_t n) {
  constexpr int N = 16 / sizeof(T);
  const int64_t at = elementwise_start<N>();
  const Pack<T, N> d = load_within<N>(dy, at, n);
  Pack<T, N> a = load_within<N>(x, at, n);
  for (int i = 0; i < N; i++) a[i] = from_f32<T>(to_f32(d[i]) * Kind::template slope<T>(to_f32(a[i])));
  store_within(dx, at, n, a);
}

extern "C" __global__ void __launch_bounds__(256) gelu_forward_bf16(bf16* out, const bf16* x, uint64_t n) {
  gelu_forward<Tanh>(out, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_forward_f32(float* out, const float* x, uint64_t n) {
  gelu_forward<Tanh>(out, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_backward_bf16(bf16* dx, const bf16* dy, const bf16* x, uint64_t n) {
  gelu_backward<Tanh>(dx, dy, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_backward_f32(float* dx, const float* dy, const float* x, uint64_t n) {
  gelu_backward<Tanh>(dx, dy, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_quick_forward_bf16(bf16* out, const bf16* x, uint64_t n) {
  gelu_forward<Quick>(out, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_quick_forward_f32(float* out, const float* x, uint64_t n) {
  gelu_forward<Quick>(out, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_quick_backward_bf16(bf16* dx, const bf16* dy, const bf16* x, uint64_t n) {
  gelu_backward<Quick>(dx, dy, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_quick_backward_f32(float* dx, const float* dy, const float* x, uint64_t n) {
  gelu_backward<Quick>(dx, dy, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_exact_forward_bf16(bf16* out, const bf16* x, uint64_t n) {
  gelu_forward<Exact>(out, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_exact_forward_f32(float* out, const float* x, uint64_t n) {
  gelu_forward<Exact>(out, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_exact_backward_bf16(bf16* dx, const bf16* dy, const bf16* x, uint64_t n) {
  gelu_backward<Exact>(dx, dy, x, n);
}

extern "C" __global__ void __launch_bounds__(256) gelu_exact_backward_f32(float* dx, const float* dy, const float* x, uint64_t n) {
  gelu_backward<Exact>(dx, dy, x, n);
}
