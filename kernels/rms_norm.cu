// y[t, c] = x[t, c] / sqrt(mean_c(x[t, c]^2) + eps) * weight[c]          (Zhang & Sennrich 2019)
// With a residual, x += residual first, rounded to the storage type, and stored: what a pre-norm block does between its two halves.
//
// x, y, residual [T, C]; weight [C]. One warp a row, four rows a block; a lane takes every 32nd pack of 16 bytes. x is read twice, the second
// time from L1/L2: a row of C = 2048 in bf16 is 4 KiB.
// Bytes: 2 T C sizeof (4 T C sizeof with a residual). FLOPs: 4 T C. Bound by memory: at 3.35 TB/s (H100) T = 8192, C = 960 in bf16 takes 9.4 us.
// Reached: not yet run on a GPU.
#include "common.cuh"

constexpr int ROWS = 4;  // warps of a block

template <class T>
__device__ __forceinline__ void rms_norm_forward(T* y, T* x, const T* residual, const T* weight, int rows, int cols, float eps) {
  constexpr int N = 16 / sizeof(T);
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  // Packs need aligned rows: other widths go element by element.
  // mutant: condition: false sends every width there, which only takes longer.
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
      for (int i = 0; i < N; i++) sum += to_f32(a[i]) * to_f32(a[i]);
    }
  } else {
    for (int c = lane_id(); c < cols; c += 32) {
      if (residual != nullptr) x[c] = from_f32<T>(to_f32(x[c]) + to_f32(residual[c]));
      sum += to_f32(x[c]) * to_f32(x[c]);
    }
  }
  const float scale = rsqrtf(warp_sum(sum) / cols + eps);

  if (wide) {
    for (int c = lane_id() * N; c < cols; c += 32 * N) {
      Pack<T, N> a = load_pack<N>(x + c);
      const Pack<T, N> w = load_pack<N>(weight + c);
      for (int i = 0; i < N; i++) a[i] = from_f32<T>(to_f32(a[i]) * scale * to_f32(w[i]));
      store_pack(y + c, a);
    }
  } else {
    for (int c = lane_id(); c < cols; c += 32) y[c] = from_f32<T>(to_f32(x[c]) * scale * to_f32(weight[c]));
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
