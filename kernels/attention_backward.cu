// The gradient of attention: with P = exp(scale q k - lse), delta = rowsum(dout out) and dS = P (dout v - delta), over what the forward sees,
//   dv = P^T dout,   dk = scale dS^T q,   dq = scale dS k.                                                      (Dao 2022, 2023)
// P is computed again from the forward's lse: no T x T buffer. No atomics: every sum has one owner and one order.
//
// dq, dout, q, out [Tq, NH*HS]; dk, dv, k, v [Tk, NKV*HS]; lse [Tq, NH] in float. Overwritten are the rows of the spans, {q_start, q_len,
// k_start, k_len}, which must share neither queries nor keys; other rows are left alone. Keys that no query sees get zeros, and so do
// queries without keys (lse = -inf): they meet no tile, and -inf is never computed with. scale > 0.
//
//   attention_delta_backward_*             stats [NH, Tq, 2]: lse log2(e) and delta
//   attention_keys_backward_bf16_hsN       attention_backward_tiles.cuh  64 keys (128 at HS 64) x query head a block: dk and dv
//   attention_queries_backward_bf16_hsN    128 queries x head a block: dq
//   attention_*_backward_f32_hsN           attention_backward_plain.cuh  32 keys or queries x query head a block, exact
//   attention_group_backward_*             dk and dv of a key, from its group's query heads; only where NH > NKV
// HS up to N, a multiple of 8 in bf16. Blocks: attention_span.cuh.
//
// FLOPs: seven products of 2 HS a query, head and key seen, two more than there must be: S and dP are computed for the keys and again for
// the queries. Bytes in bf16: 2 HS (4 NH Tq + 4 NKV Tk) once, and 16 HS NH Tk for the parts of groups. At 989 TFLOP/s and 3.35 TB/s (H100):
//   Qwen2-VL-2B, T = 2048, causal, NH 12, NKV 2, HS 128: 45 GFLOP, 46 us (five products: 33 us); 29 MB, 9 us; parts 50 MB, 15 us.
//   SmolVLM-500M, T = 2048, causal, NH 15, NKV 5, HS 64: 28 GFLOP, 29 us (20 us); 21 MB, 6 us; parts 31 MB, 9 us.
//   SmolVLM's vision tower, 17 tiles of 1024 patches, NH 12, HS 64: 192 GFLOP, 194 us (137 us); 214 MB, 64 us; no parts.
// Most of the parts stays in the second-level cache (50 MB). mma.sync does not reach that peak on an H100.
// Reached: not yet run on a GPU.
//
// Considered: one kernel over keys that leaves dq in parts by key tile, added up in order. Two products less, but with tiles of 128 keys
// 214 MB (64 us in place of 13) for the Qwen shape, 856 MB (256 us in place of 55) for the vision tower: more tiles, more parts.
// dq added to in global memory, tile after tile in a fixed order: the same traffic through the second-level cache, and blocks that wait.
// All query heads of a group in one block, with no parts: 64 blocks for the Qwen shape, fewer than an H100 has SMs; and how a group is cut
// may not depend on the batch, as the bits would. delta in the kernel of queries: one launch and 4 us less, but keys then wait for it.
#include "attention_backward_plain.cuh"
#include "attention_backward_tiles.cuh"

namespace tiles {

// stats[head][row] = {lse log2(e), rowsum(dout out)}. Eight lanes a row and head, 16 rows and heads a block.
template <class T>
__device__ __forceinline__ void delta(float* stats, const T* dout, const T* out, const float* lse, int rows, int heads, int head_size) {
  // mutant: condition: false reads element by element, which only takes longer.
  constexpr int LANES = 8, N = sizeof(T) == 2 ? 8 : 1;  // f32 may have any head size
  const int64_t pairs = static_cast<int64_t>(rows) * heads;
  const int64_t own = static_cast<int64_t>(blockIdx.x) * (128 / LANES) + threadIdx.x / LANES;
  const int64_t pair = min(own, pairs - 1);  // lanes past the end work along
  float sum = 0.0f;
  for (int c = threadIdx.x % LANES * N; c < head_size; c += LANES * N) {
    const Pack<T, N> a = load_pack<N>(dout + pair * head_size + c), b = load_pack<N>(out + pair * head_size + c);
    for (int i = 0; i < N; i++) sum += to_f32(a[i]) * to_f32(b[i]);
  }
#pragma unroll
  for (int bit = LANES / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, bit);
  if (own >= pairs || threadIdx.x % LANES != 0) return;
  const Pack<float, 2> stat = {{lse[pair] * LOG2_E, sum}};
  store_pack(stats + 2 * (pair % heads * rows + pair / heads), stat);
}

// dk and dv of a key: the sums over the query heads of each group, from the first to the last. A block a key.
template <class T>
__device__ __forceinline__ void group(T* dk, T* dv, const float* dk_parts, const float* dv_parts, const int4* spans, int longest,
                                      int kv_heads, int group, int head_size) {
  const int4 span = spans[blockIdx.x / longest];
  const int key = static_cast<int>(blockIdx.x) % longest;
  if (key >= span.w) return;
  const int64_t row = static_cast<int64_t>(span.z + key) * kv_heads;
  for (int i = threadIdx.x; i < kv_heads * head_size; i += 128) {
    const int64_t part = (row + i / head_size) * group * head_size + i % head_size;
    float dk_sum = 0.0f, dv_sum = 0.0f;
    for (int g = 0; g < group; g++) {
      dk_sum += dk_parts[part + g * head_size];
      dv_sum += dv_parts[part + g * head_size];
    }
    dk[row * head_size + i] = from_f32<T>(dk_sum);
    dv[row * head_size + i] = from_f32<T>(dv_sum);
  }
}

}  // namespace tiles

extern "C" __global__ void __launch_bounds__(128) attention_delta_backward_bf16(float* stats, const bf16* dout, const bf16* out,
                                                                                const float* lse, int rows, int heads, int head_size) {
  tiles::delta(stats, dout, out, lse, rows, heads, head_size);
}

extern "C" __global__ void __launch_bounds__(128) attention_group_backward_bf16(bf16* dk, bf16* dv, const float* dk_parts,
                                                                                const float* dv_parts, const int4* spans, int longest,
                                                                                int kv_heads, int group, int head_size) {
  tiles::group(dk, dv, dk_parts, dv_parts, spans, longest, kv_heads, group, head_size);
}

extern "C" __global__ void __launch_bounds__(128) attention_delta_backward_f32(float* stats, const float* dout, const float* out,
                                                                               const float* lse, int rows, int heads, int head_size) {
  tiles::delta(stats, dout, out, lse, rows, heads, head_size);
}

extern "C" __global__ void __launch_bounds__(128) attention_group_backward_f32(float* dk, float* dv, const float* dk_parts,
                                                                               const float* dv_parts, const int4* spans, int longest,
                                                                               int kv_heads, int group, int head_size) {
  tiles::group(dk, dv, dk_parts, dv_parts, spans, longest, kv_heads, group, head_size);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_bf16_hs64(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts,
                                                                                    const bf16* dout, const bf16* q, const bf16* k,
                                                                                    const bf16* v, const float* stats, const int4* spans,
                                                                                    int rows, int heads, int kv_heads,
                                                                                    int head_size, float scale, int causal) {
  tiles::keys<64>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_bf16_hs72(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts,
                                                                                    const bf16* dout, const bf16* q, const bf16* k,
                                                                                    const bf16* v, const float* stats, const int4* spans,
                                                                                    int rows, int heads, int kv_heads,
                                                                                    int head_size, float scale, int causal) {
  tiles::keys<72>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_bf16_hs80(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts,
                                                                                    const bf16* dout, const bf16* q, const bf16* k,
                                                                                    const bf16* v, const float* stats, const int4* spans,
                                                                                    int rows, int heads, int kv_heads,
                                                                                    int head_size, float scale, int causal) {
  tiles::keys<80>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_bf16_hs96(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts,
                                                                                    const bf16* dout, const bf16* q, const bf16* k,
                                                                                    const bf16* v, const float* stats, const int4* spans,
                                                                                    int rows, int heads, int kv_heads,
                                                                                    int head_size, float scale, int causal) {
  tiles::keys<96>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_bf16_hs128(bf16* dk, bf16* dv, float* dk_parts, float* dv_parts,
                                                                                     const bf16* dout, const bf16* q, const bf16* k,
                                                                                     const bf16* v, const float* stats, const int4* spans,
                                                                                     int rows, int heads, int kv_heads,
                                                                                     int head_size, float scale, int causal) {
  tiles::keys<128>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_bf16_hs64(bf16* dq, const bf16* dout, const bf16* q,
                                                                                       const bf16* k, const bf16* v, const float* stats,
                                                                                       const int4* spans, int rows, int heads,
                                                                                       int kv_heads, int head_size, float scale,
                                                                                       int causal) {
  tiles::queries<64>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_bf16_hs72(bf16* dq, const bf16* dout, const bf16* q,
                                                                                       const bf16* k, const bf16* v, const float* stats,
                                                                                       const int4* spans, int rows, int heads,
                                                                                       int kv_heads, int head_size, float scale,
                                                                                       int causal) {
  tiles::queries<72>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_bf16_hs80(bf16* dq, const bf16* dout, const bf16* q,
                                                                                       const bf16* k, const bf16* v, const float* stats,
                                                                                       const int4* spans, int rows, int heads,
                                                                                       int kv_heads, int head_size, float scale,
                                                                                       int causal) {
  tiles::queries<80>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_bf16_hs96(bf16* dq, const bf16* dout, const bf16* q,
                                                                                       const bf16* k, const bf16* v, const float* stats,
                                                                                       const int4* spans, int rows, int heads,
                                                                                       int kv_heads, int head_size, float scale,
                                                                                       int causal) {
  tiles::queries<96>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_bf16_hs128(bf16* dq, const bf16* dout, const bf16* q,
                                                                                        const bf16* k, const bf16* v, const float* stats,
                                                                                        const int4* spans, int rows, int heads,
                                                                                        int kv_heads, int head_size, float scale,
                                                                                        int causal) {
  tiles::queries<128>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_f32_hs64(float* dk, float* dv, float* dk_parts, float* dv_parts,
                                                                                   const float* dout, const float* q, const float* k,
                                                                                   const float* v, const float* stats, const int4* spans,
                                                                                   int rows, int heads, int kv_heads,
                                                                                   int head_size, float scale, int causal) {
  plain::keys<64>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_f32_hs128(float* dk, float* dv, float* dk_parts, float* dv_parts,
                                                                                    const float* dout, const float* q, const float* k,
                                                                                    const float* v, const float* stats, const int4* spans,
                                                                                    int rows, int heads, int kv_heads,
                                                                                    int head_size, float scale, int causal) {
  plain::keys<128>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_keys_backward_f32_hs256(float* dk, float* dv, float* dk_parts, float* dv_parts,
                                                                                    const float* dout, const float* q, const float* k,
                                                                                    const float* v, const float* stats, const int4* spans,
                                                                                    int rows, int heads, int kv_heads,
                                                                                    int head_size, float scale, int causal) {
  plain::keys<256>(dk, dv, dk_parts, dv_parts, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_f32_hs64(float* dq, const float* dout, const float* q,
                                                                                      const float* k, const float* v, const float* stats,
                                                                                      const int4* spans, int rows, int heads,
                                                                                      int kv_heads, int head_size, float scale,
                                                                                      int causal) {
  plain::queries<64>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_f32_hs128(float* dq, const float* dout, const float* q,
                                                                                       const float* k, const float* v, const float* stats,
                                                                                       const int4* spans, int rows, int heads,
                                                                                       int kv_heads, int head_size, float scale,
                                                                                       int causal) {
  plain::queries<128>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_queries_backward_f32_hs256(float* dq, const float* dout, const float* q,
                                                                                       const float* k, const float* v, const float* stats,
                                                                                       const int4* spans, int rows, int heads,
                                                                                       int kv_heads, int head_size, float scale,
                                                                                       int causal) {
  plain::queries<256>(dq, dout, q, k, v, stats, spans, rows, heads, kv_heads, head_size, scale, causal);
}
