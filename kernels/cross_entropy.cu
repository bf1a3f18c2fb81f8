// losses[r] = -log softmax(logits[r])[targets[r]];   dlogits[r, c] = scale (softmax(logits[r])[c] - [c = targets[r]]), if wanted.
//
// logits [M, V] float, losses [M] float, targets M ids below V (the launcher checks), dlogits [M, V] float or bf16.
// One block of 1024 threads a row, so that the rows under way (two a processor: 264 rows of 49280 are 52 MB on an H100) about fit its L2: the second
// read, for dlogits, comes from there. The first read keeps a thread's largest logit and the sum of exp(logit - largest), scaled anew where the
// largest grows (Milakov & Gimelshein 2018), without the target's term. Of that sum, rest, come without cancellation, also where softmax is almost 1:
//   softmax - 1 at the target = -rest / (rest + e),  e = exp(target - largest);   loss = log1p(rest) if the target is the largest.
// Bytes: 4 M V, and 4 M V or 2 M V of dlogits. FLOPs: 6 M V and 2 M V exponentials. Bound by memory: at 3.35 TB/s (H100) M = 512, V = 49280 (SmolVLM)
// with bf16 dlogits takes 45 us.
// Reached: not yet run on a GPU.
// Considered: the row in shared memory (49280 floats are 197 KB: one block a processor, and 151936 do not fit); a cluster a row.
#include "common.cuh"

constexpr int THREADS = 1024;
constexpr float LOWEST = -3.402823466e38f;  // finite, so that LOWEST - LOWEST is no NaN

// The largest of a thread's logits, and the sum of exp(logit - largest) over all but the target.
struct Online {
  float largest = LOWEST, rest = 0.0f;

  __device__ __forceinline__ void raise(float to) {
    // mutant: condition, flip: where it is the same, it multiplies with 1.
    if (to > largest) {
      rest *= expf(largest - to);
      largest = to;
    }
  }
};

template <class D>
__device__ __forceinline__ void cross_entropy_forward(float* losses, D* dlogits, const float* logits, const uint32_t* targets, int cols, float scale) {
  float* scratch = shared_memory<float>();
  const int64_t start = static_cast<int64_t>(blockIdx.x) * cols;
  const float* x = logits + start;
  const int target = static_cast<int>(targets[blockIdx.x]);
  // Packs need aligned rows: other widths go element by element.
  // mutant: condition: false sends every width there, which only takes longer.
  const bool wide = cols % 4 == 0;

  Online sum;
  if (wide) {
    for (int c = threadIdx.x * 4; c < cols; c += 4 * THREADS) {
      const Pack<float, 4> a = load_pack<4>(x + c);
      sum.raise(fmaxf(fmaxf(a[0], a[1]), fmaxf(a[2], a[3])));
      for (int i = 0; i < 4; i++) sum.rest += c + i == target ? 0.0f : expf(a[i] - sum.largest);
    }
  } else {
    for (int c = threadIdx.x; c < cols; c += THREADS) {
      sum.raise(x[c]);
      sum.rest += c == target ? 0.0f : expf(x[c] - sum.largest);
    }
  }
  const float largest = block_max(sum.largest, scratch);
  const float rest = block_sum(sum.rest * expf(sum.largest - largest), scratch);
  const float below = largest - x[target];  // at least 0
  const float total = rest + expf(-below);
  if (threadIdx.x == 0) losses[blockIdx.x] = below == 0.0f ? log1pf(rest) : below + logf(total);
  if (dlogits == nullptr) return;

  dlogits += start;
  const float factor = scale / total;
  const float at_target = -rest * factor;
  if (wide) {
    for (int c = threadIdx.x * 4; c < cols; c += 4 * THREADS) {
      const Pack<float, 4> a = load_pack<4>(x + c);
      Pack<D, 4> d;
      for (int i = 0; i < 4; i++) d[i] = from_f32<D>(c + i == target ? at_target : expf(a[i] - largest) * factor);
      store_pack(dlogits + c, d);
    }
  } else {
    for (int c = threadIdx.x; c < cols; c += THREADS) dlogits[c] = from_f32<D>(c == target ? at_target : expf(x[c] - largest) * factor);
  }
}

// The type is that of dlogits.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_forward_bf16(float* losses, bf16* dlogits, const float* logits,
                                                                              const uint32_t* targets, int cols, float scale) {
  cross_entropy_forward(losses, dlogits, logits, targets, cols, scale);
}

extern "C" __global__ void __launch_bounds__(1024) cross_entropy_forward_f32(float* losses, float* dlogits, const float* logits,
                                                                             const uint32_t* targets, int cols, float scale) {
  cross_entropy_forward(losses, dlogits, logits, targets, cols, scale);
}
