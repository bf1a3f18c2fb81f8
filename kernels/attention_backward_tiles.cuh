// The gradient of attention in bf16, on tensor cores: P and dP are computed again, tile by tile.
//
// A block owns rows: keys (dk and dv) or queries (dq) of one query head of one span, four warps of ROW_TILES row tiles of m16n8k16. The other
// side comes by, COLUMNS rows at a time, in two buffers: one is filled by cp.async while the other is used, with one barrier a tile. Scores
// are computed with the owned rows as rows, so S^T for keys: then P and dS go from the layout of C into that of A by packing alone, and
// nothing but inputs is ever in shared memory.
#pragma once
#include "attention_prefill.cuh"
#include "attention_weights.cuh"

namespace tiles {

// Accumulators take HS / 2 registers a row tile and output, scores and their gradients COLUMNS a row tile. Two row tiles use a fragment that
// ldmatrix brings twice, but for dk and dv fit the registers up to HS 64 only.
template <int HS>
struct Keys {
  // mutant: condition, flip, term: other tiles give the same, as long as the launch's shared memory holds them.
  static constexpr int ROW_TILES = HS > 64 ? 1 : 2, COLUMNS = HS > 96 || HS <= 64 ? 32 : 64;
};
template <int HS>
struct Queries {
  static constexpr int ROW_TILES = 2, COLUMNS = 32;
};

// x, which the compiler takes for a new number: what is computed from it is not kept in registers from one tile to the next.
__device__ __forceinline__ int fresh(int x) {
#ifndef MPA_HOST
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// What a lane has of a matrix with the warp's rows: rows group and group + 8 of each row tile, two columns of every eight.
template <int ROW_TILES, int WIDTH>
using Matrix = float[ROW_TILES][WIDTH / 8][4];

template <int ROW_TILES, int WIDTH>
__device__ __forceinline__ void clear(Matrix<ROW_TILES, WIDTH>& sums) {
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++)
    for (int d = 0; d < WIDTH / 8; d++)
      for (int e = 0; e < 4; e++) sums[t][d][e] = 0.0f;
}

// s = A B^T, A from row `first` on.
template <int HS, int ROW_TILES, int COLUMNS>
__device__ __forceinline__ void products(Matrix<ROW_TILES, COLUMNS>& s, const bf16* a_rows, int first, const bf16* b_rows) {
  using T = prefill::Tile<HS>;
  const int lane = fresh(lane_id());
  clear<ROW_TILES, COLUMNS>(s);
#pragma unroll
  for (int depth = 0; depth < T::WIDTH / 16; depth++) {
    uint32_t a[ROW_TILES][4];
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) ldmatrix_x4(a[t], a_rows + T::at(first + 16 * t + lane % 16, 2 * depth + lane / 16));
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      uint32_t b[4];
      ldmatrix_x4(b, b_rows + T::at(16 * n + lane % 8 + lane / 16 * 8, 2 * depth + lane / 8 % 2));
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) {
        mma_bf16(s[t][2 * n], a[t], b[0], b[1]);
        mma_bf16(s[t][2 * n + 1], a[t], b[2], b[3]);
      }
    }
  }
}

// sums += S B, with S rounded to bf16.
template <int HS, int ROW_TILES, int COLUMNS>
__device__ __forceinline__ void add_products(Matrix<ROW_TILES, HS>& sums, const Matrix<ROW_TILES, COLUMNS>& s, const bf16* b_rows) {
  using T = prefill::Tile<HS>;
  const int lane = fresh(lane_id());
#pragma unroll
  for (int depth = 0; depth < COLUMNS / 16; depth++) {
    uint32_t a[ROW_TILES][4];
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
        const float* pair = &s[t][2 * depth + r / 2][r % 2 * 2];
        a[t][r] = pack_bf16(pair[0], pair[1]);
      }
    }
    const int row = 16 * depth + lane % 16;
#pragma unroll
    for (int d = 0; d < HS / 16; d++) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, b_rows + T::at(row, 2 * d + lane / 16));
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) {
        mma_bf16(sums[t][2 * d], a[t], b[0], b[1]);
        mma_bf16(sums[t][2 * d + 1], a[t], b[2], b[3]);
      }
    }
    if constexpr (HS % 16 != 0) {
      uint32_t b[2];
      ldmatrix_x2_trans(b, b_rows + T::at(row, HS / 8 - 1));
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) mma_bf16(sums[t][HS / 8 - 1], a[t], b[0], b[1]);
    }
  }
}

// The warp's sums, times scale, into rows `stride` apart; the first `rows` of them are there.
template <int HS, int ROW_TILES, class To>
__device__ __forceinline__ void store(To* to, int64_t stride, const Matrix<ROW_TILES, HS>& sums, int rows, int head_size, float scale) {
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = 16 * t + 8 * half + lane_id() / 4;
      if (row >= rows) continue;
#pragma unroll
      for (int d = 0; d < HS / 8; d++) {  // mutant: flip: the head has ended by then.
        if (8 * d >= head_size) break;
        Pack<To, 2> pair;
        for (int e = 0; e < 2; e++) pair[e] = from_f32<To>(sums[t][d][2 * half + e] * scale);
        store_pack(to + row * stride + 8 * d + lane_id() % 4 * 2, pair);
      }
    }
  }
}

// The statistics of queries into shared memory, `rows` of them. Of queries that are not there all is zero: P is 1, and adds nothing.
template <int ROWS>
__device__ __forceinline__ void copy_stats(float* to, const float* from, int rows) {
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * ROWS; i += 128) {
    const bool real = i < 2 * rows;
    cp_async4(to + i, real ? from + i : from, real);
  }
}

// Where the sums of `keys` go. All is computed again from the block's number, for want of registers.
template <int HS>
__device__ __forceinline__ void store_keys(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts,
                                           const Matrix<Keys<HS>::ROW_TILES, HS>& dk_sums, const Matrix<Keys<HS>::ROW_TILES, HS>& dv_sums,
                                           const int4* spans, int heads, int kv_heads, int head_size, float scale) {
  constexpr int ROW_TILES = Keys<HS>::ROW_TILES, WARP = 16 * ROW_TILES;
  const int head = fresh(blockIdx.x), mine = fresh(blockIdx.y) * (4 * WARP) + warp_id() * WARP;
  const int4 span = spans[fresh(blockIdx.z)];
  const int64_t row = span.z + mine;
  if (dk_parts == nullptr) {
    const int64_t stride = static_cast<int64_t>(kv_heads) * head_size, at = row * stride + head * head_size;
    store<HS, ROW_TILES>(dk + at, stride, dk_sums, span.w - mine, head_size, scale);
    store<HS, ROW_TILES>(dv + at, stride, dv_sums, span.w - mine, head_size, 1.0f);
  } else {
    const int64_t stride = static_cast<int64_t>(heads) * head_size, at = row * stride + head * head_size;
    store<HS, ROW_TILES>(dk_parts + at, stride, dk_sums, span.w - mine, head_size, scale);
    store<HS, ROW_TILES>(dv_parts + at, stride, dv_sums, span.w - mine, head_size, 1.0f);
  }
}

// For `keys`: p, scores, becomes P, and ds, the gradients of P, becomes dS. The warp's keys start at `mine`, the tile's queries at `start`.
template <int ROW_TILES, int COLUMNS>
__device__ __forceinline__ void weigh_keys(Matrix<ROW_TILES, COLUMNS>& p, Matrix<ROW_TILES, COLUMNS>& ds, const float* stats,
                                           const Span& span, int mine, int start, int lane, float scale) {
  // mutant: condition, flip: elsewhere all are seen, and nothing is masked.
  if (mine + 16 * ROW_TILES > span.seen(start)) {
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
      for (int n = 0; n < COLUMNS / 8; n++)
        for (int e = 0; e < 4; e++) {
          const int query = start + 8 * n + lane % 4 * 2 + e % 2;
          if (mine + 16 * t + e / 2 * 8 + lane / 4 >= span.seen(query)) p[t][n][e] = -INFINITY;
        }
  }
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; n++) {
    const Pack<float, 4> stat = load_pack<4>(stats + 2 * (8 * n + lane % 4 * 2));
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
      for (int e = 0; e < 4; e++) {
        p[t][n][e] = weight(p[t][n][e], scale, stat[e % 2 * 2]);
        ds[t][n][e] = p[t][n][e] * (ds[t][n][e] - stat[e % 2 * 2 + 1]);
      }
  }
}

// dk and dv of a tile of keys, from one query head: into dk and dv if it is alone in its group, else into its part of the group's sums.
template <int HS>
__device__ __forceinline__ void keys(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts, const bf16* dout, const bf16* q, const bf16* k,
                                     const bf16* v, const float* stats, const int4* spans, int rows, int heads, int kv_heads,
                                     int head_size, float scale, int causal) {
  using T = prefill::Tile<HS>;
  constexpr int ROW_TILES = Keys<HS>::ROW_TILES, COLUMNS = Keys<HS>::COLUMNS, WARP = 16 * ROW_TILES, ROWS = 4 * WARP;
  // With a causal mask the first keys are seen by the most queries: they go first.
  const int head = blockIdx.x, kv_head = head / (heads / kv_heads), first = blockIdx.y * ROWS;
  const Span span(spans[blockIdx.z], causal);
  if (first >= span.k_len) return;  // mutant: guard, flip: no warp would have a key.
  const int k_stride = kv_heads * head_size, stride = heads * head_size;
  const int64_t k_start = span.k_start + first;
  const int64_t q_at = static_cast<int64_t>(span.q_start) * stride + head * head_size;
  const int64_t stats_at = static_cast<int64_t>(head) * rows + span.q_start;
  bf16* const k_tile = shared_memory<bf16>();
  bf16* const v_tile = k_tile + ROWS * T::WIDTH;
  bf16* const q_tiles = v_tile + ROWS * T::WIDTH;
  bf16* const dout_tiles = q_tiles + 2 * COLUMNS * T::WIDTH;
  float* const stats_tiles = reinterpret_cast<float*>(dout_tiles + 2 * COLUMNS * T::WIDTH);
  const auto load = [&](int start, int buffer) {
    const int64_t from = q_at + static_cast<int64_t>(start) * stride;
    const int to = buffer * COLUMNS * T::WIDTH, rest = span.q_len - start;
    prefill::copy_rows<HS, COLUMNS>(q_tiles + to, q + from, stride, rest, head_size);
    prefill::copy_rows<HS, COLUMNS>(dout_tiles + to, dout + from, stride, rest, head_size);
    copy_stats<COLUMNS>(stats_tiles + buffer * 2 * COLUMNS, stats + 2 * (stats_at + start), rest);
    cp_async_commit();
  };
  // Queries before these see none of the keys.
  // mutant: clamp: 0 takes them all, and masks them.
  const int begin = max(0, first - span.reach + 1) / COLUMNS * COLUMNS;

  Matrix<ROW_TILES, HS> dk_sums, dv_sums;
  clear<ROW_TILES, HS>(dk_sums);
  clear<ROW_TILES, HS>(dv_sums);
  if (begin < span.q_len) {  // no copy may be under way when the block ends
    prefill::copy_rows<HS, ROWS>(k_tile, k + k_start * k_stride + kv_head * head_size, k_stride, span.k_len - first, head_size);
    prefill::copy_rows<HS, ROWS>(v_tile, v + k_start * k_stride + kv_head * head_size, k_stride, span.k_len - first, head_size);
    load(begin, 0);
  }
  for (int start = begin, buffer = 0; start < span.q_len; start += COLUMNS, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has come for all, and all are done with the one before, whose buffer is filled next
    if (start + COLUMNS < span.q_len) load(start + COLUMNS, buffer ^ 1);
    const int thread = fresh(threadIdx.x), warp = thread / 32, lane = thread % 32, mine = first + warp * WARP;
    // mutant: guard, term, flip: the warp has no keys, or these queries see none of them: all would be masked, or not stored.
    if (mine >= span.k_len || start + COLUMNS <= mine - span.reach + 1) continue;
    const bf16* const q_tile = q_tiles + buffer * COLUMNS * T::WIDTH;
    const bf16* const dout_tile = dout_tiles + buffer * COLUMNS * T::WIDTH;
    const float* const stats_tile = stats_tiles + buffer * 2 * COLUMNS;
    Matrix<ROW_TILES, COLUMNS> p, ds;
    products<HS, ROW_TILES, COLUMNS>(p, k_tile, warp * WARP, q_tile);
    products<HS, ROW_TILES, COLUMNS>(ds, v_tile, warp * WARP, dout_tile);
    weigh_keys<ROW_TILES, COLUMNS>(p, ds, stats_tile, span, mine, start, lane, scale * LOG2_E);
    add_products<HS, ROW_TILES, COLUMNS>(dv_sums, p, dout_tile);
    add_products<HS, ROW_TILES, COLUMNS>(dk_sums, ds, q_tile);
  }
  store_keys<HS>(dk, dv, dk_parts, dv_parts, dk_sums, dv_sums, spans, heads, kv_heads, head_size, scale);
}

// For `queries`: ds, the gradients of P, becomes dS, from p, scores. The warp's queries start at `mine`, the tile's keys at `start`.
template <int ROW_TILES, int COLUMNS>
__device__ __forceinline__ void weigh_queries(Matrix<ROW_TILES, COLUMNS>& p, Matrix<ROW_TILES, COLUMNS>& ds, const float* stats,
                                              const Span& span, int first, int start, int thread, float scale) {
  const int own = thread / 32 * (16 * ROW_TILES), mine = first + own, lane = thread % 32;
  // mutant: condition, flip: elsewhere all are seen, and nothing is masked.
  if (start + COLUMNS > span.seen(mine)) {
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
      for (int n = 0; n < COLUMNS / 8; n++)
        for (int e = 0; e < 4; e++) {
          const int key = start + 8 * n + lane % 4 * 2 + e % 2;
          if (key >= span.seen(mine + 16 * t + e / 2 * 8 + lane / 4)) p[t][n][e] = -INFINITY;
        }
  }
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++)
    for (int half = 0; half < 2; half++) {
      const Pack<float, 2> stat = load_pack<2>(stats + 2 * (own + 16 * t + 8 * half + lane / 4));
#pragma unroll
      for (int n = 0; n < COLUMNS / 8; n++)
        for (int e = 2 * half; e < 2 * half + 2; e++)
          ds[t][n][e] = weight(p[t][n][e], scale, stat[0]) * (ds[t][n][e] - stat[1]);
    }
}

// dq of a tile of queries.
template <int HS>
__device__ __forceinline__ void queries(bf16* dq, const bf16* dout, const bf16* q, const bf16* k, const bf16* v, const float* stats,
                                        const int4* spans, int rows, int heads, int kv_heads, int head_size, float scale,
                                        int causal) {
  using T = prefill::Tile<HS>;
  constexpr int ROW_TILES = Queries<HS>::ROW_TILES, COLUMNS = Queries<HS>::COLUMNS, WARP = 16 * ROW_TILES, ROWS = 4 * WARP;
  const int head = blockIdx.x, first = tile_from_last() * ROWS;
  const Span span(spans[blockIdx.z], causal);
  if (first >= span.q_len) return;  // mutant: guard, flip: no warp would have a query.
  const int k_stride = kv_heads * head_size, stride = heads * head_size;
  const int64_t row = span.q_start + first;
  const int64_t k_at = static_cast<int64_t>(span.k_start) * k_stride + head / (heads / kv_heads) * head_size;
  bf16* const q_tile = shared_memory<bf16>();
  bf16* const dout_tile = q_tile + ROWS * T::WIDTH;
  bf16* const k_tiles = dout_tile + ROWS * T::WIDTH;
  bf16* const v_tiles = k_tiles + 2 * COLUMNS * T::WIDTH;
  float* const stats_tile = reinterpret_cast<float*>(v_tiles + 2 * COLUMNS * T::WIDTH);
  const auto load = [&](int start, int buffer) {
    const int64_t from = k_at + static_cast<int64_t>(start) * k_stride;
    const int to = buffer * COLUMNS * T::WIDTH, rest = span.k_len - start;
    prefill::copy_rows<HS, COLUMNS>(k_tiles + to, k + from, k_stride, rest, head_size);
    prefill::copy_rows<HS, COLUMNS>(v_tiles + to, v + from, k_stride, rest, head_size);
    cp_async_commit();
  };
  const int keys = span.seen(first + ROWS - 1);  // what is past the diagonal would be masked: saves time

  Matrix<ROW_TILES, HS> sums;
  clear<ROW_TILES, HS>(sums);
  if (keys > 0) {  // no copy may be under way when the block ends
    prefill::copy_rows<HS, ROWS>(q_tile, q + row * stride + head * head_size, stride, span.q_len - first, head_size);
    prefill::copy_rows<HS, ROWS>(dout_tile, dout + row * stride + head * head_size, stride, span.q_len - first, head_size);
    copy_stats<ROWS>(stats_tile, stats + 2 * (static_cast<int64_t>(head) * rows + row), span.q_len - first);
    load(0, 0);
  }
  // mutant: flip: one more tile is seen by no query.
  for (int start = 0, buffer = 0; start < keys; start += COLUMNS, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has come for all, and all are done with the one before, whose buffer is filled next
    if (start + COLUMNS < keys) load(start + COLUMNS, buffer ^ 1);
    const int thread = fresh(threadIdx.x), warp = thread / 32, mine = first + warp * WARP;
    // mutant: guard, term, flip: the warp has no queries, or they see none of these keys: all would be masked, or not stored.
    if (mine >= span.q_len || start >= span.seen(mine + WARP - 1)) continue;
    const bf16* const k_tile = k_tiles + buffer * COLUMNS * T::WIDTH;
    Matrix<ROW_TILES, COLUMNS> p, ds;
    products<HS, ROW_TILES, COLUMNS>(p, q_tile, warp * WARP, k_tile);
    products<HS, ROW_TILES, COLUMNS>(ds, dout_tile, warp * WARP, v_tiles + buffer * COLUMNS * T::WIDTH);
    weigh_queries<ROW_TILES, COLUMNS>(p, ds, stats_tile, span, first, start, thread, scale * LOG2_E);
    add_products<HS, ROW_TILES, COLUMNS>(sums, ds, k_tile);
  }
  // Where the sums go is computed again, for want of registers.
  const int4 again = spans[fresh(blockIdx.z)];
  const int mine = fresh(tile_from_last()) * ROWS + warp_id() * WARP;
  dq += (static_cast<int64_t>(again.x + mine) * heads + fresh(blockIdx.x)) * head_size;
  store<HS, ROW_TILES>(dq, static_cast<int64_t>(heads) * head_size, sums, again.y - mine, head_size, scale);
}

}  // namespace tiles
