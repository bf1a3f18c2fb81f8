// out[i] = sum_j p_ij v_j / sum_j p_ij, p_ij = exp(scale q_i . k_j), over the keys j that query i of its span sees; lse_i = log sum_j p_ij.
// The softmax is taken online, relative to the largest score so far (Milakov & Gimelshein 2018; Dao 2022, 2023): no T x T buffer.
//
// out, q [Tq, NH*HS]; k, v [Tk, NKV*HS]; lse [Tq, NH] in float, or null. NH / NKV query heads running share a key/value head.
// spans: {q_start, q_len, k_start, k_len}; with a causal mask query i of a span sees its first i + 1 + k_len - q_len keys, else all.
// A query without keys gets zeros and -inf. Rows outside the spans are left alone. scale > 0.
//
//   attention_forward_bf16_hsN         attention_prefill.cuh  128 queries x head a block, tensor cores; HS up to N, a multiple of 8
//   attention_forward_f32_hsN          attention_plain.cuh    32 queries x head a block, exact; any HS up to N
//   attention_decode_forward_*_hsN     attention_decode.cuh   spans of one query, 256 keys x key/value head a block; HS up to N, whole packs
//   attention_combine_forward_*                               then a warp a query head adds up the splits
// The forward kernels take spans of `least` queries or more: a launcher that has both kinds calls them with least = 2, so that how a
// span is computed, and thus its bits, depends on the span alone. Blocks: attention_span.cuh.
//
// Prefill, FLOPs: 4 HS a query, head and key seen. Bytes: 2 HS (2 NH Tq + 2 NKV Tk). Bound by the tensor cores at 989 TFLOP/s (H100, bf16):
//   Qwen2-VL-2B, T = 2048, causal, NH 12, NKV 2, HS 128: 12.9 GFLOP, 13.0 us (14.7 MB: 4.4 us).
//   SmolVLM-500M's vision tower, 17 tiles of 1024 patches, NH 12, HS 64: 54.8 GFLOP, 55 us.
//   mma.sync does not reach that peak on an H100: attention_hopper.cu takes its place there.
// Decode, bytes: 4 HS NKV a key in bf16, and 2 / 256 of that for each query head of a group (parts). Bound by memory at 3.35 TB/s:
//   SmolVLM-500M, 64 sequences of 1500 keys, NH 15, NKV 5, HS 64: 123 MB, 37 us.
// Reached: not yet run on a GPU.
//
// Considered: one row tile a warp (half the registers, but shared memory is then as busy as the tensor cores); K and V in
// one buffer each, filled in turn, with 64 keys at HS 128 (two barriers a tile, twice the registers for scores; to be measured); query heads
// of a group stacked into one tile (fewer reads of K from L2; matters for spans shorter than a tile); decode on tensor cores (the group's
// heads as rows: for groups of 8 and more, where products take longer than memory).
#include "attention_decode.cuh"
#include "attention_plain.cuh"
#include "attention_prefill.cuh"

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs64(bf16* out, float* lse, const bf16* q, const bf16* k,
                                                                              const bf16* v, const int4* spans, int least,
                                                                              int heads, int kv_heads, int head_size, float scale,
                                                                              int causal) {
  prefill::attention<64>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs72(bf16* out, float* lse, const bf16* q, const bf16* k,
                                                                              const bf16* v, const int4* spans, int least,
                                                                              int heads, int kv_heads, int head_size, float scale,
                                                                              int causal) {
  prefill::attention<72>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs80(bf16* out, float* lse, const bf16* q, const bf16* k,
                                                                              const bf16* v, const int4* spans, int least,
                                                                              int heads, int kv_heads, int head_size, float scale,
                                                                              int causal) {
  prefill::attention<80>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs96(bf16* out, float* lse, const bf16* q, const bf16* k,
                                                                              const bf16* v, const int4* spans, int least,
                                                                              int heads, int kv_heads, int head_size, float scale,
                                                                              int causal) {
  prefill::attention<96>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_bf16_hs128(bf16* out, float* lse, const bf16* q, const bf16* k,
                                                                               const bf16* v, const int4* spans, int least,
                                                                               int heads, int kv_heads, int head_size, float scale,
                                                                               int causal) {
  prefill::attention<128>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32_hs64(float* out, float* lse, const float* q, const float* k,
                                                                             const float* v, const int4* spans, int least,
                                                                             int heads, int kv_heads, int head_size, float scale,
                                                                             int causal) {
  plain::attention<64>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32_hs128(float* out, float* lse, const float* q, const float* k,
                                                                              const float* v, const int4* spans, int least,
                                                                              int heads, int kv_heads, int head_size, float scale,
                                                                              int causal) {
  plain::attention<128>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_forward_f32_hs256(float* out, float* lse, const float* q, const float* k,
                                                                              const float* v, const int4* spans, int least,
                                                                              int heads, int kv_heads, int head_size, float scale,
                                                                              int causal) {
  plain::attention<256>(out, lse, q, k, v, spans, least, heads, kv_heads, head_size, scale, causal);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode_forward_bf16_hs64(float* parts, const bf16* q, const bf16* k,
                                                                                     const bf16* v, const int4* spans, int splits,
                                                                                     int heads, int kv_heads, int head_size, float scale) {
  const decode::Contiguous<bf16> keys{k}, values{v};
  decode::attention<64>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode_forward_bf16_hs128(float* parts, const bf16* q, const bf16* k,
                                                                                      const bf16* v, const int4* spans, int splits,
                                                                                      int heads, int kv_heads, int head_size, float scale) {
  const decode::Contiguous<bf16> keys{k}, values{v};
  decode::attention<128>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode_forward_f32_hs64(float* parts, const float* q, const float* k,
                                                                                    const float* v, const int4* spans, int splits,
                                                                                    int heads, int kv_heads, int head_size, float scale) {
  const decode::Contiguous<float> keys{k}, values{v};
  decode::attention<64>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_decode_forward_f32_hs128(float* parts, const float* q, const float* k,
                                                                                     const float* v, const int4* spans, int splits,
                                                                                     int heads, int kv_heads, int head_size, float scale) {
  const decode::Contiguous<float> keys{k}, values{v};
  decode::attention<128>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_combine_forward_bf16(bf16* out, float* lse, const float* parts,
                                                                                 const int4* spans, int n_spans, int splits, int heads,
                                                                                 int head_size) {
  decode::combine(out, lse, parts, spans, n_spans, splits, heads, head_size);
}

extern "C" __global__ void __launch_bounds__(128) attention_combine_forward_f32(float* out, float* lse, const float* parts,
                                                                                const int4* spans, int n_spans, int splits, int heads,
                                                                                int head_size) {
  decode::combine(out, lse, parts, spans, n_spans, splits, heads, head_size);
}
