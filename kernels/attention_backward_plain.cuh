// The gradient of attention in f32 with no tensor cores, where exactness counts. Any head size up to 256.
//
// A block owns 32 rows, keys (dk and dv) or queries (dq), of one query head of one span, four warps of 8. Four lanes share a row: of a tile
// of the other side each takes the products with a quarter, and of the sums every fourth group of four columns (as attention_plain.cuh).
#pragma once
#include "attention_plain.cuh"
#include "attention_weights.cuh"

namespace plain {

// Rows of the other side at a time: what fits the registers.
template <int HS>
// mutant: condition, flip: more or fewer give the same.
constexpr int KEYS_COLUMNS = HS > 128 ? 16 : 32;
constexpr int QUERIES_COLUMNS = 16;

// sums += weight x, for this lane's columns of the row x.
template <int HS>
__device__ __forceinline__ void add_row(float (&sums)[HS / 16][4], float weight, const float* x, int head_size, bool wide) {
#pragma unroll
  for (int i = 0; i < HS / 16; i++) {  // mutant: flip: the head has ended by then.
    const int c = 16 * i + 4 * (lane_id() % 4);
    if (c >= head_size) break;
    const Pack<float, 4> a = load4(x, c, head_size, wide);
    for (int e = 0; e < 4; e++) sums[i][e] += weight * a[e];
  }
}

template <int HS>
__device__ __forceinline__ void store_row(float* to, const float (&sums)[HS / 16][4], int head_size, float scale) {
#pragma unroll
  for (int i = 0; i < HS / 16; i++)  // mutant: flip: the head has ended by then.
    for (int e = 0; e < 4; e++) {
      const int c = 16 * i + 4 * (lane_id() % 4) + e;
      if (c < head_size) to[c] = sums[i][e] * scale;
    }
}

template <int HS>
__device__ __forceinline__ void keys(float* dk, float* dv, float* dk_parts, float* dv_parts, const float* dout, const float* q,
                                     const float* k, const float* v, const float* stats, const int4* spans, int rows, int heads,
                                     int kv_heads, int head_size, float scale, int causal) {
  constexpr int N = KEYS_COLUMNS<HS>;
  const int head = blockIdx.x, kv_head = head / (heads / kv_heads), quad = lane_id() % 4;
  const int first = blockIdx.y * QUERIES + warp_id() * WARP_QUERIES;  // the first keys are seen by the most queries
  const Span span(spans[blockIdx.z], causal);
  if (first >= span.k_len) return;  // mutant: guard, flip: no lane would have a key.
  const int own = first + lane_id() / 4, key = min(own, span.k_len - 1);  // lanes past the end work along
  const bool wide = head_size % 4 == 0;  // mutant: condition: false reads element by element, which only takes longer.
  const int64_t stride = static_cast<int64_t>(heads) * head_size;
  const int64_t k_row = (static_cast<int64_t>(span.k_start + key) * kv_heads + kv_head) * head_size;
  q += span.q_start * stride + head * head_size;
  dout += span.q_start * stride + head * head_size;
  stats += 2 * (static_cast<int64_t>(head) * rows + span.q_start);
  float* const p = shared_memory<float>() + threadIdx.x / 4 * PITCH;
  float* const ds = p + QUERIES * PITCH;
  float dk_sums[HS / 16][4] = {}, dv_sums[HS / 16][4] = {};

  // Queries before these see none of the warp's keys.
  // mutant: clamp, flip: 0 takes them all, with weights of 0; one more tile has no queries.
  for (int start = max(0, first - span.reach + 1); start < span.q_len; start += N) {
    float s[N / 4] = {}, dp[N / 4] = {};
    scores(s, k + k_row, q, stride, start, span.q_len, span.q_len, head_size, wide, 1.0f);
    scores(dp, v + k_row, dout, stride, start, span.q_len, span.q_len, head_size, wide, 1.0f);
    __syncwarp();  // the weights before these have been used
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
      const int query = min(start + 4 * j + quad, span.q_len - 1);  // past the last none is used
      const Pack<float, 2> stat = load_pack<2>(stats + 2 * query);
      const float w = key < span.seen(query) ? weight(s[j], scale * LOG2_E, stat[0]) : 0.0f;
      p[4 * j + quad] = w;
      ds[4 * j + quad] = w * (dp[j] - stat[1]);
    }
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < min(N, span.q_len - start); j++) {
      add_row<HS>(dv_sums, p[j], dout + (start + j) * stride, head_size, wide);
      add_row<HS>(dk_sums, ds[j], q + (start + j) * stride, head_size, wide);
    }
  }
  if (own >= span.k_len) return;
  const int64_t part = (static_cast<int64_t>(span.k_start + key) * heads + head) * head_size;
  store_row<HS>(dk_parts == nullptr ? dk + k_row : dk_parts + part, dk_sums, head_size, scale);
  store_row<HS>(dk_parts == nullptr ? dv + k_row : dv_parts + part, dv_sums, head_size, 1.0f);
}

template <int HS>
__device__ __forceinline__ void queries(float* dq, const float* dout, const float* q, const float* k, const float* v, const float* stats,
                                        const int4* spans, int rows, int heads, int kv_heads, int head_size, float scale,
                                        int causal) {
  constexpr int N = QUERIES_COLUMNS;
  const int head = blockIdx.x, quad = lane_id() % 4, first = tile_from_last() * QUERIES + warp_id() * WARP_QUERIES;
  const Span span(spans[blockIdx.z], causal);
  if (first >= span.q_len) return;  // mutant: guard, flip: no lane would have a query.
  const int own = first + lane_id() / 4, query = min(own, span.q_len - 1);  // lanes past the end work along
  const bool wide = head_size % 4 == 0;  // mutant: condition: false reads element by element, which only takes longer.
  const int64_t stride = static_cast<int64_t>(kv_heads) * head_size;
  const int64_t row = (static_cast<int64_t>(span.q_start + query) * heads + head) * head_size;
  const int64_t k_at = span.k_start * stride + head / (heads / kv_heads) * head_size;
  stats += 2 * (static_cast<int64_t>(head) * rows + span.q_start + query);
  float* const ds = shared_memory<float>() + threadIdx.x / 4 * PITCH;
  float sums[HS / 16][4] = {};
  // Keys that one of the warp's queries sees (more would be masked: saves time), and that this lane's sees.
  const int keys = span.seen(first + WARP_QUERIES - 1), seen = span.seen(query);

  for (int start = 0; start < keys; start += N) {  // mutant: flip: one more tile has no keys
    float s[N / 4] = {}, dp[N / 4] = {};
    scores(s, q + row, k + k_at, stride, start, seen, span.k_len, head_size, wide, 1.0f);
    scores(dp, dout + row, v + k_at, stride, start, span.k_len, span.k_len, head_size, wide, 1.0f);
    const Pack<float, 2> stat = load_pack<2>(stats);
    __syncwarp();  // those before these have been used
#pragma unroll
    for (int j = 0; j < N / 4; j++) ds[4 * j + quad] = weight(s[j], scale * LOG2_E, stat[0]) * (dp[j] - stat[1]);
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < min(N, keys - start); j++) add_row<HS>(sums, ds[j], k + k_at + (start + j) * stride, head_size, wide);
  }
  if (own < span.q_len) store_row<HS>(dq + row, sums, head_size, scale);
}

}  // namespace plain
