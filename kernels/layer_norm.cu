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
#include "common.cuh"

constexpr int ROWS = 4;  // warps of a block

template <class T>
__device__ __forceinline__ void layer_norm_forward(T* y, T* x, const T* residual, const T* weight, const T* bias, int rows, int cols, float eps) {
  constexpr int N = 16 / sizeof(T);
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  // Packs need aligned rows: other widths go element by element.
  const bool wide = cols % N == 0;
  const int64_t start = static_cast<int64_t>(row) * cols;
  x += start;
  y += start;
  if (residual != nullptr) residual += start;

  float sum = 0.0f;
  if (wide) {
    for (int c = lane_id() * N; c < cols; c += 32 * N) {
      Pack<T, N> a = load_pack<N>(x + c);
      if (residual != nullptr) {
        const Pack<T, N> b = load_pack<N>(residual + c);
        for (int i = 0; i < N; i++) a[i] = from_f32<T>(to_f32(a[i]) + to_f32(b[i]));
        store_pack(x + c, a);
      }
      for (int i = 0; i < N; i++) sum += to_f32(a[i]);
    }
  } else {
    for (int c = lane_id(); c < cols; c += 32) {
      if (residual != nullptr) x[c] = from_f32<T>(to_f32(x[c]) + to_f32(residual[c]));
      sum += to_f32(x[c]);
    }
  }
  const float mean = warp_sum(sum) / cols;

  float squares = 0.0f;
  if (wide) {
    for (int c = lane_id() * N; c < cols; c += 32 * N) {
      const Pack<T, N> a = load_pack<N>(x + c);
      for (int i = 0; i < N; i++) squares += (to_f32(a[i]) - mean) * (to_f32(a[i]) - mean);
    }
  } else {
    for (int c = lane_id(); c < cols; c += 32) squares += (to_f32(x[c]) - mean) * (to_f32(x[c]) - mean);
  }
  const float scale = rsqrtf(warp_sum(squares) / cols + eps);

  if (wide) {
    for (int c = lane_id() * N; c < cols; c += 32 * N) {
      Pack<T, N> a = load_pack<N>(x + c);
      const Pack<T, N> w = load_pack<N>(weight + c);
      const Pack<T, N> b = load_pack<N>(bias + c);
      for (int i = 0; i < N; i++) a[i] = from_f32<T>((to_f32(a[i]) - mean) * scale * to_f32(w[i]) + to_f32(b[i]));
      store_pack(y + c, a);
    }
  } else {
    for (int c = lane_id(); c < cols; c += 32) y[c] = from_f32<T>((to_f32(x[c]) - mean) * scale * to_f32(weight[c]) + to_f32(bias[c]));
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
