// y[t, c] = (x[t, c] - mean) / sqrt(var + eps) * weight[c] + bias[c], mean and var (biased) over c          (Ba et al. 2016)
// With a residual, x += residual first, rounded to the storage type, and stored: what a pre-norm block does between its two halves.
//
// x, y, residual [T, C]; weight, bias [C]. One warp a row, four rows a block; a lane takes every 32nd pack of 16 bytes. x is read three times
// (mean, variance, output), the second and third time from L1/L2: a row of C = 1152 in bf16 is 2.3 KiB. The variance is the mean of
// (x - mean)^2: E[x^2] - mean^2 would cancel where the mean is large.
// Bytes: 2 T C sizeof (4 T C sizeof with a residual). FLOPs: 7 T C. Bound by memory: at 3.35 TB/s (H100) T = 17 tiles x 1024 patches, C = 768
// in bf16 (SmolVLM-500M's vision tower) takes 16 us, 32 us with a residual.
// Reached: not yet run on a GPU.
// Considered: the row in registers (no second and third read, but one kernel per width); Welford's update (one read less, a division per element).
//
// backward: with r = 1 / sqrt(var + eps), n = (x - mean) r and g = dy weight:
//   dx = r (g - mean(g) - n mean(g n)) (+ residual),   dweight += dy n,   dbias += dy
// dx, dy, residual (the gradient that the residual connection brings) [T, C] of T; dweight, dbias float. Work is split as in rms_norm.cu; partial
// [2, blocks, C] has the blocks' sums for dweight, then those for dbias.
// Bytes: 3 T C sizeof (4 with a residual), and T C for partial sums. FLOPs: 16 T C. T = 17 tiles x 1024 patches, C = 768 in bf16: 24 us, 32 us with
// a residual.
// Reached: not yet run on a GPU.
//
// quantized: the row goes on in int8 (quantize.cuh), quantised from its float values; in T it is written only where y is given. One block of 128
// threads a row, for few rows of a decode step to be many threads. x is read four times, all but the first from L1/L2.
// Bytes: T C (sizeof + 1), with a residual T C (3 sizeof + 1). T = 4096, C = 1280 in bf16 with a residual (Qwen2-VL's vision tower): 11 us.
// Reached: not yet run on a GPU.
#include "column_sums.cuh"
#include "norm.cuh"
#include "quantize.cuh"

struct Moments {
  float mean, scale;  // scale = 1 / sqrt(var + eps)
};

template <class T>
__device__ __forceinline__ float sum_of_squares(const T* x, float mean, int cols) {
  float squares = 0.0f;
  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c);
    for (int i = 0; i < N; i++) squares += (to_f32(a[i]) - mean) * (to_f32(a[i]) - mean);
  });
  return warp_sum(squares);
}

// __restrict__, as a tensor that is written shares its memory with no other (Tensor::ptr_mut).
template <class T>
__device__ __forceinline__ void layer_norm_forward(T* __restrict__ y, T* __restrict__ x, const T* residual, const T* weight, const T* bias, int rows,
                                                   int cols, float eps) {
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  const int64_t start = static_cast<int64_t>(row) * cols;
  x += start;
  y += start;
  if (residual != nullptr) residual += start;

  float sum = 0.0f;
  each_with_residual(x, residual, cols, lane_id(), 32, [&](const auto& pack) {
    for (const T a : pack.at) sum += to_f32(a);
  });
  const float mean = warp_sum(sum) / cols;
  const float scale = rsqrtf(sum_of_squares(x, mean, cols) / cols + eps);

  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    Pack<T, N> a = load_pack<N>(x + c);
    const Pack<T, N> w = load_pack<N>(weight + c), b = load_pack<N>(bias + c);
    for (int i = 0; i < N; i++) a[i] = from_f32<T>((to_f32(a[i]) - mean) * scale * to_f32(w[i]) + to_f32(b[i]));
    store_pack(y + c, a);
  });
}

template <class T>
__device__ __forceinline__ void layer_norm_quantized_forward(int8_t* q, float* scales, T* y, T* x, const T* residual, const T* weight, const T* bias,
                                                             int cols, float eps) {
  float* scratch = shared_memory<float>();  // [2][32]
  const int64_t start = static_cast<int64_t>(blockIdx.x) * cols;
  x += start;
  q += start;
  if (y != nullptr) y += start;
  if (residual != nullptr) residual += start;

  float sum = 0.0f, squares = 0.0f;
  each_with_residual(x, residual, cols, threadIdx.x, blockDim.x, [&](const auto& pack) {
    for (const T a : pack.at) sum += to_f32(a);
  });
  const float mean = block_sum(sum, scratch) / cols;
  each_pack_of_block<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c);
    for (int i = 0; i < N; i++) squares += (to_f32(a[i]) - mean) * (to_f32(a[i]) - mean);
  });
  const float r = rsqrtf(block_sum(squares, scratch) / cols + eps);

  // use(c, the normed values from c on)
  auto normed = [&](auto use) {
    each_pack_of_block<T>(cols, [&](auto width, int c) {
      constexpr int N = decltype(width)::N_ELEMENTS;
      const Pack<T, N> a = load_pack<N>(x + c), w = load_pack<N>(weight + c), b = load_pack<N>(bias + c);
      float values[N];
      for (int i = 0; i < N; i++) values[i] = (to_f32(a[i]) - mean) * r * to_f32(w[i]) + to_f32(b[i]);
      use(c, values);
    });
  };
  unsigned most = 0;
  normed([&](int, const auto& values) {
    for (float value : values) most = max(most, magnitude(value));
  });
  const Levels levels(block_max(most, reinterpret_cast<unsigned*>(scratch + 32)));
  normed([&](int c, const auto& values) {
    constexpr int N = sizeof(values) / sizeof(float);
    Pack<int8_t, N> small;
    for (int i = 0; i < N; i++) small[i] = levels(values[i]);
    store_pack(q + c, small);
    if (y == nullptr) return;
    Pack<T, N> row;
    for (int i = 0; i < N; i++) row[i] = from_f32<T>(values[i]);
    store_pack(y + c, row);
  });
  if (threadIdx.x == 0) scales[blockIdx.x] = levels.scale;
}

// One row of dx, by one warp.
template <class T>
__device__ __forceinline__ Moments layer_norm_gradient(T* dx, const T* dy, const T* x, const T* weight, const T* residual, int cols, float eps) {
  float sum = 0.0f;
  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c);
    for (int i = 0; i < N; i++) sum += to_f32(a[i]);
  });
  const float mean = warp_sum(sum) / cols;
  float squares = 0.0f, g = 0.0f, gx = 0.0f;
  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c), d = load_pack<N>(dy + c), w = load_pack<N>(weight + c);
    for (int i = 0; i < N; i++) {
      const float off = to_f32(a[i]) - mean, dw = to_f32(d[i]) * to_f32(w[i]);
      squares += off * off;
      g += dw;
      gx += dw * off;
    }
  });
  const float scale = rsqrtf(warp_sum(squares) / cols + eps);
  const float mean_g = warp_sum(g) / cols, mean_gn = warp_sum(gx) * scale / cols;
  each_pack<T>(cols, [&](auto width, int c) {
    constexpr int N = decltype(width)::N_ELEMENTS;
    const Pack<T, N> a = load_pack<N>(x + c), d = load_pack<N>(dy + c), w = load_pack<N>(weight + c);
    store_gradient<N>(dx, residual, c, [&](int i) {
      return scale * (to_f32(d[i]) * to_f32(w[i]) - mean_g - (to_f32(a[i]) - mean) * scale * mean_gn);
    });
  });
  return {mean, scale};
}

template <class T>
__device__ __forceinline__ void layer_norm_backward(T* dx, float* partial, const T* dy, const T* x, const T* weight, const T* residual, int rows,
                                                    int cols, float eps) {
  Moments* moments = shared_memory<Moments>();
  const int first = blockIdx.x * BACKWARD_ROWS;
  const int count = min(BACKWARD_ROWS, rows - first);
  const int64_t start = static_cast<int64_t>(first) * cols;
  dx += start;
  dy += start;
  x += start;
  if (residual != nullptr) residual += start;
  for (int r = warp_id(); r < count; r += BACKWARD_WARPS) {
    const int64_t at = static_cast<int64_t>(r) * cols;
    const Moments row = layer_norm_gradient(dx + at, dy + at, x + at, weight, residual == nullptr ? nullptr : residual + at, cols, eps);
    if (lane_id() == 0) moments[r] = row;
  }
  if (partial == nullptr) return;
  __syncthreads();
  float* dweight = partial + static_cast<int64_t>(blockIdx.x) * cols;
  float* dbias = partial + static_cast<int64_t>(gridDim.x + blockIdx.x) * cols;
  for (int c = threadIdx.x; c < cols; c += 32 * BACKWARD_WARPS) {
    float dw = 0.0f, db = 0.0f;
    for (int r = 0; r < count; r++) {
      const int64_t at = static_cast<int64_t>(r) * cols + c;
      const float d = to_f32(dy[at]);
      dw += d * ((to_f32(x[at]) - moments[r].mean) * moments[r].scale);
      db += d;
    }
    dweight[c] = dw;
    dbias[c] = db;
  }
}

extern "C" __global__ void __launch_bounds__(128) layer_norm_forward_bf16(bf16* y, bf16* x, const bf16* residual, const bf16* weight,
                                                                          const bf16* bias, int rows, int cols, float eps) {
  layer_norm_forward(y, x, residual, weight, bias, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(128) layer_norm_forward_f32(float* y, float* x, const float* residual, const float* weight,
                                                                         const float* bias, int rows, int cols, float eps) {
  layer_norm_forward(y, x, residual, weight, bias, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(128) layer_norm_quantized_forward_bf16(int8_t* q, float* scale, bf16* y, bf16* x, const bf16* residual,
                                                                                   const bf16* weight, const bf16* bias, int cols, float eps) {
  layer_norm_quantized_forward(q, scale, y, x, residual, weight, bias, cols, eps);
}

extern "C" __global__ void __launch_bounds__(128) layer_norm_quantized_forward_f32(int8_t* q, float* scale, float* y, float* x,
                                                                                  const float* residual, const float* weight, const float* bias,
                                                                                  int cols, float eps) {
  layer_norm_quantized_forward(q, scale, y, x, residual, weight, bias, cols, eps);
}

extern "C" __global__ void __launch_bounds__(256) layer_norm_backward_bf16(bf16* dx, float* partial, const bf16* dy, const bf16* x, const bf16* weight,
                                                                           const bf16* residual, int rows, int cols, float eps) {
  layer_norm_backward(dx, partial, dy, x, weight, residual, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(256) layer_norm_backward_f32(float* dx, float* partial, const float* dy, const float* x,
                                                                          const float* weight, const float* residual, int rows, int cols, float eps) {
  layer_norm_backward(dx, partial, dy, x, weight, residual, rows, cols, eps);
}

extern "C" __global__ void __launch_bounds__(256) layer_norm_sums_backward_f32(float* sums, const float* partial, int rows, int cols) {
  add_column_sums(sums, partial, rows, cols);
}
