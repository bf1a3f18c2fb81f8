// For kernels that go over all elements of many tensors in one launch: the tensors are cut into chunks, a block has a chunk.
#pragma once
#include "elementwise.cuh"

constexpr int CHUNK = 4096;  // elements, 16 of a thread

// One tensor, as src/ops/clip_grad_norm.rs lays it out. Some pointers may be null.
struct Trained {
  float* w;
  float* m;
  float* v;
  const float* grad;
  bf16* rounded;         // w, for what reads it
  uint64_t len;
  uint64_t first_chunk;  // of all chunks
};

// The four elements from `at` on, for each four of this thread's in its block's chunk: f(tensor, at).
template <class F>
__device__ __forceinline__ void each_of_chunk(const Trained* tensors, const uint32_t* owners, F f) {
  const Trained tensor = tensors[owners[blockIdx.x]];
  const int64_t start = static_cast<int64_t>(blockIdx.x - tensor.first_chunk) * CHUNK;
  // mutant: clamp: beyond a tensor's end nothing is loaded or stored anyway.
  const int64_t end = min(start + CHUNK, static_cast<int64_t>(tensor.len));
  for (int64_t at = start + threadIdx.x * 4; at < end; at += 4 * ELEMENTWISE_THREADS) f(tensor, at);
}
