// Attention of spans of one query over keys and values in pages of 128 rows (Kwon et al. 2023): the formula, the shapes and the two kernels of
// attention.cu's decode step (attention_decode.cuh), but that a span's k_start is an entry of `tables`: its key j lies in row
// tables[k_start + j / 128] * 128 + j % 128 of k, and its value there of v. A block's split of 256 keys is two pages. In rows and in pages the
// same numbers give the same bits.
//
// k, v [rows, NKV*HS] of T, or int8 with scales [rows, NKV] in float: key and value are int8 times the scale. A key's scale goes into its score,
// a value's into its weight, so that a lane multiplies integers that have become floats once for all heads of the group.
//   attention_paged_forward_*_hsN        pages of T; HS up to N, whole packs
//   attention_paged_int8_forward_*_hsN   int8; HS up to N, a multiple of 8
// Spans of more queries: kv_cache.cu gathers their pages, and attention.cu's kernels read them as rows.
//
// Bytes: 4 HS NKV a key in bf16, NKV (2 HS + 8) in int8, and half an integer a split. FLOPs: 4 HS a query head and key. Bound by memory at
// 3.35 TB/s (H100): Qwen2-VL-7B (NH 28, NKV 4, HS 128), 64 sequences of 1500 keys: 197 MB in bf16, 59 us; 101 MB in int8, 30 us. Its 1.4 GFLOP
// take 21 us of the 67 TFLOP/s outside of tensor cores.
// Reached: not yet run on a GPU.
// Considered: 16 int8 a lane (190 registers: 2 blocks a processor); the table in shared memory (two entries a block are one load); products of
// int8 by dp4a (queries would have to be rounded as well).
#include "attention_decode.cuh"

extern "C" __global__ void __launch_bounds__(128) attention_paged_forward_bf16_hs64(float* parts, const bf16* q, const bf16* k, const bf16* v,
                                                                                    const uint32_t* tables, const int4* spans, int splits,
                                                                                    int heads, int kv_heads, int head_size, float scale) {
  const decode::Paged<bf16> keys{k, nullptr, tables}, values{v, nullptr, tables};
  decode::attention<64>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_paged_forward_bf16_hs128(float* parts, const bf16* q, const bf16* k, const bf16* v,
                                                                                     const uint32_t* tables, const int4* spans, int splits,
                                                                                     int heads, int kv_heads, int head_size, float scale) {
  const decode::Paged<bf16> keys{k, nullptr, tables}, values{v, nullptr, tables};
  decode::attention<128>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_paged_forward_f32_hs64(float* parts, const float* q, const float* k, const float* v,
                                                                                   const uint32_t* tables, const int4* spans, int splits, int heads,
                                                                                   int kv_heads, int head_size, float scale) {
  const decode::Paged<float> keys{k, nullptr, tables}, values{v, nullptr, tables};
  decode::attention<64>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_paged_forward_f32_hs128(float* parts, const float* q, const float* k, const float* v,
                                                                                    const uint32_t* tables, const int4* spans, int splits,
                                                                                    int heads, int kv_heads, int head_size, float scale) {
  const decode::Paged<float> keys{k, nullptr, tables}, values{v, nullptr, tables};
  decode::attention<128>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_paged_int8_forward_bf16_hs64(float* parts, const bf16* q, const int8_t* k,
                                                                                         const float* k_scales, const int8_t* v,
                                                                                         const float* v_scales, const uint32_t* tables,
                                                                                         const int4* spans, int splits, int heads, int kv_heads,
                                                                                         int head_size, float scale) {
  const decode::Paged<int8_t> keys{k, k_scales, tables}, values{v, v_scales, tables};
  decode::attention<64>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_paged_int8_forward_bf16_hs128(float* parts, const bf16* q, const int8_t* k,
                                                                                          const float* k_scales, const int8_t* v,
                                                                                          const float* v_scales, const uint32_t* tables,
                                                                                          const int4* spans, int splits, int heads, int kv_heads,
                                                                                          int head_size, float scale) {
  const decode::Paged<int8_t> keys{k, k_scales, tables}, values{v, v_scales, tables};
  decode::attention<128>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_paged_int8_forward_f32_hs64(float* parts, const float* q, const int8_t* k,
                                                                                        const float* k_scales, const int8_t* v,
                                                                                        const float* v_scales, const uint32_t* tables,
                                                                                        const int4* spans, int splits, int heads, int kv_heads,
                                                                                        int head_size, float scale) {
  const decode::Paged<int8_t> keys{k, k_scales, tables}, values{v, v_scales, tables};
  decode::attention<64>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}

extern "C" __global__ void __launch_bounds__(128) attention_paged_int8_forward_f32_hs128(float* parts, const float* q, const int8_t* k,
                                                                                         const float* k_scales, const int8_t* v,
                                                                                         const float* v_scales, const uint32_t* tables,
                                                                                         const int4* spans, int splits, int heads, int kv_heads,
                                                                                         int head_size, float scale) {
  const decode::Paged<int8_t> keys{k, k_scales, tables}, values{v, v_scales, tables};
  decode::attention<128>(parts, q, keys, values, spans, splits, heads, kv_heads, head_size, scale);
}
