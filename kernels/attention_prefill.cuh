// Many queries a span, bf16, on tensor cores: an online softmax over tiles of keys (Dao 2022, 2023).
//
// A block: 128 queries of one head of one span, four warps of 32 queries (two row tiles of m16n8k16, so that a fragment of K or V that
// ldmatrix brings serves two products). Shared memory: the queries, and two buffers of keys and values: one is filled by cp.async while the
// other is used, with one barrier a tile. Scores and sums stay in registers; P goes from the layout of C into that of A by packing alone.
#pragma once
#include "attention_span.cuh"
#include "mma.cuh"

namespace prefill {

// Sizes for head size HS. Rows in shared memory are WIDTH elements, a multiple of 16 (the depth of a product), in chunks of 16 bytes. The
// chunks of a row are permuted so that the same chunk of eight rows running lies in eight different groups of four banks.
template <int HS>
struct Tile {
  static constexpr int THREADS = 128, WARP_QUERIES = 32, QUERIES = 128;
  static constexpr int KEYS = HS > 96 ? 32 : 64;  // mutant: condition, flip: at 128, 64 keys would take 96 KiB: one block on an sm_80
  static constexpr int WIDTH = (HS + 15) / 16 * 16, CHUNKS = WIDTH / 8;
  // Chunks that a row's are exchanged with. mutant: condition: with fewer more of them share a group of banks, which takes time.
  static constexpr int SPREAD = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
  static constexpr int TILE = KEYS * WIDTH;

  __device__ static __forceinline__ int at(int row, int chunk) {
    return row * WIDTH + (chunk ^ (row % 8 / (8 / SPREAD))) * 8;
  }
};

// Rows of a head into shared memory: `rows` of them are there, columns from head_size on are zero, and so are further rows.
template <int HS, int ROWS>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* from, int64_t stride, int rows, int head_size) {
  using T = Tile<HS>;
#pragma unroll 1  // unrolled, its addresses would take the registers that the sums need
  for (int i = threadIdx.x; i < ROWS * T::CHUNKS; i += T::THREADS) {
    const int row = i / T::CHUNKS, chunk = i % T::CHUNKS;
    const bool real = row < rows && chunk * 8 < head_size;
    cp_async16(to + T::at(row, chunk), real ? from + row * stride + chunk * 8 : from, real);
  }
}

// Of a warp: what is summed up over the keys so far, for the queries of its two row tiles. A lane has rows group and group + 8 of each.
template <int HS>
struct Sums {
  float out[2][HS / 8][4];
  float top[2][2];    // the largest score, times scale log2(e)
  float total[2][2];  // of the weights 2^(score - top), over this lane's columns
};

// s = Q K^T for the warp's 32 queries.
template <int HS>
__device__ __forceinline__ void scores(float (&s)[2][Tile<HS>::KEYS / 8][4], const bf16* q, const bf16* k) {
  using T = Tile<HS>;
  const int lane = lane_id(), first = warp_id() * T::WARP_QUERIES;
#pragma unroll
  for (int depth = 0; depth < T::WIDTH / 16; depth++) {
    uint32_t a[2][4];
#pragma unroll
    for (int t = 0; t < 2; t++) ldmatrix_x4(a[t], q + T::at(first + 16 * t + lane % 16, 2 * depth + lane / 16));
#pragma unroll
    for (int n = 0; n < T::KEYS / 16; n++) {
      uint32_t b[4];
      ldmatrix_x4(b, k + T::at(16 * n + lane % 8 + lane / 16 * 8, 2 * depth + lane / 8 % 2));
#pragma unroll
      for (int t = 0; t < 2; t++) {
        mma_bf16(s[t][2 * n], a[t], b[0], b[1]);
        mma_bf16(s[t][2 * n + 1], a[t], b[2], b[3]);
      }
    }
  }
}

// Scores become weights relative to the largest so far; the sums come down to it.
template <int HS>
__device__ __forceinline__ void soften(Sums<HS>& sums, float (&s)[2][Tile<HS>::KEYS / 8][4], float scale) {
  constexpr int N = Tile<HS>::KEYS / 8;
#pragma unroll
  for (int t = 0; t < 2; t++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[t][n][2 * half], s[t][n][2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
      top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
      top = fmaxf(sums.top[t][half], top * scale);
      const float shrink = exp2_approx(sums.top[t][half] - top);
      sums.top[t][half] = top;
      float total = sums.total[t][half] * shrink;
#pragma unroll
      for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) {
          s[t][n][e] = exp2_approx(fmaf(s[t][n][e], scale, -top));
          total += s[t][n][e];
        }
      }
      sums.total[t][half] = total;
#pragma unroll
      for (int d = 0; d < HS / 8; d++) {
        sums.out[t][d][2 * half] *= shrink;
        sums.out[t][d][2 * half + 1] *= shrink;
      }
    }
  }
}

// out += P V, with P rounded to bf16.
template <int HS>
__device__ __forceinline__ void add_values(Sums<HS>& sums, const float (&s)[2][Tile<HS>::KEYS / 8][4], const bf16* v) {
  using T = Tile<HS>;
  const int lane = lane_id();
#pragma unroll
  for (int depth = 0; depth < T::KEYS / 16; depth++) {
    uint32_t a[2][4];
#pragma unroll
    for (int t = 0; t < 2; t++) {
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
      ldmatrix_x4_trans(b, v + T::at(row, 2 * d + lane / 16));
#pragma unroll
      for (int t = 0; t < 2; t++) {
        mma_bf16(sums.out[t][2 * d], a[t], b[0], b[1]);
        mma_bf16(sums.out[t][2 * d + 1], a[t], b[2], b[3]);
      }
    }
    if constexpr (HS % 16 != 0) {
      uint32_t b[2];
      ldmatrix_x2_trans(b, v + T::at(row, HS / 8 - 1));
#pragma unroll
      for (int t = 0; t < 2; t++) mma_bf16(sums.out[t][HS / 8 - 1], a[t], b[0], b[1]);
    }
  }
}

// out and lse of the warp's queries, from `first` on.
template <int HS>
__device__ __forceinline__ void store(const Sums<HS>& sums, bf16* out, float* lse, const Span& span, int first, int head, int heads,
                                      int head_size) {
  const int quad = lane_id() % 4;
#pragma unroll
  for (int t = 0; t < 2; t++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = sums.total[t][half];
      total += __shfl_xor_sync(FULL_WARP, total, 1);
      total += __shfl_xor_sync(FULL_WARP, total, 2);
      const int query = first + 16 * t + 8 * half + lane_id() / 4;
      if (query >= span.q_len) continue;
      const float scale = inverse(total);
      const int64_t row = static_cast<int64_t>(span.q_start + query) * heads + head;
#pragma unroll
      // mutant: flip: the break comes first, a head has HS columns at the most.
      for (int d = 0; d < HS / 8; d++) {
        if (8 * d >= head_size) break;
        Pack<bf16, 2> pair;
        for (int e = 0; e < 2; e++) pair[e] = from_f32<bf16>(sums.out[t][d][2 * half + e] * scale);
        store_pack(out + row * head_size + 8 * d + 2 * quad, pair);
      }
      if (lse != nullptr && quad == 0) lse[row] = log_sum(sums.top[t][half], total);
    }
  }
}

template <int HS>
__device__ __forceinline__ void attention(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const int4* spans, int least,
                                          int heads, int kv_heads, int head_size, float scale, int causal) {
  using T = Tile<HS>;
  const int head = blockIdx.x, first = tile_from_last() * T::QUERIES;
  const Span span(spans[blockIdx.z], causal);
  // Another kernel's; or nothing to do. mutant: term, flip: saves time: no query would be stored.
  if (span.q_len < least || first >= span.q_len) return;
  const int64_t stride = static_cast<int64_t>(kv_heads) * head_size, q_stride = static_cast<int64_t>(heads) * head_size;
  q += (span.q_start + first) * q_stride + head * head_size;
  k += span.k_start * stride + head / (heads / kv_heads) * head_size;
  v += span.k_start * stride + head / (heads / kv_heads) * head_size;
  bf16* const q_tile = shared_memory<bf16>();
  bf16* const k_tiles = q_tile + T::QUERIES * T::WIDTH;
  bf16* const v_tiles = k_tiles + 2 * T::TILE;
  const int keys = span.seen(first + T::QUERIES - 1);  // what is past the diagonal would be masked: saves time
  // Queries of this warp. Where it has none, or they see no more keys, it only helps to load.
  // mutant: condition, flip: saves time: what queries that are not there see is not stored.
  const int mine = first + warp_id() * T::WARP_QUERIES;
  const int mine_seen = mine < span.q_len ? span.seen(mine + T::WARP_QUERIES - 1) : 0;

  Sums<HS> sums;
#pragma unroll
  for (int t = 0; t < 2; t++) {
    // mutant: loop: the first tile multiplies what is there by 0, which only NaN and infinity would survive.
    for (int d = 0; d < HS / 8; d++)
      for (int e = 0; e < 4; e++) sums.out[t][d][e] = 0.0f;  // mutant: loop: as above.
    for (int half = 0; half < 2; half++) sums.top[t][half] = -INFINITY, sums.total[t][half] = 0.0f;
  }
  const auto load = [&](int start, int buffer) {
    copy_rows<HS, T::KEYS>(k_tiles + buffer * T::TILE, k + start * stride, stride, span.k_len - start, head_size);
    copy_rows<HS, T::KEYS>(v_tiles + buffer * T::TILE, v + start * stride, stride, span.k_len - start, head_size);
    cp_async_commit();
  };
  if (keys > 0) {  // no copy may be under way when the block ends
    copy_rows<HS, T::QUERIES>(q_tile, q, q_stride, span.q_len - first, head_size);
    load(0, 0);
  }
  // mutant: flip: one more tile is masked.
  for (int start = 0, buffer = 0; start < keys; start += T::KEYS, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has come for all, and all are done with the one before, whose buffer is filled next
    if (start + T::KEYS < keys) load(start + T::KEYS, buffer ^ 1);
    if (start >= mine_seen) continue;  // mutant: guard, flip: saves time: the rest would be masked.
    float s[2][T::KEYS / 8][4] = {};
    scores<HS>(s, q_tile, k_tiles + buffer * T::TILE);
    if (start + T::KEYS > span.seen(mine)) {  // mutant: condition, flip: saves time: elsewhere all are seen
#pragma unroll
      for (int t = 0; t < 2; t++)
        for (int n = 0; n < T::KEYS / 8; n++)
          for (int e = 0; e < 4; e++) {
            const int key = start + 8 * n + lane_id() % 4 * 2 + e % 2;
            if (key >= span.seen(mine + 16 * t + e / 2 * 8 + lane_id() / 4)) s[t][n][e] = -INFINITY;
          }
    }
    soften<HS>(sums, s, scale * LOG2_E);
    add_values<HS>(sums, s, v_tiles + buffer * T::TILE);
  }
  store<HS>(sums, out, lse, span, mine, head, heads, head_size);
}

}  // namespace prefill
