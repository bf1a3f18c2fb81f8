// The gradient of attention on Hopper: attention_backward_hopper.cu says what its blocks and warps do.
#pragma once
#include "attention_hopper.cuh"
#include "attention_weights.cuh"

#ifdef MPA_HOPPER
namespace hopper {

constexpr int OWN = 128;  // rows of a block

// Head size, rows of a tile that comes by, how many of those there is room for, and floats that come with one.
template <int HS, int OTHERS, int STAGES_, int STATS_>
struct Plan {
  using Own = Rows<HS, OWN>;
  using Other = Rows<HS, OTHERS>;
  static constexpr int STAGES = STAGES_, STATS = STATS_;
};
template <int HS>
using KeysPlan = Plan<HS, 64, 3, 2 * 64>;
template <int HS>
using QueriesPlan = Plan<HS, 128, 2, 0>;

// The block's shared memory. stats: of a stage lse log2(e) of each query, then delta.
template <class P>
struct Shared {
  unsigned char *a, *b, *c, *d;
  float* stats;
  Mbarrier *own, *ragged, *full, *empty;

  __device__ __forceinline__ Shared() {
    a = shared_memory<unsigned char>();
    b = a + P::Own::BYTES;
    c = b + P::Own::BYTES;
    d = c + P::STAGES * P::Other::BYTES;
    stats = reinterpret_cast<float*>(d + P::STAGES * P::Other::BYTES);
    own = reinterpret_cast<Mbarrier*>(stats + P::STAGES * P::STATS);
    ragged = own + 1;
    full = own + 2;
    empty = full + P::STAGES;
  }

  __device__ __forceinline__ void start() const {
    if (threadIdx.x == 0) {
      mbarrier_init(own, 1);
      mbarrier_init(ragged, 1);
      for (int i = 0; i < P::STAGES; i++) {
        mbarrier_init(full + i, 1);
        mbarrier_init(empty + i, 2 * WARPGROUP / 32);  // each warp says for itself when it is done
      }
      mbarrier_fence_init();  // mutant: copy: an order between proxies, not seen on the host.
    }
    __syncthreads();
  }
};

// Where a block's inputs begin: a head, and a row of the tensor.
struct Corner {
  int head, row;
};

// The loading warp. `there`: rows of C and D from their corner to the end of the span; stats: of the first of them.
template <class P>
__device__ __forceinline__ void produce(const Shared<P>& shared, const TensorMap& a, const TensorMap& b, const TensorMap& c, const TensorMap& d,
                                        Corner own, Corner other, int tiles, int there, const float* stats) {
  using T = typename P::Other;
  const int lane = lane_id(), rows = there - (tiles - 1) * T::COUNT;  // of the last tile, those that are the span's
  // mutant: condition, flip: there may be no row to fill then.
  const bool ragged = rows < T::COUNT;
  if (lane == 0) {
    mbarrier_arrive_expect(shared.own, 2 * P::Own::BYTES);
    load<typename P::Own>(shared.a, a, shared.own, own.head, own.row);
    load<typename P::Own>(shared.b, b, shared.own, own.head, own.row);
  }
  for (int tile = 0; tile < tiles; tile++) {
    const Place<P::STAGES> at(tile);
    Pack<float, 2> lse, delta;  // of this lane's two queries
    if constexpr (P::STATS > 0) {
      for (int i = 0; i < 2; i++) {
        const int query = tile * T::COUNT + 2 * lane + i;
        const bool real = query < there;
        lse[i] = real ? stats[2 * query] : 0.0f;
        delta[i] = real ? stats[2 * query + 1] : 0.0f;
      }
    }
    mbarrier_wait(shared.empty + at.stage, at.parity ^ 1);
    if constexpr (P::STATS > 0) {
      float* const to = shared.stats + at.stage * P::STATS + 2 * lane;
      store_pack(to, lse);
      store_pack(to + T::COUNT, delta);
    }
    __syncwarp();  // the statistics are there, and no lane comes to a wait a whole phase late
    if (lane != 0) continue;
    Mbarrier* const full = ragged && tile == tiles - 1 ? shared.ragged : shared.full + at.stage;
    mbarrier_arrive_expect(full, 2 * T::BYTES);
    load<T>(shared.c + at.stage * T::BYTES, c, full, other.head, other.row + tile * T::COUNT);
    load<T>(shared.d + at.stage * T::BYTES, d, full, other.head, other.row + tile * T::COUNT);
  }
  if (!ragged) return;
  const Place<P::STAGES> last(tiles - 1);
  mbarrier_wait(shared.ragged, 0);
  clear_from<T>(shared.c + last.stage * T::BYTES, rows);
  clear_from<T>(shared.d + last.stage * T::BYTES, rows);
  fence_async_proxy();  // mutant: copy: an order between proxies, not seen on the host.
  __syncwarp();
  if (lane == 0) mbarrier_arrive(shared.full + last.stage);
}

// A warpgroup that multiplies, with 64 of the block's rows, from `mine` in the span on.
template <class P>
struct Consumer {
  using T = typename P::Other;
  const Shared<P>& shared;
  const Span& span;
  const int offset, mine;  // of its rows: in the block, in the span
  const float scale;  // times log2(e)

  __device__ __forceinline__ static int mine_in_block() { return (warpgroup_id() - 1) * 64; }
  // Of this lane: its first row; the second is 8 further.
  __device__ __forceinline__ int row() const { return mine + warp_id() % 4 * 16 + lane_id() / 4; }

  // S and dP of a tile, on their way.
  __device__ __forceinline__ void issue(float (&s)[T::COUNT / 2], float (&dp)[T::COUNT / 2], int tile) const {
    const Place<P::STAGES> at(tile);
    const int own = offset * P::Own::ROW;
    mbarrier_wait(shared.full + at.stage, at.parity);
    wgmma_fence(s, dp);
    issue_products<typename P::Own, T>(s, shared.a + own, shared.c + at.stage * T::BYTES);
    issue_products<typename P::Own, T>(dp, shared.b + own, shared.d + at.stage * T::BYTES);
  }

  // Tiles that this warp does not need go back unread, by one lane. If there are more than one the warp has no others: no lane comes to a
  // wait a whole phase early or late.
  __device__ __forceinline__ void hand_back(int from, int to) const {
    if (lane_id() != 0) return;
#pragma unroll 1
    for (int tile = from; tile < to; tile++) {
      const Place<P::STAGES> at(tile);
      mbarrier_wait(shared.full + at.stage, at.parity);  // not before its phase has begun
      mbarrier_arrive(shared.empty + at.stage);
    }
  }
};

// For `keys`: s, scores, becomes P. The tile's queries start at `start`.
template <class P>
__device__ __forceinline__ void weigh_keys(const Consumer<P>& at, float (&s)[P::Other::COUNT / 2], const float* lse, int start) {
  constexpr int N = P::Other::COUNT / 2;
  const int quad = lane_id() % 4;
  // mutant: condition, flip: elsewhere all are seen, and nothing is masked.
  if (at.mine + 64 > at.span.seen(start)) {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (at.row() + i / 2 % 2 * 8 >= at.span.seen(start + i / 4 * 8 + 2 * quad + i % 2)) s[i] = -INFINITY;
  }
#pragma unroll
  for (int n = 0; n < N / 4; n++) {
    const Pack<float, 2> stat = load_pack<2>(lse + 8 * n + 2 * quad);
    for (int e = 0; e < 4; e++) s[4 * n + e] = weight(s[4 * n + e], at.scale, stat[e % 2]);
  }
}

// dk and dv of 64 keys, from the block's tiles of queries. The first is at `begin`; `from`: the first that these keys are seen from.
template <class P, int HS>
__device__ __forceinline__ void add_keys(const Consumer<P>& at, float (&dk)[HS / 2], float (&dv)[HS / 2], int begin, int from, int tiles) {
  using T = typename P::Other;
  constexpr int N = T::COUNT / 2;
  float s[N], dp[N];
  uint32_t p[N / 8][4], ds[N / 8][4];
#pragma unroll 1
  for (int tile = from; tile < tiles; tile++) {
    const int stage = Place<P::STAGES>(tile).stage;
    const float* const stats = at.shared.stats + stage * P::STATS;
    at.issue(s, dp, tile);
    wgmma_wait<1>(s);
    weigh_keys<P>(at, s, stats, begin + tile * T::COUNT);
    pack(p, s);
    wgmma_fence(dv, p);
    issue_sums<T>(dv, p, at.shared.d + stage * T::BYTES);
    wgmma_wait<1>(dp);
#pragma unroll
    for (int n = 0; n < N / 4; n++) {
      const Pack<float, 2> delta = load_pack<2>(stats + T::COUNT + 8 * n + 2 * (lane_id() % 4));
      for (int e = 0; e < 4; e++) dp[4 * n + e] = s[4 * n + e] * (dp[4 * n + e] - delta[e % 2]);
    }
    pack(ds, dp);
    wgmma_fence(dk, ds);
    issue_sums<T>(dk, ds, at.shared.c + stage * T::BYTES);
    wgmma_wait<0>(dk, dv, p, ds);
    __syncwarp();  // all lanes have read the statistics
    release(at.shared.empty + stage);
  }
}

// For `queries`: s, scores, becomes P. Returns the bits of all of it, for keep_before: of a sum of exponentials ptxas knows that it is not
// below zero, and would drop that.
template <class P>
__device__ __forceinline__ float weigh_queries(const Consumer<P>& at, float (&s)[P::Other::COUNT / 2], const float (&lse)[2], int start) {
  constexpr int N = P::Other::COUNT / 2;
  // mutant: condition, flip: elsewhere all are seen, and nothing is masked.
  if (start + P::Other::COUNT > at.span.seen(at.mine)) {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (start + i / 4 * 8 + lane_id() % 4 * 2 + i % 2 >= at.span.seen(at.row() + i / 2 % 2 * 8)) s[i] = -INFINITY;
  }
#pragma unroll
  for (int i = 0; i < N; i++) s[i] = weight(s[i], at.scale, lse[i / 2 % 2]);
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < N; i += 2) bits |= __float_as_uint(s[i]) | __float_as_uint(s[i + 1]);
  return __uint_as_float(bits);
}

// dq of 64 queries, which see the first `tiles` tiles of keys. stats: of the span's first query.
template <class P, int HS>
__device__ __forceinline__ void add_queries(const Consumer<P>& at, float (&dq)[HS / 2], const float* stats, int tiles) {
  using T = typename P::Other;
  constexpr int N = T::COUNT / 2;
  float s[N], dp[N], lse[2], delta[2];
  uint32_t ds[N / 8][4];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const Pack<float, 2> stat = load_pack<2>(stats + 2 * min(at.row() + 8 * half, at.span.q_len - 1));
    lse[half] = stat[0], delta[half] = stat[1];
  }
#pragma unroll 1
  for (int tile = 0; tile < tiles; tile++) {
    at.issue(s, dp, tile);
    wgmma_wait<1>(s);
    keep_before(weigh_queries<P>(at, s, lse, tile * T::COUNT));
    wgmma_wait<0>(dp);
#pragma unroll
    for (int i = 0; i < N; i++) dp[i] = s[i] * (dp[i] - delta[i / 2 % 2]);
    pack(ds, dp);
    wgmma_fence(dq, ds);
    issue_sums<T>(dq, ds, at.shared.c + Place<P::STAGES>(tile).stage * T::BYTES);
    wgmma_wait<0>(dq, ds);
    release(at.shared.empty + Place<P::STAGES>(tile).stage);
  }
}

// The sums of a lane, times scale, into rows `stride` apart, of which this lane has the first and the eighth after it, if they are there.
template <int HS, class To>
__device__ __forceinline__ void store(To* to, int64_t stride, const float (&sums)[HS / 2], int rows, int head_size, float scale) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (8 * half >= rows) break;
#pragma unroll
    for (int d = 0; d < HS / 8; d++) {  // mutant: flip: a head has HS columns at the most.
      if (8 * d >= head_size) break;
      Pack<To, 2> pair;
      for (int e = 0; e < 2; e++) pair[e] = from_f32<To>(sums[4 * d + 2 * half + e] * scale);
      store_pack(to + 8 * half * stride + 8 * d + lane_id() % 4 * 2, pair);
    }
  }
}

template <int HS>
__device__ __forceinline__ void keys(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts, const TensorMap& dout, const TensorMap& q,
                                     const TensorMap& k, const TensorMap& v, const float* stats, const int4* spans, int rows,
                                     int heads, int kv_heads, int head_size, float scale, int causal) {
  using P = KeysPlan<HS>;
  constexpr int COUNT = P::Other::COUNT;
  // With a causal mask the first keys are seen by the most queries: they go first.
  const int head = blockIdx.x, kv_head = head / (heads / kv_heads), first = blockIdx.y * OWN;
  const Span span(spans[blockIdx.z], causal);
  // mutant: guard, flip: keys that are not there would take time; no one stores what they get.
  if (first >= span.k_len) return;
  const Shared<P> shared;
  shared.start();
  // Queries before these see none of the keys.
  // mutant: clamp: 0 takes them all, and masks them.
  const int begin = max(0, first - span.reach + 1) / COUNT * COUNT;
  const int query_tiles = (span.q_len - begin + COUNT - 1) / COUNT;
  if (threadIdx.x < WARPGROUP) {
    registers_down_to<24>();
    if (warp_id() == 0 && query_tiles > 0)
      produce<P>(shared, k, v, q, dout, {kv_head, span.k_start + first}, {head, span.q_start + begin}, query_tiles, span.q_len - begin,
                 stats + 2 * (static_cast<int64_t>(head) * rows + span.q_start + begin));
    return;
  }
  registers_up_to<240>();
  float dk_sums[HS / 2], dv_sums[HS / 2];
#pragma unroll
  for (int i = 0; i < HS / 2; i++) dk_sums[i] = dv_sums[i] = 0.0f;
  const int offset = Consumer<P>::mine_in_block();
  const Consumer<P> at{shared, span, offset, first + offset, scale * LOG2_E};
  // Of the block's tiles, those before this one do not see these keys; and none needs to come for keys that are not there.
  // mutant: condition, flip: they would be given something, which no one stores.
  const int from = at.mine < span.k_len ? (max(0, at.mine - span.reach + 1) - begin) / COUNT : query_tiles;
  at.hand_back(0, from);
  if (from < query_tiles) {
    mbarrier_wait(shared.own, 0);
    add_keys<P, HS>(at, dk_sums, dv_sums, begin, from, query_tiles);
  }
  const int64_t row = span.k_start + at.row();
  const int there = span.k_len - at.row();
  if (dk_parts == nullptr) {
    const int64_t stride = static_cast<int64_t>(kv_heads) * head_size, to = row * stride + head * head_size;
    store<HS>(dk + to, stride, dk_sums, there, head_size, scale);
    store<HS>(dv + to, stride, dv_sums, there, head_size, 1.0f);
  } else {
    const int64_t stride = static_cast<int64_t>(heads) * head_size, to = row * stride + head * head_size;
    store<HS>(dk_parts + to, stride, dk_sums, there, head_size, scale);
    store<HS>(dv_parts + to, stride, dv_sums, there, head_size, 1.0f);
  }
}

template <int HS>
__device__ __forceinline__ void queries(bf16* dq, const TensorMap& dout, const TensorMap& q, const TensorMap& k, const TensorMap& v,
                                        const float* stats, const int4* spans, int rows, int heads, int kv_heads, int head_size,
                                        float scale, int causal) {
  using P = QueriesPlan<HS>;
  constexpr int COUNT = P::Other::COUNT;
  const int head = blockIdx.x, first = tile_from_last() * OWN;
  const Span span(spans[blockIdx.z], causal);
  // mutant: guard, flip: queries that are not there would take time; no one stores what they get.
  if (first >= span.q_len) return;
  const Shared<P> shared;
  shared.start();
  // What is past the diagonal would be masked: saves time.
  const int key_tiles = (span.seen(first + OWN - 1) + COUNT - 1) / COUNT;
  if (threadIdx.x < WARPGROUP) {
    registers_down_to<24>();
    if (warp_id() == 0 && key_tiles > 0)
      produce<P>(shared, q, dout, k, v, {head, span.q_start + first}, {head / (heads / kv_heads), span.k_start}, key_tiles, span.k_len, nullptr);
    return;
  }
  registers_up_to<240>();
  float sums[HS / 2];
#pragma unroll
  for (int i = 0; i < HS / 2; i++) sums[i] = 0.0f;
  const int offset = Consumer<P>::mine_in_block();
  const Consumer<P> at{shared, span, offset, first + offset, scale * LOG2_E};
  // Of the block's tiles, those that these queries see.
  // mutant: condition, flip: queries that are not there would be given something, which no one stores.
  const int seen = at.mine < span.q_len ? (span.seen(at.mine + 63) + COUNT - 1) / COUNT : 0;
  if (seen > 0) {
    mbarrier_wait(shared.own, 0);
    add_queries<P, HS>(at, sums, stats + 2 * (static_cast<int64_t>(head) * rows + span.q_start), seen);
  }
  at.hand_back(seen, key_tiles);
  const int64_t stride = static_cast<int64_t>(heads) * head_size;
  store<HS>(dq + (span.q_start + at.row()) * stride + head * head_size, stride, sums, span.q_len - at.row(), head_size, scale);
}

}  // namespace hopper
#endif
