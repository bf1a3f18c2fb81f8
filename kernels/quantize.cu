// v = each `rotation` elements of x[m] times the Hadamard matrix; q[m, k] = round(v[k] * (127 / max|v|)), scale[m] = max|v| / 127     (quantize.cuh)
//
// x [M, K]; q int8 [M, K]; scale float [M]; rotation 1, 2, 4, .. or 128 divides K. A block a row, which goes over it twice, the second
// time from L1: a row of K = 18944 in bf16 is 37 KiB. 256 threads, or 1024 where rows are few: then that row is three rounds and not ten. A lane has
// 16 bytes of it; what it rotates beyond them comes by shuffles.
// RMS norms write their rows in int8 themselves (rms_norm.cu).
// Bytes: M K (sizeof + 1): at 3.35 TB/s (H100) M = 2048, K = 3584 in bf16 (what Qwen2-VL-7B's attention gives to its output projection) takes 6.6 us,
// K = 18944 (its SwiGLU to `down`) 35 us. Shuffles, for 128 and bf16: 8 an element, which at 32 a clock and multiprocessor (132, 1.7 GHz) is 43 us for
// the latter: about as long, and a tenth of the products beside it.
// Reached: not yet run on a GPU.
// Considered: the row in registers (one kernel per width) or, rotated, in shared memory as float (half the shuffles; 74 KiB for K = 18944, which
// leaves room for three blocks); the largest magnitude taken by the product that makes x (possible without a rotation alone).
#include "quantize.cuh"

template <class T>
__device__ __forceinline__ void quantize_forward(int8_t* q, float* scale, const T* x, int cols, int rotation) {
  const int64_t start = static_cast<int64_t>(blockIdx.x) * cols;
  const float row_scale = quantize_row<T>(q + start, cols, rotation, shared_memory<unsigned>(), [&](auto width, int c, auto& values) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + start + c);
    for (int i = 0; i < N; i++) values[i] = to_f32(a[i]);
  });
  if (threadIdx.x == 0) scale[blockIdx.x] = row_scale;
}

extern "C" __global__ void __launch_bounds__(1024) quantize_forward_bf16(int8_t* q, float* scale, const bf16* x, int cols, int rotation) {
  quantize_forward(q, scale, x, cols, rotation);
}

extern "C" __global__ void __launch_bounds__(1024) quantize_forward_f32(int8_t* q, float* scale, const float* x, int cols, int rotation) {
  quantize_forward(q, scale, x, cols, rotation);
}
