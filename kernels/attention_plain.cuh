// f32 with no tensor cores, where exactness counts: checkpoints in f32, golden tests. Any head size up to 256.
//
// A block: 32 queries of one head of one span, four warps of 8. Four lanes share a query: of a tile of keys each takes the scores of a
// quarter (whole products), and of the output every fourth group of four columns. K and V come through L1, where the 8 queries of a warp
// ask for the same.
#pragma once
#include "attention_span.cuh"

namespace plain {

constexpr int WARP_QUERIES = 8, QUERIES = 32;
constexpr int PITCH = 33;  // of a query's weights in shared memory: eight queries in different banks

// row[c .. c + 4), zeros past its end. wide: rows are a multiple of four and aligned (saves time).
__device__ __forceinline__ Pack<float, 4> load4(const float* row, int c, int head_size, bool wide) {
  // mutant: guard: the loop reads the same, which only takes longer.
  if (wide) return load_pack<4>(row + c);
  Pack<float, 4> x;
  for (int i = 0; i < 4; i++) x[i] = c + i < head_size ? row[c + i] : 0.0f;
  return x;
}

// Scores of this lane's keys start + 4 j + quad, times scale; -inf for those that the query does not see (and of the last one for those
// that are not there).
template <int N>
__device__ __forceinline__ void scores(float (&s)[N], const float* q, const float* k, int64_t stride, int start, int seen, int k_len,
                                       int head_size, bool wide, float scale) {
#pragma unroll 1
  for (int c = 0; c < head_size; c += 4) {
    const Pack<float, 4> a = load4(q, c, head_size, wide);
#pragma unroll
    for (int j = 0; j < N; j++) {
      const Pack<float, 4> b = load4(k + min(start + 4 * j + lane_id() % 4, k_len - 1) * stride, c, head_size, wide);
      for (int i = 0; i < 4; i++) s[j] += a[i] * b[i];
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) s[j] = start + 4 * j + lane_id() % 4 < seen ? s[j] * scale : -INFINITY;
}

// HS: the largest head size. weights: of this lane's query, in shared memory.
template <int HS>
__device__ __forceinline__ void attention(float* out, float* lse, const float* q, const float* k, const float* v, const int4* spans,
                                          int least, int heads, int kv_heads, int head_size, float scale, int causal) {
  // mutant: condition: either is right; more would not fit the registers.
  constexpr int KEYS = HS > 128 ? 16 : 32;
  const int head = blockIdx.x, quad = lane_id() % 4, first = tile_from_last() * QUERIES + warp_id() * WARP_QUERIES;
  const Span span(spans[blockIdx.z], causal);
  // mutant: term, flip: no lane would have a query.
  if (span.q_len < least || first >= span.q_len) return;  // another kernel's; nothing to do
  const int own = first + lane_id() / 4, query = min(own, span.q_len - 1);  // lanes past the end work along
  const bool wide = head_size % 4 == 0;  // mutant: condition: false reads element by element, which only takes longer.
  const int64_t stride = static_cast<int64_t>(kv_heads) * head_size;
  const int64_t row = static_cast<int64_t>(span.q_start + query) * heads + head;
  q += row * head_size;
  k += span.k_start * stride + head / (heads / kv_heads) * head_size;
  v += span.k_start * stride + head / (heads / kv_heads) * head_size;
  float* const weights = shared_memory<float>() + threadIdx.x / 4 * PITCH;
  float sums[HS / 16][4] = {}, top = -INFINITY, total = 0.0f;
  // Keys that one of the warp's queries sees (more would be masked: saves time), and that this lane's sees.
  const int keys = span.seen(first + WARP_QUERIES - 1), seen = span.seen(query);

  for (int start = 0; start < keys; start += KEYS) {
    float s[KEYS / 4] = {};
    scores(s, q, k, stride, start, seen, span.k_len, head_size, wide, scale * LOG2_E);
    float larger = top;
    for (int j = 0; j < KEYS / 4; j++) larger = fmaxf(larger, s[j]);
    larger = fmaxf(larger, __shfl_xor_sync(FULL_WARP, larger, 1));
    larger = fmaxf(larger, __shfl_xor_sync(FULL_WARP, larger, 2));
    const float shrink = exp2f(top - larger);
    top = larger;
    total *= shrink;
    for (int i = 0; i < HS / 16; i++)
      for (int e = 0; e < 4; e++) sums[i][e] *= shrink;
    __syncwarp();  // the weights before these have been used
    for (int j = 0; j < KEYS / 4; j++) {
      const float p = exp2f(s[j] - top);
      total += p;
      weights[4 * j + quad] = p;
    }
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < min(KEYS, keys - start); j++) {
      const float p = weights[j];
      const float* value = v + (start + j) * stride;
#pragma unroll
      for (int i = 0; i < HS / 16; i++) {  // mutant: flip: the head has ended by then.
        const int c = 16 * i + 4 * quad;
        if (c >= head_size) break;
        const Pack<float, 4> x = load4(value, c, head_size, wide);
        for (int e = 0; e < 4; e++) sums[i][e] += p * x[e];
      }
    }
  }
  total += __shfl_xor_sync(FULL_WARP, total, 1);
  total += __shfl_xor_sync(FULL_WARP, total, 2);
  if (own >= span.q_len) return;
#pragma unroll
  for (int i = 0; i < HS / 16; i++)  // mutant: flip: the head has ended by then.
    for (int e = 0; e < 4; e++) {
      const int c = 16 * i + 4 * quad + e;
      if (c < head_size) out[row * head_size + c] = sums[i][e] * inverse(total);
    }
  if (lse != nullptr && quad == 0) lse[row] = log_sum(top, total);
}

}  // namespace plain
