// q[m, k] = round(x[m, k] * (127 / max_k|x[m, k]|)), scale[m] = max_k|x[m, k]| / 127          (quantize.cuh)
//
// x [M, K]; q int8 [M, K]; scale float [M]. One block of 256 threads a row; x is read twice, the second time from L1: a row of K = 18944 in bf16
// is 37 KiB. Norms write their rows in int8 themselves (rms_norm.cu, layer_norm.cu).
// Bytes: M K (sizeof + 1). Bound by memory: at 3.35 TB/s (H100) M = 2048, K = 3584 in bf16 (what Qwen2-VL-7B's attention gives to its output
// projection) takes 6.6 us.
// Reached: not yet run on a GPU.
//
// known: the same where the largest magnitudes are known already, as the bits of floats: the epilogue of a product has taken them
// (gemm_int8.cu's SwiGLU). A row goes to as many blocks as it has stretches of 2048. 3 M K bytes: M = 2048, K = 18944 takes 35 us.
// Reached: not yet run on a GPU.
// Considered: the row in registers (one kernel per width).
#include "quantize.cuh"

template <class T>
__device__ __forceinline__ void quantize_forward(int8_t* q, float* scale, const T* x, int cols) {
  const int64_t start = static_cast<int64_t>(blockIdx.x) * cols;
  x += start;
  q += start;
  unsigned most = 0;
  each_pack_of_block<T>(cols, [&](auto width, int c) { most = larger(most, load_pack<decltype(width)::N_ELEMENTS>(x + c)); });
  const Levels levels(block_max(most, shared_memory<unsigned>()));
  each_pack_of_block<T>(cols, [&](auto width, int c) { store_pack(q + c, quantized(levels, load_pack<decltype(width)::N_ELEMENTS>(x + c))); });
  if (threadIdx.x == 0) scale[blockIdx.x] = levels.scale;
}

extern "C" __global__ void __launch_bounds__(256) quantize_forward_bf16(int8_t* q, float* scale, const bf16* x, int cols) {
  quantize_forward(q, scale, x, cols);
}

extern "C" __global__ void __launch_bounds__(256) quantize_forward_f32(int8_t* q, float* scale, const float* x, int cols) {
  quantize_forward(q, scale, x, cols);
}

extern "C" __global__ void __launch_bounds__(256) quantize_known_forward_bf16(int8_t* q, float* scale, const bf16* x, const unsigned* most, int cols) {
  const int64_t start = static_cast<int64_t>(blockIdx.x) * cols;
  const Levels levels(most[blockIdx.x]);
  each_pack<bf16>(cols, blockIdx.y * blockDim.x + threadIdx.x, gridDim.y * blockDim.x, [&](auto width, int c) {
    store_pack(q + start + c, quantized(levels, load_pack<decltype(width)::N_ELEMENTS>(x + start + c)));
  });
  if (blockIdx.y == 0 && threadIdx.x == 0) scale[blockIdx.x] = levels.scale;
}
