// y[t, c] = x[t, c] / sqrt(mean_c(x[t, c]^2) + eps) * weight[c]          (Zhang & Sennrich 2019)
// With a residual, x += residual first, rounded to the storage type, and stored: what a pre-norm block does between its two halves.
//
// x, y, residual [T, C]; weight [C]. One warp a row, four rows a block; a lane takes every 32nd pack of 16 bytes. x is read twice, the second
// time from L1/L2: a row of C = 2048 in bf16 is 4 KiB.
// Bytes: 2 T C sizeof (4 T C sizeof with a residual). FLOPs: 4 T C. Bound by memory: at 3.35 TB/s (H100) T = 8192, C = 960 in bf16 takes 9.4 us.
// Reached: not yet run on a GPU.
//
// backward: with r = 1 / sqrt(mean(x^2) + eps), n = x r and g = dy weight:   dx = r (g - n mean(g n)) (+ residual),   dweight += dy n
// dx, dy, residual (the gradient that the residual connection brings) [T, C] of T; dweight float. One warp a row at a time, 16 rows a block of 8
// warps. Where dweight is wanted, the block then goes through its rows once more, a thread a column, from L1/L2, and leaves its sum in its row of
// partial [blocks, C]; a second launch (column_sums.cuh) adds these up.
// Bytes: 3 T C sizeof (4 with a residual), and T C / 2 for partial sums. FLOPs: 11 T C. T = 8192, C = 960 in bf16: 14 us, 19 us with a residual.
// Reached: not yet run on a GPU.
//
// quantized: the row goes on in int8 (quantize.cuh), with r = 1 / sqrt(mean(x^2) + eps) and v = x weight, rotated:
//   q = round(v (127 / max|v|)),   scale = max|v| / 127 * r
// which is the float row x r weight rotated and quantised: r is a factor of all elements, so q does not need it and has the same bits on every device.
// One block of 128 threads a row, for few rows of a decode step to be many threads; x is read three times, all but the first from L1.
// Bytes: T C (sizeof + 1), with a residual T C (3 sizeof + 1). T = 2048, C = 3584 in bf16 with a residual (Qwen2-VL-7B): 15 us. Shuffles of a rotation
// by 128: 8 an element, 8 us.
// Reached: not yet run on a GPU.
// Considered: a lane's share of dweight in registers (one kernel per width); 1 / rms kept by the forward (saves no byte: x is read for n).
#include "column_sums.cuh"
#include "norm.cuh"
#include "quantize.cuh"

// __restrict__, as a tensor that is written shares its memory with no other (Tensor::ptr_mut).
template <class T>
__device__ __forceinline__ void rms_norm_forward(T* __restrict__ y, T* __restrict__ x, const T* residual, const T* weight, int rows, int cols,
                                                 float eps) {
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  const int64_t start = static_cast<int64_t>(row) * cols;
  x += start;
  y += start;
  if (residual != nullptr) residual += start;

  float sum = 0.0f;
  each_with_residual(x, residual, cols, lane_id(), 32, [&](const auto& pack) {
    for (const T a : pack.at) sum += to_f32(a) * to_f32(a);
  });
  const float scale = rsqrtf(warp_sum(sum) / cols + eps);

  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    Pack<T, N> a = load_pack<N>(x + c);
    const Pack<T, N> w = load_pack<N>(weight + c);
    for (int i = 0; i < N; i++) a[i] = from_f32<T>(to_f32(a[i]) * scale * to_f32(w[i]));
    store_pack(y + c, a);
  });
}

template <class T>
__device__ __forceinline__ void rms_norm_quantized_forward(int8_t* q, float* scales, T* x, const T* residual, const T* weight, int cols, float eps,
                                                           int rotation) {
  float* scratch = shared_memory<float>();  // [2][32]
  const int64_t start = static_cast<int64_t>(blockIdx.x) * cols;
  x += start;
  if (residual != nullptr) residual += start;

  float sum = 0.0f;
  each_with_residual(x, residual, cols, threadIdx.x, blockDim.x, [&](const auto& pack) {
    for (const T a : pack.at) sum += to_f32(a) * to_f32(a);
  });
  const float r = rsqrtf(block_sum(sum, scratch) / cols + eps);

  // A thread reads what it has written itself.
  const float scale = quantize_row<T>(q + start, cols, rotation, reinterpret_cast<unsigned*>(scratch + 32), [&](auto width, int c, auto& values) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c), w = load_pack<N>(weight + c);
    for (int i = 0; i < N; i++) values[i] = __fmul_rn(to_f32(a[i]), to_f32(w[i]));  // not fused with the sums of the rotation
  });
  if (threadIdx.x == 0) scales[blockIdx.x] = scale * r;
}

// One row of dx, by one warp; gives r.
template <class T>
__device__ __forceinline__ float rms_norm_gradient(T* dx, const T* dy, const T* x, const T* weight, const T* residual, int cols, float eps) {
  float squares = 0.0f, gx = 0.0f;
  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c), d = load_pack<N>(dy + c), w = load_pack<N>(weight + c);
    for (int i = 0; i < N; i++) {
      squares += to_f32(a[i]) * to_f32(a[i]);
      gx += to_f32(d[i]) * to_f32(w[i]) * to_f32(a[i]);
    }
  });
  const float scale = rsqrtf(warp_sum(squares) / cols + eps);
  const float mean_gn = warp_sum(gx) * scale / cols;
  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c), d = load_pack<N>(dy + c), w = load_pack<N>(weight + c);
    store_gradient<N>(dx, residual, c, [&](int i) { return scale * (to_f32(d[i]) * to_f32(w[i]) - to_f32(a[i]) * scale * mean_gn); });
  });
  return scale;
}

template <class T>
__device__ __forceinline__ void rms_norm_backward(T* dx, float* partial, const T* dy, const T* x, const T* weight, const T* residual, int rows,
                                                  int cols, float eps) {
  float* scales = shared_memory<float>();
  const int first = blockIdx.x * BACKWARD_ROWS;
  const int count = min(BACKWARD_ROWS, rows - first);
  const int64_t start = static_cast<int64_t>(first) * cols;
  dx += start;
  dy += start;
  x += start;
  if (residual != nullptr) residual += start;
  for (int r = warp_id(); r < count; r += BACKWARD_WARPS) {
    const int64_t at = static_cast<int64_t>(r) * cols;
    const float scale = rms_norm_gradient(dx + at, dy + at, x + at, weight, residual == nullptr ? nullptr : residual + at, cols, eps);
    if (lane_id() == 0) scales[r] = scale;
  }
  if (partial == nullptr) return;
  __syncthreads();
  partial += static_cast<int64_t>(blockIdx.x) * cols;
  for (int c = threadIdx.x; c < cols; c += 32 * BACKWARD_WARPS) {
    float sum = 0.0f;
    for (int r = 0; r < count; r++) {
      const int64_t at = static_cast<int64_t>(r) * cols + c;
      sum += to_f32(dy[at]) * (to_f32(x[at]) * scales[r]);
    }
    partial[c] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(128) rms_norm_forward_bf16(bf16* y, bf16* x, const bf16* residual, const bf16* weight, int rows,
                                                                        int cols, float eps) {
  rms_norm_forward(y, x, residual, weight, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(128) rms_norm_forward_f32(float* y, float* x, const float* residual, const float* weight, int rows,
                                                                       int cols, float eps) {
  rms_norm_forward(y, x, residual, weight, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(128) rms_norm_quantized_forward_bf16(int8_t* q, float* scale, bf16* x, const bf16* residual,
                                                                                  const bf16* weight, int cols, float eps, int rotation) {
  rms_norm_quantized_forward(q, scale, x, residual, weight, cols, eps, rotation);
}

extern "C" __global__ void __launch_bounds__(128) rms_norm_quantized_forward_f32(int8_t* q, float* scale, float* x, const float* residual,
                                                                                 const float* weight, int cols, float eps, int rotation) {
  rms_norm_quantized_forward(q, scale, x, residual, weight, cols, eps, rotation);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_bf16(bf16* dx, float* partial, const bf16* dy, const bf16* x, const bf16* weight,
                                                                         const bf16* residual, int rows, int cols, float eps) {
  rms_norm_backward(dx, partial, dy, x, weight, residual, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_f32(float* dx, float* partial, const float* dy, const float* x, const float* weight,
                                                                        const float* residual, int rows, int cols, float eps) {
  rms_norm_backward(dx, partial, dy, x, weight, residual, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_sums_backward_f32(float* dweight, const float* partial, int rows, int cols) {
  add_column_sums(dweight, partial, rows, cols);
}
