// out[n, (i, j), (di, dj, c)] = x[n, (s i + di, s j + dj), c], s = factor: s x s neighbouring patches become one token
// (transformers, models/idefics3/modeling_idefics3.py, Idefics3Connector.pixel_shuffle).
//
// x [N, P, C], P = grid * grid; out [N, P/(s s), s s C]. What is together stays together in runs of s C elements (di fixed): one warp a run, four
// runs a block; a lane copies every 32nd pack of 16 bytes.
// Bytes: 2 N P C sizeof. No FLOPs. Bound by memory: at 3.35 TB/s (H100) 17 tiles of 1024 patches, C = 768 in bf16 (SmolVLM-500M) take 16 us.
// Reached: not yet run on a GPU.
// backward: the same copies the other way, from dout to dx.
#include "rows.cuh"

// The place in x of the `run`-th run of out.
__device__ __forceinline__ int64_t source(int run, int grid, int cols, int factor) {
  const int across = grid / factor;
  const int token = run / factor, di = run % factor;
  // `down` counts the rows of tokens through all pictures, as grid rows of pictures follow one another without a gap.
  const int down = token / across, j = token % across;
  return (static_cast<int64_t>(down * factor + di) * grid + j * factor) * cols;
}

template <class T>
__device__ __forceinline__ void pixel_shuffle_forward(T* out, const T* x, int runs, int grid, int cols, int factor) {
  const int run = blockIdx.x * ROWS + warp_id();
  if (run >= runs) return;
  const int length = factor * cols;
  copy_row(out + static_cast<int64_t>(run) * length, x + source(run, grid, cols, factor), length);
}

template <class T>
__device__ __forceinline__ void pixel_shuffle_backward(T* dx, const T* dout, int runs, int grid, int cols, int factor) {
  const int run = blockIdx.x * ROWS + warp_id();
  if (run >= runs) return;
  const int length = factor * cols;
  copy_row(dx + source(run, grid, cols, factor), dout + static_cast<int64_t>(run) * length, length);
}

extern "C" __global__ void __launch_bounds__(128) pixel_shuffle_forward_bf16(bf16* out, const bf16* x, int runs, int grid, int cols, int factor) {
  pixel_shuffle_forward(out, x, runs, grid, cols, factor);
}

extern "C" __global__ void __launch_bounds__(128) pixel_shuffle_forward_f32(float* out, const float* x, int runs, int grid, int cols, int factor) {
  pixel_shuffle_forward(out, x, runs, grid, cols, factor);
}

extern "C" __global__ void __launch_bounds__(128) pixel_shuffle_backward_bf16(bf16* dx, const bf16* dout, int runs, int grid, int cols, int factor) {
  pixel_shuffle_backward(dx, dout, runs, grid, cols, factor);
}

extern "C" __global__ void __launch_bounds__(128) pixel_shuffle_backward_f32(float* dx, const float* dout, int runs, int grid, int cols, int factor) {
  pixel_shuffle_backward(dx, dout, runs, grid, cols, factor);
}
