// Spans of one query, over keys in splits of 256, a constant: what comes out of a span does not depend on the batch. Two kernels.
//
// First: a block takes a split of one span for one key/value head and up to 8 query heads of its group, so that every key and value is read
// once for them. LANES lanes share a row of K or V, 16 bytes each (8 of int8, whose sums would take twice the registers); the block's other
// lanes are at further rows. Keys follow one another, or lie in pages (attention_paged.cu). Left behind for each query
// head: sum_j 2^(s_j - top) v_j, top (the largest s, a score times scale log2(e)), and the sum of these weights.
// Second: a warp a query head adds up its splits, from the first to the last.
#pragma once
#include "attention_span.cuh"

namespace decode {

constexpr int SPLIT = 256, MOST_HEADS = 8, THREADS = 128, WARPS = 4;
constexpr int UNROLL = 4;  // rows that a lane has under way
constexpr int PAGE = 128;  // src/ops/kv_cache.rs; a split has two

// Elements of S that a lane takes at a time.
template <class S>
constexpr int PACK = sizeof(S) == 1 ? 8 : 16 / sizeof(S);

// The part of one split: head_size sums, then top and total.
__device__ __forceinline__ int64_t part_at(int span, int head, int split, int heads, int splits, int head_size) {
  return ((static_cast<int64_t>(span) * heads + head) * splits + split) * (head_size + 2);
}

// The keys, or values, of a split for one key/value head: in which rows of x its first and its second page begin.
template <class S>
struct Head {
  const S* x;  // the head's elements of row 0
  const float* scales;  // of int8: the head's of row 0
  int low, high, kv_heads, head_size;

  __device__ __forceinline__ int64_t row(int first) const { return (first < PAGE ? low : high - PAGE) + first; }
  __device__ __forceinline__ int stride() const { return kv_heads * head_size; }
  // Row `first` of the split; those behind it in its page follow.
  __device__ __forceinline__ const S* from(int first) const { return x + row(first) * stride(); }
  // Of row `first` + `behind`, in the page of row `first`.
  __device__ __forceinline__ float scale(int first, int behind) const {
    return sizeof(S) == 1 ? scales[(row(first) + behind) * kv_heads] : 1.0f;
  }
};

// A lane's share of UNROLL rows of K or V: all are on their way together, and become floats once for all heads. Past the last key and beyond the
// head there are zeros with a scale of 1: the score of such a key is 0, and stays so as its weight (`soften` ends with the keys).
template <int LANES, class S>
struct Rows {
  static constexpr int N = PACK<S>, STEP = THREADS / LANES, ROUND = UNROLL * STEP;
  static_assert(PAGE % ROUND == 0, "a round must end in the page");
  float x[UNROLL][N], scale[UNROLL];

  // Rows start + row, and every STEP-th that follows, from `column` on.
  __device__ __forceinline__ Rows(const Head<S>& from, int start, int row, int column, int keys) {
    constexpr int WORDS = N * sizeof(S) / 4;
    Pack<uint32_t, WORDS> raw[UNROLL] = {};  // not S: zeros of 16 bits would be selected half a register at a time
    const S* const first = from.from(start) + column;
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int behind = u * STEP + row;
      const bool real = start + behind < keys && column < from.head_size;
      if (real) raw[u] = load_pack<WORDS>(reinterpret_cast<const uint32_t*>(first + behind * from.stride()));
      scale[u] = real ? from.scale(start, behind) : 1.0f;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
      for (int i = 0; i < N; i++) x[u][i] = to_f32(reinterpret_cast<const S*>(&raw[u])[i]);
  }
};

// weights[head][key] = q . k, for q [n_heads][head_size] in shared memory.
template <int LANES, class S>
__device__ __forceinline__ void scores(float* weights, const float* q, const Head<S>& k, int keys, int n_heads, int head_size) {
  using Mine = Rows<LANES, S>;
  const int row = threadIdx.x / LANES, column = threadIdx.x % LANES * Mine::N;
  for (int start = 0; start < keys; start += Mine::ROUND) {
    const Mine rows(k, start, row, column, keys);
#pragma unroll 1
    for (int h = 0; h < n_heads; h++) {
      float s[UNROLL] = {};
      if (column < head_size) {
        for (int i = 0; i < Mine::N; i += 4) {
          const Pack<float, 4> a = load_pack<4>(q + h * head_size + column + i);
          for (int u = 0; u < UNROLL; u++)
            for (int e = 0; e < 4; e++) s[u] += a[e] * rows.x[u][i + e];
        }
      }
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        for (int bit = LANES / 2; bit > 0; bit /= 2) s[u] += __shfl_xor_sync(FULL_WARP, s[u], bit);
        if (column == 0) weights[h * SPLIT + start + u * Mine::STEP + row] = s[u] * rows.scale[u];
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
template <int LANES, class S>
__device__ __forceinline__ void add_values(float* sums, const float* weights, const Head<S>& v, int keys, int n_heads, int head_size) {
  using Mine = Rows<LANES, S>;
  constexpr int N = Mine::N;
  const int row = threadIdx.x / LANES, column = threadIdx.x % LANES * N;
  float acc[MOST_HEADS][N] = {};
  for (int start = 0; start < keys; start += Mine::ROUND) {
    const Mine rows(v, start, row, column, keys);
#pragma unroll
    // mutant: flip: the break comes first, n_heads is at most MOST_HEADS
    for (int h = 0; h < MOST_HEADS; h++) {
      if (h >= n_heads) break;
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const float p = weights[h * SPLIT + start + u * Mine::STEP + row] * rows.scale[u];
        for (int i = 0; i < N; i++) acc[h][i] += p * rows.x[u][i];
      }
    }
  }
#pragma unroll
  // mutant: flip: as above
  for (int h = 0; h < MOST_HEADS; h++) {
    if (h >= n_heads) break;
#pragma unroll
    for (int i = 0; i < N; i++) {
      // mutant: loop: powers of two: 16 is the last below 32 and below 31
      for (int bit = LANES; bit < 32; bit *= 2) acc[h][i] += __shfl_xor_sync(FULL_WARP, acc[h][i], bit);
      if (lane_id() < LANES && column < head_size) sums[(warp_id() * n_heads + h) * head_size + column + i] = acc[h][i];
    }
  }
}

// Rows that follow one another: a span's from k_start on.
template <class S>
struct Contiguous {
  using Stored = S;
  const S* x;

  __device__ __forceinline__ Head<S> head(const Span& span, int split, int, int kv_head, int kv_heads, int head_size) const {
    const int low = span.k_start + split * SPLIT;
    return {x + kv_head * head_size, nullptr, low, low + PAGE, kv_heads, head_size};
  }
};

// Rows in pages: a span's from entry k_start of the tables on. What its keys do not reach is not looked up.
template <class S>
struct Paged {
  using Stored = S;
  const S* x;
  const float* scales;  // of int8
  const uint32_t* tables;

  __device__ __forceinline__ Head<S> head(const Span& span, int split, int keys, int kv_head, int kv_heads, int head_size) const {
    const uint32_t* const table = tables + span.k_start + split * (SPLIT / PAGE);
    const int low = table[0] * PAGE, high = keys > PAGE ? table[1] * PAGE : 0;
    // mutant: condition: true makes an address of floats that has no scales behind it, and that is not read
    return {x + kv_head * head_size, sizeof(S) == 1 ? scales + kv_head : nullptr, low, high, kv_heads, head_size};
  }
};

// Shared memory: for each head of the block its query, its weights, and its sums by warp: head_size + SPLIT + WARPS head_size floats.
template <int SIZE, class T, class KV>
__device__ __forceinline__ void attention(float* parts, const T* q, KV k, KV v, const int4* spans, int splits, int heads, int kv_heads,
                                          int head_size, float scale) {
  constexpr int LANES = SIZE / PACK<typename KV::Stored>;
  const int group = heads / kv_heads, chunks = (group + MOST_HEADS - 1) / MOST_HEADS;
  const int kv_head = blockIdx.y / chunks, chunk = blockIdx.y % chunks;
  const int first_head = kv_head * group + chunk * MOST_HEADS, n_heads = min(MOST_HEADS, group - chunk * MOST_HEADS);
  const int index = blockIdx.x / splits, split = blockIdx.x % splits;
  const Span span(spans[index], true);
  const int keys = min(SPLIT, span.k_len - split * SPLIT);
  // mutant: guard, term, flip: saves time: `combine` reads no part of such a span or split (what a table has behind the span would be looked up, not used).
  if (span.q_len != 1 || keys <= 0) return;  // another kernel's, or nothing to do
  q += (static_cast<int64_t>(span.q_start) * heads + first_head) * head_size;
  float* const queries = shared_memory<float>();
  float* const weights = queries + n_heads * head_size;
  float* const sums = weights + n_heads * SPLIT;

  for (int i = threadIdx.x; i < n_heads * head_size; i += THREADS) queries[i] = to_f32(q[i]) * (scale * LOG2_E);
  __syncthreads();
  scores<LANES>(weights, queries, k.head(span, split, keys, kv_head, kv_heads, head_size), keys, n_heads, head_size);
  __syncthreads();
  for (int h = warp_id(); h < n_heads; h += WARPS)
    soften(weights + h * SPLIT, parts + part_at(index, first_head + h, split, heads, splits, head_size) + head_size, keys);
  __syncthreads();
  add_values<LANES>(sums, weights, v.head(span, split, keys, kv_head, kv_heads, head_size), keys, n_heads, head_size);
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
