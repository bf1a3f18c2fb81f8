// Spans of one query, over keys in splits of 256, a constant: what comes out of a span does not depend on the batch. Two kernels.
//
// First: a block takes a split of one span for one key/value head and up to 8 query heads of its group, so that every key and value is read
// once for them. LANES lanes share a row of K or V, 16 bytes each; the block's other lanes are at further rows. Left behind for each query
// head: sum_j 2^(s_j - top) v_j, top (the largest s, a score times scale log2(e)), and the sum of these weights.
// Second: a warp a query head adds up its splits, from the first to the last.
#pragma once
#include "attention_span.cuh"

namespace decode {

constexpr int SPLIT = 256, MOST_HEADS = 8, THREADS = 128, WARPS = 4;
constexpr int UNROLL = 4;  // rows that a lane has under way

// The part of one split: head_size sums, then top and total.
__device__ __forceinline__ int64_t part_at(int span, int head, int split, int heads, int splits, int head_size) {
  return ((static_cast<int64_t>(span) * heads + head) * splits + split) * (head_size + 2);
}

template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_or_zeros(const T* p, bool real) {
  Pack<T, N> x;
  if (real) return load_pack<N>(p);
  for (int i = 0; i < N; i++) x[i] = from_f32<T>(0.0f);
  return x;
}

// weights[head][key] = q . k, for q [n_heads][head_size] in shared memory.
template <class T, int LANES>
__device__ __forceinline__ void scores(float* weights, const float* q, const T* k, int64_t stride, int keys, int n_heads, int head_size) {
  constexpr int N = 16 / sizeof(T), ROWS = THREADS / LANES;
  static_assert(SPLIT % (UNROLL * ROWS) == 0, "a round must end in the split");
  const int row = threadIdx.x / LANES, column = threadIdx.x % LANES * N;
  for (int start = 0; start < keys; start += UNROLL * ROWS) {
    Pack<T, N> x[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int key = start + u * ROWS + row;
      x[u] = load_or_zeros<T, N>(k + key * stride + column, key < keys && column < head_size);
    }
#pragma unroll 1
    for (int h = 0; h < n_heads; h++) {
      float s[UNROLL] = {};
      if (column < head_size) {
        for (int i = 0; i < N; i += 4) {
          const Pack<float, 4> a = load_pack<4>(q + h * head_size + column + i);
          for (int u = 0; u < UNROLL; u++)
            for (int e = 0; e < 4; e++) s[u] += a[e] * to_f32(x[u][i + e]);
        }
      }
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        for (int bit = LANES / 2; bit > 0; bit /= 2) s[u] += __shfl_xor_sync(FULL_WARP, s[u], bit);
        if (column == 0) weights[h * SPLIT + start + u * ROWS + row] = s[u];  // past the last key none is read
      }
    }
  }
}

// A head's scores become weights relative to the largest; part: where top and total go. By one warp.
__device__ __forceinline__ void soften(float* weights, float* part, int keys) {
  float top = -INFINITY, total = 0.0f;
  for (int j = lane_id(); j < keys; j += 32) top = fmaxf(top, weights[j]);
  top = warp_max(top);
  for (int j = lane_id(); j < keys; j += 32) {
    weights[j] = exp2f(weights[j] - top);
    total += weights[j];
  }
  total = warp_sum(total);
  if (lane_id() == 0) part[0] = top, part[1] = total;
}

// sums[warp][head][column] over the rows of V that the warp takes.
template <class T, int LANES>
__device__ __forceinline__ void add_values(float* sums, const float* weights, const T* v, int64_t stride, int keys, int n_heads,
                                           int head_size) {
  constexpr int N = 16 / sizeof(T), ROWS = THREADS / LANES;
  const int row = threadIdx.x / LANES, column = threadIdx.x % LANES * N;
  float acc[MOST_HEADS][N] = {};
  if (column < head_size) {
#pragma unroll 2
    for (int key = row; key < keys; key += ROWS) {
      const Pack<T, N> x = load_pack<N>(v + key * stride + column);
#pragma unroll
      for (int h = 0; h < MOST_HEADS; h++) {
        if (h >= n_heads) break;
        const float p = weights[h * SPLIT + key];
        for (int i = 0; i < N; i++) acc[h][i] += p * to_f32(x[i]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < MOST_HEADS; h++) {
    if (h >= n_heads) break;
#pragma unroll
    for (int i = 0; i < N; i++) {
      for (int bit = LANES; bit < 32; bit *= 2) acc[h][i] += __shfl_xor_sync(FULL_WARP, acc[h][i], bit);
      if (lane_id() < LANES && column < head_size) sums[(warp_id() * n_heads + h) * head_size + column + i] = acc[h][i];
    }
  }
}

// Shared memory: for each head of the block its query, its weights, and its sums by warp: head_size + SPLIT + WARPS head_size floats.
template <class T, int LANES>
__device__ __forceinline__ void attention(float* parts, const T* q, const T* k, const T* v, const int4* spans, int splits, int heads,
                                          int kv_heads, int head_size, float scale) {
  const int group = heads / kv_heads, chunks = (group + MOST_HEADS - 1) / MOST_HEADS;
  const int kv_head = blockIdx.y / chunks, chunk = blockIdx.y % chunks;
  const int first_head = kv_head * group + chunk * MOST_HEADS, n_heads = min(MOST_HEADS, group - chunk * MOST_HEADS);
  const int index = blockIdx.x / splits, split = blockIdx.x % splits;
  const Span span(spans[index], true);
  const int keys = min(SPLIT, span.k_len - split * SPLIT);
  if (span.q_len != 1 || keys <= 0) return;  // another kernel's, or nothing to do (saves time: no one would read the part)
  const int64_t stride = static_cast<int64_t>(kv_heads) * head_size;
  q += (static_cast<int64_t>(span.q_start) * heads + first_head) * head_size;
  k += (span.k_start + split * SPLIT) * stride + kv_head * head_size;
  v += (span.k_start + split * SPLIT) * stride + kv_head * head_size;
  float* const queries = shared_memory<float>();
  float* const weights = queries + n_heads * head_size;
  float* const sums = weights + n_heads * SPLIT;

  for (int i = threadIdx.x; i < n_heads * head_size; i += THREADS) queries[i] = to_f32(q[i]) * (scale * LOG2_E);
  __syncthreads();
  scores<T, LANES>(weights, queries, k, stride, keys, n_heads, head_size);
  __syncthreads();
  for (int h = warp_id(); h < n_heads; h += WARPS)
    soften(weights + h * SPLIT, parts + part_at(index, first_head + h, split, heads, splits, head_size) + head_size, keys);
  __syncthreads();
  add_values<T, LANES>(sums, weights, v, stride, keys, n_heads, head_size);
  __syncthreads();
  for (int i = threadIdx.x; i < n_heads * head_size; i += THREADS) {
    float sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) sum += sums[warp * n_heads * head_size + i];
    parts[part_at(index, first_head + i / head_size, split, heads, splits, head_size) + i % head_size] = sum;
  }
}

template <class T>
__device__ __forceinline__ void combine(T* out, float* lse, const float* parts, const int4* spans, int n_spans, int splits, int heads,
                                        int head_size) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * WARPS + warp_id();
  if (warp >= static_cast<int64_t>(n_spans) * heads) return;
  const int index = warp / heads, head = warp % heads;
  const Span span(spans[index], true);
  if (span.q_len != 1) return;
  const int used = (span.k_len + SPLIT - 1) / SPLIT, width = head_size + 2;
  parts += part_at(index, head, 0, heads, splits, head_size);
  float top = -INFINITY, total = 0.0f;
  for (int s = 0; s < used; s++) top = fmaxf(top, parts[s * width + head_size]);
  for (int s = 0; s < used; s++) total += exp2f(parts[s * width + head_size] - top) * parts[s * width + head_size + 1];
  const int64_t row = static_cast<int64_t>(span.q_start) * heads + head;
  for (int c = lane_id(); c < head_size; c += 32) {
    float sum = 0.0f;
    for (int s = 0; s < used; s++) sum += exp2f(parts[s * width + head_size] - top) * parts[s * width + c];
    out[row * head_size + c] = from_f32<T>(sum * inverse(total));
  }
  if (lse != nullptr && lane_id() == 0) lse[row] = log_sum(top, total);
}

}  // namespace decode
