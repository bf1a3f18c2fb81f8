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
