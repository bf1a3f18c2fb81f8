// AdamW with decoupled weight decay (Loshchilov & Hutter 2019; arithmetic as torch.optim.AdamW), of all trained tensors in one launch:
//   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w -= lr wd w;  w -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps);  rounded = w in bf16
// g is the gradient times min(1, max_norm / (norm + 1e-6)). Nothing moves where norm is not finite.
//
// prepare: one thread reads the norm, counts the step and computes in double what the step multiplies with: the learning rate of the schedule, the bias
// corrections. All of it lies on the device, so that the launches of a step can be kept and queued again.
// forward: a block of 256 threads has a chunk of 4096 elements of one tensor (many.cuh), a thread 16 of them, four at a time.
// Bytes: 28 n (w, m, v read and written, g read), 2 n more of rounded. FLOPs: 15 n. Bound by memory: at 3.35 TB/s (H100) the 8.7 M of SmolVLM-500M's adapters
// of rank 16 take 78 us, all its 507 M weights 4.5 ms.
// Reached: not yet run on a GPU.
#include "many.cuh"

enum Schedule { CONSTANT, LINEAR, COSINE };

// What a step multiplies with.
struct Factors {
  float clip, decay, m_new, v_old, v_new, v_correction, step_size, eps;
  int32_t skip;
};

// Schedule::factor of src/ops/adamw.rs.
__device__ __forceinline__ double schedule_factor(int schedule, double step, double steps, double warm) {
  // mutant: flip: at the end of the warm-up both are 1.
  if (step <= warm) return step / warm;
  const double progress = (step - warm) / (steps - warm + 1.0);
  if (schedule == LINEAR) return 1.0 - progress;
  return schedule == COSINE ? 0.5 * (1.0 + cos(3.14159265358979323846 * progress)) : 1.0;
}

extern "C" __global__ void __launch_bounds__(32) adamw_prepare_forward_f32(Factors* factors, uint64_t* step, const double* norm, double peak, uint64_t steps,
                                                                           uint64_t warm, int schedule, float beta1, float beta2, float eps,
                                                                           float weight_decay, float max_norm) {
  if (threadIdx.x > 0) return;
  factors->skip = !(*norm < INFINITY);
  if (factors->skip) return;
  const double t = ++*step;
  const float lr = peak * schedule_factor(schedule, t, steps, warm);
  const float clip = max_norm / (*norm + 1e-6);
  factors->clip = fminf(clip, 1.0f);
  factors->decay = 1.0 - static_cast<double>(lr) * weight_decay;
  factors->m_new = 1.0 - static_cast<double>(beta1);
  factors->v_old = beta2;
  factors->v_new = 1.0 - static_cast<double>(beta2);
  factors->v_correction = sqrt(1.0 - pow(static_cast<double>(beta2), t));
  factors->step_size = lr / (1.0 - pow(static_cast<double>(beta1), t));
  factors->eps = eps;
}

extern "C" __global__ void __launch_bounds__(256) adamw_forward_f32(const Trained* tensors, const uint32_t* owners, const Factors* factors) {
  const Factors f = *factors;
  if (f.skip) return;
  each_of_chunk(tensors, owners, [&](const Trained& tensor, int64_t at) {
    const int64_t n = tensor.len;
    Pack<float, 4> w = load_within<4>(tensor.w, at, n), m = load_within<4>(tensor.m, at, n), v = load_within<4>(tensor.v, at, n);
    const Pack<float, 4> grad = load_within<4>(tensor.grad, at, n);
    Pack<bf16, 4> rounded;
    for (int i = 0; i < 4; i++) {
      const float g = grad[i] * f.clip;
      m[i] += f.m_new * (g - m[i]);
      v[i] = v[i] * f.v_old + f.v_new * g * g;
      w[i] = w[i] * f.decay - f.step_size * m[i] / (sqrtf(v[i]) / f.v_correction + f.eps);
      rounded[i] = from_f32<bf16>(w[i]);
    }
    store_within(tensor.w, at, n, w);
    store_within(tensor.m, at, n, m);
    store_within(tensor.v, at, n, v);
    if (tensor.rounded != nullptr) store_within(tensor.rounded, at, n, rounded);
  });
}
