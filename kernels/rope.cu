// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), in place: x1 and x2 the two halves of the first 2 `half` elements of a head, the rest of the
// head stays (Su et al. 2021, the half-split form of Llama). cos and sin [T, half] are one row per token, so the same kernel serves the 1-D rotary of
// text, the M-RoPE of Qwen2-VL's text and the 2-D rotary of its vision tower: they differ in the table (src/ops/rope.rs) alone.
//
// q [T, q_heads * HS], k [T, k_heads * HS] (k_heads may be 0), tables f32 for every storage type, as angles need more than 8 bits.
// One warp a token, four tokens a block; a lane takes every 32nd item, a pack of 16 bytes of x1 and the one of x2 below it, of q's heads
// and then k's. The table's row is read again for each head, from L1.
// Bytes: 2 T (q_heads + k_heads) 2 half sizeof + 8 T half. FLOPs: 6 T (q_heads + k_heads) half. Bound by memory: at 3.35 TB/s (H100) T = 8192, 15 + 5 heads of
// 64 in bf16 (SmolVLM-500M) take 13 us; in decoding the launch is what counts, hence q and k in one.
// Reached: not yet run on a GPU.
//
// split: q, k and v come apart out of the rows [T, (q_heads + 2 k_heads) HS] of one product (the vision tower of Qwen2-VL), q and k rotated on
// the way; its backward puts the three gradients together, turned back. A lane takes a pack of an output, and reads the two it is made of.
// Bytes: 4 T (q_heads + 2 k_heads) HS sizeof / 2 + 8 T half, that is each element read and written once, the partner of a rotated one from L1. At
// 3.35 TB/s T = 4096 with 16 heads of 80 in bf16 (Qwen2-VL's vision tower) take 19 us.
// Reached: not yet run on a GPU.
// backward, on the gradients of q and k: the inverse rotation, by the negative sine.
#include "common.cuh"

constexpr int ROWS = 4;  // warps of a block

// x[0..N) and x[half .. half+N) by the angles of the N elements; sign -1 turns back.
template <int N, class T>
__device__ __forceinline__ void rotate_pack(T* x, const float* cos, const float* sin, int half, float sign) {
  Pack<T, N> x1 = load_pack<N>(x), x2 = load_pack<N>(x + half);
  for (int j = 0; j < N; j += 4) {
    const Pack<float, 4> c = load_pack<4>(cos + j), s = load_pack<4>(sin + j);
    for (int i = 0; i < 4; i++) {
      const float a = to_f32(x1[j + i]), b = to_f32(x2[j + i]), sine = s[i] * sign;
      x1[j + i] = from_f32<T>(a * c[i] - b * sine);
      x2[j + i] = from_f32<T>(b * c[i] + a * sine);
    }
  }
  store_pack(x, x1);
  store_pack(x + half, x2);
}

template <class T>
__device__ __forceinline__ void rotate(T* q, T* k, const float* cos, const float* sin, int rows, int q_heads, int k_heads, int head_size, int half,
                                       float sign) {
  constexpr int N = 16 / sizeof(T);
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  q += static_cast<int64_t>(row) * q_heads * head_size;
  k += static_cast<int64_t>(row) * k_heads * head_size;
  cos += static_cast<int64_t>(row) * half;
  sin += static_cast<int64_t>(row) * half;
  // Packs need aligned heads and halves: other sizes go element by element.
  const bool wide = half % N == 0 && head_size % N == 0;
  const int items = wide ? half / N : half;  // of a head
  for (int item = lane_id(); item < (q_heads + k_heads) * items; item += 32) {
    const int head = item / items, i = item % items;
    T* x = head < q_heads ? q + head * head_size : k + (head - q_heads) * head_size;
    if (wide) {
      rotate_pack<N>(x + i * N, cos + i * N, sin + i * N, half, sign);
    } else {
      const float a = to_f32(x[i]), b = to_f32(x[i + half]), sine = sin[i] * sign;
      x[i] = from_f32<T>(a * cos[i] - b * sine);
      x[i + half] = from_f32<T>(b * cos[i] + a * sine);
    }
  }
}

// The rows of q, k and v, where each head of the product belongs.
template <class T>
struct Apart {
  T *q, *k, *v;
  int q_heads, k_heads, head_size;

  __device__ __forceinline__ T* head(int64_t row, int head) const {
    if (head < q_heads) return q + (row * q_heads + head) * head_size;
    head -= q_heads;
    return head < k_heads ? k + (row * k_heads + head) * head_size : v + (row * k_heads + head - k_heads) * head_size;
  }
};

// The rows of the product.
template <class T>
struct Together {
  T* qkv;
  int heads, head_size;

  __device__ __forceinline__ T* head(int64_t row, int head) const { return qkv + (row * heads + head) * head_size; }
};

// N elements from `at` on of a head: those of x as they are, or turned, where they are among the first 2 half of them.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> turned(const T* x, int at, const float* cos, const float* sin, int half, float sign) {
  Pack<T, N> pack = load_pack<N>(x + at);
  if (at >= 2 * half) return pack;
  const bool first = at < half;
  const int angle = first ? at : at - half;
  const Pack<T, N> partner = load_pack<N>(first ? x + at + half : x + at - half);
  constexpr int ANGLES = N < 4 ? N : 4;  // of a load
  for (int j = 0; j < N; j += ANGLES) {
    const Pack<float, ANGLES> c = load_pack<ANGLES>(cos + angle + j), s = load_pack<ANGLES>(sin + angle + j);
    for (int i = 0; i < ANGLES; i++) {
      const float sine = sign * s[i], b = to_f32(partner[j + i]) * (first ? -sine : sine);
      pack[j + i] = from_f32<T>(to_f32(pack[j + i]) * c[i] + b);
    }
  }
  return pack;
}

// Moves every head of a token from one to the other; those of q and k turn.
template <class T, class To, class From>
__device__ __forceinline__ void move_heads(const To& to, const From& from, const float* cos, const float* sin, int rows, int q_heads, int k_heads,
                                           int head_size, int half, float sign) {
  constexpr int N = 16 / sizeof(T);
  const int row = blockIdx.x * ROWS + warp_id();
  if (row >= rows) return;
  cos += static_cast<int64_t>(row) * half;
  sin += static_cast<int64_t>(row) * half;
  // Packs need aligned heads and halves: other sizes go element by element.
  const bool wide = half % N == 0 && head_size % N == 0;
  const int items = wide ? head_size / N : head_size;  // of a head
  for (int item = lane_id(); item < (q_heads + 2 * k_heads) * items; item += 32) {
    const int head = item / items, i = item % items, turns = head < q_heads + k_heads ? half : 0;
    const T* x = from.head(row, head);
    if (wide) {
      store_pack(to.head(row, head) + i * N, turned<N>(x, i * N, cos, sin, turns, sign));
    } else {
      to.head(row, head)[i] = turned<1>(x, i, cos, sin, turns, sign)[0];
    }
  }
}

extern "C" __global__ void __launch_bounds__(128) rope_forward_bf16(bf16* q, bf16* k, const float* cos, const float* sin, int rows, int q_heads,
                                                                    int k_heads, int head_size, int half) {
  rotate(q, k, cos, sin, rows, q_heads, k_heads, head_size, half, 1.0f);
}

extern "C" __global__ void __launch_bounds__(128) rope_forward_f32(float* q, float* k, const float* cos, const float* sin, int rows, int q_heads,
                                                                   int k_heads, int head_size, int half) {
  rotate(q, k, cos, sin, rows, q_heads, k_heads, head_size, half, 1.0f);
}

extern "C" __global__ void __launch_bounds__(128) rope_backward_bf16(bf16* dq, bf16* dk, const float* cos, const float* sin, int rows, int q_heads,
                                                                    int k_heads, int head_size, int half) {
  rotate(dq, dk, cos, sin, rows, q_heads, k_heads, head_size, half, -1.0f);
}

extern "C" __global__ void __launch_bounds__(128) rope_backward_f32(float* dq, float* dk, const float* cos, const float* sin, int rows, int q_heads,
                                                                   int k_heads, int head_size, int half) {
  rotate(dq, dk, cos, sin, rows, q_heads, k_heads, head_size, half, -1.0f);
}

extern "C" __global__ void __launch_bounds__(128) rope_split_forward_bf16(bf16* q, bf16* k, bf16* v, const bf16* qkv, const float* cos, const float* sin,
                                                                         int rows, int q_heads, int k_heads, int head_size, int half) {
  const Together<const bf16> from{qkv, q_heads + 2 * k_heads, head_size};
  const Apart<bf16> to{q, k, v, q_heads, k_heads, head_size};
  move_heads<bf16>(to, from, cos, sin, rows, q_heads, k_heads, head_size, half, 1.0f);
}

extern "C" __global__ void __launch_bounds__(128) rope_split_backward_bf16(const bf16* dq, const bf16* dk, const bf16* dv, bf16* dqkv, const float* cos,
                                                                          const float* sin, int rows, int q_heads, int k_heads, int head_size, int half) {
  const Together<bf16> to{dqkv, q_heads + 2 * k_heads, head_size};
  const Apart<const bf16> from{dq, dk, dv, q_heads, k_heads, head_size};
  move_heads<bf16>(to, from, cos, sin, rows, q_heads, k_heads, head_size, half, -1.0f);
}

extern "C" __global__ void __launch_bounds__(128) rope_split_forward_f32(float* q, float* k, float* v, const float* qkv, const float* cos, const float* sin,
                                                                         int rows, int q_heads, int k_heads, int head_size, int half) {
  const Together<const float> from{qkv, q_heads + 2 * k_heads, head_size};
  const Apart<float> to{q, k, v, q_heads, k_heads, head_size};
  move_heads<float>(to, from, cos, sin, rows, q_heads, k_heads, head_size, half, 1.0f);
}

extern "C" __global__ void __launch_bounds__(128) rope_split_backward_f32(const float* dq, const float* dk, const float* dv, float* dqkv, const float* cos,
                                                                          const float* sin, int rows, int q_heads, int k_heads, int head_size, int half) {
  const Together<float> to{dqkv, q_heads + 2 * k_heads, head_size};
  const Apart<const float> from{dq, dk, dv, q_heads, k_heads, head_size};
  move_heads<float>(to, from, cos, sin, rows, q_heads, k_heads, head_size, half, -1.0f);
}
