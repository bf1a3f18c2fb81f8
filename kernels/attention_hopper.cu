// attention.cu's forward for spans of many queries, in bf16, on Hopper: warps that load and warps that multiply (Shah et al. 2024,
// FlashAttention-3). Formula, shapes and spans as there.
//
// A block: 128 queries of one head of one span; three warpgroups. The first has given its registers away; one warp of it asks for tiles of
// 128 keys and values (tile_load) and puts them into a ring of two stages each. The other two have 64 queries each: S = Q K^T and O += P V by
// wgmma, Q and K and V in shared memory, P in registers, where S's layout is the one that P needs. While the softmax of a tile is taken, the
// products P V of the tile before run on. A tile is free again when all eight multiplying warps have said so.
//
// A tile of keys may go on into the next span, or past the end of the tensor (zeros). Scores of such keys are masked; their weights are 0,
// but 0 * NaN is NaN, so the loading warp puts zeros over such values before it hands the tile on.
//
// Floors as in attention.cu: 13.0 us for Qwen2-VL-2B, T = 2048, causal, NH 12, NKV 2, HS 128; 55 us for 17 tiles of SmolVLM-500M's vision tower.
// Shared memory at HS 128: 32 KiB of queries, 4 x 32 KiB of keys and values; one block a multiprocessor (registers: 40 and twice 232
// a thread, of 3 x 168). In the disassembly the exponentials of a tile stand between the products P V and the wait for them (keep_before).
// Reached: not yet run on a GPU.
//
// Considered: taking turns by named barriers (ping-pong), so that the two softmaxes never fall together; three multiplying warpgroups at
// HS 64 (their sums are half as large); a persistent grid that overlaps one block's output with the next one's loads; clusters that share
// keys and values (multicast); query heads of a group stacked into one tile.
#include "attention_hopper.cuh"

#ifdef MPA_HOPPER
namespace hopper {

// Sizes for head size HS.
template <int HS>
struct Tile : Rows<HS, 128> {
  static constexpr int QUERIES = 128, KEYS = 128, STAGES = 2, LOADERS = WARPGROUP;  // Rows are as many of either
};

// The block's shared memory: queries, keys and values, barriers.
template <int HS>
struct Shared {
  using T = Tile<HS>;
  unsigned char *q, *k, *v;
  Mbarrier *q_full, *ragged, *k_full, *k_empty, *v_full, *v_empty;

  __device__ __forceinline__ Shared() {
    q = shared_memory<unsigned char>();
    k = q + T::BYTES;
    v = k + T::STAGES * T::BYTES;
    q_full = reinterpret_cast<Mbarrier*>(v + T::STAGES * T::BYTES);
    ragged = q_full + 1;
    k_full = q_full + 2;
    k_empty = k_full + T::STAGES;
    v_full = k_empty + T::STAGES;
    v_empty = v_full + T::STAGES;
  }

  __device__ __forceinline__ void start() const {
    constexpr int WARPS = 2 * WARPGROUP / 32;  // each says for itself when it is done with a tile: a wait is for one's own warp only
    if (threadIdx.x == 0) {
      mbarrier_init(q_full, 1);
      mbarrier_init(ragged, 1);
      for (int i = 0; i < T::STAGES; i++) {
        mbarrier_init(k_full + i, 1);
        mbarrier_init(v_full + i, 1);
        mbarrier_init(k_empty + i, WARPS);
        mbarrier_init(v_empty + i, WARPS);
      }
      mbarrier_fence_init();  // mutant: copy: an order between proxies, not seen on the host.
    }
    __syncthreads();
  }
};

// The loading warp. Its first lane asks for all tiles: alone, for a lane that came to a wait a whole phase late would wait for ever.
template <int HS>
__device__ __forceinline__ void produce(const Shared<HS>& shared, const TensorMap& q, const TensorMap& k, const TensorMap& v, int head, int kv_head,
                                        int q_row, const Span& span, int tiles) {
  using T = Tile<HS>;
  const int rows = span.k_len - (tiles - 1) * T::KEYS;  // of the last tile, those that are the span's
  // mutant: condition, flip: there may be no row to fill then.
  const bool ragged = rows < T::KEYS;
  if (lane_id() == 0) {
    mbarrier_arrive_expect(shared.q_full, T::BYTES);
    load<T>(shared.q, q, shared.q_full, head, q_row);
    for (int tile = 0; tile < tiles; tile++) {
      const Place<T::STAGES> at(tile);
      const int row = span.k_start + tile * T::KEYS;
      mbarrier_wait(shared.k_empty + at.stage, at.parity ^ 1);
      mbarrier_arrive_expect(shared.k_full + at.stage, T::BYTES);
      load<T>(shared.k + at.stage * T::BYTES, k, shared.k_full + at.stage, kv_head, row);
      mbarrier_wait(shared.v_empty + at.stage, at.parity ^ 1);
      Mbarrier* const full = ragged && tile == tiles - 1 ? shared.ragged : shared.v_full + at.stage;
      mbarrier_arrive_expect(full, T::BYTES);
      load<T>(shared.v + at.stage * T::BYTES, v, full, kv_head, row);
    }
  }
  if (!ragged) return;
  const Place<T::STAGES> last(tiles - 1);
  mbarrier_wait(shared.ragged, 0);
  clear_from<T>(shared.v + last.stage * T::BYTES, rows);
  fence_async_proxy();  // mutant: copy: an order between proxies, not seen on the host.
  __syncwarp();
  if (lane_id() == 0) mbarrier_arrive(shared.v_full + last.stage);
}

// Of a warpgroup: what is summed up over the keys so far, for its 64 queries. A lane has rows group and group + 8 of its warp's 16.
template <int HS>
struct Sums {
  float out[HS / 2];
  float top[2];    // the largest score, times scale log2(e)
  float total[2];  // of the weights 2^(score - top), over this lane's columns
};

// Scores become weights relative to the largest so far. shrink: what the sums so far are to be multiplied by.
template <int HS>
__device__ __forceinline__ void soften(Sums<HS>& sums, float (&s)[Tile<HS>::KEYS / 2], float (&shrink)[2], float scale) {
  constexpr int N = Tile<HS>::KEYS / 8;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
    top = fmaxf(sums.top[half], top * scale);
    shrink[half] = exp2_approx(sums.top[half] - top);
    sums.top[half] = top;
    float total = sums.total[half] * shrink[half];
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int e = 4 * n + 2 * half; e < 4 * n + 2 * half + 2; e++) {
        s[e] = exp2_approx(fmaf(s[e], scale, -top));
        total += s[e];
      }
    }
    sums.total[half] = total;
  }
}

// A warpgroup that multiplies: 64 queries from `mine` on. `tiles`: of the block.
template <int HS>
struct Consumer {
  using T = Tile<HS>;
  const Shared<HS>& shared;
  const Span& span;
  const int mine, row;  // row: of this lane's first query in the span
  const float scale;

  // Keys that a query does not see, and those of the next span.
  __device__ __forceinline__ void mask(float (&s)[T::KEYS / 2], int tile) const {
    // mutant: guard, flip: all are seen, which the loop finds out as well.
    if ((tile + 1) * T::KEYS <= span.seen(mine)) return;
#pragma unroll
    for (int i = 0; i < T::KEYS / 2; i++) {
      const int key = tile * T::KEYS + i / 4 * 8 + lane_id() % 4 * 2 + i % 2;
      if (key >= span.seen(row + i / 2 % 2 * 8)) s[i] = -INFINITY;
    }
  }

  __device__ __forceinline__ void run(Sums<HS>& sums, int tiles) const {
    const unsigned char* const q = shared.q + mine_in_block() * T::ROW;
    // Of the block's tiles, those that these queries see; the others are handed back unread.
    // mutant: condition, flip: queries that are not there would be given something, which no one stores.
    const int seen = mine < span.q_len ? (span.seen(mine + 63) + T::KEYS - 1) / T::KEYS : 0;
    float s[T::KEYS / 2], shrink[2];
    uint32_t p[T::KEYS / 16][4];
    mbarrier_wait(shared.q_full, 0);
    if (seen > 0) {
      mbarrier_wait(shared.k_full, 0);
      wgmma_fence(s);
      issue_products<T, T>(s, q, shared.k);
      wgmma_wait<0>(s);
      release(shared.k_empty);
      mask(s, 0);
      soften<HS>(sums, s, shrink, scale);
      pack(p, s);
      for (int tile = 1; tile < seen; tile++) {
        const Place<T::STAGES> now(tile), last(tile - 1);
        mbarrier_wait(shared.k_full + now.stage, now.parity);
        wgmma_fence(s);
        issue_products<T, T>(s, q, shared.k + now.stage * T::BYTES);
        mbarrier_wait(shared.v_full + last.stage, last.parity);
        wgmma_fence(sums.out, p);
        issue_sums<T>(sums.out, p, shared.v + last.stage * T::BYTES);
        wgmma_wait<1>(s);
        release(shared.k_empty + now.stage);
        mask(s, tile);
        soften<HS>(sums, s, shrink, scale);
        keep_before(sums.total[0] + sums.total[1]);
        wgmma_wait<0>(sums.out, p);
        release(shared.v_empty + last.stage);
#pragma unroll
        for (int i = 0; i < HS / 2; i++) sums.out[i] *= shrink[i / 2 % 2];
        pack(p, s);
      }
      const Place<T::STAGES> last(seen - 1);
      mbarrier_wait(shared.v_full + last.stage, last.parity);
      wgmma_fence(sums.out, p);
      issue_sums<T>(sums.out, p, shared.v + last.stage * T::BYTES);
      wgmma_wait<0>(sums.out, p);  // no one fills its place again: the block has at most one more tile
    }
#pragma unroll 1
    for (int tile = seen; tile < tiles && lane_id() == 0; tile++) {  // mutant: loop: no one waits for the last
      const Place<T::STAGES> now(tile);
      mbarrier_wait(shared.k_full + now.stage, now.parity);  // not before its phase has begun
      mbarrier_arrive(shared.k_empty + now.stage);
      mbarrier_wait(shared.v_full + now.stage, now.parity);
      mbarrier_arrive(shared.v_empty + now.stage);
    }
  }

  __device__ __forceinline__ static int mine_in_block() { return (warpgroup_id() - 1) * 64; }
};

// out and lse of this lane's queries.
template <int HS>
__device__ __forceinline__ void store(const Sums<HS>& sums, bf16* out, float* lse, const Span& span, int first, int head, int heads,
                                      int head_size) {
  const int quad = lane_id() % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float total = sums.total[half];
    total += __shfl_xor_sync(FULL_WARP, total, 1);
    total += __shfl_xor_sync(FULL_WARP, total, 2);
    const int query = first + 8 * half;
    if (query >= span.q_len) continue;
    const float scale = inverse(total);
    const int64_t row = static_cast<int64_t>(span.q_start + query) * heads + head;
#pragma unroll
    for (int d = 0; d < HS / 8; d++) {  // mutant: flip: the break comes first, a head has HS columns at the most
      if (8 * d >= head_size) break;
      Pack<bf16, 2> pair;
      for (int e = 0; e < 2; e++) pair[e] = from_f32<bf16>(sums.out[4 * d + 2 * half + e] * scale);
      store_pack(out + row * head_size + 8 * d + 2 * quad, pair);
    }
    if (lse != nullptr && quad == 0) lse[row] = log_sum(sums.top[half], total);
  }
}

template <int HS>
__device__ __forceinline__ void attention(bf16* out, float* lse, const TensorMap& q, const TensorMap& k, const TensorMap& v, const int4* spans,
                                          int least, int heads, int kv_heads, int head_size, float scale, int causal) {
  using T = Tile<HS>;
  const int head = blockIdx.x, first = tile_from_last() * T::QUERIES;
  const Span span(spans[blockIdx.z], causal);
  if (span.q_len < least) return;  // another kernel's
  // mutant: guard, flip: queries that are not there would take time; no one stores what they get.
  if (first >= span.q_len) return;
  const Shared<HS> shared;
  shared.start();
  // What is past the diagonal would be masked: saves time.
  const int key_tiles = (span.seen(first + T::QUERIES - 1) + T::KEYS - 1) / T::KEYS;
  if (threadIdx.x < T::LOADERS) {
    registers_down_to<40>();
    if (warp_id() == 0) produce<HS>(shared, q, k, v, head, head / (heads / kv_heads), span.q_start + first, span, key_tiles);
  } else {
    registers_up_to<232>();
    Sums<HS> sums;
#pragma unroll
    for (int i = 0; i < HS / 2; i++) sums.out[i] = 0.0f;
    for (int half = 0; half < 2; half++) sums.top[half] = -INFINITY, sums.total[half] = 0.0f;
    const int mine = first + Consumer<HS>::mine_in_block(), row = mine + warp_id() % 4 * 16 + lane_id() / 4;
    const Consumer<HS> consumer{shared, span, mine, row, scale * LOG2_E};
    consumer.run(sums, key_tiles);
    store<HS>(sums, out, lse, span, row, head, heads, head_size);
  }
}

}  // namespace hopper
#endif

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_forward_bf16_hs64(bf16* out, float* lse, const __grid_constant__ TensorMap q,
                                                                                       const __grid_constant__ TensorMap k,
                                                                                       const __grid_constant__ TensorMap v, const int4* spans,
                                                                                       int least, int heads, int kv_heads,
                                                                                       int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::attention<64>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_forward_bf16_hs80(bf16* out, float* lse, const __grid_constant__ TensorMap q,
                                                                                       const __grid_constant__ TensorMap k,
                                                                                       const __grid_constant__ TensorMap v, const int4* spans,
                                                                                       int least, int heads, int kv_heads,
                                                                                       int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::attention<80>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_forward_bf16_hs96(bf16* out, float* lse, const __grid_constant__ TensorMap q,
                                                                                       const __grid_constant__ TensorMap k,
                                                                                       const __grid_constant__ TensorMap v, const int4* spans,
                                                                                       int least, int heads, int kv_heads,
                                                                                       int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::attention<96>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_hopper_forward_bf16_hs128(bf16* out, float* lse, const __grid_constant__ TensorMap q,
                                                                                       const __grid_constant__ TensorMap k,
                                                                                       const __grid_constant__ TensorMap v, const int4* spans,
                                                                                       int least, int heads, int kv_heads,
                                                                                       int head_size, float scale, int causal) {
#ifdef MPA_HOPPER
  hopper::attention<128>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
#else
  __trap();
#endif
}
