// norm = sqrt(sum of squares of all gradients), as torch.nn.utils.clip_grad_norm_ has it; what it is clipped with is adamw.cu's to know.
//
// Gradients of any number and length, float, in one launch: a block of 256 threads sums the squares of a chunk of 4096 elements (many.cuh) in double
// and leaves them in partial [chunks]; one more such block adds these up. Every sum has one order.
// Bytes: 4 n, n all elements together. FLOPs: 2 n in double. Bound by memory: at 3.35 TB/s (H100) the 8.7 M of SmolVLM-500M's adapters of rank 16 take 10 us,
// all its 507 M weights 0.6 ms.
// Reached: not yet run on a GPU.
// Considered: sums in float (a square overflows where the norm does not); the last block adds up (a fence and a counter, for 2 us).
#include "many.cuh"

// Of all threads of the block, for its first.
__device__ __forceinline__ double block_total(double x) {
  double* scratch = shared_memory<double>();
  for (int bit = 16; bit > 0; bit /= 2) x += __shfl_xor_sync(FULL_WARP, x, bit);
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  double total = 0.0;
  for (int warp = 0; warp < ELEMENTWISE_THREADS / 32; warp++) total += scratch[warp];
  return total;
}

extern "C" __global__ void __launch_bounds__(256) clip_grad_norm_squares_forward_f32(double* partial, const Trained* tensors, const uint32_t* owners) {
  double sum = 0.0;
  each_of_chunk(tensors, owners, [&](const Trained& tensor, int64_t at) {
    const Pack<float, 4> g = load_within<4>(tensor.grad, at, tensor.len);
    for (int i = 0; i < 4; i++) sum += static_cast<double>(g[i]) * g[i];
  });
  sum = block_total(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256) clip_grad_norm_forward_f32(double* norm, const double* partial, int chunks) {
  double sum = 0.0;
#pragma unroll 8
  for (int i = threadIdx.x; i < chunks; i += ELEMENTWISE_THREADS) sum += partial[i];
  sum = block_total(sum);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}
